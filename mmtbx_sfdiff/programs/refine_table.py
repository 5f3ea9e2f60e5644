"""What ``mmtbx_sfdiff.refine`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from .. import text_tables


def render(result: dict[str, Any], terminal: bool = False, width: int | None = None) -> str:
    """The result as text; see :func:`mmtbx_sfdiff.text_tables.render`."""
    return text_tables.render(lambda style: _parts(result, style), terminal, width)


def heading(result: dict[str, Any]) -> str:
    """One line that says what is refined, and one more for simulated data."""
    line = (
        f"{result['entry']}: {result['space_group']}, {result['d_max']:.1f}-{result['d_min']:.2f} Å, "
        f"{result['n_atoms']:,} atoms, {result['n_reflections']:,} reflections"
    )
    if result["simulated"]:
        line += "\nSIMULATED amplitudes, not measured: R factors say nothing about a real crystal."
    return line


def cycle_line(cycle: dict[str, Any]) -> str:
    """A macro-cycle in one line, for a log."""
    return (
        f"Macro-cycle {cycle['cycle']}: to {cycle['d_min']:.2f} Å, {' and '.join(cycle['refined'])}, "
        f"{cycle['steps']} steps, R-work {cycle['r_work_start']:.4f} to {cycle['r_work']:.4f}"
        + ("" if cycle["r_free"] is None else f", R-free {cycle['r_free']:.4f}")
        + f", {cycle['seconds']:.1f} s"
    )


def _parts(result: dict[str, Any], style: Any) -> Iterator[Any]:
    names = ("Cycle", "to Å", "steps", "R-work", "R-free", "bonds Å", "angles °", "weight", "s")
    yield text_tables.table(style, names, [_row(cycle) for cycle in result["cycles"]])
    yield Text("Of the reflections of each macro-cycle; weight: of the geometry.", style="dim")
    rows = []
    for name, key in (("start", "start"), ("refined", "final")):
        part, geometry = result[key], result["geometry"][key]
        rows.append(
            (
                name,
                f"{part['r_work']:.4f}",
                optional(part["r_free"]),
                optional(geometry["bond"]),
                optional(geometry["angle"], 2),
            )
        )
    yield text_tables.table(style, ("All reflections", "R-work", "R-free", "bonds Å", "angles °"), rows)
    yield Text("Bonds and angles: root mean square deviation from the monomer library.", style="dim")
    yield Text(text_tables.counts(result["reflections"]))
    rama = result["ramachandran"]["final"]
    if rama is not None:
        shares = ", ".join(f"{name} {rama[name]}" for name in ("favored", "allowed", "outliers"))
        yield Text(f"Ramachandran: {shares} of {rama['total']}.")
    yield Text(f"Atoms moved by {result['shift_rms']:.3f} Å (root mean square), at most {result['shift_max']:.2f} Å.")
    for message in result["messages"]:
        yield Text(f"Note: {message}", style="dim")


def _row(cycle: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{cycle['cycle']}",
        f"{cycle['d_min']:.2f}",
        f"{cycle['steps']}",
        f"{cycle['r_work']:.4f}",
        optional(cycle["r_free"]),
        optional(cycle.get("bond_rms")),
        optional(cycle.get("angle_rms"), 2),
        optional(cycle.get("weight"), 2),
        f"{cycle['seconds']:.1f}",
    )


def optional(value: float | None, digits: int = 4) -> str:
    """A number, or – where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"
