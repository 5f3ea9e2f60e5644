"""The soft probe-shrink mask on the CPU; see :mod:`.probe_shrink` for what is computed.

Rows along c are contiguous, and the kernels do the same thing to eight points of a row at a time.  A fine row is kept a
second time split by parity (every ``fine``-th point), because the weighted sum of E over a ball at every coarse point of a
row is then a few hundred multiplications of contiguous numbers.  Its transpose is, at the fine points of each parity, such a
sum over coarse ones; it is wanted where 0 < E < 1 only, because elsewhere E does not change with the atoms.
"""
from __future__ import annotations

import numpy as np
import torch

from .asymmetric_unit import Box, Workers, jit, spread_to_cell, sum_over_orbits, unit_of
from .vector_code import LANES, SUMS, TOGETHER, attribute_blocks, multiply_blocks, weighted_sums

# Field, its split copy and the gradient.
_ARRAYS = 3
# Elements behind the last row that whole blocks may read.
_BEYOND = LANES * TOGETHER


class SoftMask:
    """One model's mask: ``forward`` gives V at the representatives, ``backward`` its gradients."""

    def __init__(self, crystal, n_real, fine, kernel, dtype, memory, n_threads, kept=0):
        self.unit, self.fine, self.dtype = unit_of(crystal, n_real), fine, np.dtype(dtype)
        self.memory, self.n_threads = memory, n_threads
        self.kernel = kernel
        self.steps, self.lengths = self.unit.offsets(kernel.reach, fine)
        self.margin = np.abs(self.steps).max(0)
        self.voxel = crystal.volume / float(np.prod(self.unit.n_real * fine))
        # Bytes of E that may be kept for the gradient.
        self.kept, self._kept_box = kept, None

    def weights(self, function):
        """A function of the distance at the fine grid's steps, times the volume of a step."""
        return (function(self.lengths) * self.voxel).astype(self.dtype)

    def _slabs(self):
        return self.unit.slabs(self.fine, self.margin, self.dtype.itemsize * _ARRAYS, self.memory)

    def _box(self, planes, sites, radii, cover, width, workers):
        """A box, its images' radii and cover, E, and E split by parity."""
        box = Box(self.unit, planes, self.fine, self.margin, sites, np.sqrt(radii * (radii + width)))
        box.radii, box.cover = radii[box.atoms].astype(self.dtype), cover[box.atoms].astype(self.dtype)
        box.gram32, box.width = box.gram.astype(self.dtype), self.dtype.type(width)
        m0, m1, m2 = (int(n) for n in box.shape)
        box.field = np.empty((m0, m1, m2), dtype=self.dtype)

        def fill(first, after):
            box.field[first:after] = 1
            _accessibility(box.field, box.windows, first, after, box.positions, box.radii, box.cover, box.width, box.gram32,
                           box.extent, np.empty((4, m1), dtype=self.dtype))

        workers.over(m0, fill)
        return box

    def _split(self, box, workers):
        m0, m1, m2 = box.field.shape
        flat = np.zeros(box.field.size + _BEYOND, dtype=self.dtype)
        split = flat[:box.field.size].reshape(m0, m1, self.fine, m2 // self.fine)
        workers.over(m0, lambda first, after: _split(box.field, split, first, after))
        return flat

    def forward(self, sites, radii, cover, width, weights, keep=False):
        """Weighted sums of E around each representative, (n_orbits,) for each array of weights."""
        sites, radii, cover = (values.detach().numpy() for values in (sites, radii, cover))
        out = [np.empty(len(self.unit.places), dtype=self.dtype) for _ in weights]
        unit, fine = self.unit, self.fine
        starts = np.searchsorted(unit.places[:, 0], np.arange(unit.shape[0] + 1))
        slabs = self._slabs()
        with Workers(self.n_threads) as workers:
            for planes in slabs:
                box = self._box(planes, sites, radii, cover, width, workers)
                split = self._split(box, workers)
                d0, d1, d2 = self.steps.T
                m1, m2 = box.field.shape[1:]
                offsets = (d0 * m1 + d1) * m2 + (d2 % fine) * (m2 // fine) + d2 // fine
                for values, array in zip(out, weights):
                    workers.over(planes[1] - planes[0], lambda first, after: _gather(
                        split, m1, m2, unit.windows, planes[0] + first, planes[0] + after, fine, box.low, offsets, array,
                        unit.places, starts, values))
                if keep and len(slabs) == 1 and box.field.nbytes <= self.kept:
                    self._kept_box = box
        return [torch.from_numpy(values) for values in out]

    def backward(self, gradient, sites, radii, cover, width, weights):
        """Gradients by sites, radii, cover and width from that by V, (n_orbits,)."""
        sites, radii, cover, gradient = (values.detach().numpy() for values in (sites, radii, cover, gradient))
        n = len(radii)
        total = [np.zeros((n, 3)), np.zeros(n), np.zeros(n), 0.0]
        with Workers(self.n_threads) as workers:
            for planes in self._slabs():
                box = self._kept_box or self._box(planes, sites, radii, cover, width, workers)
                by_field, windows = self._by_field(box, planes, gradient, weights, workers)
                n_images = len(box.positions)

                def attribute(first, after):
                    out = np.zeros((n_images, 6))
                    _attribute(by_field, windows, first, after, box.positions, box.radii, box.cover, box.width,
                               box.gram32, box.extent, np.empty((4, box.shape[1]), dtype=self.dtype),
                               np.empty(LANES * SUMS, dtype=self.dtype), out)
                    return out

                parts = sum(workers.over(box.field.shape[0], attribute, 1))
                found = box.to_atoms(parts[:, :3], n, parts[:, 3], parts[:, 4])
                for i in range(3):
                    total[i] += found[i]
                total[3] += float(parts[:, 5].sum())
        return *(torch.from_numpy(values) for values in total[:3]), torch.tensor(total[3], dtype=torch.float64)

    def _by_field(self, box, planes, gradient, weights, workers):
        """E dT/dE on the fine grid where 0 < E < 1, and the window of each row that holds all of it."""
        unit, fine = self.unit, self.fine
        # The gradient by V on the planes, with zeros around it as far as a step from the box's edge leads.
        pad = 2 * -(-self.margin // fine) + 1
        shape = unit.shape + 2 * pad
        shape[0] += planes[1] - planes[0] - unit.shape[0]
        dense = np.zeros(int(np.prod(shape)) + _BEYOND, dtype=self.dtype)
        part = slice(*np.searchsorted(unit.places[:, 0], planes))
        strides = np.array([shape[1] * shape[2], shape[2], 1])
        origin = pad - np.array([planes[0], 0, 0])
        dense[(unit.places[part] + origin) @ strides] = gradient[part]
        # Of a fine point of parity r, the coarse point at minus the step d is (d - r) / fine away, for d of that parity.
        parity = self.steps % fine
        group = (parity[:, 0] * fine + parity[:, 1]) * fine + parity[:, 2]
        order = np.argsort(group, kind="stable")
        offsets = (-(self.steps // fine) @ strides)[order]
        starts = np.searchsorted(group[order], np.arange(fine**3 + 1))
        by_field, windows = np.zeros_like(box.field), np.zeros_like(box.windows)
        workers.over(box.field.shape[0], lambda first, after: _spread(
            by_field, box.field, box.windows, windows, first, after, dense, origin, strides, fine, box.low, offsets,
            weights[order], starts))
        return by_field, windows

    def to_cell(self, values):
        """Values at representatives at all points of the cell, (n1, n2, n3)."""
        values = values.detach().numpy()
        out = np.empty(len(self.unit.orbit), dtype=values.dtype)
        with Workers(self.n_threads) as workers:
            workers.over(len(out), lambda first, after: spread_to_cell(values, self.unit.orbit, first, after, out))
        return torch.from_numpy(out).reshape(tuple(self.unit.n_real.tolist()))

    def from_cell(self, values):
        """Sums over each orbit, (n_orbits,)."""
        values = values.contiguous().numpy().reshape(-1)
        n = len(self.unit.places)

        def part(first, after):
            out = np.zeros(n)
            sum_over_orbits(values, self.unit.orbit, first, after, out)
            return out

        with Workers(self.n_threads) as workers:
            return torch.from_numpy(sum(workers.over(len(values), part, 1)).astype(values.dtype))


@jit
def _rows(position, reach, extent, first_plane, after_plane, m1):
    """The planes and rows that a sphere may touch."""
    low = max(first_plane, int(np.ceil(position[0] - reach * extent[0])))
    high = min(after_plane, int(np.floor(position[0] + reach * extent[0])) + 1)
    j_low = max(0, int(np.ceil(position[1] - reach * extent[1])))
    j_high = min(m1, int(np.floor(position[1] + reach * extent[1])) + 1)
    return low, high, j_low, j_high


@jit
def _chords(position, plane, j_low, j_high, outer_sq, gram, table):
    """Where the rows of a plane enter and leave a sphere, in steps from the cell of its centre, and the squared distance.

    ``table``: (4, n), for each row the ends, and quadratic and linear of quadratic + 2 linear d + gram[2] d^2.
    """
    real = gram.dtype.type
    per_c = real(1) / gram[2]
    d0, start = real(plane - position[0]), real(j_low - position[1])
    origin = real(position[2] - np.floor(position[2]))
    first, last, quadratic, linear = table[0], table[1], table[2], table[3]
    for n in range(j_high - j_low):
        d1 = start + real(n)
        along = gram[4] * d0 + gram[5] * d1
        square = (gram[0] * d0 + gram[3] * d1) * d0 + gram[1] * d1 * d1
        shift = along * per_c
        left = (outer_sq - (square - along * shift)) * per_c
        # A sphere that is not reached ends before it begins.
        length = np.sqrt(max(left, real(0))) if left > real(0) else real(-1)
        first[n] = origin - shift - length
        last[n] = origin - shift + length
        quadratic[n] = square
        linear[n] = along


@jit
def _beyond(x):
    """The next integer after x > -4096; a conversion, where floor would be a call."""
    return int(x + type(x)(4096)) - 4095


@jit
def _accessibility(field, windows, first_plane, after_plane, positions, radii, cover, width, gram, extent, table):
    """Multiply the field by 1 - cover (1 - S(t)) of every image, t = 1/2 + (d^2 - R^2) / (2 R width)."""
    m1, m2 = field.shape[1], field.shape[2]
    flat = field.reshape(-1)
    real = gram.dtype.type
    half = real(0.5)
    for image in range(len(positions)):
        radius, share = radii[image], cover[image]
        if radius <= 0:
            continue
        outer_sq = radius * (radius + width)
        low, high, j_low, j_high = _rows(positions[image], np.sqrt(outer_sq), extent, first_plane, after_plane, m1)
        scale = half / (radius * width)
        offset = half - half * radius / width
        a2 = gram[2] * scale
        cell = int(np.floor(positions[image, 2]))
        origin = real(positions[image, 2] - cell)
        for i in range(low, high):
            _chords(positions[image], i, j_low, j_high, outer_sq, gram, table)
            for j in range(j_low, j_high):
                n = j - j_low
                first = max(windows[i, j, 0], cell + _beyond(table[0, n]))
                after = min(windows[i, j, 1], cell + _beyond(table[1, n]))
                if first >= after:
                    continue
                begin = first & ~7
                multiply_blocks(flat, (i * m1 + j) * m2 + begin, (after - begin + 7) >> 3, table[2, n] * scale + offset,
                                (scale + scale) * table[3, n], a2, real(begin - cell) - origin, share)


@jit
def _split(field, split, first_plane, after_plane):
    fine = split.shape[2]
    for i in range(first_plane, after_plane):
        for j in range(field.shape[1]):
            row = field[i, j]
            for parity in range(fine):
                out = split[i, j, parity]
                for k in range(len(out)):
                    out[k] = row[k * fine + parity]


@jit
def _gather(split, m1, m2, windows, first_plane, after_plane, fine, low, offsets, weights, places, starts, out):
    acc = np.empty(m2 + 64, dtype=split.dtype)
    for i in range(first_plane, after_plane):
        number = starts[i]
        for j in range(windows.shape[1]):
            begin, end = windows[i, j]
            if begin >= end:
                continue
            index = ((i * fine - low[0]) * m1 + j * fine - low[1]) * m2 + begin - low[2] // fine
            weighted_sums(acc, split, index, (end - begin + 7) >> 3, offsets, weights, 0, len(offsets))
            while number < starts[i + 1] and places[number, 1] == j:
                out[number] = acc[places[number, 2] - begin]
                number += 1


@jit
def _spread(by_field, field, windows, active, first_plane, after_plane, dense, origin, strides, fine, low, offsets, weights,
            starts):
    """E dT/dE at each fine point where 0 < E < 1, from dT/dV at the coarse ones; ``active``: the windows of such points."""
    m2 = field.shape[2]
    total = np.empty(m2 + 64, dtype=field.dtype)
    for a in range(first_plane, after_plane):
        u = a + low[0]
        for b in range(field.shape[1]):
            row, out = field[a, b], by_field[a, b]
            w0, w1 = windows[a, b]
            while w0 < w1 and (row[w0] == 0 or row[w0] == 1):
                w0 += 1
            while w0 < w1 and (row[w1 - 1] == 0 or row[w1 - 1] == 1):
                w1 -= 1
            if w0 >= w1:
                continue
            active[a, b, 0], active[a, b, 1] = w0, w1
            v = b + low[1]
            k0 = (w0 + low[2]) // fine
            n = (w1 - 1 + low[2]) // fine + 1 - k0
            index = (u // fine + origin[0]) * strides[0] + (v // fine + origin[1]) * strides[1] + k0 + origin[2]
            group = ((u % fine) * fine + v % fine) * fine
            for parity in range(fine):
                weighted_sums(total, dense, index, (n + 7) >> 3, offsets, weights, starts[group + parity],
                              starts[group + parity + 1])
                for k in range(n):
                    c = (k0 + k) * fine + parity - low[2]
                    if w0 <= c < w1 and 0 < row[c] < 1:
                        out[c] = row[c] * total[k]


@jit
def _attribute(by_field, windows, first_plane, after_plane, positions, radii, cover, width, gram, extent, table, sums, out):
    """Gradients of each image: 3 by position (covariant, grid steps), radius, cover, width."""
    m1, m2 = by_field.shape[1], by_field.shape[2]
    flat = by_field.reshape(-1)
    real = gram.dtype.type
    one, two, six, zero, half = real(1), real(2), real(6), real(0), real(0.5)
    for image in range(len(positions)):
        radius, share = radii[image], cover[image]
        if radius <= 0:
            continue
        outer_sq = radius * (radius + width)
        low, high, j_low, j_high = _rows(positions[image], np.sqrt(outer_sq), extent, first_plane, after_plane, m1)
        scale = half / (radius * width)
        offset = half - half * radius / width
        a2 = gram[2] * scale
        cell = int(np.floor(positions[image, 2]))
        origin = real(positions[image, 2] - cell)
        sums[:] = zero
        for i in range(low, high):
            d0 = real(i - positions[image, 0])
            _chords(positions[image], i, j_low, j_high, outer_sq, gram, table)
            for j in range(j_low, j_high):
                n = j - j_low
                first = max(windows[i, j, 0], cell + _beyond(table[0, n]))
                after = min(windows[i, j, 1], cell + _beyond(table[1, n]))
                if first >= after:
                    continue
                begin = first & ~7
                attribute_blocks(flat, (i * m1 + j) * m2 + begin, (after - begin + 7) >> 3, table[2, n] * scale + offset,
                                 two * scale * table[3, n], a2, real(begin - cell) - origin, share, d0,
                                 real(j - positions[image, 1]), sums)
        total, s0, s1, s2, total_t, total_left = zero, zero, zero, zero, zero, zero
        for k in range(8):
            total += sums[k]
            s0 += sums[8 + k]
            s1 += sums[16 + k]
            s2 += sums[24 + k]
            total_t += sums[32 + k]
            total_left += sums[40 + k]
        slope = six * share
        along = two * scale * slope
        out[image, 0] += along * (gram[0] * s0 + half * gram[3] * s1 + gram[4] * s2) * -one
        out[image, 1] += along * (half * gram[3] * s0 + gram[1] * s1 + gram[5] * s2) * -one
        out[image, 2] += along * (gram[4] * s0 + gram[5] * s1 + gram[2] * s2) * -one
        out[image, 3] -= slope * (total_t / radius + total / width)
        out[image, 4] -= total_left
        out[image, 5] -= slope * total_t / width
