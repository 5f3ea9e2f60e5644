"""The figures of a run: the paper's 1a, 1b, 1c, 2a and 2b, each with the table behind it.

Median and quartiles in bins of resolution are over entries; every entry is drawn lightly beneath.  A shell of
an entry belongs where the middle of its range in 1/d² lies.
"""

from __future__ import annotations

import csv
import io
import math
import statistics

from mmtbx_sfdiff.comparison import figure_style as one_entry
from mmtbx_sfdiff.comparison.figure_sections import draw_sections

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .sections import from_npz

# Å, low to high resolution.
EDGES = (60.0, 15.0, 10.0, 8.0, 6.5, 5.5, 5.0, 4.5, 4.0, 3.75, 3.5, 3.25, 3.0)
EDGES_FAR = (
    60.0,
    8.0,
    5.0,
    4.0,
    3.4,
    3.0,
    2.7,
    2.5,
    2.3,
    2.15,
    2.0,
    1.9,
    1.8,
    1.7,
    1.6,
    1.5,
    1.4,
    1.3,
    1.2,
    1.1,
    1.0,
    0.9,
    0.8,
    0.7,
)
_LEAST_ENTRIES = 3
_OURS, _MMTBX, _CUTOFF, _EQUAL = one_entry.OURS, one_entry.MMTBX, one_entry.CUTOFF, one_entry.EQUAL
_F_CURVES = (
    ("sfdiff", "mmtbx_sfdiff", _OURS, lambda r: r["f_protein"]["shells"]),
    ("mmtbx_fft", "mmtbx, its default (FFT)", _MMTBX, lambda r: r["f_protein"]["mmtbx_fft"]["shells"]),
)
_HARD = (
    "hard_edge",
    "mmtbx_sfdiff, hard edge, mmtbx's radii",
    _OURS,
    lambda r: (r["f_mask"]["equal_radii"] or {}).get("shells", ()),
)
_MASK_CURVES = (
    (
        _HARD,
        ("density_cutoff", "density cutoff (as published)", _CUTOFF, lambda r: r["f_mask"]["density_cutoff"]["shells"]),
    ),
    (
        ("default", "mmtbx_sfdiff, default (soft)", _OURS, lambda r: r["f_mask"]["shells"]),
        ("mmtbx_default", "mmtbx, its default (0.6 Å grid)", _MMTBX, lambda r: r["f_mask"]["mmtbx_default"]["shells"]),
    ),
)
_TIMES = (
    ("f_protein", "$F_{protein}$"),
    ("f_mask", "$F_{mask}$"),
    ("gradients", "gradients (sites)"),
    ("scaling", "scaling"),
)


def _middle(shell):
    return (shell["d_max"] ** -2 + shell["d_min"] ** -2) / 2


def by_bin(results, shells, edges=EDGES):
    """[(d_max, d_min, correlations)] of the shells of all entries, bins without any left out."""
    points = [
        (_middle(shell) ** -0.5, shell["cc"])
        for result in results
        for shell in shells(result)
        if shell["cc"] is not None
    ]
    bins = [
        (upper, lower, np.array([cc for d, cc in points if lower <= d < upper]))
        for upper, lower in zip(edges, edges[1:])
    ]
    return [item for item in bins if len(item[2])]


def _canvas(width, height):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curves(axes, results, curves, edges=EDGES, transform=lambda cc: cc):
    """Every entry lightly, quartiles as a band, the median as a line."""
    light = min(0.3, 6 / max(len(results), 1) + 0.05)
    for _, label, style, shells in curves:
        for result in results:
            own = [shell for shell in shells(result) if shell["cc"] is not None]
            axes.plot(
                [_middle(shell) for shell in own],
                transform(np.array([shell["cc"] for shell in own])),
                color=style["color"],
                alpha=light,
                linewidth=0.5,
                zorder=1,
                rasterized=True,
            )
        bins = [item for item in by_bin(results, shells, edges) if len(item[2]) >= min(_LEAST_ENTRIES, len(results))]
        x = [(upper**-2 + lower**-2) / 2 for upper, lower, _ in bins]
        quartiles = np.array([np.percentile(cc, [25, 50, 75]) for *_, cc in bins]).reshape(-1, 3)
        axes.fill_between(
            x, transform(quartiles[:, 0]), transform(quartiles[:, 2]), color=style["color"], alpha=0.25, linewidth=0
        )
        axes.plot(x, transform(quartiles[:, 1]), label=label, markeredgewidth=0.8, clip_on=False, **style)


def _range(results, curves):
    shells = [shell for *_, of in curves for result in results for shell in of(result)]
    # Nothing may be there, as F_mask of data that end at 3 Å.
    return (
        max((shell["d_max"] for shell in shells), default=30.0),
        min((shell["d_min"] for shell in shells), default=3.0),
    )


def _binned(results, curves, edges=EDGES):
    rows = [("curve", "d_max", "d_min", "n_shells", "quartile_1", "median", "quartile_3")]
    for name, _, _, shells in curves:
        for upper, lower, cc in by_bin(results, shells, edges):
            rows.append(
                (name, f"{upper:g}", f"{lower:g}", len(cc), *(f"{q:.6f}" for q in np.percentile(cc, [25, 50, 75])))
            )
    return rows


