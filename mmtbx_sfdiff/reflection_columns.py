"""From the columns of a data set in memory to the arrays of :class:`~mmtbx_sfdiff.Reflections`, by :mod:`.rules`.

The columns are those of a ``gemmi.Mtz``, a ``gemmi.ReflnBlock`` or a ``reciprocalspaceship.DataSet``.  Rows keep their order;
what is left out is counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

import gemmi
import numpy as np

from . import rules


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """Arrays of the reflections that are used.

    Attributes
    ----------
    indices : numpy.ndarray
        (n, 3) int64.
    values, sigmas, free : numpy.ndarray
        (n,) float64, float64 or None, bool or None.
    anomalous : bool
    left_out : dict of str to int
        Reason to number of rows.
    messages : tuple of str
        What was chosen among several, and what was ignored.
    """

    indices: np.ndarray
    values: np.ndarray
    sigmas: np.ndarray | None
    free: np.ndarray | None
    anomalous: bool
    left_out: dict[str, int]
    messages: tuple[str, ...]


def columns_of_gemmi(data: gemmi.Mtz | gemmi.ReflnBlock) -> tuple[np.ndarray, list[rules.Column]]:
    """(n, 3) int64 indices, and the other columns."""
    if isinstance(data, gemmi.Mtz):
        rows = np.array(data, dtype=np.float64)
        places = rules.index_places([c.label for c in data.columns], [c.type for c in data.columns])
        if places is None or not len(rows):
            raise ValueError(
                "The gemmi.Mtz has no reflections with columns H, K and L: fill it, or correct their names."
            )
        if np.isnan(rows[:, places]).any():
            raise ValueError("The gemmi.Mtz has rows whose indices are no numbers: leave them out first.")
        names = dataset_names(data)
        cells = {d.id: d.cell.parameters for d in data.datasets if d.cell.is_crystal()}
        own = [
            rules.which_cell([cells.get(c.dataset_id, data.cell.parameters)], data.cell.parameters)
            for c in data.columns
        ]
        columns = [
            rules.Column(c.label, rows[:, i], c.type, names.get(c.dataset_id, ""))
            for i, c in sorted(enumerate(data.columns), key=lambda pair: own[pair[0]] is None)  # the file's cell first
            if i not in places
        ]
        return np.rint(rows[:, places]).astype(np.int64), columns
    loop = data.default_loop
    if loop is None:
        raise ValueError(f"The block {data.block.name} holds no reflections: give the block that does.")
    width, values = loop.width(), list(loop.values)
    places = [[tag.lower() for tag in loop.tags].index(f"_refln.index_{axis}") for axis in "hkl"]
    numbers = np.array([[gemmi.cif.as_number(values[i]) for i in range(p, len(values), width)] for p in places]).T
    indices = np.rint(numbers)
    if not np.array_equal(indices, numbers):  # NaN is not equal, either
        raise ValueError(
            f"The block {data.block.name} has rows whose indices are no whole numbers: leave them out first."
        )
    columns = []
    for number, tag in enumerate(loop.tags):
        if number in places:
            continue
        words = [gemmi.cif.as_string(word) for word in values[number::width]]
        floats = [gemmi.cif.as_number(word) for word in values[number::width]]
        is_text = any(np.isnan(x) and word not in ("?", ".", "") for x, word in zip(floats, words))
        column = rules.Column(tag, np.array(words), block=data.block.name)
        if not (is_text and rules.is_flag_column(column)):  # anything else than a number is a value that is missing
            column = dataclasses.replace(column, values=np.array(floats, dtype=np.float64))
        columns.append(column)
    return np.asarray(indices, dtype=np.int64).reshape(-1, 3), columns


def dataset_names(mtz: gemmi.Mtz) -> dict[int, str]:
    """Names of an MTZ file's datasets by their numbers; a damaged header can name a number that is none of them."""
    return {d.id: d.dataset_name for d in mtz.datasets}


def columns_of_dataset(data: Any) -> tuple[np.ndarray, list[rules.Column]]:
    """The same of a ``reciprocalspaceship.DataSet``; columns that hold no numbers are not among them."""
    indices = np.asarray(data.get_hkls(), dtype=np.int64)
    columns = []
    for label in data.columns:
        kind = getattr(data[label].dtype, "mtztype", "")
        if kind == "H":
            continue
        try:
            values = data[label].to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError):
            continue
        columns.append(rules.Column(str(label), values, kind))
    return indices, columns


def observed(
    indices: np.ndarray,
    columns: list[rules.Column],
    labels: str | Sequence[str] | None,
    free: str | Sequence[str] | bool | None,
    test_value: int | str | None,
    anomalous: bool,
    where: str,
) -> Observed:
    """What the rules take of the columns; see :meth:`mmtbx_sfdiff.Reflections.from_gemmi`.

    Raises
    ------
    ValueError
        No observed amplitudes, intensities, or flags that cannot be a test set although they were named.
    """
    chosen, messages = rules.choose_observation(columns, labels, rules.AMPLITUDES, anomalous, where)
    if chosen.kind != rules.AMPLITUDES:
        raise ValueError(
            f"{chosen.labels} in {where} are intensities, and amplitudes are needed: convert them first, or read the file "
            "with FModel.from_files, which does so by French and Wilson's method."
        )
    status = [column for column in columns if rules.is_status(column) and column.is_text]
    out, left_out = rules.excluded(status, len(indices))
    found = None
    if free is not False:
        found, said = rules.choose_flags(
            columns, None if free is True else free or None, test_value, where, strict=False
        )
        messages += said if found is not None or free else []
    parts = []
    pairs = [(chosen.value, chosen.sigma, 1)]
    if chosen.minus is not None:
        pairs.append((chosen.minus, chosen.minus_sigma, -1))
    for value, sigma, sign in pairs:
        values = np.asarray(value.values, dtype=np.float64)
        sigmas = None if sigma is None else np.asarray(sigma.values, dtype=np.float64)
        keep, sigmas, reasons, said = rules.usable(np.where(out, np.nan, values), sigmas)
        if reasons.get("no value"):
            reasons["no value"] -= int(out.sum())
        for reason, number in reasons.items():
            left_out[reason] = left_out.get(reason, 0) + number
        messages += [message for message in said if message not in messages]
        parts.append((sign * indices[keep], values[keep], None if sigmas is None else sigmas[keep], keep))
    with_sigmas = all(sigmas is not None for _, _, sigmas, _ in parts)
    return Observed(
        indices=np.concatenate([h for h, *_ in parts]),
        values=np.concatenate([values for _, values, _, _ in parts]),
        sigmas=np.concatenate([sigmas for _, _, sigmas, _ in parts]) if with_sigmas else None,
        free=None if found is None else np.concatenate([found.free[keep] for *_, keep in parts]),
        anomalous=chosen.minus is not None or anomalous,
        left_out={reason: number for reason, number in left_out.items() if number},
        messages=tuple(messages),
    )


def refuse(bad: torch.Tensor, indices: torch.Tensor, what: str, values: torch.Tensor) -> None:
    """Raise ValueError with the first of some reflections of which a value is bad."""
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{what}, but {int(bad.sum())} are not, {tuple(indices[first].tolist())} first ({float(values[first]):g}): leave "
            "those reflections out."
        )
