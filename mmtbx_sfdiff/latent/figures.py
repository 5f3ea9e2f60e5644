"""Figures of latent refinement: energies of the prior's samples (4a), a refinement's course (4b), the
convergence radius."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart; lines differ in style too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MOST = 1e4  # kJ/mol per atom
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def energies(samples: dict[str, Any], n_atoms: int, title: str = "") -> Figure:
    """Figure 4a: energies of molecular dynamics and of a prior's samples.

    Parameters
    ----------
    samples : dict of str to array
        kJ/mol; the first is what the others are compared with.
    n_atoms : int
        Of the force field.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    reference = float(np.median(next(iter(samples.values()))))
    values = {name: (np.asarray(v, dtype=float) - reference) / n_atoms for name, v in samples.items()}
    # Samples with overlapping atoms have any energy: a symmetric logarithm keeps them on the page.
    high = max(1.5, *(np.quantile(v[np.isfinite(v)], 0.98) for v in values.values()))
    low = min(-1.0, *(np.quantile(v[np.isfinite(v)], 0.0) for v in values.values()))
    high = min(high, _MOST)
    edges = np.concatenate([np.linspace(low, 1.0, 30), np.geomspace(1.0, high, 40)[1:]])
    for i, (name, v) in enumerate(values.items()):
        axes.hist(
            v.clip(edges[0], edges[-1]),
            bins=edges.tolist(),
            density=False,
            weights=np.full(len(v), 1 / len(v)),
            histtype="step",
            color=COLOURS[i % 7],
            linestyle=_STYLES[i % 7],
            linewidth=1.4,
            label=f"{name}: median {np.median(v):+.3g} kJ/mol per atom",
        )
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlabel("(U - median U of dynamics) / number of atoms, kJ/mol; the last bin holds all beyond")
    axes.set_ylabel("fraction of structures")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10)
    return figure


def course(runs: dict[str, Any], benchmark: dict[str, Any] | None = None, title: str = "") -> Figure:
    """Figure 4b: objective of the work set, R-work and R-free against the step, with baselines and the
    deposited model.

    Parameters
    ----------
    runs : dict of str to (list of dict)
        Steps (r_work, r_free; objective, where it is of the same kind) of each; the first is the latent refinement.
    benchmark : dict of str to (r_work, r_free), optional
        Horizontal lines.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 3))
    for i, (name, steps) in enumerate(runs.items()):
        style = {
            "color": COLOURS[i % 7],
            "linestyle": _STYLES[i % 7],
            "linewidth": 1.6 if i == 0 else 1.1,
            "label": name,
        }
        # As a fraction of the steps: baselines take as many as all starts of the latent refinement together.
        x = np.linspace(0, 1, len(steps))
        panels[0].plot(x, [s.get("objective", np.nan) for s in steps], **style)
        for panel, key in zip(panels[1:], ("r_work", "r_free")):
            if steps and steps[0][key] is not None:
                panel.plot(x, [s[key] for s in steps], **style)
    for (name, values), dash in zip((benchmark or {}).items(), ("-", ":", "--", "-.")):
        for panel, value in zip(panels[1:], values):
            if value is not None:
                panel.axhline(value, color="#777777", linewidth=1.0, linestyle=dash, label=name)
    panels[0].set_ylabel("objective, nats")
    panels[1].set_ylabel("R-work")
    panels[2].set_ylabel("R-free")
    panels[2].set_xlabel("fraction of the steps")
    if panels[2].get_legend_handles_labels()[0]:  # none without a free set
        panels[2].legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


def convergence(points: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Start RMSD against final R-free.

    Parameters
    ----------
    points : list of dict
        With "rmsd" (Å, of the start), "r_free", "d_min" and "name" (the method).

    Returns
    -------
    matplotlib.figure.Figure
    """
    limits = sorted({p["d_min"] for p in points})
    names = list(dict.fromkeys(p["name"] for p in points))
    figure = Figure(figsize=(2.7 * len(limits) + 0.6, 3.7), layout="constrained")
    panels = figure.subplots(1, len(limits), sharey=True, squeeze=False)[0]
    for panel, limit in zip(panels, limits):
        for i, name in enumerate(names):
            mine = sorted((p for p in points if p["d_min"] == limit and p["name"] == name), key=lambda p: p["rmsd"])
            panel.plot(
                [p["rmsd"] for p in mine],
                [p["r_free"] for p in mine],
                marker="osv^Dx+"[i % 7],
                markersize=4,
                color=COLOURS[i % 7],
                linestyle=_STYLES[i % 7],
                linewidth=1,
                label=name,
            )
        panel.set_title(f"to {limit:.1f} Å", fontsize=9)
        panel.set_xlabel("start RMSD, Å")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("final R-free")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    figure.suptitle(title, fontsize=10)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
