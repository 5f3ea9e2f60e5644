"""The four panels of one comparison: F_protein, F_mask, the masks themselves, R factors and times.

Made for a journal's full width (180 mm), legible in grey and to colour-blind readers (Okabe and Ito's
colours, each with a marker and a line style of its own), and without matplotlib's global state, so that any
program may call it.
"""

from __future__ import annotations

import io
import math
import textwrap

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from ..files import is_entry_id

WIDTH_INCHES, HEIGHT_INCHES = 7.09, 7.0
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "mmtbx_sfdiff",
    "mathtext.default": "regular",
}
BLUE, VERMILLION, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
BLACK, GREY = "#000000", "#777777"
OURS = {"color": BLUE, "marker": "o", "linestyle": "-", "zorder": 4}
MMTBX = {"color": VERMILLION, "marker": "s", "linestyle": "--", "markersize": 5}
CUTOFF = {"color": GREEN, "marker": "^", "linestyle": "-."}
EQUAL = {"color": SKY, "marker": "D", "linestyle": ":", "markerfacecolor": "white"}
_MASK_COLOURS = LinearSegmentedColormap.from_list("mask", ["#f4f1ea", "#9ccbe8", "#0b4f80"])
_MOST_NINES = 15
_TICKS = (
    20,
    10,
    8,
    6,
    5,
    4.5,
    4,
    3.5,
    3.2,
    3,
    2.8,
    2.6,
    2.4,
    2.2,
    2,
    1.9,
    1.8,
    1.7,
    1.6,
    1.5,
    1.4,
    1.3,
    1.2,
    1.1,
    1.05,
    1,
    0.95,
    0.9,
    0.85,
    0.8,
    0.7,
    0.6,
    0.5,
)
_R_ROWS = (
    ("sfdiff", "mmtbx_sfdiff", BLUE),
    ("mmtbx", "mmtbx", VERMILLION),
    ("density_cutoff", "density cutoff", GREEN),
    ("deposited", "deposited", BLACK),
)
_TIME_ROWS = (
    ("f_protein", "$F_{protein}$"),
    ("f_mask", "$F_{mask}$"),
    ("gradients", "gradients"),
    ("scaling", "scaling"),
)


def draw(comparison):
    """The figure of one comparison.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    matplotlib.figure.Figure
    """
    result = comparison.result
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
        FigureCanvasAgg(figure)
        figure.text(0.02, 0.985, _title(result), ha="left", va="top", fontsize=10, fontweight="bold")
        figure.text(0.02, 0.958, _subtitle(result), ha="left", va="top", fontsize=7.5)
        if result["simulated"]:
            figure.text(
                0.98,
                0.985,
                "SIMULATED DATA",
                ha="right",
                va="top",
                fontsize=9,
                fontweight="bold",
                color="white",
                bbox={"facecolor": "#B00020", "edgecolor": "none", "pad": 2.5},
            )
        top = figure.add_gridspec(1, 2, left=0.115, right=0.985, top=0.885, bottom=0.665, wspace=0.25)
        _protein_panel(figure.add_subplot(top[0]), result)
        _mask_panel(figure.add_subplot(top[1]), result)
        figure.text(
            0.02,
            0.535,
            f"(c)  Solvent mask, section {comparison.section.normal} = {comparison.section.position:.2f}",
            fontsize=8,
            fontweight="bold",
            va="bottom",
        )
        draw_sections(figure, comparison.section, result, (0.075, 0.165, 0.395, 0.325))
        bottom = figure.add_gridspec(1, 2, left=0.645, right=0.985, top=0.49, bottom=0.165, wspace=0.62)
        figure.text(0.555, 0.535, "(d)  R factors and times", fontsize=8, fontweight="bold", va="bottom")
        _r_panel(figure.add_subplot(bottom[0]), result)
        _time_panel(figure.add_subplot(bottom[1]), result)
        figure.text(
            0.02, 0.012, _caption(comparison), ha="left", va="bottom", fontsize=7, color="#333333", linespacing=1.25
        )
    return figure


def render(comparison, kinds=("png", "pdf")):
    """The figure as files.

    Parameters
    ----------
    comparison : Comparison
    kinds : sequence of {"png", "pdf", "svg"}

    Returns
    -------
    dict of str to bytes
    """
    figure = draw(comparison)
    # No dates: the same numbers give the same files.
    metadata = {"png": None, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    files = {}
    with matplotlib.rc_context(STYLE):
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=300 if kind == "png" else 200, metadata=metadata[kind])
            files[kind] = buffer.getvalue()
    return files


