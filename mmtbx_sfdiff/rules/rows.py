"""Which rows of a reflection file take part: rules on values, status and equivalents, for every door.

Everything that is left out is counted under a reason, so that ``read == used + sum(left_out.values())``.

Reference: the ``status`` item of the PDBx/mmCIF dictionary's ``refln`` category.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .column import Column
from .columns import AMPLITUDES

_LARGEST = 1e30  # beyond which a value is no measurement
_TAKEN = ("o", "f", "", "?", ".", "incl", "free", "test", "work", "working", "obs", "observed")
_MEANING = {
    "x": "status x (unreliable)",
    "<": "status < (below the threshold)",
    "h": "status h (beyond the high-resolution limit)",
    "l": "status l (beyond the low-resolution limit)",
    "-": "status - (systematically absent)",
    "excl": "status excl (not refined against)",
    "extn": "status extn (extinction)",
}
_GAPS = 0.1  # share of values of exactly 0 without a sigma above which they stand for what was not measured
_MARKER = re.compile(r"-9{2,}(\.9+)?")  # -99, -999.9, ...
NO_VALUE, NEGATIVE, ZERO, NO_SIGMA = "no value", "negative amplitude", "value 0", "no usable sigma"
MERGED, ABSENT = "merged with an equivalent", "systematically absent"

LeftOut = dict[str, int]


def excluded(status: Column | Sequence[Column] | None, n: int) -> tuple[npt.NDArray[np.bool_], LeftOut]:
    """Rows that the file's status column leaves out: neither ``o`` nor ``f``, nor a number, nor missing.

    Parameters
    ----------
    status : Column, several, or None
        Text; what any of them rejects is left out.
    n : int
        Rows of the file.

    Returns
    -------
    numpy.ndarray
        (n,) bool, True for rows that take no part.
    dict
        Reason to number.

    Examples
    --------
    >>> import numpy as np
    >>> excluded(Column("_refln.status", np.array(["o", "x", "f", "x"])), 4)[1]
    {'status x (unreliable)': 2}
    """
    out = np.zeros(n, dtype=bool)
    reasons: LeftOut = {}
    for column in () if status is None else (status,) if isinstance(status, Column) else status:
        if not column.is_text:
            continue
        letters = np.char.lower(np.char.strip(column.values.astype(str)))
        for letter in sorted(set(letters.tolist())):
            if letter in _TAKEN or _is_number(letter):
                continue
            rows = (letters == letter) & ~out
            if rows.any():
                reason = _MEANING.get(letter, f"status {letter}")
                reasons[reason] = reasons.get(reason, 0) + int(rows.sum())
            out |= rows
    return out, reasons


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def usable(
    values: npt.NDArray[np.float64], sigmas: npt.NDArray[np.float64] | None, kind: str = AMPLITUDES
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64] | None, LeftOut, list[str]]:
    """Rows whose value is a measurement, and the sigmas if they are any.

    A reflection without a usable (positive) sigma is left out where most have one; where most have none, the sigmas are
    ignored instead.  A value of exactly 0 with a sigma is a gap that a program filled: left out, as in cctbx
    (``cctbx.miller.array.regularize``); so are values of 0 without one where they are more than a few.

    Parameters
    ----------
    values : numpy.ndarray
        (n,) NaN where there is none.
    sigmas : numpy.ndarray, optional
        (n,)
    kind : {"amplitudes", "intensities"}

    Returns
    -------
    keep : numpy.ndarray
        (n,) bool.
    sigmas : numpy.ndarray or None
        As given, or None where they are ignored.
    left_out : dict
        Reason to number.
    messages : list of str

    Examples
    --------
    >>> import numpy as np
    >>> usable(np.array([1.0, np.nan, 3.0]), np.array([0.1, 0.1, 0.0]))[2]
    {'no value': 1, 'no usable sigma': 1}
    """
    values = np.asarray(values, dtype=np.float64)
    messages: list[str] = []
    keep = np.abs(values) < _LARGEST  # NaN fails
    left_out: LeftOut = {}

    def drop(rows: npt.NDArray[np.bool_], reason: str) -> None:
        nonlocal keep
        n = int(np.count_nonzero(keep & rows))
        if n:
            left_out[reason] = n
        keep = keep & ~rows

    keep &= ~_markers(values)
    if not keep.all():
        left_out[NO_VALUE] = int((~keep).sum())
    if kind == AMPLITUDES:
        drop(values < 0, NEGATIVE)
    if sigmas is not None:
        sigmas = np.asarray(sigmas, dtype=np.float64)
        good = (sigmas > 0) & (sigmas < _LARGEST)
        judged = keep & ((values != 0) | good)  # without the zeros of programs that write 0, 0 for a missing value
        if judged.any() and good[judged].mean() < 0.5:
            what = "missing" if not np.isfinite(sigmas[judged]).any() else "mostly zero or missing"
            messages.append(f"the sigmas are {what} and were ignored")
            sigmas = None
        else:
            drop(~good, NO_SIGMA)
            drop(values == 0, ZERO)
    if sigmas is None:
        n = int(np.count_nonzero(keep & (values == 0)))
        if n > _GAPS * np.count_nonzero(keep):
            drop(values == 0, ZERO)
        elif n:
            messages.append(f"values of exactly 0, without a sigma, taken as measured: {n}")
    return keep, sigmas, left_out, messages


def _markers(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Rows of a number of nines below zero that stands in the place of missing values, three times or more."""
    out = np.zeros(len(values), dtype=bool)
    found, counts = np.unique(values[values < -90], return_counts=True)
    for value in found[counts >= 3]:
        if _MARKER.fullmatch(f"{value:.6g}"):
            out |= values == value
    return out


