"""All Miller indices to a resolution, one of each set of equivalents, in cctbx's order.

Which index stands for its equivalents is decided in the reference setting of the space group.

Reference: ``cctbx.miller.index_generator``, ``cctbx.sgtbx.reciprocal_space.asu``.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import gemmi
import numpy as np

from .operators import DENOMINATOR
from .settings import Setting
from .unit_cell import UnitCell, d_star_sq

_Condition = Callable[[Any, Any, Any], Any]  # of the arrays of h, k, l

#: A cell of 3000 Å has no larger index to 0.1 Å; beyond, what is made for every number up to the largest fills the memory.
LARGEST_INDEX = 2**15 - 1
# Lattice points of a sphere that are gone through one by one.
_LARGEST_SET = 2**31


def _laue_1b(h: Any, k: Any, l: Any) -> Any:
    return (l > 0) | ((l == 0) & ((h > 0) | ((h == 0) & (k >= 0))))


def _laue_2_m(h: Any, k: Any, l: Any) -> Any:
    return (k >= 0) & ((l > 0) | ((l == 0) & (h >= 0)))


def _laue_mmm(h: Any, k: Any, l: Any) -> Any:
    return (h >= 0) & (k >= 0) & (l >= 0)


def _laue_4_m(h: Any, k: Any, l: Any) -> Any:
    return (l >= 0) & (((h >= 0) & (k > 0)) | ((h == 0) & (k == 0)))


def _laue_4_mmm(h: Any, k: Any, l: Any) -> Any:
    return (h >= k) & (k >= 0) & (l >= 0)


def _laue_3b(h: Any, k: Any, l: Any) -> Any:
    return ((h >= 0) & (k > 0)) | ((h == 0) & (k == 0) & (l >= 0))


def _laue_3b1m(h: Any, k: Any, l: Any) -> Any:
    return (h >= k) & (k >= 0) & ((k > 0) | (l >= 0))


def _laue_3bm1(h: Any, k: Any, l: Any) -> Any:
    return (h >= k) & (k >= 0) & ((h > k) | (l >= 0))


def _laue_m3b(h: Any, k: Any, l: Any) -> Any:
    return (h >= 0) & (((l >= h) & (k > h)) | ((l == h) & (k == h)))


def _laue_m3bm(h: Any, k: Any, l: Any) -> Any:
    return (k >= l) & (l >= h) & (h >= 0)


# Last number of the space groups of a Laue class, its condition, and which indices may be negative.
_LAUE: tuple[tuple[int, _Condition, tuple[int, int, int]], ...] = (
    (2, _laue_1b, (1, 1, 0)),
    (15, _laue_2_m, (1, 0, 0)),
    (74, _laue_mmm, (0, 0, 0)),
    (88, _laue_4_m, (0, 0, 0)),
    (142, _laue_4_mmm, (0, 0, 0)),
    (148, _laue_3b, (0, 0, 1)),
    (167, _laue_3bm1, (0, 0, 1)),
    (176, _laue_4_m, (0, 0, 0)),
    (194, _laue_4_mmm, (0, 0, 0)),
    (206, _laue_m3b, (0, 0, 0)),
    (230, _laue_m3bm, (0, 0, 0)),
)
_WITH_AXES_BETWEEN = (149, 151, 153, 157, 159, 162, 163)  # P 3 1 2 and its like


def _asymmetric_unit(number: int) -> tuple[_Condition, tuple[int, int, int]]:
    if number in _WITH_AXES_BETWEEN:
        return _laue_3b1m, (0, 0, 1)
    return next((condition, negative) for last, condition, negative in _LAUE if number <= last)


def _change_of_basis(setting: Setting) -> np.ndarray:
    """Rotation part of the change of coordinates to the reference setting, (3, 3)."""
    rows = gemmi.Op(setting.to_reference).rot
    return np.array([[float(Fraction(int(v), DENOMINATOR)) for v in row] for row in rows])


def refuse_large(indices: np.ndarray) -> None:
    """Raise ValueError for the first of some indices (n, 3) that no crystal has."""
    # Not abs(), which the least integer does not have.
    wrong = ((indices > LARGEST_INDEX) | (indices < -LARGEST_INDEX)).any(-1)
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(
            f"Miller index {first}, {tuple(indices[first].tolist())}, is beyond {LARGEST_INDEX}, and no reflection: leave it out."
        )


def build(cell: UnitCell, setting: Setting, d_min: float, anomalous: bool = False) -> np.ndarray:
    """Miller indices of the asymmetric unit to ``d_min``.

    Parameters
    ----------
    cell : UnitCell
    setting : Setting
    d_min : float
        Å.
    anomalous : bool
        Both Friedel mates of acentric reflections, one after the other.

    Returns
    -------
    numpy.ndarray
        (n, 3) int64; systematically absent ones are left out.

    Raises
    ------
    ValueError
        When ``d_min`` is not a positive number, or so small that there are thousands of millions of indices.
    """
    if not (np.isfinite(d_min) and d_min > 0):
        raise ValueError(f"d_min must be a positive number of Å, not {d_min}.")
    longest, count = max(cell.parameters[:3]) / d_min, 4 / 3 * np.pi * cell.volume / d_min / d_min / d_min
    if count > _LARGEST_SET or longest > LARGEST_INDEX:
        raise ValueError(
            f"d_min {d_min:g} Å is too small for a cell of {cell.volume:g} Å^3: there are too many indices."
        )
    condition, negative = _asymmetric_unit(setting.number)
    change = _change_of_basis(setting)
    edges = np.array(cell.orthogonalization).reshape(3, 3) @ np.linalg.inv(change)
    largest = [int(length / d_min + 1e-4) for length in np.sqrt((edges**2).sum(0))]
    limit = 1.0 / (d_min * d_min)
    ranges = [np.arange(-n * sign, n + 1) for n, sign in zip(largest, negative)]
    found = []
    for h in ranges[0]:  # a layer at a time: the whole sphere would not fit into memory for large cells
        k, l = (index.ravel() for index in np.meshgrid(ranges[1], ranges[2], indexing="ij"))
        inside = condition(h, k, l)
        layer = np.stack([np.full_like(k, h), k, l], -1)[inside] @ change
        whole = np.rint(layer)
        layer = whole[(np.abs(layer - whole) < 1e-6).all(-1)].astype(np.int64)
        squares = d_star_sq(cell.reciprocal_metric, *layer.T)
        found.append(layer[(squares != 0) & (squares <= limit)])
    indices: np.ndarray = np.concatenate(found) if found else np.zeros((0, 3), np.int64)
    absent, centric = absences(setting, indices)
    indices, centric = indices[~absent], centric[~absent]
    if not anomalous:
        return indices
    pairs = np.stack([indices, -indices], 1)
    wanted = np.ones((len(indices), 2), bool)
    wanted[:, 1] = ~centric
    if 143 <= setting.number <= 167:  # the asymmetric unit may hold an equivalent of the mate already
        backwards = np.linalg.inv(change)
        for rotation in setting.operators.arrays()[0]:
            mates = (-indices @ rotation) @ backwards
            wanted[:, 1] &= ~condition(*np.rint(mates).T)
    result: np.ndarray = pairs[wanted]
    return result


def absences(setting: Setting, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the space group forbids each of (n, 3) indices, and whether its phase has two values only; (n,) bool."""
    operators = setting.operators
    rotations = operators.arrays()[0]
    absent, centric = np.zeros(len(indices), bool), np.zeros(len(indices), bool)
    for centre in operators.centring[1:]:
        absent |= (indices @ np.array(centre)) % DENOMINATOR != 0
    for rotation, translation in zip(rotations, operators.translations):
        image = indices @ rotation
        turns = (indices @ np.array(translation)) % DENOMINATOR != 0
        absent |= (image == indices).all(-1) & turns
        centric |= (image == -indices).all(-1)
    return absent, centric
