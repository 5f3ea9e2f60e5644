"""The soft probe-shrink mask on the CPU; see :mod:`.probe_shrink` for what is computed.

Rows along c are contiguous, and the kernels do the same thing to eight points of a row at a time, so that it vectorises.  A fine
row is kept a second time split by parity (every ``fine``-th point), because the weighted sum of E over a ball at every
coarse point of a row is then a few hundred multiplications of contiguous numbers.
"""
from __future__ import annotations

import numpy as np
import torch

from .asymmetric_unit import Box, Workers, jit, spread_to_cell, sum_over_orbits, unit_of
from .vector_code import SUMS, attribute_blocks, multiply_blocks

# Field, its split copy and the gradient.
_ARRAYS = 3


class SoftMask:
    """One model's mask: ``forward`` gives V at the representatives, ``backward`` its gradients."""

    def __init__(self, crystal, n_real, fine, kernel, dtype, memory, n_threads):
        self.unit, self.fine, self.dtype = unit_of(crystal, n_real), fine, np.dtype(dtype)
        self.memory, self.n_threads = memory, n_threads
        self.kernel = kernel
        self.steps, self.lengths = self.unit.offsets(kernel.reach, fine)
        self.margin = np.abs(self.steps).max(0)
        self.voxel = crystal.volume / float(np.prod(self.unit.n_real * fine))
        # Runs of steps along c: di, dj, first dk, number of the first weight, how many.
        starts = np.flatnonzero(np.any(np.diff(self.steps[:, :2], axis=0, prepend=self.steps[:1, :2] - 1), axis=1))
        counts = np.diff(np.append(starts, len(self.steps)))
        self.runs = np.concatenate([self.steps[starts], starts[:, None], counts[:, None]], 1).astype(np.int64)

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
                           box.extent)

        workers.over(m0, fill)
        return box

    def _split(self, box, workers):
        m0, m1, m2 = box.field.shape
        split = np.empty((m0, m1, self.fine, m2 // self.fine), dtype=self.dtype)
        workers.over(m0, lambda first, after: _split(box.field, split, first, after))
        return split

    def forward(self, sites, radii, cover, width, weights):
        """Weighted sums of E around each representative, (n_orbits,) for each array of weights."""
        sites, radii, cover = (values.detach().numpy() for values in (sites, radii, cover))
        out = [np.empty(len(self.unit.places), dtype=self.dtype) for _ in weights]
        unit = self.unit
        starts = np.searchsorted(unit.places[:, 0], np.arange(unit.shape[0] + 1))
        with Workers(self.n_threads) as workers:
            for planes in self._slabs():
                box = self._box(planes, sites, radii, cover, width, workers)
                split = self._split(box, workers)
                for values, array in zip(out, weights):
                    workers.over(planes[1] - planes[0], lambda first, after: _gather(
                        split, unit.windows, planes[0] + first, planes[0] + after, self.fine, box.low, self.runs, array,
                        unit.places, starts, values))
        return [torch.from_numpy(values) for values in out]

    def backward(self, gradient, sites, radii, cover, width, weights):
        """Gradients by sites, radii, cover and width from that by V, (n_orbits,)."""
        sites, radii, cover, gradient = (values.detach().numpy() for values in (sites, radii, cover, gradient))
        n = len(radii)
        total = [np.zeros((n, 3)), np.zeros(n), np.zeros(n), 0.0]
        unit = self.unit
        dense = np.zeros(unit.shape, dtype=self.dtype)
        dense[tuple(unit.places.T)] = gradient
        with Workers(self.n_threads) as workers:
            for planes in self._slabs():
                box = self._box(planes, sites, radii, cover, width, workers)
                by_field = np.zeros_like(box.field)
                workers.over(box.field.shape[0], lambda first, after: _spread(
                    by_field, box.field, box.windows, first, after, dense, unit.windows, planes[0], planes[1], self.fine,
                    box.low, self.runs, weights))
                n_images = len(box.positions)

                def attribute(first, after):
                    out = np.zeros((n_images, 6))
                    _attribute(by_field, box.windows, first, after, box.positions, box.radii, box.cover, box.width,
                               box.gram32, box.extent, np.empty(8 * SUMS, dtype=self.dtype), out)
                    return out

                parts = sum(workers.over(box.field.shape[0], attribute, 1))
                found = box.to_atoms(parts[:, :3], n, parts[:, 3], parts[:, 4])
                for i in range(3):
                    total[i] += found[i]
                total[3] += float(parts[:, 5].sum())
        return *(torch.from_numpy(values) for values in total[:3]), torch.tensor(total[3], dtype=torch.float64)

    def to_cell(self, values):
        """Values at representatives at all points of the cell, (n1, n2, n3)."""
        values = values.detach().numpy()
        out = np.empty(len(self.unit.orbit), dtype=values.dtype)
        with Workers(self.n_threads) as workers:
            workers.over(len(out), lambda first, after: spread_to_cell(values, self.unit.orbit, first, after, out))
        return torch.from_numpy(out).reshape(tuple(self.unit.n_real.tolist()))

    def from_cell(self, values):
        """Sums over each orbit, (n_orbits,)."""
        values = values.contiguous().numpy()
        out = np.zeros(len(self.unit.places))
        sum_over_orbits(values.reshape(-1), self.unit.orbit, out)
        return torch.from_numpy(out.astype(values.dtype))


@jit
def _rows(position, reach, extent, first_plane, after_plane, m1):
    """The planes and rows that a sphere may touch."""
    low = max(first_plane, int(np.ceil(position[0] - reach * extent[0])))
    high = min(after_plane, int(np.floor(position[0] + reach * extent[0])) + 1)
    j_low = max(0, int(np.ceil(position[1] - reach * extent[1])))
    j_high = min(m1, int(np.floor(position[1] + reach * extent[1])) + 1)
    return low, high, j_low, j_high


@jit
def _accessibility(field, windows, first_plane, after_plane, positions, radii, cover, width, gram, extent):
    """Multiply the field by 1 - cover (1 - S(t)) of every image, t = 1/2 + (d^2 - R^2) / (2 R width)."""
    m1, m2 = field.shape[1], field.shape[2]
    flat = field.reshape(-1)
    real = gram.dtype.type
    one, two, zero, half = real(1), real(2), real(0), real(0.5)
    per_c = one / gram[2]
    for image in range(len(positions)):
        radius, share = radii[image], cover[image]
        if radius <= 0:
            continue
        outer_sq = radius * (radius + width)
        low, high, j_low, j_high = _rows(positions[image], np.sqrt(outer_sq), extent, first_plane, after_plane, m1)
        core_sq = radius * (radius - width) if share == one else -one
        scale = half / (radius * width)
        offset = half - half * radius / width
        a2 = gram[2] * scale
        cell = int(np.floor(positions[image, 2]))
        origin = real(positions[image, 2] - cell)
        for i in range(low, high):
            d0 = real(i - positions[image, 0])
            for j in range(j_low, j_high):
                d1 = real(j - positions[image, 1])
                linear = gram[4] * d0 + gram[5] * d1
                quadratic = (gram[0] * d0 + gram[3] * d1) * d0 + gram[1] * d1 * d1
                shift = linear * per_c
                across = quadratic - linear * shift
                left = (outer_sq - across) * per_c
                if left <= zero:
                    continue
                length = np.sqrt(left)
                first = max(windows[i, j, 0], cell + int(np.ceil(origin - shift - length)))
                after = min(windows[i, j, 1], cell + int(np.floor(origin - shift + length)) + 1)
                if first >= after:
                    continue
                core, core_end = after, after
                if core_sq > across:
                    length = np.sqrt((core_sq - across) * per_c)
                    core = cell + int(np.ceil(origin - shift - length))
                    core_end = cell + int(np.floor(origin - shift + length)) + 1
                base = (i * m1 + j) * m2
                a0 = quadratic * scale + offset
                a1 = two * linear * scale
                begin = first - first % 8
                end = begin + (after - begin + 7) // 8 * 8
                # Whole blocks in the core of the sphere need no arithmetic.
                middle = max(begin, min(end, core + -core % 8))
                beyond = min(end, core_end - core_end % 8)
                if beyond > middle:
                    flat[base + middle:base + beyond] = zero
                else:
                    middle, beyond = end, end
                start = real(begin - cell) - origin
                multiply_blocks(flat, base + begin, (middle - begin) // 8, a0, a1, a2, start, share)
                if beyond < end:
                    start = real(beyond - cell) - origin
                    multiply_blocks(flat, base + beyond, (end - beyond) // 8, a0, a1, a2, start, share)


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
def _gather(split, windows, first_plane, after_plane, fine, low, runs, weights, places, starts, out):
    total = np.empty(split.shape[3], dtype=split.dtype)
    for i in range(first_plane, after_plane):
        number = starts[i]
        for j in range(windows.shape[1]):
            begin, end = windows[i, j]
            if begin >= end:
                continue
            length = end - begin
            acc = total[:length]
            acc[:] = 0
            for run in range(len(runs)):
                a = i * fine + runs[run, 0] - low[0]
                b = j * fine + runs[run, 1] - low[1]
                c = begin * fine + runs[run, 2] - low[2]
                for step in range(runs[run, 4]):
                    weight = weights[runs[run, 3] + step]
                    row = split[a, b, (c + step) % fine, (c + step) // fine:(c + step) // fine + length]
                    for k in range(length):
                        acc[k] += weight * row[k]
            while number < starts[i + 1] and places[number, 1] == j:
                out[number] = acc[places[number, 2] - begin]
                number += 1


@jit
def _spread(by_field, field, fine_windows, first_plane, after_plane, dense, windows, first_coarse, after_coarse, fine, low,
            runs, weights):
    """E dT/dE at each fine point, from dT/dV at the coarse ones."""
    total = np.empty((fine, field.shape[2] // fine), dtype=field.dtype)
    for a in range(first_plane, after_plane):
        for b in range(field.shape[1]):
            w0, w1 = fine_windows[a, b]
            if w0 >= w1:
                continue
            total[:] = 0
            for run in range(len(runs)):
                u = a + low[0] - runs[run, 0]
                v = b + low[1] - runs[run, 1]
                if u % fine != 0 or v % fine != 0:
                    continue
                i, j = u // fine, v // fine
                if i < first_coarse or i >= after_coarse or j < 0 or j >= windows.shape[1]:
                    continue
                begin, end = windows[i, j]
                if begin >= end:
                    continue
                length = end - begin
                source = dense[i, j, begin:end]
                c = begin * fine + runs[run, 2] - low[2]
                for step in range(runs[run, 4]):
                    weight = weights[runs[run, 3] + step]
                    row = total[(c + step) % fine, (c + step) // fine:(c + step) // fine + length]
                    for k in range(length):
                        row[k] += weight * source[k]
            for k in range(w0, w1):
                by_field[a, b, k] = field[a, b, k] * total[k % fine, k // fine]


@jit
def _attribute(by_field, windows, first_plane, after_plane, positions, radii, cover, width, gram, extent, sums, out):
    """Gradients of each image: 3 by position (covariant, grid steps), radius, cover, width."""
    m1, m2 = by_field.shape[1], by_field.shape[2]
    flat = by_field.reshape(-1)
    real = gram.dtype.type
    one, two, six, zero, half = real(1), real(2), real(6), real(0), real(0.5)
    per_c = one / gram[2]
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
            for j in range(j_low, j_high):
                d1 = real(j - positions[image, 1])
                linear = gram[4] * d0 + gram[5] * d1
                quadratic = (gram[0] * d0 + gram[3] * d1) * d0 + gram[1] * d1 * d1
                shift = linear * per_c
                across = quadratic - linear * shift
                left = (outer_sq - across) * per_c
                if left <= zero:
                    continue
                length = np.sqrt(left)
                first = max(windows[i, j, 0], cell + int(np.ceil(origin - shift - length)))
                after = min(windows[i, j, 1], cell + int(np.floor(origin - shift + length)) + 1)
                if first >= after:
                    continue
                base = (i * m1 + j) * m2
                a0 = quadratic * scale + offset
                a1 = two * linear * scale
                begin = first - first % 8
                end = begin + (after - begin + 7) // 8 * 8
                start = real(begin - cell) - origin
                attribute_blocks(flat, base + begin, (end - begin) // 8, a0, a1, a2, start, share, d0, d1, sums)
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