def _by_entry(results, curves):
    rows = [("curve", "entry", "d_max", "d_min", "n", "cc")]
    for name, _, _, shells in curves:
        rows += [
            (
                name,
                result["entry"],
                f"{shell['d_max']:.3f}",
                f"{shell['d_min']:.3f}",
                shell["n"],
                "" if shell["cc"] is None else f"{shell['cc']:.7f}",
            )
            for result in results
            for shell in shells(result)
        ]
    return rows


def figure_1a(results):
    """F_protein against direct summation: correlation, and how far it is from 1."""
    figure = _canvas(one_entry.WIDTH_INCHES, 3.0)
    left, right = figure.subplots(1, 2)
    _curves(left, results, _F_CURVES, EDGES_FAR)
    left.set_ylim(0, 1.03)
    left.set_ylabel("correlation of $|F_{protein}|$")
    left.legend(frameon=False, loc="lower left")
    one_entry.panel_title(left, "a", "against exact summation")
    _curves(right, results, _F_CURVES, EDGES_FAR, lambda cc: np.maximum(1 - cc, 1e-15))
    right.set_yscale("log")
    right.set_ylabel("1 − correlation")
    one_entry.panel_title(right, "b", "the same: how far from 1")
    for axes in (left, right):
        one_entry.resolution_axis(axes, *_range(results, _F_CURVES))
        axes.grid(axis="y", color="0.88", linewidth=0.5)
    return figure, {
        "figure_1a": _binned(results, _F_CURVES, EDGES_FAR),
        "figure_1a_entries": _by_entry(results, _F_CURVES),
    }


def figure_1b(results):
    """F_mask against mmtbx's mask on a fine grid, like with like and at the defaults."""
    figure = _canvas(one_entry.WIDTH_INCHES, 3.2)
    curves = [curve for panel in _MASK_CURVES for curve in panel]
    for axes, panel, letter, title in zip(
        figure.subplots(1, 2, sharey=True),
        _MASK_CURVES,
        "ab",
        ("the geometry, and the published mask", "as they are used"),
    ):
        _curves(axes, results, panel)
        axes.set_ylim(-0.45, 1.03)
        axes.legend(frameon=False, loc="lower left")
        axes.grid(axis="y", color="0.88", linewidth=0.5)
        one_entry.resolution_axis(axes, *_range(results, curves))
        one_entry.panel_title(axes, letter, title)
        if letter == "a":
            axes.set_ylabel("correlation of $|F_{mask}|$ with\nmmtbx's mask on a fine grid")
    return figure, {"figure_1b": _binned(results, curves), "figure_1b_entries": _by_entry(results, curves)}


def figure_1c(result, path):
    """The same section through this package's mask and mmtbx's, of one entry."""
    section = from_npz(path)
    figure = Figure(figsize=(one_entry.WIDTH_INCHES, one_entry.HEIGHT_INCHES))
    FigureCanvasAgg(figure)
    draw_sections(figure, section, result, (0.09, 0.36, 0.75, 0.56))
    figure.text(
        0.05,
        0.965,
        f"Solvent mask of {result['entry'].upper()}, section {section.normal} = {section.position:.2f}; orange: "
        "mmtbx's outline",
        va="top",
        fontsize=8,
        fontweight="bold",
    )
    rows = [
        ("mask", "correlation_in_cell", "solvent_fraction"),
        (
            "mmtbx_sfdiff",
            f"{result['mask_map']['cc']:.5f}" if result["mask_map"]["cc"] is not None else "",
            f"{result['mask_map']['solvent_fraction']:.4f}",
        ),
        ("mmtbx", "1", f"{result['mask_map']['solvent_fraction_mmtbx']:.4f}"),
    ]
    return figure, {"figure_1c": rows}


def figure_2a(results):
    """Times, ours against mmtbx's, in one process."""
    figure = _canvas(one_entry.WIDTH_INCHES, 2.5)
    rows = [
        (
            "entry",
            "n_atoms",
            "n_reflections",
            *(f"{name}_{side}_s" for name, _ in _TIMES for side in ("sfdiff", "mmtbx")),
        )
    ]
    for result in results:
        times = result["timing_s"]
        rows.append(
            (
                result["entry"],
                result["n_atoms"],
                result["n_reflections"],
                *(
                    "" if times[name][side] is None else f"{times[name][side]:.4g}"
                    for name, _ in _TIMES
                    for side in ("sfdiff", "mmtbx")
                ),
            )
        )
    for axes, (name, title), letter in zip(figure.subplots(1, len(_TIMES)), _TIMES, "abcd"):
        pairs = [(result["timing_s"][name]["mmtbx"], result["timing_s"][name]["sfdiff"]) for result in results]
        pairs = [pair for pair in pairs if all(pair)]
        one_entry.panel_title(axes, letter, title)
        axes.set_box_aspect(1)
        if not pairs:
            continue
        low = 10.0 ** math.floor(math.log10(min(map(min, pairs))))
        high = 10.0 ** math.ceil(math.log10(max(map(max, pairs))))
        axes.plot([low, high], [low, high], color=one_entry.GREY, linewidth=0.8)
        axes.plot(
            *zip(*pairs), linestyle="", marker="o", markersize=3, alpha=0.7, color=one_entry.BLUE, markeredgewidth=0
        )
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="mmtbx (s)")
        axes.minorticks_off()
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        axes.text(
            0.5,
            -0.42,
            f"mmtbx takes {ratio:.2g} times\nas long (median)",
            transform=axes.transAxes,
            va="top",
            ha="center",
        )
        if letter == "a":
            axes.set_ylabel("mmtbx_sfdiff (s)")
    return figure, {"figure_2a": rows}


