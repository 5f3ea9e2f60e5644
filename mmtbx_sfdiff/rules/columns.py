"""Which columns of a reflection file are observations: rules on names, types and values, for every door.

A reader (MTZ, CIF, ``reciprocalspaceship.DataSet``, what cctbx reads) describes its columns as :class:`Column`; the
functions here decide, in the same way whoever asks.  Nothing here reads files, and nothing needs cctbx or gemmi.
The rules on R-free flags are in :mod:`.free_flags`, those on rows in :mod:`.rows`.

* A column is an amplitude or an intensity by what it is: its MTZ type, its tag in a CIF, or a well-known name where
  columns have neither.  Its values never make it one.
* Calculated columns and map coefficients are never observations unless they are named; columns whose values are all
  the same never are.
* Means are preferred to Bijvoet mates, columns with sigmas to columns without, amplitudes to intensities; the first
  in the file among equals.

References: the MTZ column types of CCP4; the ``refln`` category of the PDBx/mmCIF dictionary and of the core CIF
dictionary; ``iotbx.reflection_file_utils.get_xray_data_scores``, from which these rules differ as docs/files.rst says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .column import Column, Observation, label_string
from .tags import read_tag

AMPLITUDES, INTENSITIES = "amplitudes", "intensities"
_CALCULATED = re.compile(
    r"calc|model|mask|bulk|solv|part|fo[-_]?[md]*fc|fwt|fom|fdm|dano|delf|fdiff|(^|[^a-z])[fi]c([^a-z]|$)"
    r"|(^|[^a-z])[fi]_?c(al|tot|all|ls|xplor|sc)([^a-z]|$)|(^|[^a-z])f_?(tot(al)?|prot(ein)?|sim|theo|est|exp(ected)?|em|000)([^a-z0-9]|$)"
    r"|f_?phi([^a-z]|$)|best|(^|[^a-z])(fa|fh|fan|df|fmap)([^a-z]|$)",
    re.IGNORECASE,
)
_SIGMA_NAME = re.compile(r"(sig(ma)?|sd)[-_.]?[fi].*", re.IGNORECASE)
_KINDS = {"F": AMPLITUDES, "G": AMPLITUDES, "J": INTENSITIES, "K": INTENSITIES}
_SIGMA_TYPES = {"F": "Q", "J": "Q", "G": "LQ", "K": "MQ"}
# Where columns have no type: the names in use by CCP4, Phenix, CNS, SHELX, reciprocalspaceship.
_NAMED = {
    AMPLITUDES: re.compile(r"(f|fp|fo|fobs|f[-_]obs.*|fmeas|f_meas.*|fmean|fnat|f_xray.*)(\([+-]\))?", re.IGNORECASE),
    INTENSITIES: re.compile(r"(i|imean|iobs|i[-_]obs.*|i_meas.*|intensity.*)(\([+-]\))?", re.IGNORECASE),
}
_CONSTANT = 1e-6  # relative spread of values below which a column is one number
_NEGATIVE = 0.1  # share of unlike negative values above which a column of type F is no amplitude


def is_constant(values: npt.NDArray[np.generic]) -> bool:
    """Whether all values that there are (at least three) are the same number.

    Examples
    --------
    >>> import numpy as np
    >>> is_constant(np.array([10.0, 10.0, np.nan, 10.0])), is_constant(np.array([10.0, 11.0, 12.0]))
    (True, False)
    """
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) < 3:
        return False
    return bool(np.ptp(numbers) <= _CONSTANT * np.abs(numbers).max())


def is_calculated(column: Column) -> bool:
    """Whether the name says that the values were calculated, or are a map's.

    Examples
    --------
    >>> import numpy as np
    >>> none = np.zeros(0)
    >>> [name for name in ("FC", "FP", "F-model", "F_squared_calc", "FWT", "IMEAN") if is_calculated(Column(name, none))]
    ['FC', 'F-model', 'F_squared_calc', 'FWT']
    """
    return bool(_CALCULATED.search(column.short))


def kind_of(column: Column) -> str | None:
    """``amplitudes``, ``intensities``, or None for a column that is neither by its type, tag or name.

    Examples
    --------
    >>> [kind_of(Column(name, np.zeros(2), kind)) for name, kind in (("FP", "F"), ("IMEAN", "J"), ("PHI", "P"))]
    ['amplitudes', 'intensities', None]
    """
    if column.is_text:
        return None
    if column.is_tag:
        item = read_tag(column.short)
        return None if item is None or item.is_sigma else INTENSITIES if item.is_intensity else AMPLITUDES
    if _SIGMA_NAME.fullmatch(column.short) or column.holds_flags:
        return None
    if column.type not in ("", "R"):
        return _KINDS.get(column.type)
    return _kind_of_name(column)


def _kind_of_name(column: Column) -> str | None:
    """By a well-known name."""
    return next((kind for kind, names in _NAMED.items() if names.fullmatch(column.short)), None)


def sigma_of(column: Column, columns: Sequence[Column]) -> Column | None:
    """The column of standard deviations: by its name, else (MTZ) the next column if that has the type.

    Parameters
    ----------
    column : Column
        Amplitudes or intensities.
    columns : sequence of Column
        All of the file, in its order.

    Examples
    --------
    >>> columns = [Column("FP", np.array([1.0, 2.0]), "F"), Column("SIGFP", np.array([0.1, 0.1]), "Q")]
    >>> sigma_of(columns[0], columns).name
    'SIGFP'
    """
    same = (
        [other for other in columns if other.block == column.block and not other.is_text] if column.is_tag else columns
    )
    names = _sigma_names(column)
    for name in names:
        for other in same:
            if other.short.lower() == name and other is not column and other.type not in tuple("HIJKPABYW"):
                return other
    item = read_tag(column.short) if column.is_tag else None
    if item is not None:
        for other in same:
            if read_tag(other.short) == replace(item, is_sigma=True):
                return other
    after = columns[columns.index(column) + 1 :][:1]
    if column.type and after and after[0].type and after[0].type in _SIGMA_TYPES.get(column.type, ""):
        return after[0]
    return None


def _sigma_names(column: Column) -> list[str]:
    name = column.short.lower()
    if column.is_tag:
        return [
            re.sub(r"_meas(?=$|_)", "_meas_sigma", name)
            if name.startswith("f_meas")
            else re.sub("_meas", "_sigma", name),
            re.sub(r"_(meas|obs)(?=$|_)", "_sigma", name),
            f"{name}_sigma",
        ]
    return [f"sig{name}", f"sigma{name}", f"sig_{name}", f"sig{name[1:]}", f"{name}_sigma", f"{name}_sig"]


def observations(columns: Sequence[Column]) -> tuple[list[Observation], dict[str, str]]:
    """All sets of observations among the columns, and why others that look like some are none.

    Returns
    -------
    list of Observation
        In the order of the file; Bijvoet mates in one.
    dict
        Label to reason, for amplitudes and intensities that cannot be observations.

    Examples
    --------
    >>> columns = [Column("FP", np.array([1.0, 2.0]), "F"), Column("SIGFP", np.array([0.1, 0.1]), "Q")]
    >>> found, refused = observations(columns)
    >>> [one.labels for one in found], refused
    (['FP,SIGFP'], {})
    """
    found: list[Observation] = []
    refused: dict[str, str] = {}
    for number, column in enumerate(columns):
        kind = kind_of(column)
        if kind is None or column.mate == "minus":
            continue
        reason = _no_observation(column, kind, columns, number)
        if reason:
            refused[column.short] = reason
            continue
        minus = mate_of(column, columns)
        found.append(
            Observation(
                kind,
                column,
                sigma_of(column, columns),
                minus,
                None if minus is None else sigma_of(minus, columns),
            )
        )
    return found, refused


def _no_observation(column: Column, kind: str, columns: Sequence[Column], number: int) -> str:
    """Why not, or nothing."""
    values = np.asarray(column.values, dtype=np.float64)
    known = values[np.isfinite(values)]
    if is_calculated(column):
        return "calculated"
    if column.type == "F" and number + 1 < len(columns) and columns[number + 1].type == "P":
        return "map coefficients"
    if len(known) == 0:
        return "without values"
    if is_constant(values):
        return f"all {known[0]:g}"
    # one negative number again and again stands for a missing value
    if kind == AMPLITUDES and np.count_nonzero(known < 0) > _NEGATIVE * len(known) and len(set(known[known < 0])) > 1:
        return "often negative"
    return ""


def mate_of(column: Column, columns: Sequence[Column]) -> Column | None:
    """The column of the minus mate, for one of the plus mate."""
    if column.mate != "plus":
        return None
    same = (other for other in columns if other.block == column.block or not column.is_tag)
    return next((other for other in same if other.short.lower() == column.other_mate and other is not column), None)


def index_places(names: Sequence[str], types: Sequence[str]) -> list[int] | None:
    """Where H, K and L stand: the first three columns of type H, in the order of their names if these are H, K and L, else the
    columns of these names; None where there are none.

    Examples
    --------
    >>> index_places(["F", "h", "k", "l"], ["F", "R", "R", "R"])
    [1, 2, 3]
    """
    lower = [name.lower() for name in names]
    typed = [number for number, kind in enumerate(types) if kind == "H"][:3]
    if len(typed) == 3:
        by_name = {lower[number]: number for number in typed}
        return [by_name[name] for name in "hkl"] if sorted(by_name) == ["h", "k", "l"] else typed
    return [lower.index(name) for name in "hkl"] if all(name in lower for name in "hkl") else None


def named(columns: Sequence[Column], labels: str | Sequence[str], where: str, what: str) -> list[Column]:
    """The columns that a user's labels mean, in the order of the labels.

    Parameters
    ----------
    columns : sequence of Column
    labels : str or sequence of str
        ``"FP,SIGFP"``, ``"FP"``, ``["FP", "SIGFP"]``; in a CIF with or without ``_refln.`` and the block.
    where, what : str
        The file and what is wanted, for messages.

    Raises
    ------
    ValueError
        If there is no such column, or several.

    Examples
    --------
    >>> columns = [Column("FP", np.array([1.0, 2.0]), "F"), Column("SIGFP", np.array([0.1, 0.1]), "Q")]
    >>> [column.name for column in named(columns, "FP,SIGFP", "data.mtz", "amplitudes")]
    ['FP', 'SIGFP']
    """
    words = labels.split(",") if isinstance(labels, str) else list(labels)
    words = [word.strip().lower() for word in words if word.strip()]
    blocks = {column.block.lower() for column in columns}
    wanted_blocks = [word for word in words if word in blocks]
    names = [re.sub(r"^_refln[._]", "", word) for word in words if word not in wanted_blocks]
    result: list[Column] = []
    for name in names:
        fitting = [c for c in columns if name in (c.short.lower(), c.name.lower())]
        if wanted_blocks:
            fitting = [c for c in fitting if c.block.lower() == wanted_blocks[0]]
        elif result:
            fitting = [c for c in fitting if c.block == result[0].block] or fitting
        if len(fitting) != 1:
            problem = "no array" if not fitting else "several arrays"
            asked = labels if isinstance(labels, str) else ",".join(labels)
            raise ValueError(
                f"{where} has {problem} labelled {asked} for {what}: choose among {_listing(fitting or columns)}."
            )
        result.append(fitting[0])
    if not result:
        raise ValueError(f"The labels {labels!r} name nothing for {what} in {where}: give a column's name.")
    return result


def _listing(columns: Sequence[Column]) -> str:
    """Label strings of all columns; values and their sigmas in one."""
    listed: list[str] = []
    seen: list[Column] = []
    for column in columns:
        if any(column is other for other in seen):
            continue
        sigma = sigma_of(column, columns) if kind_of(column) else None
        together = [column] + ([sigma] if sigma is not None else [])
        seen += together
        listed.append(label_string(together))
    return "; ".join(listed) or "none"


def choose_observation(
    columns: Sequence[Column],
    labels: str | Sequence[str] | None = None,
    prefer: str = AMPLITUDES,
    anomalous: bool = False,
    where: str = "The data",
) -> tuple[Observation, list[str]]:
    """The observations that are taken, and what should be said about the choice.

    Parameters
    ----------
    columns : sequence of Column
        All of the file, in its order.
    labels : str or sequence of str, optional
        What the user asks for.
    prefer : {"amplitudes", "intensities"}
        Where a file holds both.
    anomalous : bool
        Prefer Bijvoet mates apart to their mean.
    where : str
        The file, for messages.

    Raises
    ------
    ValueError
        No observations, with the reason for each column that looks like some; labels that are none.

    Examples
    --------
    >>> import numpy as np
    >>> f, s = np.array([10.0, 12.0, 15.0]), np.ones(3)
    >>> columns = [Column("FC", 2 * f, "F"), Column("FP", f, "F"), Column("SIGFP", s, "Q")]
    >>> choose_observation(columns)[0].labels
    'FP,SIGFP'
    """
    if labels:
        return _asked_for(columns, labels, where)
    found, refused = observations(columns)
    if not found:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in refused.items())
        listing = reasons or _listing(columns)
        raise ValueError(
            f"{where} contains no observed amplitudes or intensities (it contains {listing}): give the file with the "
            "observations, or name a column."
        )

    def rank(one: Observation) -> tuple[bool, bool, bool]:
        return one.is_anomalous == anomalous, one.sigma is not None, one.kind == prefer

    best = max(found, key=rank)  # the first of equals
    others = [one.labels for one in found if one is not best]
    messages = [f"observations: took {best.labels}; also present: {'; '.join(others)}"] if others else []
    constant = [f"{name} ({reason})" for name, reason in refused.items() if reason.startswith("all ")]
    if constant:
        messages.append(f"no observations, because their values are all the same: {', '.join(constant)}")
    return best, messages + _unlike(best)


def _unlike(one: Observation) -> list[str]:
    """What to say where the MTZ type and the name do not agree."""
    by_name = _kind_of_name(one.value) if one.value.type in _KINDS else None
    if by_name in (None, one.kind):
        return []
    return [
        f"{one.value.name} has the name of {by_name} and the MTZ type {one.value.type} of {one.kind}: taken by its type; if "
        "that is wrong, correct it"
    ]


def _asked_for(columns: Sequence[Column], labels: str | Sequence[str], where: str) -> tuple[Observation, list[str]]:
    chosen = named(columns, labels, where, "the data")
    value = chosen[0]
    kind = kind_of(value) or _kind_by_name(value)
    if kind is None or any(column.type in ("P", "A", "W") or column.is_text for column in chosen):
        found = "; ".join(one.labels for one in observations(columns)[0]) or "none"
        raise ValueError(
            f"{label_string(chosen)} in {where} are neither amplitudes nor intensities: choose among {found}."
        )
    if is_constant(value.values):
        raise ValueError(
            f"{label_string(chosen)} in {where} has the same value everywhere, so nothing was observed: name another "
            "column."
        )
    messages = [f"{value.short} was calculated, by its name: taken because it was asked for"]
    messages = messages if is_calculated(value) else []
    values = [column for column in chosen if kind_of(column) == kind]
    if len(values) > 1 or (len(chosen) == 1 and value.mate):
        plus = next((column for column in values if column.mate != "minus"), value)
        minus = next((column for column in values if column.mate == "minus"), None) or mate_of(plus, columns)
        sigmas = [sigma_of(column, columns) if column is not None else None for column in (plus, minus)]
        pair = Observation(kind, plus, sigmas[0], minus, sigmas[1])
        return pair, messages + _unlike(pair)
    sigma = chosen[1] if len(chosen) > 1 else sigma_of(value, columns)
    single = Observation(kind, value, sigma)
    return single, messages + _unlike(single)


def _kind_by_name(column: Column) -> str | None:
    """For a column that was asked for although its type or tag says nothing: F... or I..., calculated ones too."""
    if column.is_text or column.type in tuple("PWABYHQLMDI"):
        return None
    name = re.sub(r"^pdbx_", "", column.short.lower())
    if name.startswith(("f_squared", "i")):
        return INTENSITIES
    return AMPLITUDES if name.startswith("f") and not name.startswith("fom") else None
