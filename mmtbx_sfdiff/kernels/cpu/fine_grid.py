"""Boxes of a finer grid around the asymmetric unit of a mask's grid, and a ball that is summed over at each point.

A :class:`Box` is the part of a ``fine`` times finer grid that decides the mask on some planes of the unit, in an infinite
crystal: it knows which images of the atoms reach into it.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict

import torch

import numpy as np

from ..checks import BadAtom
from ..jit import jit_in_place
from ..jobs import MaskJob
from ..threads import over
from .asymmetric_unit import NEVER, Unit, spread_to_cell, sum_over_orbits, unit_of

# Planes and rows of the fine grid.
_TILE = 16
# Cells beyond which a position has no digits left, and that a sphere may reach across.
_FAR, _MOST_CELLS = 1e12, 200.0


@functools.lru_cache(maxsize=64)
def _steps(grid, reach, fine):
    """Steps of the fine grid not longer than ``reach`` Å, (n, 3), and their lengths; by rows along c."""
    unit = unit_of(grid)
    half = np.ceil(reach * unit.extent * unit.n_real * fine).astype(np.int64)
    steps = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1).reshape(-1, 3)
    lengths = np.sqrt(((steps @ (unit.metric_basis / fine).T) ** 2).sum(-1))
    inside = lengths <= reach
    return steps[inside], lengths[inside]


@functools.lru_cache(maxsize=64)
def _frame(grid, first, after, fine, margin):
    """Corner, shape and row windows of the fine box of some planes."""
    unit = unit_of(grid)
    low = np.array([first, 0, 0]) * fine - np.array(margin)
    low[2] -= low[2] % fine
    high = np.array([after - 1, *(unit.shape[1:] - 1)]) * fine + np.array(margin) + 1
    shape = high - low
    # Kernels take sixteen points of a row at a time.
    shape[2] += -shape[2] % (16 * fine)
    windows = np.empty((2, shape[0], shape[1]), dtype=np.int32)
    windows[0], windows[1] = NEVER, 0
    _fine_windows(unit.windows, first, after, fine, np.array(margin), low, windows)
    return low, shape, windows


@functools.lru_cache(maxsize=64)
def _slabs(grid, reach, fine, memory, bytes_per_point):
    shape, margin = unit_of(grid).shape, np.abs(_steps(grid, reach, fine)[0]).max(0)
    plane = np.prod(shape[1:] * fine + 2 * margin[1:] + fine) * bytes_per_point
    planes = int(max(1, (memory / plane - 2 * margin[0]) // fine))
    return [(first, min(first + planes, int(shape[0]))) for first in range(0, int(shape[0]), planes)]


@functools.lru_cache(maxsize=64)
def _by_memory(grid, reach, fine, m1, m2):
    """Order of the steps by where they lead in a field (., m1, m2) that is split by parity, and these offsets."""
    d0, d1, d2 = _steps(grid, reach, fine)[0].T
    offsets = (d0 * m1 + d1) * m2 + (d2 % fine) * (m2 // fine) + d2 // fine
    order = np.argsort(offsets, kind="stable")
    return order, offsets[order]


@functools.lru_cache(maxsize=64)
def _by_parity(grid, reach, fine, strides):
    """Order of the steps by parity, where minus each of them leads in coarse points, and where each parity begins."""
    steps = _steps(grid, reach, fine)[0]
    # Of a fine point of parity r, the coarse point at minus the step d is (d - r) / fine away, for d of that parity.
    parity = steps % fine
    group = (parity[:, 0] * fine + parity[:, 1]) * fine + parity[:, 2]
    order = np.argsort(group, kind="stable")
    offsets = (-(steps // fine) @ np.array(strides))[order]
    return order, offsets, np.searchsorted(group[order], np.arange(fine**3 + 1))


class FineGrid:
    """The finer grid of a job.

    Attributes
    ----------
    unit : Unit
    steps, lengths : numpy.ndarray
        (n, 3) int64 steps of the fine grid within the ball, and (n,) float64 their lengths, Å.
    margin : numpy.ndarray
        (3,) int64, the longest steps along each axis.
    voxel : float
        Volume of a step, Å^3.
    """

    def __init__(self, job: MaskJob):
        self.job, self.unit, self.fine = job, unit_of(job.grid), job.fine
        self.steps, self.lengths = _steps(job.grid, job.reach, job.fine)
        self.margin = np.abs(self.steps).max(0)
        self.voxel = job.grid.cell.volume / float(np.prod(self.unit.n_real * job.fine))

    def by_memory(self, shape):
        """Order of the steps in a field of that shape, split by parity: neighbours in memory follow one another; and offsets."""
        return _by_memory(self.job.grid, self.job.reach, self.fine, int(shape[1]), int(shape[2]))

    def by_parity(self, strides):
        """Order of the steps by parity, offsets of minus each in coarse points, and where each parity begins."""
        return _by_parity(self.job.grid, self.job.reach, self.fine, tuple(strides.tolist()))

    def slabs(self, bytes_per_point):
        """Ranges of planes of the unit, each with a box of about the job's memory."""
        return _slabs(self.job.grid, self.job.reach, self.fine, self.job.memory, bytes_per_point)

    def shape(self, planes):
        """Points along each axis of the box of some planes, (3,)."""
        return _frame(self.job.grid, *planes, self.fine, tuple(self.margin.tolist()))[1]

    def box(self, planes, sites, reach):
        """The :class:`Box` of some planes for atoms (n, 3) with spheres of ``reach`` (n,) Å."""
        frame = self.job.grid, *planes, self.fine, tuple(self.margin.tolist())
        # The gradient asks for the box of the values again.
        key = *frame, sites.tobytes(), reach.tobytes()
        return _BOXES.get(key, lambda: Box(self.unit, self.fine, _frame(*frame), sites, reach))

    def to_cell(self, values, out=None):
        """Values at representatives at all points of the cell, (n1, n2, n3), or into ``out``."""
        values = values.detach().contiguous().numpy()
        if out is None:
            out = torch.from_numpy(np.empty(tuple(self.unit.n_real.tolist()), dtype=values.dtype))
        flat = out.numpy().reshape(-1)
        over(len(flat), lambda first, after: spread_to_cell(values, self.unit.orbit, first, after, flat))
        return out

    def from_cell(self, values):
        """Sums over each orbit, (n_orbits,)."""
        values = values.contiguous().numpy().reshape(-1)
        n = len(self.unit.places)

        def part(first, after):
            out = np.zeros(n)
            sum_over_orbits(values, self.unit.orbit, first, after, out)
            return out

        return torch.from_numpy(sum(over(len(values), part, 1)).astype(values.dtype))


