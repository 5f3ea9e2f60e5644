"""Symmetry of reflections: the asymmetric unit, absences, and means of equivalents.

NumPy and gemmi, with the results of ``cctbx.miller``: the same representatives (checked for the 564 settings of
gemmi's table), and the weighted means of ``merge_equivalents`` with its larger of two standard deviations.
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
import numpy.typing as npt

from .symmetry import Symmetry

Indices = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

_SIGMA_RANGE = 1e-6  # equivalents whose sigma is this small beside the largest do not count (cctbx)


def to_asu(indices: Indices, symmetry: Symmetry) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Representatives in cctbx's (and CCP4's) asymmetric unit, Friedel mates together.

    Parameters
    ----------
    indices : numpy.ndarray
        (n, 3)
    symmetry : Symmetry

    Returns
    -------
    numpy.ndarray
        (n, 3)
    numpy.ndarray
        (n,) bool: only the Friedel mate of the representative is equivalent; False for centric reflections.
    """
    if len(indices) == 0:
        return indices.reshape(0, 3), np.zeros(0, dtype=bool)
    standard = _standard(indices, symmetry)
    direct = np.zeros(len(indices), dtype=bool)
    for rotation in symmetry.rotations:
        direct |= (indices @ rotation == standard).all(axis=1)
    return standard, ~direct


def _standard(indices: Indices, symmetry: Symmetry) -> Indices:
    group = symmetry.tabulated
    if group is None:
        return symmetry.asu_by_cctbx(indices)
    mtz = gemmi.Mtz()
    mtz.spacegroup = group
    mtz.set_cell_for_all(gemmi.UnitCell(10, 10, 10, 90, 90, 90))
    mtz.add_dataset("indices")
    for name in "HKL":
        mtz.add_column(name, "H", dataset_id=0)
    mtz.set_data(np.ascontiguousarray(indices, dtype=np.float32))
    mtz.ensure_asu()
    return np.asarray(mtz.array[:, :3], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Groups:
    """Which rows are the same reflection.

    Attributes
    ----------
    of_row : numpy.ndarray
        (n,) number of the reflection.
    indices : numpy.ndarray
        (m, 3) its indices: in the order of the rows where none repeats, sorted where some do.
    """

    of_row: Indices
    indices: Indices

    @property
    def n(self) -> int:
        """Reflections."""
        return len(self.indices)


def group_rows(indices: Indices) -> Groups:
    """Rows with the same indices together."""
    unique, inverse = np.unique(indices, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1).astype(np.int64)
    if len(unique) == len(indices):
        return Groups(np.arange(len(indices)), indices)
    return Groups(inverse, unique.astype(np.int64))


def mean_of_equivalents(groups: Groups, values: Reals, sigmas: Reals | None) -> tuple[Reals, Reals | None]:
    """Means of the rows of each reflection, weighted by 1/sigma^2 where there are sigmas.

    The standard deviation is the larger of that of the weights and that of the scatter of the values.

    Reference: ``cctbx.miller.merge_equivalents`` (``merge_equivalents.h``).
    """
    if groups.n == len(values):
        return values, sigmas
    row, n = groups.of_row, groups.n
    if sigmas is None:
        return np.bincount(row, values, n) / np.bincount(row, minlength=n), None
    largest = np.zeros(n)
    np.maximum.at(largest, row, sigmas)
    counted = sigmas > _SIGMA_RANGE * largest[row]
    row, x, s = row[counted], values[counted], sigmas[counted]
    weight = 1 / s**2
    count = np.bincount(row, minlength=n)
    total = np.bincount(row, weight, n)
    squares = np.bincount(row, weight**2, n)
    mean = np.bincount(row, weight * x, n) / total
    scatter = np.bincount(row, weight * (x - mean[row]) ** 2, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = total / (total**2 - squares) * scatter / count
    sigma = np.sqrt(np.fmax(np.where(count > 1, variance, 0), 1 / total))
    single = count[row] == 1
    mean[row[single]], sigma[row[single]] = x[single], s[single]
    return mean, sigma
