"""Which reflections are the R-free test set: rules on names and values of flag columns, for every door.

A column holds flags by what it is: a status column (``f``), or whole numbers or truth values under a name with
``free``, ``test`` or ``cross`` in it.  Multiplicities, bins, counts and other whole numbers are never flags.

The value that marks the test set follows the conventions: the rarer of two values; the lowest of an even partition
(CCP4's 0 of 0 to 19); 1 where most are 0 (CNS, Phenix), 0 or -1 where most are 1 (CCP4, SHELX).  A test set of more
than :data:`MOST` or less than :data:`LEAST` of the data is refused, unless its value is given.

References: ``iotbx.reflection_file_utils.get_r_free_flags_scores``, from which these rules differ as docs/files.rst says;
the ``status`` and ``pdbx_r_free_flag`` items of the PDBx/mmCIF dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .column import Column, label_string
from .columns import mate_of, named

#: Shares of the flagged reflections between which a test set is believed; more than ``ENOUGH`` are never too few.
LEAST, MOST, ENOUGH = 0.01, 0.22, 1000
_GIVEN_MOST = 0.5  # with a value that was given
_NO_FLAGS = tuple("HPAD")  # MTZ types of indices, phases, phase coefficients, differences
# not pdbx_signal_status, which says how strong a reflection is
_STATUS = re.compile(r"(?!.*signal)(.*_)?status?(_au)?", re.IGNORECASE)
_FREE_WORDS = {"free": "f", "test": "f", "work": "o", "working": "o"}
_EVEN = 0.55  # the smallest part of an even partition over the largest


class UnusableFlags(ValueError):
    """Flags that are there but cannot mark a test set.

    Examples
    --------
    >>> import numpy as np
    >>> try:
    ...     read_flags(Column("FreeR_flag", np.ones(100), "I"))
    ... except UnusableFlags as error:
    ...     print(str(error).partition(':')[0])
    R-free flags FreeR_flag in The data are all 1, which cannot be a test set
    """


@dataclass(frozen=True, eq=False)
class Flags:
    """A test set.

    Attributes
    ----------
    column : Column
    test_value : int or str
        The value that marks it.
    free : numpy.ndarray
        (n,) bool, True for the test set.
    known : numpy.ndarray
        (n,) bool, False where the reflection has no flag (and is a work reflection).

    Examples
    --------
    >>> import numpy as np
    >>> column = Column("FreeR_flag", np.arange(100.0) % 20, "I")
    >>> flags = read_flags(column)
    >>> flags.labels, flags.test_value, int(flags.free.sum()), int(flags.known.sum())
    ('FreeR_flag', 0, 5, 100)
    """

    column: Column
    test_value: int | str
    free: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]

    @property
    def labels(self) -> str:
        """The column's name, after the block of a CIF."""
        return label_string([self.column])


def is_status(column: Column) -> bool:
    """Whether this is a CIF's status column (``o``, ``f``, ``x``, ...).

    Examples
    --------
    >>> import numpy as np
    >>> is_status(Column("_refln.status", np.array(["o", "f"])))
    True
    """
    return bool(_STATUS.fullmatch(column.short))


def is_flag_column(column: Column) -> bool:
    """Whether a column holds R-free flags, by its type and name (and whole numbers).

    Examples
    --------
    >>> import numpy as np
    >>> ones = np.array([0.0, 1.0, 0.0])
    >>> [n for n in ("FreeR_flag", "R-free-flags", "TEST", "N", "EPSILON", "FLAG") if is_flag_column(Column(n, ones, "I"))]
    ['FreeR_flag', 'R-free-flags', 'TEST']
    """
    if is_status(column):
        return True
    return column.type not in _NO_FLAGS and column.holds_flags