def figure_2b(results):
    """R factors: this package's masks against mmtbx's, and both against those deposited."""
    figure = _canvas(one_entry.WIDTH_INCHES, 3.1)
    header = (
        "entry",
        *(
            f"{kind}_{model}"
            for kind in ("r_work", "r_free")
            for model in ("sfdiff", "mmtbx", "density_cutoff", "sfdiff_alone", "deposited")
        ),
    )
    rows = [header]
    for result in results:
        part = result["r_factors"] | {"sfdiff_alone": result["r_factors"]["sfdiff_scaling"]["sfdiff"]}
        values = [part[name.split("_", 2)[2]][name[:6]] for name in header[1:]]
        rows.append((result["entry"], *("" if value is None else f"{value:.4f}" for value in values)))
    table = [dict(zip(header, row)) for row in rows[1:]]

    def pairs(x, y):
        return [(float(row[x]), float(row[y])) for row in table if row[x] and row[y]]

    ours = {"color": one_entry.BLUE, "marker": "o", "markersize": 3.2}
    cutoff = {"color": one_entry.GREEN, "marker": "^", "markersize": 3.2, "markerfacecolor": "none"}
    mmtbx = {"color": one_entry.VERMILLION, "marker": "s", "markersize": 3.2, "markerfacecolor": "none"}
    panels = (
        (
            "R-work",
            "R-work of mmtbx",
            (
                ("density cutoff mask", cutoff, pairs("r_work_mmtbx", "r_work_density_cutoff")),
                ("mmtbx_sfdiff", ours, pairs("r_work_mmtbx", "r_work_sfdiff")),
            ),
        ),
        (
            "R-free",
            "R-free of mmtbx",
            (
                ("density cutoff mask", cutoff, pairs("r_free_mmtbx", "r_free_density_cutoff")),
                ("mmtbx_sfdiff", ours, pairs("r_free_mmtbx", "r_free_sfdiff")),
            ),
        ),
        (
            "R-work",
            "R-work in the file's header",
            (
                ("mmtbx", mmtbx, pairs("r_work_deposited", "r_work_mmtbx")),
                ("mmtbx_sfdiff", ours, pairs("r_work_deposited", "r_work_sfdiff")),
            ),
        ),
    )
    for axes, (kind, label, series), letter in zip(figure.subplots(1, 3), panels, "abc"):
        one_entry.panel_title(axes, letter, kind)
        axes.set_box_aspect(1)
        points = [value for *_, found in series for pair in found for value in pair]
        if not points:
            continue
        low, high = max(0, min(points) - 0.02), max(points) + 0.02
        axes.plot([low, high], [low, high], color=one_entry.GREY, linewidth=0.8, zorder=1)
        for name, style, found in series:
            if found:
                axes.plot(*zip(*found), linestyle="", label=name, markeredgewidth=0.7, alpha=0.85, **style)
        axes.set(xlim=(low, high), ylim=(low, high), xlabel=label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        axes.legend(frameon=False, loc="lower right", handletextpad=0.1, borderpad=0.1)
    return figure, {"figure_2b": rows}


def files(figure, name, tables, dpi=200):
    """{file name: bytes} of a figure as PNG and PDF and of its tables as CSV; the same numbers give the same files."""
    contents = {}
    with matplotlib.rc_context(one_entry.STYLE):
        for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata, bbox_inches="tight", pad_inches=0.05)
            contents[f"{name}.{kind}"] = _with_palette(buffer) if kind == "png" else buffer.getvalue()
    for table, rows in tables.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        contents[f"{table}.csv"] = text.getvalue().encode()
    return contents


def _with_palette(buffer):
    """A PNG with 256 colours, a third of its size."""
    image = Image.open(buffer).convert("RGB").quantize(256)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def draw(results, section):
    """Every figure: {name: (figure, tables)}.

    Parameters
    ----------
    results : list of dict
        Of :mod:`mmtbx_sfdiff.comparison`.
    section : tuple or None
        (result, path of its section) of the entry in figure 1c.
    """
    with matplotlib.rc_context(one_entry.STYLE):
        figures = {"figure_1a": figure_1a(results), "figure_1b": figure_1b(results)}
        if section:
            figures["figure_1c"] = figure_1c(*section)
        return figures | {"figure_2a": figure_2a(results), "figure_2b": figure_2b(results)}
