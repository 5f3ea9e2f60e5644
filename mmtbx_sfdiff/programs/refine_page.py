"""The report of a refinement: one HTML file without scripts, network or other files; the pictures are inside."""

from __future__ import annotations

from typing import Any

from jinja2 import PackageLoader
from markupsafe import Markup

from .. import text_tables
from ..comparison.html import environment
from .refine_table import heading, optional

_WORST = 15
_WATERS = 5
_environment = environment(PackageLoader("mmtbx_sfdiff.programs", "templates"))
_CAPTIONS = {
    "progress": "R factors at every step, of the reflections of its macro-cycle.",
    "shells": "R factors, and correlation of observed and calculated amplitudes, by resolution; of the reflections in use.",
    "displacements": "Isotropic equivalents of the displacement parameters, hydrogens left out; the last bar holds all above.",
    "residues": "Correlation of the model's density with the map 2mFo-DFc, within 1.5 Å of the atoms of each residue.",
}


def render(result: dict[str, Any], pictures: dict[str, str]) -> str:
    """The page.

    Parameters
    ----------
    result : dict
        What the JSON file holds.
    pictures : dict of str to str
        SVG elements by name, as :func:`.refine_pictures.pictures` makes them.
    """
    return _environment.get_template("refine.html").render(
        result=result,
        heading=heading(result).splitlines()[0],
        counts=text_tables.counts(result["reflections"]),
        pictures={name: (Markup(svg), _CAPTIONS[name]) for name, svg in pictures.items()},
        summary=_summary(result),
        cycles=[_cycle(cycle) for cycle in result["cycles"]],
        shells=[_shell(shell) for shell in result["shells"]],
        worst=_worst(result["residues"]),
        n=optional,
    )


def _summary(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, at the start, refined)."""
    start, final, geometry = result["start"], result["final"], result["geometry"]

    def gap(part: dict[str, Any]) -> str:
        return optional(None if part["r_free"] is None else part["r_free"] - part["r_work"])

    rows: list[tuple[str, str, str]] = [
        ("R-work", optional(start["r_work"]), optional(final["r_work"])),
        ("R-free", optional(start["r_free"]), optional(final["r_free"])),
        ("R-free - R-work", gap(start), gap(final)),
        ("Bonds, rms deviation, Å", optional(geometry["start"]["bond"]), optional(geometry["final"]["bond"])),
        ("Angles, rms deviation, °", optional(geometry["start"]["angle"], 2), optional(geometry["final"]["angle"], 2)),
    ]
    rama = result["ramachandran"]
    for name in ("favored", "allowed", "outliers"):
        values = [_share(rama[when], name) for when in ("start", "final")]
        if values != ["–", "–"]:
            rows.append((f"Ramachandran, {name}", values[0], values[1]))
    return rows


def _share(counts: dict[str, Any] | None, name: str) -> str:
    return "–" if counts is None else f"{counts[name]} ({100 * counts[name] / counts['total']:.1f} %)"


def _cycle(cycle: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(cycle["cycle"]),
        f"{cycle['d_min']:.2f}",
        " and ".join(cycle["refined"]),
        str(cycle["steps"]),
        optional(cycle["r_work_start"]),
        optional(cycle["r_work"]),
        optional(cycle["r_free"]),
        optional(cycle.get("bond_rms")),
        optional(cycle.get("angle_rms"), 2),
        optional(cycle.get("weight"), 2),
        f"{cycle['seconds']:.1f}",
    )


def _shell(shell: dict[str, Any]) -> tuple[str, ...]:
    percent = None if shell["completeness"] is None else 100 * shell["completeness"]
    return (
        f"{shell['d_max']:.2f} – {shell['d_min']:.2f}",
        optional(percent, 1),
        f"{shell['n_work']:,}",
        "–" if shell["n_free"] is None else f"{shell['n_free']:,}",
        optional(shell["r_work"]),
        optional(shell["r_free"]),
        optional(shell["cc_work"], 3),
        optional(shell["cc_free"], 3),
    )


def _worst(residues: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(residue, correlation, B) of the residues that the map shows least; of waters a few."""
    ordered = sorted(residues, key=lambda residue: residue["cc"])
    chosen = [r for r in ordered if r["kind"] != "water"][:_WORST] + [r for r in ordered if r["kind"] == "water"][
        :_WATERS
    ]
    return [(r["residue"], f"{r['cc']:.3f}", f"{r['b']:.1f}") for r in sorted(chosen, key=lambda r: r["cc"])]
