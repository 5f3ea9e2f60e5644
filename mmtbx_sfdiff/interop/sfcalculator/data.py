"""The measured amplitudes as SFcalculator's interface holds them: in the order of the file, in gemmi's asymmetric unit."""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Any

import gemmi
import numpy as np

from ...files.merging import to_asu
from ...files.symmetry import Symmetry
from ...reflection_columns import columns_of_dataset, columns_of_gemmi
from ...rules import Column, excluded, free_of_equivalents, is_status
from ...rules.free_flags import ENOUGH, LEAST, MOST

#: The label that is looked for where none is given; only this one may be missing.
DEFAULT_FLAG = "FreeR_flag"
# MTZ types that are not amplitudes, and what to do about them.
_WRONG_TYPES = {
    "J": "intensities: convert them to amplitudes first",
    "K": "intensities of Friedel mates: convert them to amplitudes and stack them first",
    "G": "amplitudes of Friedel mates: stack them into one column first (reciprocalspaceship's stack_anomalous)",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Columns of reflections, whatever they came in.

    Attributes
    ----------
    indices : numpy.ndarray
        (n, 3) int32.
    columns : dict of str to (str, numpy.ndarray)
        MTZ type, and values (n,) float64 with NaN where there is none.
    """

    name: str
    indices: np.ndarray
    columns: dict[str, tuple[str, np.ndarray]]
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    wavelength: float | None

    def rows(self, chosen: np.ndarray) -> Table:
        """Some of the reflections."""
        columns = {label: (kind, values[chosen]) for label, (kind, values) in self.columns.items()}
        return dataclasses.replace(self, indices=self.indices[chosen], columns=columns)

    def values(self, label: str, purpose: str) -> np.ndarray:
        """A column (n,) float64.

        Raises
        ------
        ValueError
            There is none of that name.
        """
        if label not in self.columns:
            known = ", ".join(self.columns) or "none"
            raise ValueError(f"{self.name} has no column {label!r} for {purpose}; it has {known}.")
        return self.columns[label][1]


def read_table(data: Any) -> Table:
    """A :class:`Table` of a path, a ``gemmi.Mtz`` or a ``reciprocalspaceship.DataSet``, which is not changed.

    Raises
    ------
    TypeError
        Anything else.
    ValueError
        A file that cannot be read, or that lacks the cell or the space group.
    """
    if isinstance(data, (str, os.PathLike)):
        return _from_mtz(_read_mtz(os.fspath(data)), os.fspath(data))
    if isinstance(data, gemmi.Mtz):
        return _from_mtz(data, "the gemmi.Mtz")
    if hasattr(data, "get_hkls") and hasattr(data, "spacegroup"):
        return _from_dataset(data)
    raise TypeError(f"mtzdata is a path, a gemmi.Mtz or a reciprocalspaceship.DataSet, not {type(data).__name__}.")


def _read_mtz(path: str) -> gemmi.Mtz:
    if not os.path.isfile(path):
        raise ValueError(f"{path}: there is no such file.")
    try:
        if path.removesuffix(".gz").endswith((".cif", ".ent")):
            blocks = gemmi.as_refln_blocks(gemmi.cif.read(path))
            if not blocks:
                raise ValueError("no reflections")
            if len(blocks) > 1:
                warnings.warn(f"{path} holds {len(blocks)} blocks of reflections: the first is taken.", stacklevel=7)
            _leave_out_rejected(blocks[0], path)
            return gemmi.CifToMtz().convert_block_to_mtz(blocks[0])
        return gemmi.read_mtz_file(path)
    except (RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as MTZ or SF-CIF: {error}.") from error


def _leave_out_rejected(block: gemmi.ReflnBlock, path: str) -> None:
    """Take out of a loop the rows that its status rejects; changes the block."""
    loop = block.default_loop
    width, values = loop.width(), list(loop.values)
    columns = [
        Column(tag, np.array([gemmi.cif.as_string(word) for word in values[place::width]]))
        for place, tag in enumerate(loop.tags)
    ]
    out, reasons = excluded([column for column in columns if is_status(column)], loop.length())
    if out.any():
        listing = ", ".join(f"{reason}: {n}" for reason, n in reasons.items())
        warnings.warn(f"{path}: rejected by the file's status column, left out: {listing}.", stacklevel=8)
        kept = np.flatnonzero(~out)
        loop.set_all_values([[values[row * width + i] for row in kept] for i in range(width)])


def _from_mtz(mtz: gemmi.Mtz, name: str) -> Table:
    _check_symmetry(mtz.cell, mtz.spacegroup, name)
    wavelengths = [d.wavelength for d in mtz.datasets if d.wavelength > 0.05]
    return _table(name, *columns_of_gemmi(mtz), mtz, wavelengths[0] if wavelengths else None)


def _from_dataset(data: Any) -> Table:
    _check_symmetry(data.cell, data.spacegroup, "the DataSet")
    return _table("the DataSet", *columns_of_dataset(data), data, None)


def _table(name: str, indices: np.ndarray, columns: list[Column], data: Any, wavelength: float | None) -> Table:
    by_label = {column.name: (column.type, column.values) for column in columns}
    return Table(name, indices.astype(np.int32), by_label, data.cell, data.spacegroup, wavelength)


def _check_symmetry(cell: gemmi.UnitCell | None, spacegroup: gemmi.SpaceGroup | None, name: str) -> None:
    if cell is None or not cell.is_crystal() or spacegroup is None:
        raise ValueError(f"{name} lacks the unit cell or the space group: set both before it is given.")


def in_asymmetric_unit(table: Table, anomalous: bool) -> tuple[Table, int]:
    """The reflections with indices in gemmi's asymmetric unit, absences left out, and how many these were.

    With ``anomalous`` the negative mates of acentric reflections get the negative indices.
    """
    operations = table.spacegroup.operations()
    absent = operations.systematic_absences(table.indices)
    table = table.rows(~absent)
    standard, mate = to_asu(table.indices.astype(np.int64), Symmetry.from_gemmi(table.cell, table.spacegroup))
    indices = standard.astype(np.int32)
    if anomalous:
        indices[mate] *= -1
    return dataclasses.replace(table, indices=indices), int(absent.sum())


def amplitudes(table: Table, labels: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """The amplitudes and their standard deviations, (n,) float64.

    Raises
    ------
    ValueError
        A missing column, or one that holds no amplitudes.
    """
    f, sigma = (table.values(label, purpose) for label, purpose in zip(labels, ("the amplitudes", "their errors")))
    kind = table.columns[labels[0]][0]
    if kind in _WRONG_TYPES:
        raise ValueError(f"The column {labels[0]!r} of {table.name} holds {_WRONG_TYPES[kind]}.")
    return f, sigma


def free_flags(table: Table, label: str | None, test_value: float) -> np.ndarray:
    """(n,) bool, True for the test set; all False where ``label`` is None (or "None").

    Raises
    ------
    ValueError
        A missing column of another name than :data:`DEFAULT_FLAG`; a test value that no reflection, or more than half of them, has.
    """
    if label is None or str(label) == "None":
        return np.zeros(len(table.indices), bool)
    if label == DEFAULT_FLAG and label not in table.columns:
        warnings.warn(
            f"{table.name} has no column {label!r}: there is no test set. If there is one under another name, give freeflag.",
            stacklevel=5,
        )
        return np.zeros(len(table.indices), bool)
    try:
        values = table.values(label, "the test set")
    except ValueError as error:
        raise ValueError(f"{error} Name the right one as freeflag, or give freeflag=None for no test set.") from None
    free: np.ndarray = values == test_value
    share = float(free.mean()) if len(free) else 0.0
    if not 0 < share <= 0.5:
        found, counts = np.unique(values[np.isfinite(values)], return_counts=True)
        seen = ", ".join(f"{value:g} ({count} times)" for value, count in list(zip(found, counts))[:6])
        raise ValueError(
            f"testset_value={test_value:g} marks {int(free.sum())} of the {len(free)} reflections by {label!r}, which "
            f"is no test set; the column has {seen}{', ...' if len(found) > 6 else ''}: give the test set's value, or "
            "freeflag=None for no test set."
        )
    if not min(ENOUGH, LEAST * len(free)) <= free.sum() <= MOST * len(free):
        warnings.warn(
            f"testset_value={test_value:g} marks {int(free.sum())} of the {len(free)} reflections by {label!r}, which is "
            f"{'more' if share > MOST else 'less'} than a test set usually has: give the test set's value, if it is another one.",
            stacklevel=5,
        )
    return _free_together(table, free)


def _free_together(table: Table, free: np.ndarray) -> np.ndarray:
    """Equivalents and Friedel mates of a free reflection are free, too: they tell of it."""
    symmetry = Symmetry.from_gemmi(table.cell, table.spacegroup)
    group = np.unique(to_asu(table.indices.astype(np.int64), symmetry)[0], axis=0, return_inverse=True)[1].reshape(-1)
    together, n_mixed = free_of_equivalents(group.astype(np.int64), free)
    if n_mixed:
        warnings.warn(
            f"{table.name}: reflections whose equivalents or Friedel mates have unlike flags, taken as free: {n_mixed}.",
            stacklevel=6,
        )
    return together[group]
