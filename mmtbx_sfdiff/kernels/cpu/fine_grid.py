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
from ..jit import jit
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
    _fine_windows(unit.windows, first, after, fine, np.array(margin), low, windows)
    return low, shape, windows


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

    def slabs(self, bytes_per_point):
        """Ranges of planes of the unit, each with a box of about the job's memory."""
        unit, fine, margin = self.unit, self.fine, self.margin
        plane = np.prod(unit.shape[1:] * fine + 2 * margin[1:] + fine) * bytes_per_point
        planes = int(max(1, (self.job.memory / plane - 2 * margin[0]) // fine))
        return [(first, min(first + planes, int(unit.shape[0]))) for first in range(0, int(unit.shape[0]), planes)]

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
    """The last boxes that were made, by all that they depend on, as long as they are not too large."""

    def __init__(self, most=2**26):
        self.most, self.size, self.kept, self.lock = most, 0, OrderedDict(), threading.Lock()

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
                while self.size > self.most and len(self.kept) > 1:
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
        self.unit, self.fine = unit, fine
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
        self.extent = unit.extent * steps
        basis = unit.metric_basis / fine
        gram = basis.T @ basis
        self.gram = np.array([gram[0, 0], gram[1, 1], gram[2, 2], 2 * gram[0, 1], gram[0, 2], gram[1, 2]])
        self.steps = steps

    @property
    def nbytes(self):
        """With what finds it again."""
        return 2 * sum(x.nbytes for x in (self.positions, self.atoms, self.operators))

    def to_atoms(self, by_position, n_atoms, *others):
        """Sum gradients of the images into those of the atoms' fractional sites, and of other things."""
        by_position = np.einsum("ni,nij->nj", by_position * self.steps, self.unit.rotations[self.operators])
        sites = np.stack([np.bincount(self.atoms, by_position[:, a], n_atoms) for a in range(3)], -1)
        return sites, *(np.bincount(self.atoms, values, n_atoms) for values in others)


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
                    if not (abs(x[a]) < _FAR and abs(extent[a] * reach[atom]) < _MOST_CELLS):
                        return atom + 1, positions, atoms, operators
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
    return 0, positions, atoms, operators


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
