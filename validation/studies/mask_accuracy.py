"""How near masks are to mmtbx's mask on a fine grid, at equal radii (1.1 and 0.9 Å).

    python -m validation.studies.mask_accuracy RESULTS.json [--entries 1aie ...] [--out docs/figures/mask_accuracy]

For every entry: relative L2 of F_mask to 3 Å, Pearson correlation of its amplitudes in shells, and correlation of the
maps, for the hard probe-shrink mask on a 0.6 Å grid, for mmtbx's default and for the density-cutoff mask, against mmtbx with
``step`` 0.15 Å (--step; coarser where that takes more than --max-points in the cell).  On entries of less than --step-volume,
the error at other grid steps too.  The default, soft mask is in the table as well: it is another definition, calibrated on R
factors.  RESULTS.json keeps what is done; --references a folder for mmtbx's masks, which take nearly all of the time.
With --out, a table of all entries and a figure of the error against the grid step.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.comparison import mmtbx_numbers as reference
from mmtbx_sfdiff.files.writing import write_atomically

import numpy as np
from cctbx import miller
from cctbx.array_family import flex

EDGES = (1e9, 8.0, 6.0, 5.0, 4.0, 3.5, 3.0)
STEPS = (1.0, 0.8, 0.6, 0.45, 0.3)
# Points of a fine grid beyond which maps are not compared: mmtbx makes them for the whole cell, which takes long.
MAP_POINTS = 6e7
MASKS = ("probe_shrink", "mmtbx_default", "density_cutoff", "soft_default")


def agreement(values, expected, d):
    shells = []
    for upper, lower in zip(EDGES, EDGES[1:]):
        inside = (d < upper) & (d >= lower)
        n = int(inside.sum())
        cc = float(np.corrcoef(np.abs(values[inside]), np.abs(expected[inside]))[0, 1]) if n > 2 else None
        shells.append({"d_min": lower, "n": n, "cc": cc})
    return {"relative_l2": float(np.linalg.norm(values - expected) / np.linalg.norm(expected)), "shells": shells}


def coarse(mask, shape):
    """A map by Fourier truncation on another grid."""
    transform = torch.fft.rfftn(mask)
    half = [min(a, b) // 2 for a, b in zip(mask.shape, shape)]
    out = torch.zeros(shape[0], shape[1], shape[2] // 2 + 1, dtype=transform.dtype)
    for i in (slice(0, half[0]), slice(-half[0] + 1, None)):
        for j in (slice(0, half[1]), slice(-half[1] + 1, None)):
            out[i, j, : half[2]] = transform[i, j, : half[2]]
    return torch.fft.irfftn(out, s=shape)


def reference_of(name, structure, array, shape, step, folder):
    """mmtbx's F_mask and mask on a fine grid, the latter truncated to the Fourier coefficients of a coarse one."""
    path = Path(folder) / f"{name}_{step:g}.npz" if folder else None
    if path and path.is_file():
        with np.load(path) as known:
            return known["f_mask"], known["map"]
    f_mask = reference.f_mask(structure, array, step)
    grid = sfdiff.Crystal.from_cctbx(structure).grid(step)
    # Maps are compared as far as the 0.6 Å grid can tell.
    small = np.prod(grid) <= MAP_POINTS
    found = (
        f_mask,
        coarse(torch.from_numpy(reference.mask_map(structure, grid)), shape).numpy() if small else np.empty(0),
    )
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, f_mask=found[0], map=found[1])
        write_atomically(path, content.getvalue())
    return found


def measure(name, options):
    from mmtbx_sfdiff.files import find_entry, load_entry

    files = find_entry(name, download=False)
    structure = load_entry(files.model, files.data).model.xray_structure
    atoms = sfdiff.Atoms.from_cctbx(structure)
    crystal = atoms.crystal
    miller_set = miller.build_set(structure.crystal_symmetry(), anomalous_flag=False, d_min=3.0)
    array = miller_set.array(data=flex.double(miller_set.size()))
    d = miller_set.d_spacings().data().as_numpy_array()
    step = reference.affordable_mask_step(structure.crystal_symmetry(), options.step, options.max_points)
    expected, fine = reference_of(name, structure, array, crystal.grid(0.6), step, options.references)

    def f_mask(mask):
        return sfdiff.mask_structure_factors(mask, crystal, miller_set).numpy()

    hard = dict(method="probe_shrink", softness=0, r_probe=1.1, r_shrink=0.9)
    binary = sfdiff.solvent_mask(atoms, crystal, method="binary")
    fraction = min(max(float(binary.mean()), 1e-3), 0.999)
    masks = {
        "probe_shrink": sfdiff.solvent_mask(atoms, crystal, **hard),
        "density_cutoff": sfdiff.solvent_mask(atoms, crystal, method="density_cutoff", solvent_fraction=fraction),
        "soft_default": sfdiff.solvent_mask(atoms, crystal, method="probe_shrink"),
    }
    result = {mask: agreement(f_mask(values), expected, d) for mask, values in masks.items()}
    result["mmtbx_default"] = agreement(reference.f_mask(structure, array, 0.6), expected, d)
    result |= {"volume": crystal.volume, "n_atoms": atoms.n_atoms, "solvent": fraction, "reference_step": step}
    masks["mmtbx_default"] = binary
    for mask, values in masks.items():
        result[mask]["map_cc"] = float(np.corrcoef(values.numpy().ravel(), fine.ravel())[0, 1]) if fine.size else None
    if crystal.volume < options.step_volume:
        result["by_step"] = {}
        for grid_step in STEPS:
            ours = f_mask(sfdiff.solvent_mask(atoms, crystal, grid_step=grid_step, **hard))
            theirs = reference.f_mask(structure, array, grid_step)
            result["by_step"][str(grid_step)] = [agreement(f, expected, d)["relative_l2"] for f in (ours, theirs)]
    return result


