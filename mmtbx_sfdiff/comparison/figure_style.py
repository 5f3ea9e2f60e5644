"""What the figures of this package and of the validation suite share: sizes, fonts, colours, and the resolution axis."""

from __future__ import annotations

import math
from typing import Any

WIDTH_INCHES, HEIGHT_INCHES = 7.09, 7.0
STYLE: Any = {
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
OURS: dict[str, Any] = {"color": BLUE, "marker": "o", "linestyle": "-", "zorder": 4}
MMTBX: dict[str, Any] = {"color": VERMILLION, "marker": "s", "linestyle": "--", "markersize": 5}
CUTOFF: dict[str, Any] = {"color": GREEN, "marker": "^", "linestyle": "-."}
EQUAL: dict[str, Any] = {"color": SKY, "marker": "D", "linestyle": ":", "markerfacecolor": "white"}
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


def panel_title(axes: Any, letter: str, text: str) -> None:
    axes.set_title(f"({letter})  {text}", loc="left", fontweight="bold", pad=7)


def resolution_axis(axes: Any, d_max: float, d_min: float) -> None:
    """An axis linear in 1/d² that is labelled in Å."""
    low, high = (0 if math.isinf(d_max) else d_max**-2), d_min**-2
    margin = 0.03 * (high - low)
    low, high = max(0, low - margin), high + margin
    ticks: list[float] = []
    for d in _TICKS:
        if low <= d**-2 <= high and (not ticks or d**-2 - ticks[-1] ** -2 > 0.075 * (high - low)):
            ticks.append(d)
    axes.set_xlim(low, high)
    axes.set_xticks([d**-2 for d in ticks], [f"{d:g}" for d in ticks])
    axes.set_xlabel("resolution $d$ (Å), linear in $1/d^2$")


def legend_below(axes: Any) -> None:
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.46, -0.21),
        ncol=2,
        columnspacing=0.8,
        handlelength=2.4,
        handletextpad=0.5,
        frameon=False,
    )


def nothing(axes: Any, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)
