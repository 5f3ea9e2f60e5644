"""The panels of curves and of numbers: F_protein, F_mask, R factors, times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from .figure_style import (
    BLACK,
    BLUE,
    CUTOFF,
    EQUAL,
    GREEN,
    GREY,
    MMTBX,
    OURS,
    VERMILLION,
    legend_below,
    nothing,
    panel_title,
    resolution_axis,
)

_MOST_NINES = 15
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


def _curve(
    axes: Any,
    shells: Sequence[dict[str, Any]],
    label: Any,
    style: Any,
    transform: Callable[[float], float] = lambda cc: cc,
) -> bool:
    points = [
        ((shell["d_max"] ** -2 + shell["d_min"] ** -2) / 2, transform(shell["cc"]))
        for shell in shells
        if shell["cc"] is not None
    ]
    if points:
        axes.plot(*zip(*points), label=label, clip_on=False, markeredgewidth=0.8, **style)
    return bool(points)


def _nines(cc: float) -> float:
    return min(_MOST_NINES, -math.log10(max(1 - cc, 10.0**-_MOST_NINES)))


def protein_panel(axes: Any, result: dict[str, Any]) -> None:
    part = result["f_protein"]
    panel_title(axes, "a", "$|F_{protein}|$ against exact summation")
    drawn = _curve(axes, part["shells"], f"mmtbx_sfdiff ({part['method']})", OURS, _nines)
    drawn |= _curve(axes, part["mmtbx_fft"]["shells"], "mmtbx (FFT, its default)", MMTBX, _nines)
    if not drawn:
        return nothing(axes, "too few reflections\nfor a correlation")
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
    legend_below(axes)


def _nines_label(n: int) -> str:
    return {0: "0", 1: "0.9", 2: "0.99", 3: "0.999"}.get(n, f"$1-10^{{-{n}}}$")


def mask_panel(axes: Any, result: dict[str, Any]) -> None:
    part = result["f_mask"]
    panel_title(axes, "b", f"$|F_{{mask}}|$ against {part['reference']}")
    drawn = _curve(axes, part["shells"], f"mmtbx_sfdiff ({part['method'].replace('_', ' ')})", OURS)
    if part["equal_radii"]:
        drawn |= _curve(axes, part["equal_radii"]["shells"], "same, with a hard edge", EQUAL)
    drawn |= _curve(axes, part["mmtbx_default"]["shells"], f"mmtbx ({part['mmtbx_default']['grid_step']:g} Å)", MMTBX)
    drawn |= _curve(axes, part["density_cutoff"]["shells"], "density cutoff", CUTOFF)
    if not drawn:
        return nothing(axes, "no correlation:\nno solvent, or no reflections\nto 3 Å")
    lowest = min(line.get_ydata().min() for line in axes.lines)
    axes.set_ylim(-1.02 if lowest < -0.25 else min(0, math.floor(10 * lowest) / 10), 1.02)
    axes.set_ylabel("correlation")
    axes.grid(axis="y", color="#dddddd", linewidth=0.5)
    resolution_axis(axes, part["shells"][0]["d_max"], part["shells"][-1]["d_min"])
    legend_below(axes)


def r_panel(axes: Any, result: dict[str, Any]) -> None:
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
        _below(axes, number, text)
    axes.set_yticks(range(len(rows)), [row[1].replace(" ", "\n") for row in rows])
    axes.set_ylim(len(rows) - 0.3, -0.5)
    spread = max(max(values) - min(values), 0.02)
    axes.set_xlim(min(values) - 0.25 * spread, max(values) + 0.25 * spread)
    low, high = axes.get_xlim()
    step = next(step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / step < 3.5)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.set_xlabel("R")
    handles = [
        Line2D([], [], color=GREY, marker="o", linestyle="", label="work"),
        Line2D([], [], color=GREY, marker="o", linestyle="", markerfacecolor="white", label="free"),
    ]
    _legend_above(axes, handles, -0.06)


def time_panel(axes: Any, result: dict[str, Any]) -> None:
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
        _below(axes, number, text)
    axes.set_xscale("log")
    low, high = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)))
    axes.set_xlim(0.6 * 10.0**low, 1.6 * 10.0 ** max(high, low + 1))
    axes.set_xticks([10.0**n for n in range(low, max(high, low + 1) + 1, max(1, -(-(high - low) // 2)))])
    axes.minorticks_off()
    axes.set_yticks(range(len(_TIME_ROWS)), [row[1] for row in _TIME_ROWS])
    axes.set_ylim(len(_TIME_ROWS) - 0.3, -0.5)
    axes.set_xlabel("wall time (s)")
    handles = [
        Line2D([], [], color=style["color"], marker=style["marker"], linestyle="", label=label)
        for style, label in ((OURS, "mmtbx_sfdiff"), (MMTBX, "mmtbx"))
    ]
    _legend_above(axes, handles, -0.62)


def _below(axes: Any, number: int, text: str) -> None:
    """The numbers of a row, under its line, at the left."""
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


def _legend_above(axes: Any, handles: Sequence[Any], left: float) -> None:
    """Two entries above the axes, from ``left`` as a fraction of their width."""
    axes.legend(
        handles=handles,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(left, 0.985),
        ncols=2,
        handletextpad=0.1,
        columnspacing=0.8,
        borderpad=0,
        handlelength=1.2,
    )


def _duration(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms" if seconds < 0.0995 else f"{1000 * seconds:.0f} ms"
    return f"{seconds:.3g} s"
