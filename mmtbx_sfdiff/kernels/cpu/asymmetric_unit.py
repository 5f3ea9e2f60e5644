"""One asymmetric unit of a grid.

A mask has the symmetry of the crystal, so it is worked out at one grid point of each orbit.  These representatives lie
in rows along c, in a box; of each row only the window that holds representatives matters.
"""

from __future__ import annotations

import functools

import numpy as np

from ..jit import jit_in_place
from ..jobs import MaskGrid

NEVER = 2**30


class Unit:
    """Representatives of the orbits of a grid's points.

    Parameters
    ----------
    grid : MaskGrid

    Attributes
    ----------
    orbit : numpy.ndarray
        (N,) int32, the orbit of each point of the cell.
    places : numpy.ndarray
        (n_orbits, 3) int64, representatives in grid steps from ``corner``, by rows.
    windows : numpy.ndarray
        (b1, b2, 2) int64, first and one past the last representative of each row of the box.
    """

    def __init__(self, grid: MaskGrid):
        self.n_real = np.array(grid.n_real)
        low, high = (np.array(corner) for corner in grid.asymmetric_box)
        total = int(self.n_real.prod())
        self.orbit, representatives = np.full(total, -1, np.int32), np.empty((total, 3), np.int32)
        starts = np.array([np.floor(low * self.n_real - 1e-9), np.zeros(3)]).astype(np.int64)
        ends = np.array([np.ceil(high * self.n_real + 1e-9) + 1, self.n_real]).astype(np.int64)
        count = _orbits(grid.rotations, grid.translations, self.n_real, starts, ends, self.orbit, representatives)
        representatives = representatives[:count].copy()
        self.corner = representatives.min(0).astype(np.int64)
        places = representatives - self.corner
        order = np.lexsort(places.T[::-1])
        rank = np.empty(len(order), dtype=np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        self.orbit = rank[self.orbit]
        self.places = np.ascontiguousarray(places[order])
        self.shape = self.places.max(0) + 1
        self.windows = np.empty((*self.shape[:2], 2), np.int64)
        self.windows[:] = NEVER, 0
        _windows(self.places, self.windows)
        self.metric_basis = grid.cell.basis / self.n_real
        #: Half the extent of a sphere of radius 1 Å along the axes, fractional.
        self.extent = grid.cell.reciprocal_lengths
        self.rotations, self.translations = grid.fractional_operators


@functools.lru_cache(maxsize=16)
def unit_of(grid: MaskGrid) -> Unit:
    """The :class:`Unit`, made once for each grid."""
    return Unit(grid)


@jit_in_place
def spread_to_cell(values, orbit, first, after, out):
    """out[i] = values[orbit[i]]."""
    for i in range(first, after):
        out[i] = values[orbit[i]]


@jit_in_place
def sum_over_orbits(values, orbit, first, after, out):
    """out[orbit[i]] += values[i]."""
    for i in range(first, after):
        out[orbit[i]] += values[i]


@jit_in_place
def _orbits(rotations, translations, n_real, starts, ends, orbit, representatives):
    """Number the orbits of the cell's points, which are all -1; representatives are looked for in one box after the other.
    Returns how many orbits there are."""
    n0, n1, n2 = n_real[0], n_real[1], n_real[2]
    count, found = 0, 0
    for attempt in range(len(starts)):
        if found == len(orbit):
            break
        start, end = starts[attempt], ends[attempt]
        for i in range(start[0], end[0]):
            for j in range(start[1], end[1]):
                for k in range(start[2], end[2]):
                    if orbit[((i % n0) * n1 + j % n1) * n2 + k % n2] >= 0:
                        continue
                    representatives[count, 0], representatives[count, 1], representatives[count, 2] = i, j, k
                    for g in range(len(rotations)):
                        r, t = rotations[g], translations[g]
                        a = (r[0, 0] * i + r[0, 1] * j + r[0, 2] * k + t[0]) % n0
                        b = (r[1, 0] * i + r[1, 1] * j + r[1, 2] * k + t[1]) % n1
                        c = (r[2, 0] * i + r[2, 1] * j + r[2, 2] * k + t[2]) % n2
                        place = (a * n1 + b) * n2 + c
                        if orbit[place] < 0:
                            found += 1
                        orbit[place] = count
                    count += 1
    return count


@jit_in_place
def _windows(places, windows):
    for n in range(len(places)):
        i, j, k = places[n, 0], places[n, 1], places[n, 2]
        windows[i, j, 0] = min(windows[i, j, 0], k)
        windows[i, j, 1] = max(windows[i, j, 1], k + 1)
