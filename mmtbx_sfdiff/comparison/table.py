"""The comparison as tables for a terminal, and as plain text where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from .. import text_tables


def render(result: dict[str, Any], terminal: bool = False, width: int | None = None) -> str:
    """The tables as text.

    Parameters
    ----------
    result : dict
    terminal : bool
        With colours, for a terminal; otherwise plain ASCII lines.
    width : int, optional
        Columns; by default the terminal's, or 100.

    Returns
    -------
    str
    """
    return text_tables.render(lambda style: _parts(result, style), terminal, width)


def rows_of_agreement(result: dict[str, Any]) -> list[Any]:
    """(what, this package, mmtbx, measured how) of the numbers that measure agreement."""
    protein, mask, maps, gradients = (result[name] for name in ("f_protein", "f_mask", "mask_map", "gradients"))
    default, equal = mask["mmtbx_default"], mask["equal_radii"]
    rows = [
        (
            "F_protein: relative error",
            _error(protein["relative_l2_vs_direct"]),
            _error(protein["mmtbx_fft_relative_l2_vs_direct"]),
            f"{protein['n_reflections']:,} reflections, against cctbx's direct summation",
        ),
        (
            "F_protein: correlation",
            _cc(protein["cc"], 6),
            _cc(protein["mmtbx_fft"]["cc"], 6),
            "of amplitudes, same reference",
        ),
        (
            "Gradients: relative error",
            _error(gradients["relative_l2_vs_direct"]),
            _error(gradients["mmtbx_fft_relative_l2_vs_direct"]),
            f"sites, {gradients['n_reflections']:,} reflections, against direct summation",
        ),
        ("F_mask: correlation", _cc(mask["cc"]), _cc(default["cc"]), f"to 3 Å, against {mask['reference']}"),
        ("F_mask: relative error", _error(mask["relative_l2"]), _error(default["relative_l2"]), "same reference"),
    ]
    if equal:
        rows.append(
            (
                "F_mask, hard edge",
                _cc(equal["cc"]),
                "",
                f"softness 0, probe {equal['r_probe']:g} Å, shrink {equal['r_shrink']:g} Å",
            )
        )
    rows += [
        ("F_mask, density cutoff", _cc(mask["density_cutoff"]["cc"]), "", "the density-cutoff mask, same reference"),
        (
            "Mask in real space",
            _cc(maps["cc"]),
            "",
            f"against mmtbx on the same grid, {'x'.join(map(str, maps['grid']))}",
        ),
        ("Solvent fraction", f"{maps['solvent_fraction']:.3f}", f"{maps['solvent_fraction_mmtbx']:.3f}", ""),
    ]
    return rows


def rows_of_r_factors(result: dict[str, Any]) -> list[Any]:
    """(what, R-work, R-free)."""
    part = result["r_factors"]
    mask = result["f_mask"]["method"].replace("_", " ")
    names = (
        ("sfdiff", f"mmtbx_sfdiff, {mask} mask"),
        ("mmtbx", "mmtbx"),
        ("mmtbx_direct", "mmtbx, direct summation"),
        ("density_cutoff", "density-cutoff mask"),
        ("deposited", "header of the model file"),
    )
    rows = [(label, _r(part[key]["r_work"]), _r(part[key]["r_free"])) for key, label in names if part[key] is not None]
    own = [
        (
            f"{label}, scales of mmtbx_sfdiff",
            _r(part["sfdiff_scaling"][key]["r_work"]),
            _r(part["sfdiff_scaling"][key]["r_free"]),
        )
        for key, label in names[:2]
    ]
    twin = part.get("twin")
    twins = []
    if twin:
        for key, label in names[:2]:
            if twin[key] is not None:
                fraction = f"{label}, twin by {twin['law']}, fraction {twin[key]['fraction']:.2f}"
                twins.append((fraction, _r(twin[key]["r_work"]), _r(twin[key]["r_free"])))
    return rows[:-1] + own + twins + rows[-1:]


def scaled_by(result: dict[str, Any]) -> str:
    """One sentence on where the scales come from."""
    return f"Scales by {result['r_factors']['scaling']}, except where another is named, and those of the header."


def rows_of_times(result: dict[str, Any]) -> list[Any]:
    """(what, this package, mmtbx, ratio mmtbx / this package)."""
    names = (
        ("f_protein", "F_protein"),
        ("f_mask", "F_mask"),
        ("gradients", "Gradients (sites)"),
        ("scaling", "Scaling"),
    )
    rows = []
    for key, label in names:
        ours, mmtbx = result["timing_s"][key]["sfdiff"], result["timing_s"][key]["mmtbx"]
        ratio = f"{mmtbx / ours:.2g}x" if ours and mmtbx else "-"
        rows.append((label, duration(ours), duration(mmtbx), ratio))
    return rows


def conditions(result: dict[str, Any]) -> str:
    """One sentence on how times were taken."""
    part = result["timing_s"]["conditions"]
    threads = part["threads_sfdiff"]
    return (
        f"Wall times, medians of {part['repeats']} calls taken in turns (one call where slow); "
        f"mmtbx_sfdiff on {part['device_name']} with {threads} thread{'s' if threads != 1 else ''}, "
        f"{result['settings']['dtype']}; mmtbx on one CPU thread, F_protein and gradients by FFT "
        f"(direct summation: {duration(result['timing_s']['f_protein']['mmtbx_direct'])})."
    )


def duration(seconds: float | None) -> str:
    """Seconds as text: "12 ms", "3.4 s", "5.2 min"."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.0995 else f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def heading(result: dict[str, Any]) -> str:
    """One line that says what the entry is."""
    return (
        f"{result['entry']}: {result['space_group']}, {result['d_max']:.1f}-{result['d_min']:.2f} Å, "
        f"{result['n_atoms']:,} atoms, {result['n_reflections']:,} reflections"
    )


def _parts(result: dict[str, Any], style: Any) -> Iterator[Any]:
    yield Text(heading(result), style="bold")
    if result["simulated"]:
        yield Text("SIMULATED amplitudes, not measured: R factors say nothing about a real crystal.", style="bold red")
    yield Text(text_tables.counts(result["reflections"]), style="dim")
    yield text_tables.table(style, ("Agreement", "mmtbx_sfdiff", "mmtbx", ""), rows_of_agreement(result))
    simulated = " (SIMULATED data)" if result["simulated"] else ""
    yield text_tables.table(style, ("R factors" + simulated, "R-work", "R-free"), rows_of_r_factors(result))
    yield Text(scaled_by(result), style="dim")
    yield text_tables.table(style, ("Time", "mmtbx_sfdiff", "mmtbx", "ratio"), rows_of_times(result))
    yield Text(conditions(result), style="dim")
    if result["messages"]:
        yield Text("")
    for message in result["messages"]:
        yield Text(f"Note: {message}", style="dim")


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _cc(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _r(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
