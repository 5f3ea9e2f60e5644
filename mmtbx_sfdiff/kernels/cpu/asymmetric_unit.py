"""One asymmetric unit of a grid, and boxes of a finer grid around it.

A mask has the symmetry of the crystal, so it is worked out at one grid point of each orbit.  These representatives lie
in rows along c, in a box; of each row only the window that holds representatives matters.  A :class:`Box` is the part
of a ``fine`` times finer grid that decides the mask on some planes of the unit, in an infinite crystal: it knows which
images of the atoms reach into it.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from ...plans.grid_symmetry import CrystalKey, operators_on_grid
from ..threads import n_workers, run

jit = numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
NEVER = 2**30
# Planes and rows of the fine grid.
_TILE = 16


class Unit:
    """Representatives of the orbits of a grid's points.

    Attributes
    ----------
    orbit : numpy.ndarray
        (N,) int32, the orbit of each point of the cell.
    places : numpy.ndarray
        (n_orbits, 3) int64, representatives in grid steps from ``corner``, by rows.
    windows : numpy.ndarray
        (b1, b2, 2) int64, first and one past the last representative of each row of the box.
    """

    def __init__(self, crystal, n_real):
        self.n_real = np.array(n_real)
        rotations, translations = operators_on_grid(crystal, n_real)
        low, high = (np.array(corner) for corner in crystal.asymmetric_box())
        self.orbit, representatives = _orbits(
            rotations,
            translations,
            self.n_real,
            np.floor(low * self.n_real - 1e-9).astype(np.int64),
            np.ceil(high * self.n_real + 1e-9).astype(np.int64) + 1,
        )
        self.corner = representatives.min(0).astype(np.int64)
        places = representatives - self.corner
        order = np.lexsort(places.T[::-1])
        rank = np.empty(len(order), dtype=np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        self.orbit = rank[self.orbit]
        self.places = np.ascontiguousarray(places[order])
        self.shape = self.places.max(0) + 1
        self.windows = _windows(self.places, self.shape)
        self.metric_basis = crystal.orthogonalization.cpu().numpy() / self.n_real
        #: Half the extent of a sphere of radius 1 Å along the axes, fractional.
        self.extent = np.sqrt(np.diag(crystal.reciprocal_metric.cpu().numpy()))
        self.rotations = rotations / self.n_real[:, None] * self.n_real[None, :]
        self.translations = translations / self.n_real
        self._frames, self._offsets = {}, {}

    def offsets(self, reach, fine):
        """Steps of the fine grid not longer than ``reach`` Å, (n, 3), and their lengths; by rows along c; remembered."""
        if (reach, fine) not in self._offsets:
            if len(self._offsets) > 64:
                self._offsets.clear()
            self._offsets[reach, fine] = self._find_offsets(reach, fine)
        return self._offsets[reach, fine]

    def _find_offsets(self, reach, fine):
        half = np.ceil(reach * self.extent * self.n_real * fine).astype(np.int64)
        steps = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1).reshape(-1, 3)
        lengths = np.sqrt(((steps @ (self.metric_basis / fine).T) ** 2).sum(-1))
        inside = lengths <= reach
        return steps[inside], lengths[inside]

    def slabs(self, fine, margin, bytes_per_point, memory):
        """Ranges of planes of the unit, each with a box of about ``memory`` bytes."""
        plane = np.prod(self.shape[1:] * fine + 2 * margin[1:] + fine) * bytes_per_point
        planes = int(max(1, (memory / plane - 2 * margin[0]) // fine))
        return [(first, min(first + planes, int(self.shape[0]))) for first in range(0, int(self.shape[0]), planes)]

    def frame(self, first, after, fine, margin):
        """Corner, shape and row windows of the fine box of some planes; remembered."""
        key = first, after, fine, tuple(margin)
        if key not in self._frames:
            if len(self._frames) > 64:
                self._frames.clear()
            low = np.array([first, 0, 0]) * fine - margin
            low[2] -= low[2] % fine
            high = np.array([after - 1, *(self.shape[1:] - 1)]) * fine + margin + 1
            shape = high - low
            # Kernels take sixteen points of a row at a time.
            shape[2] += -shape[2] % (16 * fine)
            windows = np.empty((2, shape[0], shape[1]), dtype=np.int32)
            _fine_windows(self.windows, first, after, fine, margin, low, windows)
            self._frames[key] = low, shape, windows
        return self._frames[key]


@functools.lru_cache(maxsize=16)
def _unit(key):
    return Unit(*key.of)


def unit_of(crystal, n_real):
    """The :class:`Unit`, made once for each crystal and grid."""
    return _unit(CrystalKey(crystal, tuple(n_real)))


class Box:
    """A box of the fine grid, and the images of atoms whose spheres reach into it.

    Attributes
    ----------
    positions : numpy.ndarray
        (n, 3) float64, in fine grid steps from the corner of the box.
    atoms, operators : numpy.ndarray
        (n,) int64, of which atom, by which operator.
    """

    def __init__(self, unit, planes, fine, margin, sites, reach):
        self.unit, self.planes, self.fine = unit, planes, fine
        self.low, self.shape, self.windows = unit.frame(*planes, fine, margin)
        steps = unit.n_real * fine
        corner = self.low + unit.corner * fine
        positions, self.atoms, self.operators = _images(
            sites,
            unit.rotations,
            unit.translations,
            reach,
            corner / steps,
            (corner + self.shape - 1) / steps,
            unit.extent,
        )
        self.positions = positions * steps - corner
        # Images that share rows of the grid follow one another, so that these stay in the cache.
        tiles = (self.positions[:, :2] // _TILE).astype(np.int64)
        order = np.argsort(tiles[:, 0] * (int(self.shape[1]) + 1) + tiles[:, 1], kind="stable")
        self.positions, self.atoms, self.operators = self.positions[order], self.atoms[order], self.operators[order]
        self.extent = unit.extent * steps
        basis = unit.metric_basis / fine
        gram = basis.T @ basis
        self.gram = np.array([gram[0, 0], gram[1, 1], gram[2, 2], 2 * gram[0, 1], gram[0, 2], gram[1, 2]])
        self.steps = steps

    def to_atoms(self, by_position, n_atoms, *others):
        """Sum gradients of the images into those of the atoms' fractional sites, and of other things."""
        by_position = np.einsum("ni,nij->nj", by_position * self.steps, self.unit.rotations[self.operators])
        sites = np.stack([np.bincount(self.atoms, by_position[:, a], n_atoms) for a in range(3)], -1)
        return sites, *(np.bincount(self.atoms, values, n_atoms) for values in others)


