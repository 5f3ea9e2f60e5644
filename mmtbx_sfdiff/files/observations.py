"""Observed data of one crystal from any reflection file, by the rules of :mod:`mmtbx_sfdiff.rules`.

The steps, each of which says what it did:

1. the block whose cell is the model's, its observations and flags;
2. rows that the file rejects, or that hold no measurement, are left out and counted;
3. indices are brought to the model's setting and asymmetric unit, absences are left out, equivalents merged;
4. intensities become amplitudes by French and Wilson's method;
5. the test set: a merged reflection is free if any of its rows is.

Nothing here needs cctbx, except files that only cctbx reads and settings that only cctbx knows.

Reference: ``iotbx.extract_xtal_data``, whose amplitudes, sigmas and order of reflections these are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rules
from ..numerics.tensors import number_of
from ..rules import AMPLITUDES, Column, LeftOut, Observation
from .content import read_content, split_word
from .errors import Sorry
from .french_wilson import french_wilson
from .merging import Indices, Reals, group_rows, mean_of_equivalents, to_asu
from .reflection_file import read_reflection_file
from .reflection_table import ReflectionFile, Table
from .symmetry import Agreement, Symmetry, reconcile
from .test_set import find_flags, mark_test_set

_FINER_THAN_DATA = 0.99  # a limit asked for may be this much finer than the data: headers are rounded
OUTSIDE, NEGATIVE_I, BAD_ROW = (
    "outside the resolution limits",
    "negative intensity, and no sigma for French-Wilson",
    "F(000)",
)
NO_INDEX = "no whole index after reindexing"


@dataclass(frozen=True, eq=False)
class Observations:
    """Amplitudes of one crystal, with where they come from and what was left out.

    Attributes
    ----------
    path : pathlib.Path
    symmetry : Symmetry
        The model's where one was given.
    indices : numpy.ndarray
        (n, 3) int64, in the asymmetric unit.
    f_obs, sigmas : numpy.ndarray, numpy.ndarray or None
        (n,)
    free : numpy.ndarray or None
        (n,) bool, True for the test set.
    anomalous : bool
        Whether Bijvoet mates are apart: they were asked for, and there are pairs.
    labels : str
        Columns that were taken.
    free_labels : str or None
    test_value : int or str or None
    kind : str
        ``amplitudes``, ``intensities (French-Wilson)`` or ``intensities (square root)``.
    entry_id, wavelength, simulated
        As the file says.
    read : int
        Measurements in the file: rows, or two for a row with both Bijvoet mates.
    left_out : dict
        Reason to number; ``read == len(indices) + sum(left_out.values())``.
    messages : tuple of str
    stated : Symmetry or None
        What the file itself says.
    setting : str or None
        Operator by which the indices were brought to the model's setting.
    mates : str or None
        Columns of the file that have Bijvoet mates apart, whether taken or not.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import read_observations
    >>> from mmtbx_sfdiff.files.demo import demo_entry
    >>> found = read_observations(demo_entry(".").data)
    >>> found.free_labels, found.test_value, int(found.free.sum()) < len(found.indices)
    ('R-free-flags', 1, True)
    >>> found.summary["used"]
    3633
    """

    path: Path
    symmetry: Symmetry
    indices: Indices
    f_obs: Reals
    sigmas: Reals | None
    free: npt.NDArray[np.bool_] | None
    anomalous: bool
    labels: str
    free_labels: str | None = None
    test_value: int | str | None = None
    kind: str = AMPLITUDES
    entry_id: str | None = None
    wavelength: float | None = None
    simulated: bool = False
    read: int = 0
    left_out: LeftOut = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    stated: Symmetry | None = None
    setting: str | None = None
    mates: str | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """``{"read", "used", "free", "left_out": {reason: n}}``."""
        free = None if self.free is None else int(self.free.sum())
        return {"read": self.read, "used": len(self.indices), "free": free, "left_out": dict(self.left_out)}


@dataclass(eq=False)
class _Rows:
    """Measurements on their way; each step keeps fewer and counts the others."""

    indices: Indices
    values: Reals
    sigmas: Reals | None
    left_out: LeftOut

    def keep(self, rows: npt.NDArray[np.bool_], reason: str) -> None:
        n = int((~rows).sum())
        if n:
            self.left_out[reason] = self.left_out.get(reason, 0) + n
            self.take(rows)

    def take(self, rows: Any) -> None:
        self.indices, self.values = self.indices[rows], self.values[rows]
        self.sigmas = None if self.sigmas is None else self.sigmas[rows]


def read_observations(
    path: Any,
    symmetry: Symmetry | None = None,
    labels: Any = None,
    free: Any = None,
    test_value: int | str | None = None,
    free_file: Any = None,
    d_min: float | None = None,
    d_max: float | None = None,
    anomalous: bool = False,
    prefer: str = AMPLITUDES,
    strict: bool = True,
    reindex: str | None = None,
    trust_symmetry: bool = False,
) -> Observations:
    """Read observed data from an MTZ file, a structure-factor CIF, or another format that cctbx knows.

    Parameters
    ----------
    path : path
        Plain or compressed; a SHELX file with ``=hklf3`` or ``=hklf4`` behind its name.
    symmetry : Symmetry, optional
        The model's; it takes priority over the file's, which must be compatible.
    labels, free : str or sequence of str, optional
        Columns to take; ``free="none"`` to read no flags.
    test_value : int or str, optional
        The value that marks the test set.
    free_file : path, optional
        Another file that holds the flags.
    d_min, d_max : float, optional
        Resolution limits, Å.
    anomalous : bool
        Keep Bijvoet mates apart.
    prefer : {"amplitudes", "intensities"}
        Where a file holds both.
    strict : bool
        Whether flags that cannot mark a test set are an error, or only said.
    reindex : str, optional
        Operator on the indices, such as ``k,h,-l``; after they are brought to the model's setting.
    trust_symmetry : bool
        Use the symmetry given, whatever the file states.

    Raises
    ------
    Sorry
        In one sentence that names the file: unreadable, no observations, another crystal, unusable flags,
        no reflections within the limits.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import read_observations
    >>> from mmtbx_sfdiff.files.demo import demo_entry
    >>> found = read_observations(demo_entry(".").data)
    >>> found.labels, len(found.f_obs), found.simulated
    ('FOBS_SIMULATED,SIGFOBS_SIMULATED', 3633, True)
    """
    if prefer not in (rules.AMPLITUDES, rules.INTENSITIES):
        raise Sorry(f"prefer={prefer!r} is not a choice: amplitudes or intensities.")
    d_min = None if d_min is None else number_of(d_min, "d_min")
    d_max = None if d_max is None else number_of(d_max, "d_max")
    for name, limit in (("high", d_min), ("low", d_max)):
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise Sorry(f"The {name}-resolution limit {limit} Å is impossible: give a positive number.")
    path, word = split_word(path)
    source = read_reflection_file(read_content(path, "data"), word, symmetry)
    try:
        table, observed, mates, messages = _choose(source, symmetry, labels, prefer, anomalous)
    except ValueError as error:
        raise Sorry(str(error)) from None
    messages = [*source.messages, *messages]
    own = replace(table.symmetry, cell=table.cell_of(observed.value))
    agreement = _agreement(own, symmetry, path, reindex, trust_symmetry)
    messages += agreement.messages
    rows, read = _measurements(table, observed, messages)
    rows.indices, whole = agreement.changed(rows.indices)
    rows.keep(whole, NO_INDEX)
    _within_limits(rows, agreement.symmetry, d_min, d_max, path)
    symmetry_of_all = agreement.symmetry
    anomalous = anomalous and _has_pairs(rows.indices, symmetry_of_all)
    result, kind = _merged(rows, observed.kind, symmetry_of_all, anomalous, messages, path, observed.labels)
    try:
        flags, flag_table, more = find_flags(source, table, observed, free, test_value, free_file, symmetry, strict)
    except ValueError as error:
        raise Sorry(str(error)) from None
    messages += more
    marked = None
    if flags is not None and flag_table is not None:
        marked, more = mark_test_set(
            flags, flag_table, agreement, result.indices, free_file or path, flag_table is not table
        )
        messages += more
    used = marked is not None and flags is not None
    return Observations(
        path=Path(path),
        symmetry=agreement.symmetry,
        indices=result.indices,
        f_obs=result.values,
        sigmas=result.sigmas,
        free=marked,
        anomalous=anomalous,
        labels=observed.labels,
        free_labels=flags.labels if used and flags is not None else None,
        test_value=flags.test_value if used and flags is not None else None,
        kind=kind,
        entry_id=source.entry_id,
        wavelength=table.wavelengths.get(observed.value.block, table.wavelength),
        simulated="simulated" in (source.title + observed.labels).lower(),
        read=read,
        left_out=result.left_out,
        messages=tuple(messages),
        stated=own,
        setting=agreement.setting,
        mates=mates,
    )


def _has_pairs(indices: Indices, symmetry: Symmetry) -> bool:
    """Whether some reflection is there with its Friedel mate, which no operation makes its equivalent."""
    if not len(indices):
        return False
    standard, mate = to_asu(indices, symmetry)
    return len(group_rows(np.where(mate[:, None], -standard, standard)).indices) > len(group_rows(standard).indices)


def _agreement(own: Symmetry, model: Symmetry | None, path: Any, reindex: str | None, trust: bool) -> Agreement:
    """The symmetry that is used, with what the user says of it."""
    if trust and model is not None and model.is_known:
        agreement = Agreement(model, None, ["the symmetry is the one that was given, whatever the data file states"])
    else:
        agreement = reconcile(own, model, path)
    if reindex is None:
        return agreement
    try:
        return agreement.and_then(reindex)
    except ValueError as error:
        raise Sorry(f"reindex: {error}") from None


def _choose(
    source: ReflectionFile, symmetry: Symmetry | None, labels: Any, prefer: str, anomalous: bool
) -> tuple[Table, Observation, str | None, list[str]]:
    """The table and its observations, and those with mates apart; among several, those whose cell is the model's."""
    tables = source.tables
    messages: list[str] = []
    columns = [column for table in tables for column in table.columns]
    if symmetry is not None:
        cells = [table.cell_of(column) for table in tables for column in table.columns]
        fitting = [c for c, cell in zip(columns, cells) if rules.which_cell([cell], symmetry.cell) == 0]
        if len(fitting) < len(columns) and rules.observations(fitting)[0] and _has(fitting, labels):
            left = [one.labels for one in rules.observations(columns)[0] if one.value not in fitting]
            columns = fitting
            if left:
                messages.append(f"not the model's cell, and therefore not looked at: {'; '.join(left)}")
    observed, more = rules.choose_observation(columns, labels, prefer, anomalous, where=str(source.path))
    table = next(table for table in tables if observed.value in table.columns)
    mates = [one for one in (observed, *rules.observations(columns)[0]) if one.is_anomalous]
    return table, observed, mates[0].labels if mates else None, messages + more