def find_test_value(values: npt.NDArray[np.generic], name: str = "The flags") -> int:
    """The value that marks the test set, by convention.

    Parameters
    ----------
    values : numpy.ndarray
        (n,) whole numbers or truth values, none missing.
    name : str
        For messages.

    Raises
    ------
    UnusableFlags
        No convention gives a test set of a believable size; the counts are in the sentence.

    Examples
    --------
    >>> import numpy as np
    >>> find_test_value(np.arange(1000) % 20), find_test_value(np.arange(1000) % 10 == 0)
    (0, 1)
    """
    found, numbers = np.unique(np.asarray(values, dtype=np.int64), return_counts=True)
    counts = dict(zip(found.tolist(), numbers.tolist()))
    n = int(numbers.sum())
    if len(counts) < 2:
        raise UnusableFlags(f"{name} {'are all ' + str(found[0]) if counts else 'have no values'}, {_REMEDY}")
    small = [value for value, count in counts.items() if _believable(count, n)]
    if len(counts) == 2:
        value = min(counts, key=lambda v: counts[v])
        choice = [value] if value in small else []
    elif _is_partition(found, numbers):
        choice = [int(found[0])] if int(found[0]) in small else []
    else:
        most = max(counts, key=lambda v: counts[v])
        order = {0: (1, -1), 1: (0, -1)}.get(most, ())
        choice = [value for value in order if value in small][:1]
        if not choice:
            choice = [value for value in (1, 0, -1) if value in small]
    if len(choice) != 1:
        raise UnusableFlags(f"{name} have the values {_listing(counts)}, {_REMEDY}")
    return int(choice[0])


_REMEDY = "which cannot be a test set: name other flags or their test value, or go without them with the label none."


def _believable(count: int, n: int) -> bool:
    return min(ENOUGH, LEAST * n) <= count <= MOST * n


def _is_partition(found: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]) -> bool:
    consecutive = found[-1] - found[0] == len(found) - 1
    return bool(consecutive and (numbers.min() > _EVEN * numbers.max() or (len(found) >= 5 and found[0] == 0)))


def _listing(counts: dict[int, int]) -> str:
    common = sorted(counts.items(), key=lambda item: -item[1])[:4]
    rest = len(counts) - len(common)
    return ", ".join(f"{value} ({n})" for value, n in common) + (f" and {rest} more" if rest else "")


def read_flags(column: Column, test_value: int | str | None = None, where: str = "The data") -> Flags:
    """The test set that one column marks.

    Parameters
    ----------
    column : Column
        A status column, or whole numbers.
    test_value : int or str, optional
        The value that marks the test set; by convention if not given.
    where : str
        The file, for messages.

    Raises
    ------
    UnusableFlags
        If it cannot mark a test set; the counts are in the sentence.

    Examples
    --------
    >>> import numpy as np
    >>> column = Column("FreeR_flag", np.arange(100.0) % 20, "I")
    >>> int(read_flags(column).free.sum()), int(read_flags(column, test_value=3).free.nonzero()[0][0])
    (5, 3)
    """
    name = f"R-free flags {label_string([column])} in {where}"
    words = _words(column)
    if words is not None:
        known = words != ""
        asked = "" if test_value is None else _FREE_WORDS.get(str(test_value).lower(), str(test_value).lower())
        value: int | str = asked if asked and asked in words else "f"
        free = words == value
        if set(words[known].tolist()) == {"f"}:  # a status for the test set only
            known = np.ones(len(words), dtype=bool)
        n, n_free = int(known.sum()), int(free.sum())
        if n_free == 0:
            letters = sorted(set(words[known].tolist()))
            raise UnusableFlags(
                f"{name} {'are all ' + letters[0] if len(letters) == 1 else 'mark nothing with ' + str(value)}, {_REMEDY}"
            )
        if not _believable(n_free, n) and not (test_value is not None and n_free <= _GIVEN_MOST * n):
            raise UnusableFlags(f"{name} have the values {value} ({n_free}), others ({n - n_free}), {_REMEDY}")
        return Flags(column, value, free, known)
    numbers = _as_numbers(column)
    known = np.isfinite(numbers)
    whole = np.where(known, numbers, 0).astype(np.int64)
    if test_value is None:
        test_value = find_test_value(whole[known], name)
    value = _whole(test_value)
    free = known & (whole == value)
    share = float(free.sum()) / max(int(known.sum()), 1)
    if not 0 < share <= _GIVEN_MOST:
        raise UnusableFlags(f"{name} mark {share:.0%} of the reflections with {value}, {_REMEDY}")
    return Flags(column, value, free, known)


def _whole(value: int | str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"The test value {value!r} is not a whole number, as the flags are.") from None
    if number != int(number):
        raise ValueError(f"The test value {value!r} is not a whole number, as the flags are.")
    return int(number)