def over(n, function, per_thread=5):
    """function(first, after) on consecutive ranges that cover 0..n, in a few threads; results in order."""
    n_threads = n_workers()
    if n_threads == 1 or n < 2:
        return [function(0, n)]
    edges = np.linspace(0, n, min(n, per_thread * n_threads) + 1).astype(np.int64).tolist()
    ranges = list(zip(edges[:-1], edges[1:]))
    queue = iter(range(len(ranges)))
    results = [None] * len(ranges)

    def work():
        for number in queue:
            results[number] = function(*ranges[number])

    run([work] * n_threads)
    return results


@jit
def spread_to_cell(values, orbit, first, after, out):
    """out[i] = values[orbit[i]]."""
    for i in range(first, after):
        out[i] = values[orbit[i]]


@jit
def sum_over_orbits(values, orbit, first, after, out):
    """out[orbit[i]] += values[i]."""
    for i in range(first, after):
        out[orbit[i]] += values[i]


@jit
def _images(sites, rotations, translations, reach, low, high, extent):
    count = 0
    first, last = np.empty(3, dtype=np.int64), np.empty(3, dtype=np.int64)
    positions = np.empty((0, 3))
    atoms, operators = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for filling in range(2):
        if filling:
            positions = np.empty((count, 3))
            atoms, operators = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        count = 0
        for atom in range(len(sites)):
            for operator in range(len(rotations)):
                r = rotations[operator]
                x = np.empty(3)
                number = 1
                for a in range(3):
                    x[a] = (
                        r[a, 0] * sites[atom, 0]
                        + r[a, 1] * sites[atom, 1]
                        + r[a, 2] * sites[atom, 2]
                        + translations[operator, a]
                    )
                    first[a] = int(np.ceil(low[a] - extent[a] * reach[atom] - x[a]))
                    last[a] = int(np.floor(high[a] + extent[a] * reach[atom] - x[a]))
                    number *= max(0, last[a] - first[a] + 1)
                if filling == 0 or number == 0:
                    count += number
                    continue
                for i in range(first[0], last[0] + 1):
                    for j in range(first[1], last[1] + 1):
                        for k in range(first[2], last[2] + 1):
                            positions[count, 0], positions[count, 1], positions[count, 2] = x[0] + i, x[1] + j, x[2] + k
                            atoms[count], operators[count] = atom, operator
                            count += 1
    return positions, atoms, operators


@jit
def _orbits(rotations, translations, n_real, low, high):
    """Number the orbits of the cell's points; representatives are looked for in the box [low, high) first."""
    n0, n1, n2 = n_real
    total = n0 * n1 * n2
    orbit = np.full(total, -1, dtype=np.int32)
    representatives = np.empty((total, 3), dtype=np.int32)
    count, found = 0, 0
    for attempt in range(2):
        if found == total:
            break
        start, end = (low, high) if attempt == 0 else (np.zeros(3, dtype=np.int64), n_real)
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
    return orbit, representatives[:count].copy()


@jit
def _windows(places, shape):
    windows = np.empty((shape[0], shape[1], 2), dtype=np.int64)
    windows[:, :, 0] = NEVER
    windows[:, :, 1] = 0
    for n in range(len(places)):
        i, j, k = places[n]
        windows[i, j, 0] = min(windows[i, j, 0], k)
        windows[i, j, 1] = max(windows[i, j, 1], k + 1)
    return windows


@jit
def _fine_windows(coarse, first, after, fine, margin, low, windows):
    windows[0] = NEVER
    windows[1] = 0
    for i in range(first, after):
        for j in range(coarse.shape[1]):
            if coarse[i, j, 0] >= coarse[i, j, 1]:
                continue
            begin = coarse[i, j, 0] * fine - margin[2] - low[2]
            end = (coarse[i, j, 1] - 1) * fine + margin[2] + 1 - low[2]
            for a in range(i * fine - margin[0] - low[0], i * fine + margin[0] - low[0] + 1):
                for b in range(j * fine - margin[1] - low[1], j * fine + margin[1] - low[1] + 1):
                    windows[0, a, b] = min(windows[0, a, b], begin)
                    windows[1, a, b] = max(windows[1, a, b], end)
