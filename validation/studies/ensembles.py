"""An ensemble with its mask live: the memory of a step, and the gradient of R against central differences.

    python -m validation.studies.ensembles [--memory] [--gradient] [--csv TABLE.csv] [--directions 20]

Memory: 16 conformers of 1,500 atoms in P 21 21 21, 50 x 60 x 66.7 Å (2e5 Å^3), data to 2 Å, one mask of all or one each,
R-work with its gradient by sites and B; and one model of 1,294 atoms with 15,000 reflections, F and gradient.  Each in a
process of its own: what is resident after one warm call (a step of a single model), and the peak of the first and the second
step above that.  Linux only.

Gradient: three conformers of 150 atoms at the default softness (0.8 Å), data to 2.2 Å from another ensemble (R about 0.2),
the scales held as ``r_work`` holds them.  Along random directions of all sites (rms of a coordinate = the step) the derivative
of R, and of R with the signs of |F_model| - F_obs kept from the starting point, which has no kinks; the deviation from the
difference is relative to it.  How many reflections' signs change over a step is beside them.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files.writing import write_all

import numpy as np

CASES = {
    "combined": {"n_conformers": 16, "n_atoms": 1500, "cell": (50.0, 60.0, 200 / 3), "d_min": 2.0},
    "per_conformer": {"n_conformers": 16, "n_atoms": 1500, "cell": (50.0, 60.0, 200 / 3), "d_min": 2.0},
    "one model": {"n_conformers": 0, "n_atoms": 1294, "cell": (50.0, 60.0, 72.0), "d_min": 1.96},
}
STEPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def globule(cell: tuple[float, float, float], n_atoms: int, seed: int = 0) -> sfdiff.Atoms:
    """Atoms of a compact body in P 21 21 21, 2.6 Å apart on a jittered lattice; about a third of the cell is solvent."""
    crystal = sfdiff.Crystal((*cell, 90, 90, 90), "P 21 21 21")
    rng = np.random.default_rng(seed)
    n = int(np.ceil(n_atoms ** (1 / 3) * 1.5))
    lattice = 2.6 * np.stack(np.meshgrid(*[np.arange(-n, n + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    lattice = lattice[np.argsort(np.linalg.norm(lattice, axis=1), kind="stable")[:n_atoms]]
    sites = np.array(cell) * (0.25, 0.22, 0.3) + lattice + 0.3 * rng.normal(size=(n_atoms, 3))
    elements = rng.choice(["C", "N", "O"], n_atoms, p=[0.63, 0.17, 0.2]).tolist()
    return sfdiff.Atoms.from_arrays(crystal, elements, torch.as_tensor(sites), b_iso=15 + 15 * rng.random(n_atoms))


def observed(atoms: sfdiff.Atoms, d_min: float, spread: float = 0.2, seed: int = 1) -> sfdiff.Reflections:
    """Amplitudes with solvent of an ensemble of two around these atoms."""
    rng = np.random.default_rng(seed)
    sites = atoms.sites_cart + torch.as_tensor(spread * rng.normal(size=(2, atoms.n_atoms, 3)))
    indices = atoms.crystal.build_miller_indices(d_min)
    f = sfdiff.structure_factors(atoms.replace(sites_cart=sites), atoms.crystal, indices).mean(0)
    f = f + 0.35 * sfdiff.solvent_structure_factors(atoms, atoms.crystal, indices)
    amplitudes = f.abs() * torch.as_tensor(np.exp(0.03 * rng.normal(size=len(indices))))
    free = torch.as_tensor(rng.random(len(indices)) < 0.05)
    return sfdiff.Reflections.from_arrays(atoms.crystal, indices, amplitudes, sigmas=0.05 * amplitudes, free=free)


def conformers(atoms: sfdiff.Atoms, n: int, spread: float = 0.2, seed: int = 2) -> sfdiff.Atoms:
    """n conformers around these atoms."""
    noise = torch.randn(n, atoms.n_atoms, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved: sfdiff.Atoms = atoms.replace(sites_cart=atoms.sites_cart + spread * noise)
    return moved


def _status(name: str) -> float:
    """MB (1e6 bytes)."""
    return (
        next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
        * 1024
        / 1e6
    )


def measure_memory(name: str, n_atoms: int | None = None) -> dict:
    """In this process: MB resident after a warm call, and the peaks of two steps above that."""
    case = CASES[name]
    n = case["n_conformers"]
    n_atoms = case["n_atoms"] if n_atoms is None else n_atoms
    atoms = globule(case["cell"], n_atoms)
    refine = ("sites_cart", "u_iso")
    data = observed(atoms, case["d_min"])

    def step(model):
        model.zero_grad()
        (model.r_work() if n else model.f_calc().abs().square().sum()).backward()

    single = sfdiff.FModel(atoms, data, refine=refine)
    if n:
        single.update_scales()
    step(single)
    model = single
    if n:
        many = conformers(atoms, n)
        model = sfdiff.FModel(many, data, refine=refine, ensemble=torch.full((n,), 1 / n), solvent=name)
        model.scales = single.scales
    peaks = []
    warm = _status("VmRSS")
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")
        step(model)
        peaks.append(_status("VmHWM") - warm)
    return {
        "case": name,
        "conformers": n or 1,
        "atoms": n_atoms,
        "reflections": len(data),
        "volume": float(np.prod(case["cell"])),
        "warm_mb": warm,
        "first_step_mb": peaks[0],
        "second_step_mb": peaks[1],
    }


def memory_table() -> list[dict]:
    """Each case in a process of its own."""
    rows = []
    for name in CASES:
        command = [sys.executable, "-m", "validation.studies.ensembles", "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        print(
            f"{name}: {row['conformers']} x {row['atoms']} atoms, {row['reflections']} reflections: {row['warm_mb']:.0f} MB "
            f"after a warm call; above that {row['first_step_mb']:.1f} in the first step, {row['second_step_mb']:.1f} in the "
            "second",
            flush=True,
        )
    return rows


def gradient_table(
    solvent: str, precision: str, n_directions: int, n_atoms: int = 150, steps=STEPS, softness: float | None = None
) -> list[dict]:
    """Deviations of derivatives of R from central differences by step; medians and worst over the directions."""
    atoms = globule((24.0, 28.0, 32.0), n_atoms)
    data = observed(atoms, 2.2, spread=0.1)
    mask = {"precision": precision} | ({} if softness is None else {"softness": softness})
    weights = torch.tensor([0.5, 0.3, 0.2])
    model = sfdiff.FModel(
        conformers(atoms, 3, spread=0.1), data, ensemble=weights, solvent=solvent, mask=mask, accuracy=1e-7
    )
    model.update_scales()
    rows = model.selection & data.work
    f_obs = data.f_obs[rows] / model.scales.f_obs_scale

    def of(sites, signs=None):
        error = model.f_model(sites)[rows].abs() - f_obs
        signs = error.detach().sign() if signs is None else signs
        return (signs * error).sum() / f_obs.sum(), signs

    start = model.atoms.sites_cart
    leaf = start.clone().requires_grad_()
    r, signs = of(leaf)
    (gradient,) = torch.autograd.grad(r, leaf)
    check = model.r_work(start)
    if abs(float(check) / float(r.detach()) - 1) > 1e-9:
        raise RuntimeError("R written out is not r_work().")
    generator = torch.Generator().manual_seed(3)
    along = gradient / gradient.square().mean().sqrt()
    found: dict[float, list] = {step: [] for step in steps}
    for _ in range(n_directions):
        direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        # Half of it along the gradient, so that no derivative is small by chance.
        direction = direction + along
        direction = direction / direction.square().mean().sqrt()
        expected = float((gradient * direction).sum())
        for step in steps:
            with torch.no_grad():
                above, below = (of(start + sign * step * direction) for sign in (1, -1))
                smooth = [of(start + sign * step * direction, signs)[0] for sign in (1, -1)]
            difference = float(above[0] - below[0]) / (2 * step)
            kept = float(smooth[0] - smooth[1]) / (2 * step)
            changed = int(((above[1] != signs) | (below[1] != signs)).sum())
            found[step].append((abs(expected / difference - 1), abs(expected / kept - 1), changed))
    table = []
    for step, values in found.items():
        of_r, of_smooth, changed = np.array(values).T
        table.append(
            {
                "solvent": solvent,
                "precision": precision,
                "softness": "default" if softness is None else softness,
                "step": step,
                "r_median": float(np.median(of_r)),
                "r_worst": float(of_r.max()),
                "signs_kept_median": float(np.median(of_smooth)),
                "signs_kept_worst": float(of_smooth.max()),
                "signs_changed": float(np.median(changed)),
                "reflections": int(rows.sum()),
                "r_work": float(check),
            }
        )
    return table


def _csv(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue().encode()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="this part only")
    parser.add_argument("--gradient", action="store_true", help="this part only")
    parser.add_argument("--directions", type=int, default=20)
    parser.add_argument("--csv", type=Path, help="of the gradients")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--atoms", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure_memory(options.one, options.atoms)))
        return 0
    both = not (options.memory or options.gradient)
    bad = False
    if options.memory or both:
        limits = {"combined": 600, "per_conformer": 600, "one model": 64}
        bad = any(max(r["first_step_mb"], r["second_step_mb"]) > limits[r["case"]] for r in memory_table())
    if options.gradient or both:
        rows = []
        kinds = [(solvent, p, None) for solvent in ("combined", "per_conformer") for p in ("single", "double")]
        for solvent, precision, softness in [*kinds, ("combined", "single", 0.4)]:
            for row in gradient_table(solvent, precision, options.directions, softness=softness):
                rows.append(row)
                print(
                    f"{solvent}, {precision}, softness {row['softness']}: {row['step']:g} Å: R {row['r_median']:.2%} (worst {row['r_worst']:.2%}), signs "
                    f"kept {row['signs_kept_median']:.2%} ({row['signs_kept_worst']:.2%}); {row['signs_changed']:g} of "
                    f"{row['reflections']} signs changed; R {row['r_work']:.3f}",
                    flush=True,
                )
        if options.csv:
            write_all({options.csv: _csv(rows)})
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
