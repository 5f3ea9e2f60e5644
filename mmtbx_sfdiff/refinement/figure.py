"""A picture of a refinement: R factors and the target at every step."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart; lines differ in style too.
_WORK, _FREE, _TARGET, _LIMIT = "#0072B2", "#D55E00", "#333333", "#999999"


def draw(result: dict[str, Any]) -> Figure:
    """The figure.

    Parameters
    ----------
    result : dict
        With "entry", "cycles", "steps", "start", "final" and, optionally, "reference_r_work", that of the model as
        it was deposited.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(7.0, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    draw_r_factors(upper, result)
    _draw_target(lower, result)
    for axes in (upper, lower):
        _mark_cycles(axes, result)
    _name_limits(upper, result)
    final, start = result["final"], result["start"]
    simulated = " (SIMULATED data)" if result.get("simulated") else ""
    figure.suptitle(
        f"{result['entry']}{simulated}: R-work {start['r_work']:.3f} to {final['r_work']:.3f}"
        + ("" if final["r_free"] is None else f", R-free {start['r_free']:.3f} to {final['r_free']:.3f}"),
        fontsize=11,
    )
    return figure


def draw_r_factors(axes: Any, result: dict[str, Any], legend: bool = True) -> None:
    """R-work and R-free against the step."""
    steps = result["steps"]
    x = range(len(steps))
    axes.plot(x, [s["r_work"] for s in steps], color=_WORK, label="R-work")
    if any(s["r_free"] is not None for s in steps):
        axes.plot(x, [s["r_free"] for s in steps], color=_FREE, linestyle="--", label="R-free")
    reference = result.get("reference_r_work")
    if reference is not None:
        axes.axhline(reference, color=_WORK, linewidth=0.8, linestyle=":", label="R-work, deposited model")
    axes.set_ylabel("R factor")
    if legend:
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_target(axes: Any, result: dict[str, Any]) -> None:
    steps = result["steps"]
    names = {
        "maximum_likelihood": "-log likelihood\nof a reflection",
        "least_squares": "sum of squares",
        "intensity_least_squares": "sum of squares\nof intensities",
    }
    kinds = list(dict.fromkeys(s["function"] for s in steps))
    for number, kind in enumerate(kinds):
        where = axes if number == 0 else axes.twinx()
        x = [i for i, s in enumerate(steps) if s["function"] == kind]
        # Scales, and alpha and beta, are new in every macro-cycle, so that its target is a curve of its own.
        for cycle in dict.fromkeys(steps[i]["cycle"] for i in x):
            part = [i for i in x if steps[i]["cycle"] == cycle]
            where.plot(
                part,
                [steps[i]["target"] for i in part],
                color=_TARGET if number == 0 else _FREE,
                marker=".",
                markersize=3,
                linewidth=1,
            )
        where.set_ylabel(names[kind])
    axes.set_xlabel("step")
    axes.spines["top"].set_visible(False)


def _mark_cycles(axes: Any, result: dict[str, Any]) -> None:
    for _cycle, first in _first_steps(result)[1:]:
        axes.axvline(first - 0.5, color=_LIMIT, linewidth=0.5)


def _name_limits(axes: Any, result: dict[str, Any]) -> None:
    limits = {cycle["cycle"]: cycle["d_min"] for cycle in result["cycles"]}
    last = None
    for cycle, first in _first_steps(result):
        if limits[cycle] != last:
            axes.annotate(
                f"to {limits[cycle]:.2f} Å",
                (first, 1.0),
                xycoords=("data", "axes fraction"),
                fontsize=7,
                xytext=(2, -2),
                textcoords="offset points",
                va="top",
                rotation=90,
            )
        last = limits[cycle]


def _first_steps(result: dict[str, Any]) -> list[tuple[int, int]]:
    """[(macro-cycle, its first step)]."""
    first: dict[int, int] = {}
    for i, step in enumerate(result["steps"]):
        first.setdefault(step["cycle"], i)
    return list(first.items())


def png(result: dict[str, Any]) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    draw(result).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
