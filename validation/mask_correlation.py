"""Correlation of |F_mask| against resolution over many entries, from the JSON files of ``mmtbx_sfdiff.compare``.

    python -m validation.mask_correlation RUN_FOLDER --out docs/figures/mask_correlation

draws every entry lightly, with median and quartiles, for the density-cutoff mask and for mmtbx's default mask, both
against mmtbx's mask on a fine grid (the paper's figure 1b), and writes the numbers as CSV.
"""
from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import mmtbx_sfdiff  # noqa: F401  (first: it owns the order in which native libraries are loaded)

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Å; low to high resolution.
EDGES = (30.0, 12.0, 9.0, 7.0, 6.0, 5.5, 5.0, 4.5, 4.25, 4.0, 3.75, 3.5, 3.25, 3.0)
MASKS = (("density_cutoff", "density cutoff", "#009E73", "^", "-."),
         ("mmtbx_default", "mmtbx, 0.6 Å grid", "#D55E00", "s", "--"))


def read(folder):
    """Results of all entries in a folder, measured data only."""
    results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*_compare.json"))]
    return [result for result in results if not result["simulated"]]


def by_shell(results, mask):
    """[(d_max, d_min, correlations)]: a shell of an entry belongs where the middle of its range in 1/d^2 lies."""
    points = [((0.5 * (shell["d_max"] ** -2 + shell["d_min"] ** -2)) ** -0.5, shell["cc"])
              for result in results for shell in result["f_mask"][mask]["shells"] if shell["cc"] is not None]
    return [(upper, lower, np.array([cc for d, cc in points if lower <= d < upper]))
            for upper, lower in zip(EDGES[:-1], EDGES[1:])]


def draw(results):
    """The figure."""
    figure = Figure(figsize=(6.3, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for mask, label, colour, marker, style in MASKS:
        for result in results:
            shells = [shell for shell in result["f_mask"][mask]["shells"] if shell["cc"] is not None]
            axes.plot([0.5 * (s["d_max"] ** -2 + s["d_min"] ** -2) for s in shells], [s["cc"] for s in shells],
                      color=colour, alpha=0.12, linewidth=0.6)
        rows = [(0.5 * (a**-2 + b**-2), np.percentile(cc, [25, 50, 75])) for a, b, cc in by_shell(results, mask) if len(cc) > 2]
        x, quartiles = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        axes.plot(x, quartiles[:, 1], color=colour, marker=marker, linestyle=style, linewidth=1.8, label=label)
        axes.fill_between(x, quartiles[:, 0], quartiles[:, 2], color=colour, alpha=0.22, linewidth=0)
    ticks = [20, 8, 6, 5, 4.5, 4, 3.5, 3.2, 3]
    axes.set_xticks([d**-2 for d in ticks], [f"{d:g}" for d in ticks])
    axes.set_xlabel("resolution d (Å), linear in 1/d²")
    axes.set_ylabel("correlation of |F$_{mask}$|")
    axes.set_ylim(-0.3, 1.02)
    axes.grid(axis="y", color="0.88", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    axes.set_title(f"|F$_{{mask}}$| against mmtbx's mask on a fine grid, {len(results)} entries", fontsize=10, loc="left")
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder with <entry>_compare.json files")
    parser.add_argument("--out", default="mask_correlation", help="path of the figure and table, without suffix")
    options = parser.parse_args(arguments)
    results = read(options.folder)
    if not results:
        print(f"Sorry: no *_compare.json of measured data in {options.folder}: run mmtbx_sfdiff.compare there first.",
              file=sys.stderr)
        return 1
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(out.with_suffix(".png"), dpi=200)
    with open(out.with_suffix(".csv"), "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["mask", "d_max", "d_min", "n_shells", "quartile_1", "median", "quartile_3"])
        for mask, *_ in MASKS:
            for upper, lower, cc in by_shell(results, mask):
                if len(cc):
                    table.writerow([mask, upper, lower, len(cc), *(f"{q:.3f}" for q in np.percentile(cc, [25, 50, 75]))])
    print(f"{len(results)} entries: {out.with_suffix('.png')}, {out.with_suffix('.csv')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
