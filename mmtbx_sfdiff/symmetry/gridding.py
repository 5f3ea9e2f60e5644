"""Grids that carry the symmetry of a space group: every operator takes grid points to grid points.

Reference: ``cctbx.maptbx.crystal_gridding`` with ``use_space_group_symmetry``, prime factors up to 5.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from .operators import DENOMINATOR, Operators

_LARGEST_PRIME = 5
# Points of a cell.
_LARGEST_GRID = 2**31 - 1


@functools.lru_cache(maxsize=256)
def grid(unit_cell: tuple[float, ...], operators: Operators, step: float) -> tuple[int, int, int]:
    """Numbers of grid points along a, b, c.

    Parameters
    ----------
    unit_cell : tuple of float
        Å and degrees.
    operators : Operators
    step : float
        Å, the distance of grid points is at most about this.

    Raises
    ------
    ValueError
        When ``step`` is not a positive number, or so small that there are thousands of millions of points.
    """
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"The grid step must be a positive number of Å, not {step}.")
    if math.prod(max(1.0, length / step) for length in unit_cell[:3]) > _LARGEST_GRID:
        raise ValueError(f"The grid step {step:g} Å is too small for this cell: use a larger one.")
    factors = _refined((1, 1, 1), operators)
    least = [2 * int(length / (2 * step) + 1e-4) + 1 for length in unit_cell[:3]]
    start = [_suitable(n, factor) for n, factor in zip(least, factors)]
    if _refined(tuple(start), operators) == tuple(start):
        return start[0], start[1], start[2]
    best, best_size = (0, 0, 0), 0
    limit = max(start) + 1
    trials: list[list[int]] = [
        sorted({_suitable(n, factor) for n in range(first, limit, factor)}) for first, factor in zip(start, factors)
    ]
    for a in trials[0]:
        for b in trials[1]:
            for c in trials[2]:
                trial = _refined((a, b, c), operators)
                size = math.prod(trial)
                if not best_size or size < best_size:
                    best, best_size = trial, size
    return best


def _suitable(least: int, factor: int) -> int:
    """The smallest multiple of ``factor``, at least ``least``, without large prime factors."""
    n = -(-least // factor)
    while _largest_prime(n * factor) > _LARGEST_PRIME:
        n += 1
    return n * factor


def _largest_prime(n: int) -> int:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n if n > 1 else 1


def _refined(dims: tuple[int, ...], operators: Operators) -> tuple[int, int, int]:
    """The smallest common refinement of a grid that the operators leave what it is."""
    grid, before = list(dims), None
    denominators = {
        tuple(DENOMINATOR // math.gcd(DENOMINATOR, a + b) for a, b in zip(translation, centre))
        for translation in operators.translations
        for centre in operators.centring
    }
    pairs = np.any(np.array(operators.rotations).reshape(-1, 3, 3) != 0, 0)
    while grid != before:
        before = list(grid)
        for axis in range(3):
            grid[axis] = math.lcm(grid[axis], *(row[axis] for row in denominators))
            grid[axis] = math.lcm(grid[axis], *(grid[other] for other in range(3) if pairs[axis, other]))
    return grid[0], grid[1], grid[2]
