"""The pictures of a refinement's report as SVG: R by step and by shell, displacement parameters, residues in the map.

Legends stand above the axes, where no curve can be.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..refinement.figure import draw_r_factors

# Okabe and Ito's colours, which colour-blind people tell apart; lines differ in style too.
_BLUE, _ORANGE, _GREEN, _GRAY = "#0072B2", "#D55E00", "#009E73", "#777777"
_KINDS = {"polymer": ("polymer", _BLUE), "other": ("ligands and others", _ORANGE), "water": ("water", _GREEN)}
_WORST = 0.6  # correlation below which a residue is marked


def pictures(result: dict[str, Any]) -> dict[str, str]:
    """SVG elements by name: ``progress``, ``shells``, ``displacements``, ``residues`` (where there are some).

    Parameters
    ----------
    result : dict
        Of ``mmtbx_sfdiff.refine``.
    """
    drawn: dict[str, Callable[[dict[str, Any]], Figure]] = {}
    if result["steps"]:
        drawn["progress"] = draw_progress
    if len(result["shells"]) > 1:
        drawn["shells"] = draw_shells
    if result["displacements"]["counts"]:
        drawn["displacements"] = draw_displacements
    if len(result["residues"]) > 1:
        drawn["residues"] = draw_residues
    return {name: _svg(function(result), name) for name, function in drawn.items()}


def draw_progress(result: dict[str, Any]) -> Figure:
    """R-work and R-free at each step, with the macro-cycles."""
    figure, axes = _figure(2.9)
    draw_r_factors(axes, result, legend=False)
    steps = result["steps"]
    starts = [i for i in range(1, len(steps)) if steps[i]["cycle"] != steps[i - 1]["cycle"]]
    for number, at in enumerate(starts):
        axes.axvline(at - 0.5, color=_GRAY, linewidth=0.6, label=None if number else "macro-cycle begins")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def draw_shells(result: dict[str, Any]) -> Figure:
    """R and correlation of amplitudes by shell of resolution."""
    shells = result["shells"]
    figure, axes = _figure(2.9)
    x = np.array([0.5 * (s["d_max"] ** -2 + s["d_min"] ** -2) for s in shells])
    lines = (
        ("r_work", "R-work", _BLUE, "-", "o"),
        ("r_free", "R-free", _ORANGE, "--", "s"),
        ("cc_work", "CC-work", _GREEN, "-.", "^"),
        ("cc_free", "CC-free", _GRAY, ":", "v"),
    )
    for key, name, color, style, marker in lines:
        y = [np.nan if s[key] is None else s[key] for s in shells]
        if not np.isnan(y).all():
            axes.plot(x, y, color=color, linestyle=style, marker=marker, markersize=3.5, linewidth=1.3, label=name)
    axes.set_ylim(0, max(1.0, *(s["r_work"] or 0 for s in shells)) * 1.03)
    axes.set_xlabel("resolution, Å")
    # Ticks where they can be read: not nearer than a twelfth of the axis.
    edges = [shells[0]["d_max"] ** -2, *(s["d_min"] ** -2 for s in shells)]
    ticks = [edges[-1]]
    for edge in reversed(edges[:-1]):
        if ticks[-1] - edge > (edges[-1] - edges[0]) / 12:
            ticks.append(edge)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value**-0.5:.2f}" if value > 0 else ""))
    _legend(axes)
    return figure


def draw_displacements(result: dict[str, Any]) -> Figure:
    """How many atoms have which B, by kind of residue, one above the other."""
    part = result["displacements"]
    figure, axes = _figure(2.7)
    edges = np.array(part["edges"])
    bottom = np.zeros(len(edges) - 1)
    for kind, counts in part["counts"].items():
        name, color = _KINDS[kind]
        label = f"{name} (mean {part['means'][kind]:.1f} Å²)"
        axes.bar(
            edges[:-1],
            counts,
            np.diff(edges),
            bottom,
            align="edge",
            color=color,
            edgecolor="white",
            linewidth=0.4,
            label=label,
        )
        bottom += counts
    axes.set_xlabel("B, Å²")
    axes.set_ylabel("atoms")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def draw_residues(result: dict[str, Any]) -> Figure:
    """Correlation with the map along the model."""
    residues = [r for r in result["residues"] if r["kind"] != "water"] or result["residues"]
    figure, axes = _figure(2.7)
    y = np.array([r["cc"] for r in residues])
    axes.plot(y, color=_BLUE, linewidth=0.9, label="correlation of a residue with 2mFo-DFc")
    low = np.flatnonzero(y < _WORST)
    if len(low):
        axes.plot(low, y[low], "o", color=_ORANGE, markersize=3.5, label=f"below {_WORST:g}")
    chains = [r["residue"].rsplit(" ", 2)[0] for r in residues]
    starts = [i for i, chain in enumerate(chains) if i == 0 or chain != chains[i - 1]]
    for start in starts[1:]:
        axes.axvline(start - 0.5, color=_GRAY, linewidth=0.5)
    # Names of chains below the axis, where they have room.
    ends = [*starts[1:], len(chains)]
    named = [(0.5 * (a + b - 1), chains[a]) for a, b in zip(starts, ends) if b - a > len(chains) / 25]
    axes.set_xticks([place for place, _ in named], [f"{chain or '(blank)'}" for _, chain in named])
    axes.set_xlabel("residues, by chain (waters left out)")
    axes.set_ylim(min(0.5, float(y.min()) - 0.05), 1.03)
    axes.set_ylabel("correlation")
    _legend(axes)
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.6, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=4,
            frameon=False,
            fontsize=8,
            borderaxespad=0.2,
            columnspacing=1.2,
            handlelength=2.2,
        )


def _svg(figure: Figure, name: str) -> str:
    """One <svg> element, scaled by the page; its ids are its own, since a page holds several."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": f"mmtbx_sfdiff {name}"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)([^")]+)', lambda m: m[1] + (f"{name}-{m[2]}" if m[2] in ids else m[2]), text)
    return re.sub(
        r'<svg([^>]*?) width="[^"]*"',
        r"<svg\1",
        re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1),
        count=1,
    )
