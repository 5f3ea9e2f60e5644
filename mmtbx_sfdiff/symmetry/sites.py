"""Special positions: sites that an operator of the space group leaves (nearly) where they are.

As cctbx does it when a scatterer is added to a structure, a site within ``MIN_DISTANCE`` of one of its own images is moved
onto the symmetry element, its anisotropic displacement is averaged over the site's symmetry, and it counts for as much
less as it coincides with images of itself.

Reference: ``cctbx.sgtbx.site_symmetry``; R. W. Grosse-Kunstleve & P. D. Adams (2002) Acta Cryst. A58, 60.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ..numerics.symmetric import FULL, PAIRS
from .operators import DENOMINATOR, Operators
from .unit_cell import UnitCell

MIN_DISTANCE = 0.5  # Å, min_distance_sym_equiv of cctbx's programs

_Matrix = tuple[tuple[int, ...], tuple[int, ...]]  # rotation, translation in units of 1/24
_Projection = tuple[
    tuple[tuple[int, ...], int], tuple[tuple[int, ...], int]
]  # rotation and translation with denominators


@dataclasses.dataclass(frozen=True)
class SpecialSite:
    """The symmetry of one special position.

    Attributes
    ----------
    index : int
        Which of the sites.
    order : int
        Number of operators that leave it where it is.
    projection : tuple
        Rotation and translation part, integers and their denominator, that take the given site to the exact one.
    rotations : numpy.ndarray
        (order, 3, 3) int64, the rotation parts of those operators.
    """

    index: int
    order: int
    projection: _Projection
    rotations: np.ndarray


def special_sites(cell: UnitCell, operators: Operators, sites_frac: np.ndarray) -> list[SpecialSite]:
    """The special positions among some sites.

    Parameters
    ----------
    cell : UnitCell
    operators : Operators
    sites_frac : numpy.ndarray
        (n, 3) float64, fractional.
    """
    # |x_i| of a vector of length d is at most d times the length of a*_i.
    reach = MIN_DISTANCE * np.sqrt(np.array(cell.reciprocal_metric).reshape(3, 3).diagonal()) + 1e-6
    candidates = np.zeros(len(sites_frac), bool)
    for rotation, translation in zip(*operators.arrays()[:2]):
        moved = sites_frac @ rotation.T + translation - sites_frac
        for centre in operators.arrays()[2]:
            delta = moved + centre
            if not delta.any() and (rotation == np.eye(3)).all():
                continue
            delta -= np.round(delta)
            candidates |= (np.abs(delta) <= reach).all(-1)
    found = []
    for index in np.flatnonzero(candidates):
        special = _site_symmetry(cell, operators, sites_frac[index], int(index))
        if special is not None:
            found.append(special)
    return found


def _site_symmetry(cell: UnitCell, operators: Operators, original: np.ndarray, index: int) -> SpecialSite | None:
    site: np.ndarray = original
    last: _Projection | None = None
    while True:
        group = _point_group(cell, operators, site)
        special = _average(group)
        if special == last:
            break
        last = special
        site = _applied(special, original)
    if len(group) == 1:
        return None
    return SpecialSite(
        index=index,
        order=len(group),
        projection=special,
        rotations=np.array([r for r, _ in group], dtype=np.int64).reshape(-1, 3, 3),
    )


def exact_site(special: SpecialSite, site_frac: np.ndarray) -> np.ndarray:
    """The site moved onto its symmetry element, (3,)."""
    return _applied(special.projection, site_frac)


def average_u_star(special: SpecialSite, u_star: np.ndarray) -> np.ndarray:
    """The mean of U* (6,) over the symmetry of its site."""
    u = [float(u_star[i]) for i in FULL]
    total = [0.0] * 6
    for rotation in special.rotations.reshape(-1, 9).tolist():
        # Written out: a library's product may add in another order, or with one rounding less.
        half = [
            rotation[3 * i] * u[j] + rotation[3 * i + 1] * u[3 + j] + rotation[3 * i + 2] * u[6 + j]
            for i in range(3)
            for j in range(3)
        ]
        for place, (i, j) in enumerate(PAIRS):
            row = rotation[3 * j : 3 * j + 3]
            total[place] += half[3 * i] * row[0] + half[3 * i + 1] * row[1] + half[3 * i + 2] * row[2]
    return np.array([value / special.order for value in total])


def _point_group(cell: UnitCell, operators: Operators, site: np.ndarray) -> list[_Matrix]:
    """The largest group of operators, each with its lattice translation, that the nearest images allow."""
    close: list[tuple[float, _Matrix]] = []
    basis = np.array(cell.orthogonalization).reshape(3, 3)
    shifts = [(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]
    for rotation, translation in zip(operators.rotations, operators.translations):
        matrix = np.array(rotation).reshape(3, 3)
        accumulated = _accumulated(matrix)
        for centre in operators.centring:
            t = np.array(translation) + np.array(centre)
            delta = matrix @ site + t / DENOMINATOR - site
            nearest = -np.round(delta)
            for shift in shifts:
                total = nearest + shift
                distance = float(((basis @ (delta + total)) ** 2).sum())
                if distance > MIN_DISTANCE**2:
                    continue
                whole = t + np.rint(total).astype(int) * DENOMINATOR
                if not (accumulated @ whole).any():  # no screw, no glide
                    close.append((distance, (rotation, tuple(whole.tolist()))))
    close.sort(key=lambda item: item[0])
    group: list[_Matrix] = [(operators.rotations[0], (0, 0, 0))]
    for _, matrix_t in close:
        group = _expanded(group, matrix_t) or group
    return group


def _accumulated(matrix: np.ndarray) -> np.ndarray:
    """The sum of a rotation's powers."""
    total, power = np.eye(3, dtype=int), matrix
    while not (power == np.eye(3)).all():
        total, power = total + power, power @ matrix
    return total


def _expanded(group: list[_Matrix], new: _Matrix) -> list[_Matrix] | None:
    """The group with another operator; None where that would contain a translation."""
    result = list(group)
    i, j, trial = len(result), 1, new
    while True:
        known = next((t for r, t in result if r == trial[0]), None)
        if known is None:
            result.append(trial)
        elif known != trial[1]:
            return None
        if j > i:
            i, j = i + 1, 1
        if i == len(result):
            return result
        (ra, ta), (rb, tb) = result[j], result[i]
        a = np.array(ra).reshape(3, 3)
        rotation = tuple((a @ np.array(rb).reshape(3, 3)).ravel().tolist())
        trial, j = (rotation, tuple((a @ np.array(tb) + np.array(ta)).tolist())), j + 1


def _average(group: list[_Matrix]) -> _Projection:
    """The mean of the group's matrices, as integers and their denominators."""
    parts = []
    for values, unit in (([r for r, _ in group], 1), ([t for _, t in group], DENOMINATOR)):
        total = [sum(column) for column in zip(*values)]
        common = math.gcd(len(group) * unit, *total)
        parts.append((tuple(value // common for value in total), len(group) * unit // common))
    return parts[0], parts[1]


def _applied(projection: _Projection, site: np.ndarray) -> np.ndarray:
    (rotation, denominator), (translation, divisor) = projection
    x, y, z = (float(value) for value in site)
    return np.array(
        [
            (rotation[3 * i] * x + rotation[3 * i + 1] * y + rotation[3 * i + 2] * z) / denominator
            + translation[i] / divisor
            for i in range(3)
        ]
    )