def _words(column: Column) -> npt.NDArray[np.str_] | None:
    """The letters of a column of text; None where it holds numbers, as text or not."""
    if not column.is_text:
        return None
    words = np.char.lower(np.char.strip(column.values.astype(str)))
    words = np.where((words == "?") | (words == "."), "", words)
    for word, letter in _FREE_WORDS.items():
        words = np.where(words == word, letter, words)
    known = words[words != ""]
    if len(known) and all(re.fullmatch(r"[-+]?\d+(\.0*)?", word) for word in set(known.tolist())):
        return None
    return np.asarray(words, dtype=np.str_)


def _as_numbers(column: Column) -> npt.NDArray[np.float64]:
    if not column.is_text:
        return np.asarray(column.values, dtype=np.float64)
    return np.array([float(v) if v.strip() not in ("", "?", ".") else np.nan for v in column.values.tolist()])


def choose_flags(
    columns: Sequence[Column],
    labels: str | Sequence[str] | None = None,
    test_value: int | str | None = None,
    where: str = "The data",
    strict: bool = True,
    needed: npt.NDArray[np.bool_] | None = None,
) -> tuple[Flags | None, list[str]]:
    """The flags that are taken, and what should be said about the choice.

    Parameters
    ----------
    columns : sequence of Column
        All of the block (or file) that holds the observations, in its order.
    labels : str or sequence of str, optional
        What the user asks for; ``"none"`` to do without flags.
    test_value : int or str, optional
        The value that marks the test set.
    where : str
        The file, for messages.
    strict : bool
        Whether flags that cannot mark a test set are an error, or only said.
    needed : numpy.ndarray, optional
        (n,) bool, the rows with observations: what is said about missing flags counts these.

    Returns
    -------
    Flags or None
    list of str

    Raises
    ------
    UnusableFlags
        If strict, or if the labels name flags that cannot mark a test set.
    ValueError
        If the labels name no column.

    Examples
    --------
    >>> import numpy as np
    >>> column = Column("FreeR_flag", np.arange(100.0) % 20, "I")
    >>> flags, messages = choose_flags([column])
    >>> flags.labels, messages
    ('FreeR_flag', [])
    """
    if isinstance(labels, str) and labels.strip().lower() == "none":
        return None, ["R-free flags were not read, as asked"]
    if labels:
        chosen = named(columns, labels, where, "the R-free flags")[-1]
        flags = _read_mates(chosen, columns, test_value, where)
        return flags, _missing(flags, needed)
    usable: list[Flags] = []
    broken: list[UnusableFlags] = []
    too_few: list[UnusableFlags] = []  # of a status column: said, never an error
    for column in columns:
        if not is_flag_column(column):
            continue
        if column.mate == "minus" and any(mate_of(other, columns) is column for other in columns):
            continue  # read with the other mate's
        try:
            usable.append(_read_mates(column, columns, test_value, where))
        except UnusableFlags as error:
            words = _words(column)
            if words is None:
                broken.append(error)
            elif "f" in words:
                too_few.append(error)
            # a status of o everywhere is no attempt at a test set
    if usable:
        best = usable[0]
        messages = _missing(best, needed)
        others = [one for one in usable[1:] if not np.array_equal(one.free, best.free)]
        if others:
            differ = int(np.count_nonzero(others[0].free != best.free))
            names = "; ".join(one.labels for one in others)
            messages.append(
                f"R-free flags: took {best.labels}; equally suitable: {names} ({differ} reflections are marked otherwise)"
            )
        return best, messages
    if broken and strict:
        raise broken[0]
    broken += too_few
    if broken:
        return None, [f"{str(broken[0]).split(', which cannot')[0]}: no test set, so there is no R-free"]
    return None, ["no R-free flags in the data file: all reflections are used, and there is no R-free"]


def _read_mates(
    column: Column, columns: Sequence[Column], test_value: int | str | None = None, where: str = "The data"
) -> Flags:
    """The test set of a column; where another one has the flags of the other Bijvoet mates, free if either is."""
    other = mate_of(column, columns)
    if other is None:
        return read_flags(column, test_value, where)
    both = read_flags(replace(column, values=np.concatenate([column.values, other.values])), test_value, where)
    n = len(column.values)
    return replace(both, column=column, free=both.free[:n] | both.free[n:], known=both.known[:n] | both.known[n:])


def _missing(flags: Flags, needed: npt.NDArray[np.bool_] | None) -> list[str]:
    missing = ~flags.known if needed is None else needed & ~flags.known
    n = int(missing.sum())
    return [f"reflections without an R-free flag, used as work reflections: {n}"] if n else []
