"""What ``mmtbx_sfdiff.fmodel`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from .. import text_tables


def render(result: dict[str, Any], terminal: bool = False, width: int | None = None) -> str:
    """The result as text; see :func:`mmtbx_sfdiff.text_tables.render`."""
    return text_tables.render(lambda style: _parts(result, style), terminal, width)


def _parts(result: dict[str, Any], style: Any) -> Iterator[Any]:
    yield Text(
        f"{result['entry']}: {result['space_group']}, {result['d_max']:.1f}-{result['d_min']:.2f} Å, "
        f"{result['n_atoms']:,} atoms, {result['n_reflections']:,} reflections"
        + (", Bijvoet mates apart" if result["anomalous"] else ""),
        style="bold",
    )
    if result["simulated"]:
        yield Text("SIMULATED amplitudes, not measured: R factors say nothing about a real crystal.", style="bold red")
    with_data = result["r_work"] is not None
    if with_data:
        free = "-" if result["r_free"] is None else f"{result['r_free']:.4f}"
        yield Text(f"R-work {result['r_work']:.4f}, R-free {free}, {result['n_used']:,} reflections used")
    if result["reflections"]:
        yield Text(text_tables.counts(result["reflections"]))
    part = result["exponential"]
    if part:
        b_cart = " ".join(f"{x:.3g}" for x in part["b_cart"])
        yield Text(
            f"Scale {part['k_total']:.4g}, k_sol {part['k_sol']:.3f} e/Å^3, B_sol {part['b_sol']:.1f} Å^2, "
            f"B_cart {b_cart} Å^2"
        )
    names = ["Resolution (Å)", "reflections", "mean |F_model|", "k_mask", "k_total"] + ["R-work"] * with_data
    yield text_tables.table(style, names, [_row(shell, with_data) for shell in result["shells"]])
    for message in result["messages"]:
        yield Text(f"Note: {message}", style="dim")


def _row(shell: dict[str, Any], with_data: bool) -> list[str]:
    row = [
        f"{shell['d_max']:.2f}-{shell['d_min']:.2f}",
        f"{shell['n']:,}",
        f"{shell['f_model']:.4g}",
        f"{shell['k_mask']:.3f}",
        f"{shell['k_total']:.4g}",
    ]
    if with_data:
        row.append("-" if shell["r_work"] is None else f"{shell['r_work']:.4f}")
    return row
