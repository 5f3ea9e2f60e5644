"""Calibration of the probe-shrink mask's radii and softness on R factors, cross-validated.

    python -m validation.studies.mask_calibration measure RESULTS.json [--entries 1aie ...] [--max-volume 1.5e6]
    python -m validation.studies.mask_calibration report RESULTS.json --out docs/figures/mask_calibration

For every entry and every point of a grid of (r_probe, r_shrink, softness), R-work and R-free after mmtbx's scaling
(this package's port of it, without outlier rejection so that all masks see the same reflections), with the F_calc of
mmtbx and F_mask to 3 Å; and the same with mmtbx's own default mask.  What is minimised is the mean over entries of the
change of R-work.  ``report`` finds the best point on each half of the entries, states what it gives on the other half,
and draws the figure.  ``measure`` adds to what RESULTS.json already holds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files.writing import write_atomically

import numpy as np

R_PROBE = (1.0, 1.1, 1.2)
R_SHRINK = (0.8, 0.9, 1.0)
SOFTNESS = (0.6, 0.7, 0.8, 0.9, 1.0)


def grid():
    return [(p, r, s) for p in R_PROBE for r in R_SHRINK for s in SOFTNESS]


def entries_of(folder, max_volume):
    """Entries whose cell edges span less than a volume, Å^3."""
    with open(Path(folder) / "MANIFEST.tsv", newline="") as file:
        return [
            row["entry"]
            for row in csv.DictReader(file, delimiter="\t")
            if np.prod([float(x) for x in row["cell"].split()[:3]]) < max_volume
        ]


def measure_entry(name, known, points):
    """Add R-work and R-free at the points, and with mmtbx's mask, to ``known``."""
    from mmtbx_sfdiff.scaling import update_all_scales

    from validation.studies.scaling import Case

    case = Case(name)
    atoms = sfdiff.Atoms.from_cctbx(case.xray_structure)
    reflections = case.reflections
    has_free = bool(case.flags is not None and 0 < case.flags.data().count(True) < case.flags.size())

    def r_factors(f_mask):
        scales = update_all_scales(reflections, case.tensors[0], f_mask, remove_outliers=False)
        return [scales.r_work, scales.r_free if has_free else None]

    known["volume"], known["d_min"] = atoms.crystal.volume, float(reflections.d_spacings.min())
    known["mmtbx"] = r_factors(case.tensors[1])
    values = known.setdefault("points", {})
    for point in points:
        key = " ".join(map(str, point))
        if key in values:
            continue
        with torch.no_grad():
            mask = sfdiff.solvent_mask(
                atoms, atoms.crystal, method="probe_shrink", r_probe=point[0], r_shrink=point[1], softness=point[2]
            )
            values[key] = r_factors(sfdiff.mask_structure_factors(mask, atoms.crystal, reflections.miller_indices))


def measure(options):
    out = Path(options.results)
    results = json.loads(out.read_text()) if out.is_file() else {}
    for name in options.entries or entries_of(os.environ["MMTBX_SFDIFF_PDB_DIR"], options.max_volume):
        known = dict(results.get(name, {}))
        if len(known.get("points", {})) >= len(grid()):
            continue
        measure_entry(name, known, grid())
        results[name] = known
        write_atomically(out, json.dumps(results, indent=1))
        print(name, "{:.4f}".format(known["mmtbx"][0]), flush=True)


def table(results):
    """(entries, points): changes of R-work and R-free against mmtbx's mask; nan where there is no free set."""
    names = sorted(name for name, known in results.items() if len(known["points"]) >= len(grid()))
    keys = [" ".join(map(str, point)) for point in grid()]
    value = lambda x: np.nan if x is None else x  # noqa: E731
    work, free = (
        np.array([[value(results[n]["points"][k][i]) - value(results[n]["mmtbx"][i]) for k in keys] for n in names])
        for i in (0, 1)
    )
    return names, work, free


def describe(work, free):
    free = free[~np.isnan(free)]
    return (
        f"dR-work median {1e3 * np.median(work):+.2f}e-3 mean {1e3 * work.mean():+.2f}e-3, lower in {100 * (work < 0).mean():.0f} %; "
        f"dR-free median {1e3 * np.median(free):+.2f}e-3 mean {1e3 * free.mean():+.2f}e-3, above +0.002 in "
        f"{100 * (free > 0.002).mean():.0f} %, largest {free.max():+.4f}"
    )


