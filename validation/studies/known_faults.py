"""Faults that there once were, each by public names in a child of its own: what they do in another version, and in this one.

    python -m validation.studies.known_faults [PYTHON ...] [--only nan_fft ...] [--seconds 60]

PYTHON are interpreters in which a version is installed; by default the one that runs this.  For each fault and interpreter a line
says what became of it: right, wrong (and how), a crash, a hang.  Ends with 1 if the last interpreter has any fault.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import textwrap

#: What every case begins with: atoms of cctbx, a Miller set, data.
HEAD = """
import random, warnings
warnings.simplefilter("ignore")
import mmtbx_sfdiff as sfdiff
import torch
from cctbx import sgtbx
from cctbx.array_family import flex
from cctbx.development import random_structure
torch.set_num_threads(1)
random.seed(0); flex.set_random_seed(0)
xrs = random_structure.xray_structure(
    sgtbx.space_group_info("P 21 21 21"), elements=["C", "N", "O"] * 5, volume_per_atom=60, random_u_iso=True)
xrs.scattering_type_registry(table="it1992")
atoms, crystal = sfdiff.Atoms.from_cctbx(xrs), sfdiff.Crystal.from_cctbx(xrs)
miller = xrs.build_miller_set(False, d_min=3.0)
indices = torch.tensor([list(h) for h in miller.indices()])
bad = atoms.sites_cart.clone(); bad[6, 1] = float("nan")

def refused(function, *words):
    try:
        found = function()
    except (ValueError, TypeError, NotImplementedError) as error:
        text = str(error)
        assert "\\n" not in text.strip() and all(w in text for w in words), f"another sentence: {text[:120]}"
        return
    raise AssertionError(f"no word; gave {str(found)[:60]}")

def relative(a, b):
    return float((a - b).norm() / b.norm())

def value_and_gradient(function):
    single = atoms.to(dtype=torch.float32)
    leaf = single.sites_cart.clone().requires_grad_()
    f = function(single.replace(sites_cart=leaf))
    return [f.detach(), torch.autograd.grad(f.abs().square().sum(), leaf)[0]]

def differences(function, x, v, step=1e-4):
    found = []
    for sign in (1, -1):
        leaf = (x + sign * step * v).requires_grad_()
        found.append(torch.autograd.grad(function(leaf), leaf)[0])
    return (found[0] - found[1]) / (2 * step)

def hvp_is_right(function, tolerance, exact=None):
    x = atoms.sites_cart.clone()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    found = torch.autograd.functional.hvp(function, x, v)[1]
    off = relative(found, differences(exact or function, x, v))
    assert off < tolerance, f"relative error {off:.2g}"

def data_model(**options):
    f = sfdiff.structure_factors(atoms, crystal, indices, method="direct")
    f_mask = sfdiff.solvent_structure_factors(atoms, crystal, indices)
    noise = 1 + 0.05 * torch.randn(
        len(f), generator=torch.Generator("cpu").manual_seed(1), dtype=torch.float64, device="cpu")
    random.seed(1); flex.set_random_seed(1)  # of the free set
    f_obs = miller.array(data=flex.double(((f + 0.35 * f_mask).abs() * noise).tolist()))
    f_obs = f_obs.customized_copy(sigmas=f_obs.data() * 0.05).set_observation_type_xray_amplitude()
    free = f_obs.generate_r_free_flags(fraction=0.1, max_free=1000)
    data = sfdiff.Reflections.from_cctbx(f_obs, free)
    fmodel = sfdiff.FModel(atoms, data, **options)
    fmodel.update_scales()
    return fmodel