def _title(result):
    """Entries in capitals, as journals print them; names of files as they are."""
    first, *rest = result["entry"].split(" ")
    return " ".join([first.upper() if is_entry_id(first) else first, *rest])


def _subtitle(result):
    return (
        f"{result['space_group']}   ·   {result['d_max']:.1f}–{result['d_min']:.2f} Å   ·   "
        f"{result['n_atoms']:,} atoms   ·   {result['n_reflections']:,} reflections   ·   "
        f"solvent {100 * result['mask_map']['solvent_fraction_mmtbx']:.0f} %"
    )


def panel_title(axes, letter, text):
    axes.set_title(f"({letter})  {text}", loc="left", fontweight="bold", pad=7)


def resolution_axis(axes, d_max, d_min):
    """An axis linear in 1/d² that is labelled in Å."""
    low, high = (0 if math.isinf(d_max) else d_max**-2), d_min**-2
    margin = 0.03 * (high - low)
    low, high = max(0, low - margin), high + margin
    ticks = []
    for d in _TICKS:
        if low <= d**-2 <= high and (not ticks or d**-2 - ticks[-1] ** -2 > 0.075 * (high - low)):
            ticks.append(d)
    axes.set_xlim(low, high)
    axes.set_xticks([d**-2 for d in ticks], [f"{d:g}" for d in ticks])
    axes.set_xlabel("resolution $d$ (Å), linear in $1/d^2$")


def _curve(axes, shells, label, style, transform=lambda cc: cc):
    points = [
        ((shell["d_max"] ** -2 + shell["d_min"] ** -2) / 2, transform(shell["cc"]))
        for shell in shells
        if shell["cc"] is not None
    ]
    if points:
        axes.plot(*zip(*points), label=label, clip_on=False, markeredgewidth=0.8, **style)
    return bool(points)


def _nines(cc):
    return min(_MOST_NINES, -math.log10(max(1 - cc, 10.0**-_MOST_NINES)))


def _protein_panel(axes, result):
    part = result["f_protein"]
    panel_title(axes, "a", "$|F_{protein}|$ against exact summation")
    drawn = _curve(axes, part["shells"], f"mmtbx_sfdiff ({part['method']})", OURS, _nines)
    drawn |= _curve(axes, part["mmtbx_fft"]["shells"], "mmtbx (FFT, its default)", MMTBX, _nines)
    if not drawn:
        return _nothing(axes, "too few reflections\nfor a correlation")
    top = max(line.get_ydata().max() for line in axes.lines)
    bottom = math.floor(min(line.get_ydata().min() for line in axes.lines))
    top, bottom = min(_MOST_NINES, math.ceil(top)) + 0.3, max(0, bottom - 1)
    axes.set_ylim(bottom, top)
    step = 1 if top - bottom < 6 else 2 if top - bottom < 9 else 3
    ticks = [n for n in range(bottom, int(top) + 1) if n % step == 0]
    axes.set_yticks(ticks, [_nines_label(n) for n in ticks])
    axes.set_ylabel("correlation (each step: a tenth\nof the disagreement)" if step == 1 else "correlation")
    axes.grid(axis="y", color="#dddddd", linewidth=0.5)
    resolution_axis(axes, part["shells"][0]["d_max"], part["shells"][-1]["d_min"])
    _legend_below(axes)


def _nines_label(n):
    return {0: "0", 1: "0.9", 2: "0.99", 3: "0.999"}.get(n, f"$1-10^{{-{n}}}$")


def _mask_panel(axes, result):
    part = result["f_mask"]
    panel_title(axes, "b", f"$|F_{{mask}}|$ against {part['reference']}")
    drawn = _curve(axes, part["shells"], f"mmtbx_sfdiff ({part['method'].replace('_', ' ')})", OURS)
    if part["equal_radii"]:
        drawn |= _curve(axes, part["equal_radii"]["shells"], "same, with a hard edge", EQUAL)
    drawn |= _curve(axes, part["mmtbx_default"]["shells"], f"mmtbx ({part['mmtbx_default']['grid_step']:g} Å)", MMTBX)
    drawn |= _curve(axes, part["density_cutoff"]["shells"], "density cutoff", CUTOFF)
    if not drawn:
        return _nothing(axes, "no correlation:\nno solvent, or no reflections\nto 3 Å")
    lowest = min(line.get_ydata().min() for line in axes.lines)
    axes.set_ylim(-1.02 if lowest < -0.25 else min(0, math.floor(10 * lowest) / 10), 1.02)
    axes.set_ylabel("correlation")
    axes.grid(axis="y", color="#dddddd", linewidth=0.5)
    resolution_axis(axes, part["shells"][0]["d_max"], part["shells"][-1]["d_min"])
    _legend_below(axes)


