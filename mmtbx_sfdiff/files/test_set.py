"""The test set of observations: which flags, from which block or file, and the flags of merged reflections.

The flags are, in this order, those of a separate file, those that were named, those of the block of the observations,
those of another block that covers them.  A merged reflection is free if any of its rows is; one without a flag is a work
reflection.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rules
from ..rules import Flags, Observation
from .content import read_content
from .errors import Sorry
from .merging import Indices, to_asu
from .reflection_file import read_reflection_file
from .reflection_table import ReflectionFile, Table
from .symmetry import Agreement, Symmetry, reconcile

_COVERED = 0.95  # share of the data for which flags of another block or file must be there
_FLAGS_COVERED = 0.5  # ... of a file that was named for its flags


def find_flags(
    source: ReflectionFile,
    table: Table,
    observed: Observation,
    free: Any,
    test_value: int | str | None,
    free_file: Any,
    symmetry: Symmetry | None,
    strict: bool,
) -> tuple[Flags | None, Table | None, list[str]]:
    """Flags of a separate file, of the same block, else of another block that covers the data."""
    where = str(source.path)
    if free_file is not None and not (isinstance(free, str) and free.strip().lower() == "none"):
        other = read_reflection_file(read_content(free_file, "flag"), None, symmetry)
        columns = [column for t in other.tables for column in t.columns]
        flags, said = rules.choose_flags(columns, free, test_value, str(other.path), strict=True)
        if flags is None:
            raise ValueError(f"{other.path} contains no R-free flags: name the column that holds them.")
        said = [f"R-free flags: {flags.labels} of {other.path}", *_without_counts(said)]
        return flags, next(t for t in other.tables if flags.column in t.columns), said
    values = np.asarray(observed.value.values, dtype=np.float64)
    needed = np.isfinite(values)
    if free:
        columns = [column for t in source.tables for column in t.columns]
        flags, said = rules.choose_flags(columns, free, test_value, where, strict)
        home = None if flags is None else next(t for t in source.tables if flags.column in t.columns)
        return flags, home, _without_counts(said)
    # the flags of deposited files are often all alike, and nobody can mend them
    strict = strict and not source.is_cif
    flags, said = rules.choose_flags(list(table.columns), None, test_value, where, strict)
    if flags is not None:
        return flags, table, _without_counts(said)
    for other_table in source.tables:
        cells = other_table.symmetry.cell, table.symmetry.cell
        if other_table is table or (None not in cells and rules.which_cell(cells[:1], cells[1]) is None):
            continue  # flags of another crystal are not these data's
        other_flags, _ = rules.choose_flags(list(other_table.columns), None, test_value, where, False)
        if other_flags is not None and _covers(other_table, other_flags, table, needed):
            return other_flags, other_table, [f"R-free flags: {other_flags.labels}, of another block of the file"]
    return None, None, said


def _without_counts(said: list[str]) -> list[str]:
    """Less what is said of rows: reflections are counted at the end."""
    return [message for message in said if not message.startswith("reflections without")]


def _covers(other: Table, flags: Flags, table: Table, needed: npt.NDArray[np.bool_]) -> bool:
    theirs = {tuple(index) for index in other.indices[flags.known].tolist()}
    ours = table.indices[needed].tolist()
    return bool(ours) and sum(tuple(index) in theirs for index in ours) >= _COVERED * len(ours)


def mark_test_set(
    flags: Flags,
    table: Table,
    agreement: Agreement,
    indices: Indices,
    path: Any,
    elsewhere: bool,
) -> tuple[npt.NDArray[np.bool_] | None, list[str]]:
    """The flags of the reflections that are used; without one, a work reflection.

    Parameters
    ----------
    flags : Flags
    table : Table
        Where they stand.
    agreement : Agreement
        How the data were brought to the symmetry of ``indices``.
    indices : numpy.ndarray
        (n, 3) of the merged data.
    path : path
        For messages.
    elsewhere : bool
        Whether the table is not that of the data: it may be in another setting, and has to cover the data.
    """
    messages = []
    if elsewhere:
        agreement = replace(reconcile(table.symmetry, agreement.symmetry, path), also=agreement.also)
    out, _ = rules.excluded(table.status, len(table.indices))
    taken = flags.known & ~out
    at, whole = agreement.changed(table.indices[taken])
    at, is_free = at[whole], flags.free[taken][whole]
    theirs, _ = to_asu(at, agreement.symmetry)
    ours, _ = to_asu(indices, agreement.symmetry)
    n = len(ours)
    unique, inverse = np.unique(np.concatenate([ours, theirs]), axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    free, n_mixed = rules.free_of_equivalents(inverse[n:], is_free, len(unique))
    known = np.bincount(inverse[n:], minlength=len(unique)) > 0
    marked, has = free[inverse[:n]], known[inverse[:n]]
    n_missing = int((~has).sum())
    if n_mixed:
        messages.append(
            f"reflections whose equivalents or Friedel mates have unlike R-free flags, taken as free: {n_mixed}"
        )
    if elsewhere and n_missing > (1 - _FLAGS_COVERED) * n:
        raise Sorry(
            f"R-free flags {flags.labels} are there for {n - n_missing} of the {n} reflections in {path} only: give flags "
            "for these data, or go without them with the label none."
        )
    if n_missing:
        messages.append(f"reflections without an R-free flag, used as work reflections: {n_missing}")
    if not marked.any():
        return None, [*messages, f"no reflection of the test set of {flags.labels} is within the limits"]
    return marked, messages
