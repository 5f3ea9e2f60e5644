"""What ``mmtbx_sfdiff.refine`` prints."""

from __future__ import annotations

from rich.text import Text

from .. import text_tables


def render(result, terminal=False, width=None):
    """The result as text; see :func:`mmtbx_sfdiff.text_tables.render`."""
    return text_tables.render(lambda style: _parts(result, style), terminal, width)


def heading(result):
    """One line that says what is refined, and one more for simulated data."""
    line = (
        f"{result['entry']}: {result['space_group']}, {result['d_max']:.1f}-{result['d_min']:.2f} Å, "
        f"{result['n_atoms']:,} atoms, {result['n_reflections']:,} reflections"
    )
    if result["simulated"]:
        line += "\nSIMULATED amplitudes, not measured: R factors say nothing about a real crystal."
    return line


def cycle_line(cycle):
    """A macro-cycle in one line, for a log."""
    return (
        f"Macro-cycle {cycle['cycle']}: to {cycle['d_min']:.2f} Å, {' and '.join(cycle['refined'])}, "
        f"{cycle['steps']} steps, R-work {cycle['r_work_start']:.4f} to {cycle['r_work']:.4f}"
        + ("" if cycle["r_free"] is None else f", R-free {cycle['r_free']:.4f}")
        + f", {cycle['seconds']:.1f} s"
    )


def _parts(result, style):
    names = ("Cycle", "to Å", "refl.", "refined", "steps", "target from", "to", "R-work from", "to", "R-free", "s")
    yield text_tables.table(style, names, [_row(cycle) for cycle in result["cycles"]])
    yield Text(
        "Of the reflections of each macro-cycle; targets of different macro-cycles, or resolution limits, cannot be compared.",
        style="dim",
    )
    rows = [
        (name, f"{part['r_work']:.4f}", _optional(part["r_free"]))
        for name, part in (("start", result["start"]), ("refined", result["final"]))
    ]
    yield text_tables.table(style, ("All reflections, new scales", "R-work", "R-free"), rows)
    yield Text(f"Atoms moved by {result['shift_rms']:.3f} Å (root mean square), at most {result['shift_max']:.2f} Å.")
    for message in result["messages"]:
        yield Text(f"Note: {message}", style="dim")


def _row(cycle):
    return (
        f"{cycle['cycle']}",
        f"{cycle['d_min']:.2f}",
        f"{cycle['n_reflections']:,}",
        "+".join(cycle["refined"]),
        f"{cycle['steps']}",
        f"{cycle['target_start']:.4g}",
        f"{cycle['target_end']:.4g}",
        f"{cycle['r_work_start']:.4f}",
        f"{cycle['r_work']:.4f}",
        _optional(cycle["r_free"]),
        f"{cycle['seconds']:.1f}",
    )


def _optional(value):
    return "-" if value is None else f"{value:.4f}"