def _legend_below(axes):
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.46, -0.21),
        ncol=2,
        columnspacing=0.8,
        handlelength=2.4,
        handletextpad=0.5,
        frameon=False,
    )


def _nothing(axes, text):
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)


def draw_sections(figure, section, result, box):
    """Both masks in Å, to one scale, side by side or one above the other, with mmtbx's outline over ours."""
    left, bottom, width, height = box
    beside = [(0.0, 0.5, 0.45, 1.0), (0.55, 0.5, 0.45, 1.0)]
    above = [(0.5, 1.0, 0.9, 0.38), (0.5, 0.38, 0.9, 0.38)]
    extent = np.ptp(section.x), np.ptp(section.y)

    def scale(part):
        """Inches per Å such that the section fits its part of the box."""
        return min(part[2] * width * WIDTH_INCHES / extent[0], part[3] * height * HEIGHT_INCHES / extent[1])

    stacked = scale(above[0]) > scale(beside[0])
    inches = scale((above if stacked else beside)[0])
    w, h = extent[0] * inches / WIDTH_INCHES, extent[1] * inches / HEIGHT_INCHES
    top = bottom + height
    step = 0.062 + h
    second = (left, top - h - step) if stacked else (left + w + 0.035, top - h)
    corners = [(left, top - h), second]
    narrow = not stacked and w * WIDTH_INCHES < 1.35
    names = (f"mmtbx_sfdiff: {result['f_mask']['method'].replace('_', ' ')}", "mmtbx: probe–shrink")
    for number, (mask, name, (x, y)) in enumerate(zip((section.ours, section.mmtbx), names, corners)):
        axes = figure.add_axes((x, y, w, h))
        image = axes.pcolormesh(
            section.x, section.y, mask, cmap=_MASK_COLOURS, vmin=0, vmax=1, rasterized=True, linewidth=0
        )
        axes.set_aspect("equal")
        axes.set_xlim(section.x.min(), section.x.max())
        axes.set_ylim(section.y.min(), section.y.max())
        axes.set_title(name.replace(": ", "\n") if narrow else name, fontsize=7, pad=3, loc="left")
        axes.locator_params(nbins=4)
        for spine in axes.spines.values():
            spine.set_visible(True)
        if stacked or number == 0:
            axes.set_ylabel(f"along {section.axes[1]} (Å)")
        else:
            axes.set_yticklabels([])
        if not stacked or number == 1:
            axes.set_xlabel(f"along {section.axes[0]} (Å)")
        else:
            axes.set_xticklabels([])
        if number == 0 and 0 < section.mmtbx.mean() < 1:
            centres = [(c[:-1, :-1] + c[1:, 1:]) / 2 for c in (section.x, section.y)]
            axes.contour(*centres, section.mmtbx, levels=[0.5], colors=VERMILLION, linewidths=0.5)
    right = max(x for x, _ in corners) + w
    bar = figure.add_axes((right + 0.012, top - min(h, 0.16), 0.011, min(h, 0.16)))
    figure.colorbar(image, cax=bar, ticks=[0, 1]).set_ticklabels(["model", "solvent"])
    bar.tick_params(length=2, pad=2)


