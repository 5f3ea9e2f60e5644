"""The comparison as one HTML file: no network, no scripts, the figure inside."""

from __future__ import annotations

import base64
from typing import Any

from jinja2 import PackageLoader

from .. import text_tables
from . import table
from .html import environment

_environment = environment(PackageLoader("mmtbx_sfdiff.comparison", "templates"))


def render(result: dict[str, Any], svg: bytes | None, suite: dict[str, Any] | None = None) -> str:
    """The page.

    Parameters
    ----------
    result : dict
    svg : bytes or None
        The figure; left out when None.
    suite : dict, optional
        Of a page among those of the validation suite: ``notes`` and ``facts`` (lists of sentences), the ``command`` that
        computes the entry again, and the ``commit``.

    Returns
    -------
    str
    """
    figure = None if svg is None else "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
    return _environment.get_template("compare.html").render(
        result=result,
        figure=figure,
        suite=suite,
        heading=table.heading(result),
        counts=text_tables.counts(result["reflections"]) if "reflections" in result else "",
        agreement=table.rows_of_agreement(result),
        r_factors=table.rows_of_r_factors(result),
        times=table.rows_of_times(result),
        conditions=table.conditions(result),
        scaled_by=table.scaled_by(result),
        shell_tables=[
            (
                "F_protein",
                "against cctbx's direct summation",
                _shells(result["f_protein"], {"mmtbx FFT": result["f_protein"]["mmtbx_fft"]}),
            ),
            (
                "F_mask",
                f"against {result['f_mask']['reference']}",
                _shells(result["f_mask"], _other_masks(result["f_mask"])),
            ),
        ],
    )


def _other_masks(part: dict[str, Any]) -> dict[str, Any]:
    others = {"mmtbx default": part["mmtbx_default"], "density cutoff": part["density_cutoff"]}
    return ({"with a hard edge": part["equal_radii"]} if part["equal_radii"] else {}) | others


def _shells(ours: dict[str, Any], others: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """(column names, rows) of correlations by shell."""
    columns = {"mmtbx_sfdiff": ours} | others
    rows = [
        (
            f"{shell['d_max']:.2f} – {shell['d_min']:.2f}",
            f"{shell['n']:,}",
            *(
                "–" if column["shells"][number]["cc"] is None else f"{column['shells'][number]['cc']:.5f}"
                for column in columns.values()
            ),
        )
        for number, shell in enumerate(ours["shells"])
    ]
    return list(columns), rows