def _has(columns: list[Column], labels: Any) -> bool:
    """Whether the labels, if there are some, name one of these columns."""
    if not labels:
        return True
    try:
        rules.named(columns, labels, "", "")
    except ValueError:
        return False
    return True


def _measurements(table: Table, observed: Observation, messages: list[str]) -> tuple[_Rows, int]:
    """The rows that take part, both mates of a row one after the other."""
    n = len(table.indices)
    out, left_out = rules.excluded(table.status, n)
    if out.any():
        listing = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        messages.append(f"rejected by the file's status column, left out: {listing}")
    both = observed.minus is not None
    pairs: list[tuple[Column, Column | None, int]] = [(observed.value, observed.sigma, 1)]
    if observed.minus is not None:
        pairs.append((observed.minus, observed.minus_sigma, -1))
    indices = np.concatenate([sign * table.indices for _, _, sign in pairs])
    values = np.concatenate([np.asarray(value.values, dtype=np.float64) for value, _, _ in pairs])
    have = all(sigma is not None for _, sigma, _ in pairs)
    sigmas = (
        np.concatenate([np.asarray(s.values, dtype=np.float64) for _, s, _ in pairs if s is not None]) if have else None
    )
    taken = ~np.concatenate([out] * len(pairs))
    if both:  # a row with one mate is one measurement
        known = np.isfinite(values).reshape(2, -1)
        taken &= np.concatenate([known[0] | ~known[1], known[1]])
    read = int(taken.sum()) + sum(left_out.values())
    rows = _Rows(indices[taken], values[taken], None if sigmas is None else sigmas[taken], left_out)
    keep, kept_sigmas, reasons, more = rules.usable(rows.values, rows.sigmas, observed.kind)
    messages += [f"{observed.labels}: {text}" for text in more]
    rows.sigmas = kept_sigmas
    rows.take(keep)
    for reason, count in reasons.items():
        rows.left_out[reason] = rows.left_out.get(reason, 0) + count
    if reasons:
        messages.append("left out: " + ", ".join(f"{reason}: {count}" for reason, count in reasons.items()))
    if not have:
        messages.append(f"{observed.labels} come without sigmas")
    rows.keep(np.asarray(rows.indices.any(axis=1), dtype=bool), BAD_ROW)
    return rows, read