def summary(results):
    lines = [
        f"{len(results)} entries; relative L2 of F_mask to 3 Å, correlation of maps, CC of |F_mask| by shell "
        "(median, and least of shells of 30 reflections and more)"
    ]
    for mask in MASKS:
        l2 = np.array([r[mask]["relative_l2"] for r in results.values()])
        maps = np.array([r[mask]["map_cc"] for r in results.values() if r[mask]["map_cc"] is not None])
        lines.append(
            f"{mask:15s} L2 median {np.median(l2):.3f} range {l2.min():.3f}-{l2.max():.3f}; "
            f"map median {np.median(maps):.3f} least {maps.min():.3f}"
        )
        for number, lower in enumerate(EDGES[1:]):
            cc = np.array(
                [r[mask]["shells"][number]["cc"] for r in results.values() if r[mask]["shells"][number]["n"] >= 30]
            )
            lines.append(f"    to {lower:g} Å: {np.median(cc):.3f} {cc.min():.3f}")
    steps = [r["by_step"] for r in results.values() if "by_step" in r]
    for step in STEPS if steps else ():
        values = np.array([s[str(step)] for s in steps])
        lines.append(
            "grid {:g} Å ({} entries): probe_shrink {:.3f}, mmtbx {:.3f} (median relative L2)".format(
                step, len(steps), *np.median(values, 0)
            )
        )
    return "\n".join(lines)


def write_table(results, path):
    numbers = ("relative_l2", "map_cc", *(f"cc_{e:g}" for e in EDGES[1:]))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["entry", "n_atoms", "volume", "reference_step", *(f"{m}_{n}" for m in MASKS for n in numbers)])
        for name, result in sorted(results.items()):
            row = [name, result["n_atoms"], f"{result['volume']:.0f}", result["reference_step"]]
            for mask in MASKS:
                values = result[mask]
                row += [f"{values['relative_l2']:.4f}", "" if values["map_cc"] is None else f"{values['map_cc']:.4f}"]
                row += ["" if s["cc"] is None else f"{s['cc']:.4f}" for s in values["shells"]]
            writer.writerow(row)


def draw(results):
    """Relative L2 against the grid step, an entry a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    errors = np.array([[r["by_step"][str(step)] for step in STEPS] for r in results.values() if "by_step" in r])
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for column, (label, colour, marker) in enumerate((("hard edge", "#0072B2", "o"), ("mmtbx", "#D55E00", "s"))):
        axes.plot(STEPS, errors[:, :, column].T, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(STEPS, np.median(errors[:, :, column], 0), color=colour, marker=marker, label=f"{label} (median)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(STEPS, [f"{step:g}" for step in STEPS])
    axes.set_xticks([], minor=True)
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xlabel("grid step (Å)")
    axes.set_ylabel("relative L2 of F$_{mask}$ to 3 Å")
    axes.set_title(f"{len(errors)} entries, against mmtbx on a fine grid", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results")
    parser.add_argument("--entries", nargs="*")
    parser.add_argument(
        "--step-volume", type=float, default=1e5, help="Å^3; other grid steps in cells smaller than this"
    )
    parser.add_argument("--step", type=float, default=0.15)
    parser.add_argument("--max-points", type=float, default=6e8, help="grid points of a reference in the cell")
    parser.add_argument("--references", help="folder for mmtbx's masks")
    parser.add_argument("--out", help="path of the table and figure, without suffix")
    options = parser.parse_args(arguments)
    out = Path(options.results)
    results = json.loads(out.read_text()) if out.is_file() else {}
    with open(Path(os.environ["MMTBX_SFDIFF_PDB_DIR"]) / "MANIFEST.tsv", newline="") as file:
        rows = sorted(
            csv.DictReader(file, delimiter="\t"), key=lambda row: np.prod([float(x) for x in row["cell"].split()[:3]])
        )
    for name in [row["entry"] for row in rows]:
        if name in results or (options.entries and name not in options.entries):
            continue
        results[name] = measure(name, options)
        write_atomically(out, json.dumps(results, indent=1))
        print(name, *("{} {:.3f}".format(m, results[name][m]["relative_l2"]) for m in MASKS), flush=True)
    print(summary(results))
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        write_table(results, Path(options.out).with_suffix(".csv"))
        draw(results).savefig(Path(options.out).with_suffix(".png"), dpi=200)
    return 0


if __name__ == "__main__":
    sys.exit(main())