class _Boxes:
    """The last boxes that were made, by all that they depend on, as long as they are neither too large nor too many."""

    def __init__(self, most=2**26, most_boxes=128):
        self.most, self.most_boxes, self.size = most, most_boxes, 0
        self.kept, self.lock = OrderedDict(), threading.Lock()

    def get(self, key, make):
        with self.lock:
            box = self.kept.get(key)
            if box is not None:
                self.kept.move_to_end(key)
                return box
        box = make()
        with self.lock:
            if key not in self.kept:
                self.kept[key] = box
                self.size += box.nbytes
                while (self.size > self.most or len(self.kept) > self.most_boxes) and len(self.kept) > 1:
                    self.size -= self.kept.popitem(last=False)[1].nbytes
        return box


_BOXES = _Boxes()


class Box:
    """A box of the fine grid, and the images of atoms whose spheres reach into it.

    Attributes
    ----------
    positions : numpy.ndarray
        (n, 3) float64, in fine grid steps from the corner of the box.
    atoms, operators : numpy.ndarray
        (n,) int64, of which atom, by which operator.
    """

    def __init__(self, unit: Unit, fine, frame, sites, reach):
        # Of the unit only these, and no more: boxes are kept longer than units, which hold arrays of the whole cell.
        self.rotations, self.fine = unit.rotations, fine
        self.low, self.shape, self.windows = frame
        steps = unit.n_real * fine
        corner = self.low + unit.corner * fine
        lost, positions, self.atoms, self.operators = _images(
            sites,
            unit.rotations,
            unit.translations,
            reach,
            corner / steps,
            (corner + self.shape - 1) / steps,
            unit.extent,
        )
        if lost:
            raise BadAtom(
                "sites or radii",
                "are not numbers that a mask can be made of: correct them, or leave the atom out.",
                lost - 1,
                0,
                1,
            )
        self.positions = positions * steps - corner
        # Images that share rows of the grid follow one another, so that these stay in the cache.
        tiles = (self.positions[:, :2] // _TILE).astype(np.int64)
        order = np.argsort(tiles[:, 0] * (int(self.shape[1]) + 1) + tiles[:, 1], kind="stable")
        self.positions, self.atoms, self.operators = self.positions[order], self.atoms[order], self.operators[order]
        self._tiles = tiles[order, 0]
        self.extent = unit.extent * steps
        basis = unit.metric_basis / fine
        gram = basis.T @ basis
        self.gram = np.array([gram[0, 0], gram[1, 1], gram[2, 2], 2 * gram[0, 1], gram[0, 2], gram[1, 2]])
        self.steps = steps
        self._reach = float(reach.max(initial=0)) * float(self.extent[0]) + 1  # more than rounding

    def near(self, first, after):
        """Which images may reach into some planes: a slice of them."""
        low, high = (
            int((plane + reach) // _TILE) for plane, reach in ((first, -self._reach), (after - 1, self._reach))
        )
        begin, end = np.searchsorted(self._tiles, (low, high + 1)).tolist()
        return slice(begin, end)

    @property
    def nbytes(self):
        """With what finds it again."""
        return (
            2 * sum(x.nbytes for x in (self.positions, self.atoms, self.operators, self._tiles)) + self.windows.nbytes
        )

    def to_atoms(self, by_position, n_atoms, *others):
        """Sum gradients of the images into those of the atoms' fractional sites, and of other things."""
        sites = np.zeros((n_atoms, 3))
        _add_to_atoms(by_position, self.steps, self.rotations, self.operators, self.atoms, sites)
        return sites, *(np.bincount(self.atoms, values, n_atoms) for values in others)


@jit_in_place
def _range(x, low, high, reach):
    """First and last translation that bring x to within ``reach`` of low..high."""
    return int(np.ceil(low - reach - x)), int(np.floor(high + reach - x))


@jit_in_place
def _find_images(sites, rotations, translations, reach, low, high, extent, positions, atoms, operators):
    """Images that reach into a box, written down as far as there is room; (1 + the number of an atom whose place or radius
    is no number, or 0, how many there are)."""
    count, room = 0, len(atoms)
    for atom in range(len(sites)):
        s0, s1, s2 = sites[atom, 0], sites[atom, 1], sites[atom, 2]
        r0, r1, r2 = extent[0] * reach[atom], extent[1] * reach[atom], extent[2] * reach[atom]
        if not (abs(r0) < _MOST_CELLS and abs(r1) < _MOST_CELLS and abs(r2) < _MOST_CELLS):
            return atom + 1, 0
        for operator in range(len(rotations)):
            r, t = rotations[operator], translations[operator]
            x0 = r[0, 0] * s0 + r[0, 1] * s1 + r[0, 2] * s2 + t[0]
            x1 = r[1, 0] * s0 + r[1, 1] * s1 + r[1, 2] * s2 + t[1]
            x2 = r[2, 0] * s0 + r[2, 1] * s1 + r[2, 2] * s2 + t[2]
            if not (abs(x0) < _FAR and abs(x1) < _FAR and abs(x2) < _FAR):
                return atom + 1, 0
            first0, last0 = _range(x0, low[0], high[0], r0)
            first1, last1 = _range(x1, low[1], high[1], r1)
            first2, last2 = _range(x2, low[2], high[2], r2)
            number = max(0, last0 - first0 + 1) * max(0, last1 - first1 + 1) * max(0, last2 - first2 + 1)
            if number == 0 or count + number > room:
                count += number
                continue
            for i in range(first0, last0 + 1):
                for j in range(first1, last1 + 1):
                    for k in range(first2, last2 + 1):
                        positions[count, 0], positions[count, 1], positions[count, 2] = x0 + i, x1 + j, x2 + k
                        atoms[count], operators[count] = atom, operator
                        count += 1
    return 0, count


def _images(sites, *box):
    """(1 + the number of a bad atom, or 0), fractional positions (n, 3), atoms and operators (n,) of images."""
    count, room = 0, 3 * len(sites) + 64
    while True:
        positions, (atoms, operators) = np.empty((room, 3)), np.empty((2, room), dtype=np.int64)
        lost, count = _find_images(sites, *box, positions, atoms, operators)
        if lost or count <= room:
            return lost, positions[:count], atoms[:count], operators[:count]
        room = count


@jit_in_place
def _add_to_atoms(by_position, steps, rotations, operators, atoms, out):
    for n in range(len(atoms)):
        r, atom = rotations[operators[n]], atoms[n]
        x0, x1, x2 = by_position[n, 0] * steps[0], by_position[n, 1] * steps[1], by_position[n, 2] * steps[2]
        for a in range(3):
            out[atom, a] += x0 * r[0, a] + x1 * r[1, a] + x2 * r[2, a]


@jit_in_place
def _fine_windows(coarse, first, after, fine, margin, low, windows):
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
