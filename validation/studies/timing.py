"""Time against accuracy of structure factors and their gradients, here, in cctbx and in gemmi.

    python -m validation.studies.timing [entry ...] [--accuracy 1e-3 1e-4 1e-5] [--rounds 7] [--threads 2]
        [--output timing] [--append]

Every entry is timed in one process with the methods taking turns, so that whatever else the machine does hits
all of them; the table gives medians and, because a busy machine spoils medians, minima.  Every time stands
beside the error of what was timed, against direct summation.  A method of another package is run where that
package is installed.

Writes <output>.json, <output>_accuracy.png (time against error) and <output>_size.png (time against atoms
times reflections).  With --append the entries are added to those of the file that is there, so that a long
measurement can be made in pieces.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import pathlib
import platform
import resource
import statistics
import sys
import time

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.crystal import as_flex_miller_index
from mmtbx_sfdiff.files.writing import write_atomically

import iotbx.pdb
import numpy as np
from cctbx import miller, xray
from cctbx.array_family import flex

from .timing_figures import plot_accuracy, plot_size

ACCURACIES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
BOUNDS = (1e-3, 1e-4, 1e-5)


def entries_with(directory, least_atoms):
    """Entries of the manifest with at least so many atoms, smallest first: (id, d_min)."""
    rows = [line.split("\t") for line in (directory / "MANIFEST.tsv").read_text().splitlines()]
    header = rows[0]
    column = {name: header.index(name) for name in ("entry", "d_min", "n_atoms")}
    found = [(int(row[column["n_atoms"]]), row[column["entry"]], float(row[column["d_min"]])) for row in rows[1:]]
    return [(entry, d_min) for n, entry, d_min in sorted(found) if n >= least_atoms]


def read_structure(directory, entry):
    """xray.structure of an entry, without atoms that have no form factor."""
    path = next(
        p
        for p in sorted((directory / entry).iterdir())
        if p.name.startswith(entry) and p.name.removesuffix(".gz").endswith((".pdb", f"{entry}.cif"))
    )
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    structure = iotbx.pdb.input(source_info=None, lines=text.splitlines()).xray_structure_simple()
    known = [t.strip() not in ("X", "") for t in structure.scatterers().extract_scattering_types()]
    return structure.select(flex.bool(known))


class Case:
    """One structure with everything that is timed on it."""

    def __init__(self, structure, d_min, name):
        structure.scattering_type_registry(d_min=d_min, table="n_gaussian")
        self.name, self.d_min, self.structure = name, d_min, structure
        self.atoms = sfdiff.Atoms.from_cctbx(structure, dtype=torch.float32)
        self.crystal = self.atoms.crystal
        self.indices = self.crystal.build_miller_indices(d_min)
        self.set = miller.set(structure.crystal_symmetry(), as_flex_miller_index(self.indices), anomalous_flag=False)
        exact = sfdiff.Atoms.from_cctbx(structure)
        leaves = [getattr(exact, name).clone().requires_grad_() for name in ("sites_cart", "u_iso")]
        f = sfdiff.structure_factors(
            exact.replace(sites_cart=leaves[0], u_iso=leaves[1]),
            self.crystal,
            self.indices,
            method="direct",
            memory=2**30,
        )
        rng = torch.Generator().manual_seed(0)
        noise = torch.view_as_complex(torch.randn((*f.shape, 2), generator=rng, dtype=torch.float64))
        #: dT/dF of a residual of the size of F's own fluctuations.
        self.seed = (noise * f.detach().abs().mean()).detach()
        self.exact = f.detach(), torch.autograd.grad(f, leaves, self.seed)
        self.seed32 = self.seed.to(torch.complex64)
        self.seed_flex = flex.complex_double(self.seed.numpy())
        self.isotropic = exact.use_u_iso & ~exact.use_u_aniso

    def ours(self, method, accuracy):
        def forward():
            with torch.no_grad():
                return sfdiff.structure_factors(
                    self.atoms, self.crystal, self.indices, method=method, accuracy=accuracy
                )

        def gradient():
            leaves = [getattr(self.atoms, name).clone().requires_grad_() for name in ("sites_cart", "u_iso")]
            atoms = self.atoms.replace(sites_cart=leaves[0], u_iso=leaves[1])
            f = sfdiff.structure_factors(atoms, self.crystal, self.indices, method=method, accuracy=accuracy)
            return f.detach(), torch.autograd.grad(f, leaves, self.seed32)

        return forward, gradient

    def cctbx(self, algorithm):
        structure = self.structure.deep_copy_scatterers()
        xray.set_scatterer_grad_flags(scatterers=structure.scatterers(), site=True, u_iso=True)
        set_ = self.set
        calculate = xray.structure_factors.from_scatterers(miller_set=set_)
        gradients = xray.structure_factors.gradients(miller_set=set_)

        def forward():
            return calculate(xray_structure=structure, miller_set=set_, algorithm=algorithm).f_calc().data()

        def gradient():
            f = forward()
            g = gradients(
                xray_structure=structure,
                u_iso_refinable_params=None,
                miller_set=set_,
                d_target_d_f_calc=self.seed_flex,
                n_parameters=0,
                algorithm=algorithm,
            )
            return f, (g.d_target_d_site_cart(), g.d_target_d_u_iso())

        return forward, gradient

    def gemmi(self):
        import gemmi

        structure = gemmi.read_pdb_string(self.structure.as_pdb_file())
        structure.cell = gemmi.UnitCell(*self.crystal.unit_cell)
        structure.spacegroup_hm = self.set.space_group_info().type().lookup_symbol().split("(")[0].strip()
        structure.setup_cell_images()
        calculator = gemmi.DensityCalculatorX()
        calculator.d_min, calculator.rate = self.d_min, 1.5
        calculator.set_refmac_compatible_blur(structure[0])
        calculator.grid.setup_from(structure)
        rows = self.indices.numpy().astype(np.int32)

        def forward():
            calculator.put_model_density_on_grid(structure[0])
            transform = gemmi.transform_map_to_f_phi(calculator.grid, half_l=True)
            data = transform.prepare_asu_data(dmin=self.d_min - 1e-6, unblur=calculator.blur)
            return dict(zip(map(tuple, data.miller_array.tolist()), data.value_array))

        def aligned(found):
            return np.array([found.get(tuple(h), found.get(tuple(-h), 0)) for h in rows])

        return forward, None, aligned

    def errors(self, f, gradients=None):
        """Relative L2 errors of F, and of the gradients in sites and u_iso."""

        def as_tensor(value, like):
            if isinstance(value, flex.vec3_double):
                value = value.as_double()
            if not isinstance(value, (torch.Tensor, np.ndarray)):
                value = value.as_numpy_array()
            return torch.as_tensor(np.asarray(value)).to(like.dtype).reshape(like.shape)

        f0, g0 = self.exact
        result = [float((as_tensor(f, f0) - f0).norm() / f0.norm())]
        if gradients is not None:
            for value, reference in zip(gradients, g0):
                if reference.ndim == 1:
                    value, reference = as_tensor(value, reference)[self.isotropic], reference[self.isotropic]
                value = as_tensor(value, reference)
                if float(reference.norm()):
                    result.append(float((value - reference).norm() / reference.norm()))
        return result


def measure(calls, rounds):
    """Seconds of every call, taking turns: {name: [seconds]}."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def run_case(case, accuracies, rounds, others):
    """Time every method on one structure: a dictionary for the report."""
    methods = {f"{m} {a:g}": case.ours(m, a) for m in ("fft", "auto") for a in accuracies}
    terms = case.atoms.n_atoms * len(sfdiff.plan(case.crystal, case.indices).miller().indices)
    if terms < 2e8:
        methods["direct"] = case.ours("direct", 1e-4)
    methods["cctbx fft"] = case.cctbx("fft")
    if "cctbx direct" in others and case.atoms.n_atoms * len(case.indices) * case.crystal.order_z < 3e8:
        methods["cctbx direct"] = case.cctbx("direct")
    adapters = {}
    if "gemmi" in others:
        try:
            forward, gradient, adapters["gemmi"] = case.gemmi()
            methods["gemmi"] = forward, gradient
        except ImportError:
            pass
    result = {
        "entry": case.name,
        "space_group": case.crystal.space_group_symbol,
        "n_atoms": case.atoms.n_atoms,
        "n_anisotropic": int(case.atoms.use_u_aniso.sum()),
        "n_reflections": len(case.indices),
        "d_min": case.d_min,
        "methods": {},
    }
    for name, (forward, gradient) in methods.items():
        if gradient is None:
            entry = {"errors": case.errors(adapters[name](forward()))}
        else:
            entry = {"errors": case.errors(*gradient())}
        result["methods"][name] = entry
    for what, which in (("forward_s", 0), ("gradient_s", 1)):
        calls = {name: pair[which] for name, pair in methods.items() if pair[which] is not None}
        times = measure(calls, rounds)
        for name, values in times.items():
            result["methods"][name][what] = {"median": statistics.median(values), "minimum": min(values)}
    result["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result["floor"] = floor(case, accuracies, rounds)
    return result


def floor(case, accuracies, rounds):
    """What cannot be avoided with the grids chosen: a bare FFT, and the splat's multiply-adds at the measured
    peak."""
    from mmtbx_sfdiff.structure_factors.scatterers import Scatterers
    from mmtbx_sfdiff.structure_factors.setting import choose_setting

    a = torch.randn(1024, 1024)
    rate = 2 * 1024**3 / min(measure({"": lambda: a @ a}, rounds)[""])
    plan = sfdiff.plan(case.crystal, case.indices)
    scatterers = Scatterers.of(case.atoms)
    result = {}
    for accuracy in accuracies:
        for what, wanted in (("forward_s", None), ("gradient_s", (True, True, False, False, False, False))):
            setting = choose_setting(scatterers, plan, accuracy, 2**28, wanted)
            grid = torch.randn(setting.grid.dims, dtype=setting.dtype)
            transform = min(measure({"": lambda: torch.fft.rfftn(grid)}, rounds)[""])
            points = gaussian_points(case, setting)
            result.setdefault(f"{accuracy:g}", {})[what] = {
                "grid": list(setting.grid.dims),
                "fft_s": transform,
                "points": points,
                "multiply_add_s": 2 * points / rate,
            }
    return result


def gaussian_points(case, setting):
    """Grid points within all the Gaussians."""
    e = 2 * math.pi**2 * setting.s_sq * case.atoms.u_iso.double().numpy() - setting.sharpening
    table, first, step, level_first, level_step = setting.cuts
    points = 0.0
    kinds = case.atoms.type_index.numpy()
    per_volume = setting.grid.n_points / case.crystal.volume
    for k in range(setting.table.alphas.shape[1]):
        width = np.maximum(e + setting.table.exponents[kinds, k], 0.05)
        level = np.log(setting.tolerance / (np.abs(setting.table.alphas[kinds, k]) + 1e-9))
        i = np.clip((np.log(width) - first) / step, 0, table.shape[0] - 1).astype(int)
        j = np.clip((level - level_first) / level_step, 0, table.shape[1] - 1).astype(int)
        radius = np.sqrt(width * np.maximum(table[i, j], 0) / setting.s_sq) / math.pi
        points += (4 / 3 * math.pi * radius**3 * per_volume).sum()
    return float(points)


def summarise(results, statistic):
    """Lines: ratios cctbx fft / ours at stated bounds on the error, medians over the entries."""
    lines = []
    for method in ("fft", "auto"):
        for what, n_errors in (("forward_s", 1), ("gradient_s", None)):
            for bound in BOUNDS:
                ratios, met, theirs, limits = [], [], [], []
                for result in results:
                    candidates = [
                        (entry[what][statistic], max(entry["errors"][:n_errors]), name)
                        for name, entry in result["methods"].items()
                        if name.split()[0] == method and max(entry["errors"][:n_errors]) <= bound
                    ]
                    if not candidates:
                        continue
                    seconds, error, name = min(candidates)
                    other = result["methods"]["cctbx fft"]
                    ratios.append(other[what][statistic] / seconds)
                    met.append(error)
                    theirs.append(max(other["errors"][:n_errors]))
                    limit = result["floor"][name.split()[1]]
                    needed = limit["forward_s"]["fft_s"] + limit["forward_s"]["multiply_add_s"]
                    if what == "gradient_s":
                        needed += limit[what]["fft_s"] + limit[what]["multiply_add_s"]
                    limits.append(seconds / needed)
                if ratios:
                    lines.append(
                        f"{method:5s} {what[:-2]:9s} error <= {bound:g}: cctbx fft / ours = "
                        f"{statistics.median(ratios):5.2f} (from {min(ratios):.2f} to {max(ratios):.2f}, "
                        f"{len(ratios)} entries); error {statistics.median(met):.1e}, cctbx "
                        f"{statistics.median(theirs):.1e}; ours / limit {statistics.median(limits):.1f}"
                    )
    return lines


def scaling(rounds, accuracy=1e-4, d_min=2.0):
    """Time per atom of synthetic structures of one density: {n_atoms: seconds}."""
    from cctbx import crystal, sgtbx  # noqa: F401

    times = {}
    for n in (2000, 20000):
        length = (n * 4 * 19.5) ** (1 / 3)
        rng = np.random.default_rng(0)
        structure = xray.structure(
            crystal_symmetry=crystal.symmetry(
                unit_cell=(length * 0.8, length, length * 1.25, 90, 90, 90), space_group_symbol="P 21 21 21"
            )
        )
        for i in range(n):
            structure.add_scatterer(xray.scatterer("CCCNO"[i % 5], site=tuple(rng.random(3)), u=rng.uniform(0.2, 0.8)))
        structure.scattering_type_registry(d_min=d_min, table="n_gaussian")
        atoms = sfdiff.Atoms.from_cctbx(structure, dtype=torch.float32)
        indices = atoms.crystal.build_miller_indices(d_min)

        def call(atoms=atoms, indices=indices):
            return sfdiff.structure_factors(atoms, atoms.crystal, indices, method="fft", accuracy=accuracy)

        times[n] = measure({"": call}, rounds)[""]
    return {n: {"median": statistics.median(t), "minimum": min(t)} for n, t in times.items()}


def write(report, output):
    """JSON, and the figures where matplotlib is installed."""
    write_atomically(pathlib.Path(f"{output}.json"), json.dumps(report, indent=1))
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    plot_accuracy(report["results"], f"{output}_accuracy.png")
    plot_size(report["results"], f"{output}_size.png")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m validation.studies.timing", description=__doc__.split("\n")[0])
    parser.add_argument("entries", nargs="*", help="entry ids; by default all of at least --atoms atoms")
    parser.add_argument(
        "--directory",
        type=pathlib.Path,
        default=os.environ.get("MMTBX_SFDIFF_PDB_DIR", pathlib.Path(__file__).resolve().parents[3] / "shared" / "pdb"),
    )
    parser.add_argument("--atoms", type=int, default=1000)
    parser.add_argument("--accuracy", type=float, nargs="+", default=ACCURACIES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--others", nargs="*", default=["gemmi"], help="gemmi, 'cctbx direct'")
    parser.add_argument("--output", default="timing")
    parser.add_argument("--append", action="store_true", help="add to the results in <output>.json")
    parser.add_argument("--no-scaling", action="store_true", help="leave out 2,000 against 20,000 atoms")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    directory = pathlib.Path(options.directory)
    chosen = entries_with(directory, 0 if options.entries else options.atoms)
    if options.entries:
        chosen = [(entry, d_min) for entry, d_min in chosen if entry in options.entries]
    before = {}
    if options.append and pathlib.Path(options.output + ".json").exists():
        before = json.loads(pathlib.Path(options.output + ".json").read_text())
        if before["machine"]["threads"] != options.threads:
            parser.error(f"{options.output}.json was measured with {before['machine']['threads']} threads")
    results = [r for r in before.get("results", []) if r["entry"] not in {entry for entry, _ in chosen}]
    for entry, d_min in chosen:
        try:
            results.append(
                run_case(
                    Case(read_structure(directory, entry), d_min, entry),
                    options.accuracy,
                    options.rounds,
                    options.others,
                )
            )
        except Exception as error:  # an entry that cannot be read must not cost the others
            print(f"{entry}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        last = results[-1]
        cells = []
        for name, found in last["methods"].items():
            gradient = found["gradient_s"]["median"] if "gradient_s" in found else math.nan
            cells.append(
                f"{name} {1e3 * found['forward_s']['median']:.2f}/{1e3 * gradient:.2f} ms "
                f"({found['errors'][0]:.0e}/{max(found['errors']):.0e})"
            )
        print(
            f"{entry} {last['space_group']} {last['n_atoms']} atoms ({last['n_anisotropic']} anisotropic), "
            f"{last['n_reflections']} reflections: " + "; ".join(cells),
            flush=True,
        )
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg(),
    }
    if pathlib.Path("/proc/cpuinfo").exists():
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        machine["processor"] = names[0] if names else machine["processor"]
    report = {"machine": machine, "rounds": options.rounds, "results": results}
    if options.no_scaling:
        report["scaling"] = before.get("scaling")
    else:
        report["scaling"] = {str(n): found for n, found in scaling(options.rounds).items()}
    large = [r for r in results if r["n_atoms"] >= options.atoms]
    for statistic in ("median", "minimum"):
        report[f"summary_{statistic}"] = summarise(large, statistic)
        print(f"\n{statistic} of {options.rounds} rounds, {machine['threads']} threads, {machine['processor']}")
        print("\n".join(report[f"summary_{statistic}"]))
    if report["scaling"]:
        few, many = (report["scaling"][n]["minimum"] for n in ("2000", "20000"))
        print(f"20,000 atoms take {many / few / 10:.2f} times ten times 2,000")
    write(report, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