"""


def _refused_by(call: str, *words: str) -> str:
    return f"refused(lambda: {call}, {', '.join(map(repr, words))})"


_MOVED = "atoms.replace(sites_cart=bad)"
_FAR = "atoms.replace(sites_cart=torch.where(torch.arange(len(bad))[:, None] == 6, 1e30, atoms.sites_cart))"
_NONE = "atoms.replace(sites_cart=torch.zeros((0, atoms.n_atoms, 3), dtype=torch.float64))"
_F = "sfdiff.structure_factors({}, crystal, indices, method='{}')"
_MASK = "sfdiff.solvent_mask({}, crystal, {})"

#: name: code that ends well where the fault is not.
CASES = {
    **{f"nan_{method}": _refused_by(_F.format(_MOVED, method), "atom 6") for method in ("direct", "fft", "auto")},
    **{f"far_{method}": _refused_by(_F.format(_FAR, method), "atom 6") for method in ("direct", "fft")},
    "nan_mask": _refused_by(_MASK.format(_MOVED, ""), "atom 6"),
    "far_mask": _refused_by(_MASK.format(_FAR, ""), "atom 6"),
    "nan_hard_mask": _refused_by(_MASK.format(_MOVED, "softness=0"), "atom 6"),
    "nan_binary_mask": _refused_by(_MASK.format(_MOVED, "method='binary'"), "atom 6"),
    "nan_density_cutoff": _refused_by(_MASK.format(_MOVED, "method='density_cutoff'"), "atom 6"),
    "nan_in_fmodel": "fmodel = data_model()\nrefused(lambda: fmodel.target('least_squares', sites_cart=bad), 'atom 6')",
    "nan_in_a_batch": _refused_by(
        "sfdiff.structure_factors(atoms.replace(sites_cart=torch.stack([atoms.sites_cart, bad])), crystal, indices)",
        "atom 6",
        "model 1",
    ),
    "no_models": f"assert {_F.format(_NONE, 'direct')}.shape == (0, len(indices))",
    "no_models_fft": f"assert {_F.format(_NONE, 'fft')}.shape == (0, len(indices))",
    "no_models_mask": f"assert {_MASK.format(_NONE, '')}.shape[0] == 0",
    "no_atoms": "nothing = atoms.select(torch.zeros(atoms.n_atoms, dtype=torch.bool))\n"
    "assert not bool(sfdiff.structure_factors(nothing, crystal, indices, method='fft').abs().any())",
    "negative_u": "u = atoms.u_iso.clone(); u[3] = -2.0; odd = atoms.replace(u_iso=u)\n"
    "exact = sfdiff.structure_factors(odd, crystal, indices, method='direct')\n"
    "try:\n    found = sfdiff.structure_factors(odd, crystal, indices, method='fft', accuracy=1e-4)\n"
    "except ValueError as error:\n    assert 'atom 3' in str(error), str(error)\n"
    "else:\n    assert relative(found, exact) < 1e-4, f'relative error {relative(found, exact):.2g}'",
    "hvp_of_direct": "hvp_is_right(lambda x: sfdiff.structure_factors(atoms.replace(sites_cart=x), crystal, indices, "
    "method='direct').abs().square().sum(), 1e-6)",
    "hvp_of_fft": "hvp_is_right(lambda x: sfdiff.structure_factors(atoms.replace(sites_cart=x), crystal, indices, method='fft', "
    "accuracy=1e-5).abs().square().sum(), 1e-4, lambda x: sfdiff.structure_factors(atoms.replace(sites_cart=x), crystal, indices, "
    "method='direct').abs().square().sum())",
    "hvp_of_a_mask": _refused_by(
        "torch.autograd.functional.hvp(lambda x: sfdiff.solvent_mask(atoms.replace(sites_cart=x), crystal).square().sum(), "
        "atoms.sites_cart, torch.ones_like(bad))[1].abs().max()",
        "solvent mask",
    ),
    "hessian_of_target_and_restraint": """
        fmodel = data_model(method="direct")
        fixed = fmodel.f_mask().detach()
        def total(x):
            return fmodel.target("least_squares", x, f_mask=fixed) + 10 * (x - atoms.sites_cart - 0.1).square().sum()
        hvp_is_right(total, 1e-5)""",
    "k1_twice": """
        from mmtbx_sfdiff import targets
        fmodel = data_model(method="direct")
        f = fmodel.f_model().detach()
        k = torch.tensor(1.3, dtype=torch.float64)
        twice = torch.autograd.functional.hessian(
            lambda k: targets.normalized_least_squares(fmodel.reflections, k * f, scale="k1"), k)
        assert abs(float(twice)) < 1e-10, f"second derivative {float(twice):.3g} where 0 is right" """,
    "all_f_zero": """
        from mmtbx_sfdiff import targets
        data = data_model(method="direct").reflections
        zero = torch.zeros(len(data), dtype=torch.complex128, requires_grad=True)
        value = targets.normalized_least_squares(data, zero) + targets.r_factors(data, zero)[0]
        gradient = torch.autograd.grad(value, zero)[0]
        assert bool(torch.isfinite(value)) and bool(torch.isfinite(torch.view_as_real(gradient)).all()), f"value {value}" """,
    "autocast_mask": """
        both = lambda: value_and_gradient(lambda a: sfdiff.solvent_structure_factors(a, crystal, indices))
        expected = both()
        with torch.autocast("cpu", torch.bfloat16):
            found = both()
        off = [relative(a, b) for a, b in zip(found, expected)]
        assert max(off) == 0, f"relative errors {off}" """,
    "autocast_direct": """
        both = lambda: value_and_gradient(lambda a: sfdiff.structure_factors(a, crystal, indices, method="direct"))
        expected = both()
        with torch.autocast("cpu", torch.bfloat16):
            found = both()
        off = [relative(a, b) for a, b in zip(found, expected)]
        assert max(off) == 0, f"relative errors {off}" """,
    "matmul_precision": """
        both = lambda: value_and_gradient(lambda a: sfdiff.structure_factors(a, crystal, indices, method="direct"))
        expected = both()
        torch.set_float32_matmul_precision("medium")
        off = [relative(a, b) for a, b in zip(both(), expected)]
        assert max(off) < 1e-5, f"relative errors {off}" """,
    "default_dtype": """
        def all_of_them():
            f = sfdiff.solvent_structure_factors(atoms, crystal, indices)
            return [f, sfdiff.structure_factors(atoms, crystal, indices, method="fft"), data_model().f_model().detach()]
        expected = all_of_them()
        torch.set_default_dtype(torch.float16)
        off = [relative(a, b) for a, b in zip(all_of_them(), expected)]
        assert max(off) == 0, f"relative errors {off}" """,
    "default_device": """
        expected = data_model().f_model().detach()
        torch.set_default_device("meta")
        found = data_model().f_model().detach()
        assert found.device.type == "cpu" and relative(found, expected) == 0""",
    "compile_of_a_target": """
        fmodel = data_model(method="direct")
        fmodel.alpha_beta()
        compiled = torch.compile(lambda x: fmodel.target("least_squares", x), fullgraph=True, backend="aot_eager")
        sites = atoms.sites_cart.clone()
        assert relative(compiled(sites), fmodel.target("least_squares", sites)) < 1e-12""",
    "targets_of_nan": """
        from mmtbx_sfdiff import targets
        data = data_model(method="direct").reflections
        f = (data.f_obs + 0j).clone(); f[4] = complex("nan")
        refused(lambda: targets.least_squares(data, f), "reflection 4")""",
    "mixed_precision": """
        from mmtbx_sfdiff import targets
        data = data_model(method="direct").reflections
        f = data.f_obs + 0j
        assert abs(float(targets.r_factors(data.to(dtype=torch.float32), f)[0])) < 1e-6""",
    "plan_of_a_huge_index": _refused_by(
        "sfdiff.structure_factors(atoms, crystal, torch.tensor([[1, 2, 3], [10**9, 0, 0]]), method='fft')", "10000000"
    ),
    "two_threads": """
        import threading
        torch.set_num_threads(2)
        expected = [sfdiff.structure_factors(atoms, crystal, indices, method="fft"), sfdiff.solvent_mask(atoms, crystal)]
        errors = []
        def run():
            try:
                for _ in range(20):
                    found = [sfdiff.structure_factors(atoms, crystal, indices, method="fft"), sfdiff.solvent_mask(atoms, crystal)]
                    off = max(relative(a, b) for a, b in zip(found, expected))
                    assert off < 1e-6, off
            except Exception as error:
                errors.append(repr(error)[:100])
        threads = [threading.Thread(target=run) for _ in range(2)]
        [t.start() for t in threads]; [t.join() for t in threads]
        assert not errors, errors""",
    "fork_after_use": """
        import os
        torch.set_num_threads(2)
        sfdiff.structure_factors(atoms, crystal, indices, method="fft"); sfdiff.solvent_mask(atoms, crystal)
        pid = os.fork()
        if not pid:
            sfdiff.structure_factors(atoms, crystal, indices, method="fft"); sfdiff.solvent_mask(atoms, crystal)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0""",
    "long_life_with_new_crystals": """
        import gc, resource
        from cctbx import crystal as cc, xray
        def one(n):
            part = n * 0.6180339887 % 1  # all differ, and are as large in the mean
            cell = 20 + part, 31 + 2 * part, 37 + part, 90, 90, 90
            other = xray.structure(crystal_symmetry=cc.symmetry(cell, "P 21 21 21"), scatterers=xrs.scatterers())
            other.scattering_type_registry(table="it1992")
            given, new = sfdiff.Atoms.from_cctbx(other), sfdiff.Crystal.from_cctbx(other)
            moved = given.sites_cart.clone().requires_grad_()
            given = given.replace(sites_cart=moved)
            f = sfdiff.structure_factors(given, new, indices, method="fft")
            f_mask = sfdiff.solvent_structure_factors(given, new, indices, grid_step=0.8)
            (f + f_mask).abs().sum().backward()
        def resident():
            gc.collect()
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize() / 2**20
        for n in range(200):
            one(n)
        before = resident()
        for n in range(200, 400):
            one(n)
        grown = resident() - before
        assert grown < 30, f'{grown:.0f} MiB more after 200 more crystals'""",
    "the_switch": """
        # Python 3.11 reads a .pth file twice in a virtual environment.
        import os, subprocess, sys
        import mmtbx_sfdiff_startup as startup
        line = "import os; os.environ.get('MMTBX_SFDIFF', '0') in ('', '0') or __import__('mmtbx_sfdiff_startup').install()"
        line = getattr(startup, "LINE", line).strip()
        begin = "import sys; sys.path[:] = %r" % sys.path
        use = "from cctbx.development import random_structure as r; from cctbx import sgtbx; import mmtbx.f_model; xrs = r.xray_structure("
        use += "sgtbx.space_group_info('P 21 21 21'), elements=['C'] * 9, volume_per_atom=60)"
        script = chr(10).join([begin, line, line, use, "xrs.structure_factors(d_min=3.0).f_calc()"])
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ, MMTBX_SFDIFF="1"))
        assert done.returncode == 0, done.stderr.strip().splitlines()[-1]""",
    "ctrl_c_in_a_mask": """
        import os, signal, threading, time
        def large():
            big = crystal.__class__.from_cctbx(
                __import__("cctbx.crystal").crystal.symmetry((110, 113, 117, 90, 90, 90), "P 21 21 21"))
            for _ in range(100):
                sfdiff.solvent_mask(atoms_of_large, big, grid_step=0.35)
        from cctbx import crystal as cc, xray
        symmetry = cc.symmetry((110, 113, 117, 90, 90, 90), "P 21 21 21")
        large_xrs = xray.structure(crystal_symmetry=symmetry, scatterers=flex.xray_scatterer(
            [xray.scatterer("C", site=[random.random() for _ in range(3)], u=0.2) for _ in range(5000)]))
        large_xrs.scattering_type_registry(table="it1992")
        atoms_of_large = sfdiff.Atoms.from_cctbx(large_xrs)
        sfdiff.solvent_mask(atoms, crystal)
        sent = []
        def send():
            sent.append(time.perf_counter()); os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(2.0, send).start()
        try:
            large()
        except KeyboardInterrupt:
            took = time.perf_counter() - sent[0]
            assert took < 3.0, f"{took:.1f} s after the signal"
        else:
            raise AssertionError("not interrupted")""",
}


def outcome(python: str, code: str, seconds: float) -> str:
    """What became of a case in an interpreter, in a few words."""
    # Of processor time: on busy cores a slow start is no hang.
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_CPU, ({seconds:.0f}, {seconds:.0f} + 5))\n"
    script = limit + HEAD + textwrap.dedent(code).strip() + "\nprint('right')\n"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [python, "-c", script], cwd=folder, capture_output=True, text=True, timeout=10 * seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return f"HANG (no end within {10 * seconds:g} s by the clock)"
    if done.returncode == -signal.SIGXCPU:
        return f"HANG (no end within {seconds:g} s of processor time)"
    if done.returncode == 0 and done.stdout.endswith("right\n"):
        return "right"
    if done.returncode < 0:
        return f"CRASH (signal {-done.returncode})"
    lines = [line for line in done.stderr.splitlines() if line[:1].strip() and "Error" in line] or ["nothing said"]
    return f"wrong: {lines[-1][:160]}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("python", nargs="*", default=[sys.executable])
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=sorted(CASES))
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args(arguments)
    faults = 0
    for name in options.only or CASES:
        for number, python in enumerate(options.python):
            found = outcome(python, CASES[name], options.seconds)
            faults += found != "right" and number == len(options.python) - 1
            print(f"{name:34s} {number}: {found}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