def report(options):
    results = json.loads(Path(options.results).read_text())
    names, work, free = table(results)
    points = grid()
    halves = np.arange(len(names)) % 2
    lines = []
    for half in (0, 1):
        best = int(np.argmin(work[halves == half].mean(0)))
        other = halves != half
        lines.append(
            f"calibrated on half {half + 1} ({(~other).sum()} entries): r_probe, r_shrink, softness = {points[best]}; "
            f"on the other {other.sum()}: {describe(work[other, best], free[other, best])}"
        )
    best = int(np.argmin(work.mean(0)))
    lines.append(f"best of all {len(names)} entries: {points[best]}: {describe(work[:, best], free[:, best])}")
    chosen = points.index(tuple(options.defaults))
    lines.append(f"defaults {points[chosen]}: {describe(work[:, chosen], free[:, chosen])}")
    print("\n".join(lines))
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "r_probe",
                "r_shrink",
                "softness",
                "mean_d_r_work",
                "median_d_r_work",
                "mean_d_r_free",
                "median_d_r_free",
                "share_r_free_above_0.002",
            ]
        )
        for i, point in enumerate(points):
            f = free[:, i][~np.isnan(free[:, i])]
            writer.writerow(
                [
                    *point,
                    *(
                        f"{x:.5f}"
                        for x in (work[:, i].mean(), np.median(work[:, i]), f.mean(), np.median(f), (f > 0.002).mean())
                    ),
                ]
            )
    draw(names, work, free, points, chosen).savefig(out.with_suffix(".png"), dpi=200)


def draw(names, work, free, points, chosen):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colours = {0.8: "#0072B2", 0.9: "#D55E00", 1.0: "#009E73"}
    styles = {1.0: (":", "o"), 1.1: ("-", "s"), 1.2: ("--", "^")}
    for p in R_PROBE:
        for r in R_SHRINK:
            rows = [points.index((p, r, s)) for s in SOFTNESS]
            left.plot(
                SOFTNESS,
                1e3 * work[:, rows].mean(0),
                linestyle=styles[p][0],
                marker=styles[p][1],
                markersize=4,
                color=colours[r],
                label=f"{p:g} / {r:g}",
            )
    left.axhline(0, color="0.5", linewidth=0.8)
    left.set_xlabel("softness (Å)")
    left.set_ylabel("mean change of R-work (10$^{-3}$)")
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower left",
        title="left: r$_{probe}$ / r$_{shrink}$ (Å)",
        fontsize=7,
        title_fontsize=7,
        frameon=False,
        ncols=9,
    )
    left.set_title(f"{len(names)} entries, against mmtbx's mask", fontsize=9, loc="left")
    order = np.argsort(work[:, chosen])
    x = np.arange(len(names))
    right.axhline(0, color="0.5", linewidth=0.8)
    right.plot(x, 1e3 * free[order, chosen], "^", color="#D55E00", markersize=4, markerfacecolor="none", label="R-free")
    right.plot(x, 1e3 * work[order, chosen], "o", color="#0072B2", markersize=3.5, label="R-work")
    right.set_xlabel("entry, by change of R-work")
    right.set_ylabel("change of R (10$^{-3}$)")
    right.set_title("at the defaults {:g} / {:g}, softness {:g} Å".format(*points[chosen]), fontsize=9, loc="left")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments=None):
    from mmtbx_sfdiff.bulk_solvent import probe_shrink_defaults

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("measure")
    first.add_argument("results")
    first.add_argument("--entries", nargs="*")
    first.add_argument("--max-volume", type=float, default=1.5e6, help="Å^3; larger cells are left out")
    first.set_defaults(run=measure)
    second = commands.add_parser("report")
    second.add_argument("results")
    second.add_argument("--out", default="mask_calibration")
    second.add_argument("--defaults", nargs=3, type=float, default=probe_shrink_defaults())
    second.set_defaults(run=report)
    options = parser.parse_args(arguments)
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