def _within_limits(rows: _Rows, symmetry: Symmetry, d_min: float | None, d_max: float | None, path: Any) -> None:
    if len(rows.indices) == 0:
        return
    with np.errstate(divide="ignore"):
        d = 1 / np.sqrt(symmetry.d_star_sq(rows.indices))
    finest = float(d.min())
    if d_min is not None and d_min < _FINER_THAN_DATA * finest:
        raise Sorry(
            f"The data in {path} end at {finest:.2f} Å, short of the limit of {d_min:g} Å: choose {finest:.2f} Å or coarser."
        )
    inside = np.ones(len(d), dtype=bool)
    if d_min is not None:
        inside &= d >= d_min
    if d_max is not None:
        inside &= d <= d_max
    rows.keep(inside, OUTSIDE)
    if len(rows.indices) == 0:
        raise Sorry(
            f"{path} has no reflections between {d_max or 'infinity'} and {d_min or round(finest, 2)} Å that go with the "
            f"symmetry {symmetry}: choose other limits or correct the symmetry."
        )


def _merged(
    rows: _Rows, kind: str, symmetry: Symmetry, anomalous: bool, messages: list[str], path: Any, labels: str
) -> tuple[_Rows, str]:
    """Unique amplitudes in the asymmetric unit, and how they came about."""
    n_read = len(rows.indices)
    if n_read:
        assert symmetry.ops is not None
        absent = np.asarray(symmetry.ops.systematic_absences(rows.indices.astype(np.int32)), dtype=bool)
        if absent.any():
            messages.append(f"systematic absences, left out: {int(absent.sum())}")
        rows.keep(~absent, rules.rows.ABSENT)
    if len(rows.indices) == 0:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in rows.left_out.items())
        raise Sorry(f"{path} has no usable observations in {labels} ({reasons or 'no rows'}): name another column.")
    before = len(rows.indices)
    standard, mate = to_asu(rows.indices, symmetry)
    rows.indices = np.where(mate[:, None], -standard, standard)
    _merge(rows)
    if kind == AMPLITUDES:
        how = AMPLITUDES
    elif rows.sigmas is not None:
        how = "intensities (French-Wilson)"
        centric = np.asarray(symmetry.ops.centric_flag_array(rows.indices.astype(np.int32)), dtype=bool)  # type: ignore[union-attr]
        found = french_wilson(rows.values, rows.sigmas, symmetry.d_star_sq(rows.indices), centric)
        if found.left_out:
            listing = ", ".join(f"{reason}: {count}" for reason, count in found.left_out.items())
            messages.append(f"intensities without an amplitude, left out: {listing}")
        if len(found.rows) == 0:
            raise Sorry(
                f"{path} has no intensity in {labels} that can become an amplitude ({listing}): name another column."
            )
        unused = len(rows.indices) - len(found.rows)
        before -= unused
        rows.take(found.rows)
        rows.values, rows.sigmas = found.f, found.sigmas
        for reason, count in found.left_out.items():
            rows.left_out[reason] = count
    else:
        how = "intensities (square root)"
        positive = rows.values >= 0
        n_negative = int((~positive).sum())
        if n_negative:
            messages.append(
                f"intensities without sigmas: their square roots are taken, and negative ones left out: {n_negative}"
            )
        before -= n_negative
        rows.keep(positive, NEGATIVE_I)
        if len(rows.indices) == 0:
            raise Sorry(f"{path} has no positive intensity in {labels}, and no sigmas: name another column.")
        rows.values = np.sqrt(rows.values)
    if not anomalous:
        standard, _ = to_asu(rows.indices, symmetry)
        rows.indices = standard
        _merge(rows)
    merged = before - len(rows.indices)
    if merged:
        rows.left_out[rules.rows.MERGED] = merged
        messages.append(f"{before} measurements were merged into {len(rows.indices)} reflections")
    return rows, how


def _merge(rows: _Rows) -> None:
    groups = group_rows(rows.indices)
    rows.values, rows.sigmas = mean_of_equivalents(groups, rows.values, rows.sigmas)
    rows.indices = groups.indices