def free_of_equivalents(
    group: npt.NDArray[np.int64], free: npt.NDArray[np.bool_], n_groups: int | None = None
) -> tuple[npt.NDArray[np.bool_], int]:
    """Flags of merged reflections: free if any of the rows is, Friedel mates and equivalents alike.

    Parameters
    ----------
    group : numpy.ndarray
        (n,) number of the merged reflection that each row belongs to.
    free : numpy.ndarray
        (n,) bool.
    n_groups : int, optional

    Returns
    -------
    free : numpy.ndarray
        (n_groups,) bool.
    n_mixed : int
        Merged reflections whose rows do not agree.

    Examples
    --------
    >>> import numpy as np
    >>> free_of_equivalents(np.array([0, 0, 1]), np.array([True, False, False]))
    (array([ True, False]), 1)
    """
    n = int(group.max()) + 1 if n_groups is None and len(group) else (n_groups or 0)
    n_free = np.bincount(group, weights=free.astype(np.float64), minlength=n)
    n_rows = np.bincount(group, minlength=n)
    return n_free > 0, int(np.count_nonzero((n_free > 0) & (n_free < n_rows)))


def which_cell(
    cells: Sequence[Sequence[float] | None], model: Sequence[float] | None, lengths: float = 0.01, angles: float = 1.0
) -> int | None:
    """The first of several cells that is the model's: lengths within 1 %, angles within 1 degree.

    Parameters
    ----------
    cells : sequence of (6,) floats or None
        Of the blocks (CIF) or datasets (MTZ) that hold observations.
    model : (6,) floats or None

    Returns
    -------
    int or None
        Its number; None where none fits, or no model's cell is known.

    Examples
    --------
    >>> which_cell([(41, 52, 61, 90, 90, 90), (28, 31, 36, 90, 90, 90)], (28.1, 31, 36, 90, 90, 90))
    1
    """
    if model is None:
        return None
    for number, cell in enumerate(cells):
        if cell is None:
            continue
        near = all(abs(a - b) <= lengths * b for a, b in zip(cell[:3], model[:3]))
        if near and all(abs(a - b) <= angles for a, b in zip(cell[3:], model[3:])):
            return number
    return None
