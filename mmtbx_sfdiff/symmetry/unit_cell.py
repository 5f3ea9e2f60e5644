"""A unit cell and its matrices, with the operations in cctbx's order so that the bits are the same.

The axis a lies along x, b in the plane of x and y (PDB convention).

Reference: ``cctbx.uctbx.unit_cell``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class UnitCell:
    """Matrices of a unit cell.

    Attributes
    ----------
    parameters : tuple of float
        a, b, c (Å), alpha, beta, gamma (degrees).
    volume : float
        Å^3.
    orthogonalization, fractionalization, reciprocal_metric : tuple of float
        3 x 3 by rows; ``x_cart = orthogonalization @ x_frac``, ``d*^2 = h @ reciprocal_metric @ h``.
    """

    parameters: tuple[float, ...]
    volume: float
    orthogonalization: tuple[float, ...]
    fractionalization: tuple[float, ...]
    reciprocal_metric: tuple[float, ...]


def unit_cell(parameters: Sequence[float]) -> UnitCell:
    """The matrices of a, b, c (Å), alpha, beta, gamma (degrees).

    Raises
    ------
    ValueError
        Where no cell has these parameters.

    Examples
    --------
    >>> from mmtbx_sfdiff.symmetry.unit_cell import unit_cell
    >>> unit_cell((10, 20, 30, 90, 90, 90)).volume
    6000.0
    """
    values = tuple(float(value) for value in parameters)
    if len(values) != 6:
        raise ValueError(f"A unit cell has six parameters, a, b, c, alpha, beta, gamma; given are {len(values)}.")
    if not all(math.isfinite(value) and value > 0 for value in values) or any(value >= 180 for value in values[3:]):
        raise ValueError(f"No unit cell has the lengths {values[:3]} Å and the angles {values[3:]} degrees.")
    return _unit_cell(values)


@functools.lru_cache(maxsize=256)
def _unit_cell(p: tuple[float, ...]) -> UnitCell:
    a, b, c = p[:3]
    radians = [angle * (math.pi / 180) for angle in p[3:]]
    cos = [math.cos(angle) for angle in radians]
    sin = [math.sin(angle) for angle in radians]
    square = 1.0
    for value in cos:
        square -= value * value
    square += 2.0 * cos[0] * cos[1] * cos[2]
    if square <= 0:
        raise ValueError(f"No unit cell has the angles {p[3]}, {p[4]} and {p[5]} degrees together.")
    volume = a * b * c * math.sqrt(square)
    lengths = [p[(i + 1) % 3] * p[(i + 2) % 3] * sin[i] / volume for i in range(3)]
    cos_star = []
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        cosine = (cos[j] * cos[k] - cos[i]) / (sin[j] * sin[k])
        cos_star.append(math.cos(math.acos(max(-1.0, min(1.0, cosine)))))  # cctbx keeps the angle
    height = math.sqrt(1.0 - cos_star[0] * cos_star[0])
    orthogonalization = (
        a,
        cos[2] * b,
        cos[1] * c,
        0.0,
        sin[2] * b,
        -sin[1] * cos_star[0] * c,
        0.0,
        0.0,
        sin[1] * c * height,
    )
    fractionalization = (
        1.0 / a,
        -cos[2] / (sin[2] * a),
        -(cos[2] * sin[1] * cos_star[0] + cos[1] * sin[2]) / (sin[1] * height * sin[2] * a),
        0.0,
        1.0 / (sin[2] * b),
        cos_star[0] / (height * sin[2] * b),
        0.0,
        0.0,
        1.0 / (sin[1] * height * c),
    )
    g = [length * length for length in lengths]
    g12, g13, g23 = (lengths[i] * lengths[j] * cos_star[k] for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0)))
    return UnitCell(
        parameters=p,
        volume=volume,
        orthogonalization=orthogonalization,
        fractionalization=fractionalization,
        reciprocal_metric=(g[0], g12, g13, g12, g[1], g23, g13, g23, g[2]),
    )


@functools.lru_cache(maxsize=256)
def has_symmetry(parameters: tuple[float, ...], rotations: tuple[tuple[int, ...], ...]) -> bool:
    """Whether rotations, matrices by rows, leave a cell what it is: to 1 % of lengths and 1 degree of angles.

    The tolerances of ``cctbx.sgtbx.space_group.is_compatible_unit_cell``, which compares with the average cell, too.

    Examples
    --------
    >>> from mmtbx_sfdiff.symmetry.unit_cell import has_symmetry
    >>> twofold = (1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, 1, 0, 0, 0, -1)
    >>> has_symmetry((10, 20, 30, 90, 95, 90), twofold), has_symmetry((10, 20, 30, 95, 90, 90), twofold)
    (True, False)
    """
    matrix = np.array(_unit_cell(parameters).orthogonalization).reshape(3, 3)
    turned = matrix @ np.array(rotations, dtype=np.float64).reshape(-1, 3, 3)
    metric = (turned.transpose(0, 2, 1) @ turned).mean(0)
    lengths = np.sqrt(metric.diagonal())
    cosines = np.array([metric[j, k] / (lengths[j] * lengths[k]) for j, k in ((1, 2), (0, 2), (0, 1))])
    angles = np.degrees(np.arccos(cosines.clip(-1, 1)))
    own = np.array(parameters)
    return bool((np.abs(lengths / own[:3] - 1) <= 0.01).all() and (np.abs(angles - own[3:]) <= 1).all())


def d_star_sq(reciprocal_metric: Sequence[float], h: np.ndarray, k: np.ndarray, l: np.ndarray) -> np.ndarray:
    """d*^2 of Miller indices, Å^-2; term by term as cctbx does it, to the last digit: shells end at reflections."""
    g = reciprocal_metric
    h, k, l = (np.asarray(index, dtype=np.float64) for index in (h, k, l))
    return (
        (h * h) * g[0] + (k * k) * g[4] + (l * l) * g[8] + (2 * h * k) * g[1] + (2 * h * l) * g[2] + (2 * k * l) * g[5]
    )
