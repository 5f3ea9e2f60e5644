"""Tables of text: with colours for a terminal, plain lines where there is none."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def render(
    parts: Callable[[box.Box], Iterable[Table | Text | str]], terminal: bool = False, width: int | None = None
) -> str:
    """Parts one below the other as text.

    Parameters
    ----------
    parts : callable
        Given the box style of the tables, it yields ``rich`` tables and texts.
    terminal : bool
        With colours, for a terminal; otherwise plain ASCII lines.
    width : int, optional
        Columns; by default the terminal's, or 100.

    Returns
    -------
    str
    """
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=terminal,
        no_color=not terminal,
        highlight=False,
        width=width or (None if terminal else 100),
        emoji=False,
        markup=False,
    )
    for part in parts(box.SIMPLE_HEAD if terminal else box.ASCII):
        if isinstance(part, Table):
            console.print()
        console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def table(style: box.Box, names: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table; the first column and those without a name are text, the others numbers."""
    result = Table(box=style, show_edge=False, pad_edge=False)
    for number, name in enumerate(names):
        result.add_column(name, justify="left" if number == 0 or name == "" else "right", no_wrap=name != "")
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def counts(reflections: dict[str, Any]) -> str:
    """One line on reflections read, used, free and left out, with the reasons.

    Examples
    --------
    >>> counts({"read": 100, "used": 98, "free": 5, "left_out": {"no value": 2}})
    'Reflections: 100 read, 98 used, 5 free; left out: no value 2.'
    """
    free = "none free (no R-free)" if reflections["free"] is None else f"{reflections['free']:,} free"
    line = f"Reflections: {reflections['read']:,} read, {reflections['used']:,} used, {free}"
    left_out = ", ".join(f"{reason} {n:,}" for reason, n in reflections["left_out"].items())
    return f"{line}; left out: {left_out}." if left_out else f"{line}."
