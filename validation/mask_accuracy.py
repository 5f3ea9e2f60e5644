"""How near masks are to mmtbx's mask on a fine grid, at equal radii (1.1 and 0.9 Å).

    python -m validation.mask_accuracy RESULTS.json [--entries 1aie ...] [--max-volume 4e5] [--csv TABLE.csv]

For every entry: relative L2 of F_mask to 3 Å, Pearson correlation of its amplitudes in shells, and correlation of the
maps, for the hard probe-shrink mask on a 0.6 Å grid, for mmtbx's default and for the density-cutoff mask, against mmtbx with
``step`` 0.15 Å (finer with --step).  On entries of less than --step-volume, the error at other grid steps too.  The
default, soft mask is in the table as well: it is another definition, calibrated on R factors.
"""
from __future__ import annotations

import mmtbx_sfdiff as sfdiff  # first: it owns the order in which native libraries are loaded

import argparse
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from cctbx import miller
from cctbx.array_family import flex

from mmtbx_sfdiff.cctbx_backend import reference

EDGES = (1e9, 8.0, 6.0, 5.0, 4.0, 3.5, 3.0)
STEPS = (0.8, 0.6, 0.45, 0.3)
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
            out[i, j, :half[2]] = transform[i, j, :half[2]]
    return torch.fft.irfftn(out, s=shape)


def measure(name, step, step_volume):
    from mmtbx_sfdiff.files import find_entry, load_entry
    files = find_entry(name, download=False)
    structure = load_entry(files.model, files.data).model.xray_structure
    atoms = sfdiff.Atoms.from_cctbx(structure)
    crystal = atoms.crystal
    miller_set = miller.build_set(structure.crystal_symmetry(), anomalous_flag=False, d_min=3.0)
    array = miller_set.array(data=flex.double(miller_set.size()))
    d = miller_set.d_spacings().data().as_numpy_array()
    expected = reference.f_mask(structure, array, step)

    def f_mask(mask):
        return sfdiff.mask_structure_factors(mask, crystal, miller_set).numpy()

    hard = dict(method="probe_shrink", softness=0, r_probe=1.1, r_shrink=0.9)
    binary = sfdiff.solvent_mask(atoms, crystal, method="binary")
    fraction = min(max(float(binary.mean()), 1e-3), 0.999)
    masks = {"probe_shrink": sfdiff.solvent_mask(atoms, crystal, **hard),
             "density_cutoff": sfdiff.solvent_mask(atoms, crystal, method="density_cutoff", solvent_fraction=fraction),
             "soft_default": sfdiff.solvent_mask(atoms, crystal, method="probe_shrink")}
    result = {mask: agreement(f_mask(values), expected, d) for mask, values in masks.items()}
    result["mmtbx_default"] = agreement(reference.f_mask(structure, array, 0.6), expected, d)
    result |= {"volume": crystal.volume, "n_atoms": atoms.n_atoms, "solvent": fraction, "reference_step": step}
    # Maps are compared as far as the 0.6 Å grid can tell: the fine one truncated to its Fourier coefficients.
    fine = reference.mask_map(structure, crystal.grid(step))
    fine = coarse(torch.from_numpy(fine), tuple(binary.shape))
    masks["mmtbx_default"] = binary
    for mask, values in masks.items():
        result[mask]["map_cc"] = float(np.corrcoef(values.numpy().ravel(), fine.numpy().ravel())[0, 1])
    if crystal.volume < step_volume:
        result["by_step"] = {}
        for grid_step in STEPS:
            ours = f_mask(sfdiff.solvent_mask(atoms, crystal, grid_step=grid_step, **hard))
            theirs = reference.f_mask(structure, array, grid_step)
            result["by_step"][str(grid_step)] = [agreement(f, expected, d)["relative_l2"] for f in (ours, theirs)]
    return result


def summary(results):
    lines = [f"{len(results)} entries; relative L2 of F_mask to 3 Å, correlation of maps, CC of |F_mask| by shell "
             "(median, and least of shells of 30 reflections and more)"]
    for mask in MASKS:
        l2 = np.array([r[mask]["relative_l2"] for r in results.values()])
        maps = np.array([r[mask]["map_cc"] for r in results.values()])
        lines.append(f"{mask:15s} L2 median {np.median(l2):.3f} range {l2.min():.3f}-{l2.max():.3f}; "
                     f"map median {np.median(maps):.3f} least {maps.min():.3f}")
        for number, lower in enumerate(EDGES[1:]):
            cc = np.array([r[mask]["shells"][number]["cc"] for r in results.values() if r[mask]["shells"][number]["n"] >= 30])
            lines.append(f"    to {lower:g} Å: {np.median(cc):.3f} {cc.min():.3f}")
    steps = [r["by_step"] for r in results.values() if "by_step" in r]
    for step in STEPS if steps else ():
        values = np.array([s[str(step)] for s in steps])
        lines.append("grid {:g} Å ({} entries): probe_shrink {:.3f}, mmtbx {:.3f} (median relative L2)".format(
            step, len(steps), *np.median(values, 0)))
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results")
    parser.add_argument("--entries", nargs="*")
    parser.add_argument("--max-volume", type=float, default=4e5, help="Å^3; larger cells are left out")
    parser.add_argument("--step-volume", type=float, default=1e5, help="Å^3; other grid steps in cells smaller than this")
    parser.add_argument("--step", type=float, default=0.15)
    parser.add_argument("--csv")
    options = parser.parse_args(arguments)
    out = Path(options.results)
    results = json.loads(out.read_text()) if out.is_file() else {}
    with open(Path(os.environ["MMTBX_SFDIFF_PDB_DIR"]) / "MANIFEST.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        name = row["entry"]
        a, b, c = map(float, row["cell"].split()[:3])
        if name in results or (options.entries and name not in options.entries) or a * b * c > options.max_volume:
            continue
        results[name] = measure(name, options.step, options.step_volume)
        temporary = out.with_suffix(".part")
        temporary.write_text(json.dumps(results, indent=1))
        os.replace(temporary, out)
        print(name, *("{} {:.3f}".format(m, results[name][m]["relative_l2"]) for m in MASKS), flush=True)
    print(summary(results))
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["entry", "mask", "relative_l2", "map_cc", *(f"cc_to_{e:g}" for e in EDGES[1:])])
            for name, result in results.items():
                for mask in MASKS:
                    writer.writerow([name, mask, f"{result[mask]['relative_l2']:.4f}", f"{result[mask]['map_cc']:.4f}",
                                     *("" if s["cc"] is None else f"{s['cc']:.4f}" for s in result[mask]["shells"])])
    return 0


if __name__ == "__main__":
    sys.exit(main())
