"""The four panels of one comparison: F_protein, F_mask, the masks themselves, R factors and times.

Made for a journal's full width (180 mm), legible in grey and to colour-blind readers (Okabe and Ito's
colours, each with a marker and a line style of its own), and without matplotlib's global state, so that any
program may call it.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import is_entry_id
from .figure_panels import mask_panel, protein_panel, r_panel, time_panel
from .figure_sections import draw_sections
from .figure_style import HEIGHT_INCHES, STYLE, WIDTH_INCHES
from .settings import Comparison


def draw(comparison: Comparison) -> Any:
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
        protein_panel(figure.add_subplot(top[0]), result)
        mask_panel(figure.add_subplot(top[1]), result)
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
        r_panel(figure.add_subplot(bottom[0]), result)
        time_panel(figure.add_subplot(bottom[1]), result)
        figure.text(
            0.02, 0.012, _caption(comparison), ha="left", va="bottom", fontsize=7, color="#333333", linespacing=1.25
        )
    return figure


def render(comparison: Comparison, kinds: Sequence[str] = ("png", "pdf")) -> dict[str, bytes]:
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


def _title(result: dict[str, Any]) -> str:
    """Entries in capitals, as journals print them; names of files as they are."""
    first, *rest = result["entry"].split(" ")
    return " ".join([first.upper() if is_entry_id(first) else first, *rest])


def _subtitle(result: dict[str, Any]) -> str:
    return (
        f"{result['space_group']}   ·   {result['d_max']:.1f}–{result['d_min']:.2f} Å   ·   "
        f"{result['n_atoms']:,} atoms   ·   {result['n_reflections']:,} reflections   ·   "
        f"solvent {100 * result['mask_map']['solvent_fraction_mmtbx']:.0f} %"
    )


def _caption(comparison: Comparison) -> str:
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