def _r_panel(axes, result):
    part = result["r_factors"]
    rows = [row for row in _R_ROWS if {part[row[0]]["r_work"], part[row[0]]["r_free"]} != {None}]
    values = []
    for number, (key, _, colour) in enumerate(rows):
        work, free = part[key]["r_work"], part[key]["r_free"]
        pair = [value for value in (work, free) if value is not None]
        values += pair
        axes.plot(pair, [number] * len(pair), color=colour, linewidth=0.8)
        if work is not None:
            axes.plot(work, number, marker="o", color=colour)
        if free is not None:
            axes.plot(free, number, marker="o", color=colour, markerfacecolor="white")
        text = " / ".join("–" if value is None else f"{value:.3f}" for value in (work, free))
        axes.annotate(
            text,
            (0.0, number),
            xycoords=("axes fraction", "data"),
            xytext=(2, -6.5),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color="#333333",
        )
    axes.set_yticks(range(len(rows)), [row[1].replace(" ", "\n") for row in rows])
    axes.set_ylim(len(rows) - 0.3, -0.5)
    spread = max(max(values) - min(values), 0.02)
    axes.set_xlim(min(values) - 0.25 * spread, max(values) + 0.25 * spread)
    low, high = axes.get_xlim()
    step = next(step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / step < 3.5)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.set_xlabel("R")
    axes.legend(
        handles=[
            Line2D([], [], color=GREY, marker="o", linestyle="", label="work"),
            Line2D([], [], color=GREY, marker="o", linestyle="", markerfacecolor="white", label="free"),
        ],
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.06, 0.985),
        ncols=2,
        handletextpad=0.1,
        columnspacing=0.8,
        borderpad=0,
        handlelength=1.2,
    )


def _time_panel(axes, result):
    part = result["timing_s"]
    seconds = []
    for number, (key, _) in enumerate(_TIME_ROWS):
        ours, mmtbx = part[key]["sfdiff"], part[key]["mmtbx"]
        seconds += [value for value in (ours, mmtbx) if value]
        if ours and mmtbx:
            axes.plot([ours, mmtbx], [number, number], color=GREY, linewidth=0.8, zorder=1)
        for value, style in ((mmtbx, MMTBX), (ours, OURS)):
            if value:
                axes.plot(value, number, marker=style["marker"], color=style["color"], linestyle="")
        text = " / ".join("–" if value is None else _duration(value) for value in (ours, mmtbx))
        axes.annotate(
            text,
            (0.0, number),
            xycoords=("axes fraction", "data"),
            xytext=(2, -6.5),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color="#333333",
        )
    axes.set_xscale("log")
    low, high = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)))
    axes.set_xlim(0.6 * 10.0**low, 1.6 * 10.0 ** max(high, low + 1))
    axes.set_xticks([10.0**n for n in range(low, max(high, low + 1) + 1, max(1, -(-(high - low) // 2)))])
    axes.minorticks_off()
    axes.set_yticks(range(len(_TIME_ROWS)), [row[1] for row in _TIME_ROWS])
    axes.set_ylim(len(_TIME_ROWS) - 0.3, -0.5)
    axes.set_xlabel("wall time (s)")
    axes.legend(
        handles=[
            Line2D([], [], color=style["color"], marker=style["marker"], linestyle="", label=label)
            for style, label in ((OURS, "mmtbx_sfdiff"), (MMTBX, "mmtbx"))
        ],
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.62, 0.985),
        ncols=2,
        handletextpad=0.1,
        columnspacing=0.8,
        borderpad=0,
        handlelength=1.2,
    )


def _duration(seconds):
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms" if seconds < 0.0995 else f"{1000 * seconds:.0f} ms"
    return f"{seconds:.3g} s"


def _caption(comparison):
    result = comparison.result
    conditions, mask = result["timing_s"]["conditions"], result["f_mask"]
    fine_grid = mask["reference"].removeprefix("mmtbx at ")
    threads = conditions["threads_sfdiff"]
    sentences = [
        "SIMULATED amplitudes, not measured." if result["simulated"] else "",
        "(a, b) Pearson correlation of amplitudes in shells of equal reciprocal volume:",
        "(a) against cctbx's direct summation, drawn up to $1-10^{-15}$;",
        f"(b) to 3 Å, against mmtbx's mask on a grid of {fine_grid}.",
        f"Pale diamonds: this package's mask with a hard edge and mmtbx's radii ({mask['equal_radii']['r_probe']:g}/"
        f"{mask['equal_radii']['r_shrink']:g} Å)."
        if mask["equal_radii"]
        else "",
        f"(c) The same section of both masks, on a grid of {result['mask_map']['grid_step']:g} Å;",
        "orange: mmtbx's outline.",
        f"(d) R-work / R-free, all scaled by {result['r_factors']['scaling']}, except those of the model",
        f"file's header; wall times, mmtbx_sfdiff ({conditions['device_name']},",
        f"{threads} thread{'s' if threads > 1 else ''}) / mmtbx (1 thread).",
    ]
    return "\n".join(textwrap.wrap(" ".join(filter(None, sentences)), 140))
