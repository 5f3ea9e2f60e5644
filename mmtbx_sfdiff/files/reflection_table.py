"""What a reader makes of a reflection file: tables of described columns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..rules import Column, is_status
from .symmetry import Symmetry


@dataclass(frozen=True, eq=False)
class Table:
    """Reflections that stand in one loop of a CIF, one MTZ file, or arrays of the same indices.

    Attributes
    ----------
    name : str
        The block; empty where there is one only.
    indices : numpy.ndarray
        (n, 3) int64.
    columns : tuple of Column
    symmetry : Symmetry
    wavelength : float or None
        Å.
    cells : dict
        Of the datasets of an MTZ, where they have cells of their own.
    wavelengths : dict
        Likewise.
    """

    name: str
    indices: npt.NDArray[np.int64]
    columns: tuple[Column, ...]
    symmetry: Symmetry
    wavelength: float | None = None
    cells: dict[str, tuple[float, ...]] = field(default_factory=dict)
    wavelengths: dict[str, float] = field(default_factory=dict)

    @property
    def status(self) -> list[Column]:
        """The CIF's status columns of words."""
        return [column for column in self.columns if is_status(column) and column.is_text]

    def cell_of(self, column: Column) -> tuple[float, ...] | None:
        """The cell that goes with a column."""
        return self.cells.get(column.block, self.symmetry.cell)

    def select(self, rows: npt.NDArray[np.bool_]) -> Table:
        """The table with these rows only."""
        return replace(
            self,
            indices=self.indices[rows],
            columns=tuple(replace(column, values=column.values[rows]) for column in self.columns),
        )


@dataclass(frozen=True, eq=False)
class ReflectionFile:
    """All tables of a file, and what it says of itself."""

    path: Path
    tables: tuple[Table, ...]
    entry_id: str | None = None
    title: str = ""
    is_cif: bool = False
    messages: tuple[str, ...] = ()

    @property
    def symmetry(self) -> Symmetry:
        """The first that is known."""
        known = [table.symmetry for table in self.tables if table.symmetry.cell is not None]
        return known[0] if known else (self.tables[0].symmetry if self.tables else Symmetry(None, None))


def one_line(error: object, without: str = "") -> str:
    """What a library says, on one line."""
    text = " ".join(str(error).replace(without, " ").split()) if without else " ".join(str(error).split())
    return text[:240] or type(error).__name__
