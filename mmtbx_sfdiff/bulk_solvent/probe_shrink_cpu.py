"""The soft probe-shrink mask on the CPU; see :mod:`.probe_shrink` for what is computed.

Rows along c are contiguous, and the kernels do the same thing to all points of a row, so that it vectorises.  A fine
row is kept a second time split by parity (every ``fine``-th point), because the weighted sum of E over a ball at every
coarse point of a row is then a few hundred multiplications of contiguous numbers.
"""
from __future__ import annotations

import numpy as np
import torch

from .asymmetric_unit import Box, Workers, interval, jit, spread_to_cell, sum_over_orbits, unit_of

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
        box = Box(self.unit, planes, self.fine, self.margin, sites, radii + width / 2)
        box.radii, box.cover = radii[box.atoms].astype(self.dtype), cover[box.atoms].astype(self.dtype)
        box.gram32, box.width = box.gram.astype(self.dtype), self.dtype.type(width)
        m0, m1, m2 = (int(n) for n in box.shape)
        box.field = np.empty((m0, m1, m2), dtype=self.dtype)
        count = np.arange(m2, dtype=self.dtype)

        def fill(first, after):
            box.field[first:after] = 1
            _accessibility(box.field, box.windows, first, after, box.positions, box.radii, box.cover, box.width, box.gram32,
                           box.extent, count)

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
                by_field = np.empty_like(box.field)
                workers.over(box.field.shape[0], lambda first, after: _spread(
                    by_field, box.field, box.windows, first, after, dense, unit.windows, planes[0], planes[1], self.fine,
                    box.low, self.runs, weights))
                n_images = len(box.positions)

                def attribute(first, after):
                    out = np.zeros((n_images, 6))
                    _attribute(by_field, box.windows, first, after, box.positions, box.radii, box.cover, box.width,
                               box.gram32, box.extent, out)
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
def _accessibility(field, windows, first_plane, after_plane, positions, radii, cover, width, gram, extent, count):
    """Multiply the field by 1 - cover (1 - step((|y - x| - R) / width)) of every image."""
    m1, m2 = field.shape[1], field.shape[2]
    flat = field.reshape(-1)
    real = gram.dtype.type
    half = real(0.5) * width
    scale = real(1) / width
    one, two, three, zero = real(1), real(2), real(3), real(0)
    for image in range(len(positions)):
        outer, inner = radii[image] + half, radii[image] - half
        if outer <= 0:
            continue
        share = cover[image]
        p0, p1, p2 = positions[image]
        low = max(first_plane, int(np.ceil(p0 - outer * extent[0])))
        high = min(after_plane, int(np.floor(p0 + outer * extent[0])) + 1)
        if low >= high:
            continue
        j_low = max(0, int(np.ceil(p1 - outer * extent[1])))
        j_high = min(m1, int(np.floor(p1 + outer * extent[1])) + 1)
        outer_sq = outer * outer
        inner_sq = inner * inner if inner > 0 else zero
        shift = inner * scale
        origin = real(p2)
        for i in range(low, high):
            d0 = real(i - p0)
            for j in range(j_low, j_high):
                d1 = real(j - p1)
                w0, w1 = windows[i, j]
                quadratic, linear, first, after = interval(gram, outer_sq, d0, d1, origin, w0, w1)
                if first >= after:
                    continue
                base = (i * m1 + j) * m2
                middle, beyond = after, after
                if share == one:
                    # The core of the sphere needs no arithmetic.
                    _, _, core, core_end = interval(gram, inner_sq, d0, d1, origin, w0, w1)
                    if core < core_end:
                        flat[base + core:base + core_end] = zero
                        middle, beyond = core, core_end
                twice = two * linear
                for part in range(2):
                    begin = first if part == 0 else beyond
                    end = middle if part == 0 else after
                    if begin >= end:
                        continue
                    row = flat[base + begin:base + end]
                    start = real(begin - p2)
                    for k in range(len(row)):
                        d2 = count[k] + start
                        t = np.sqrt(quadratic + (twice + gram[2] * d2) * d2) * scale - shift
                        t = t if t < one else one
                        t = t if t > zero else zero
                        row[k] *= one - share * (one - t * t * (three - two * t))


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
def _attribute(by_field, windows, first_plane, after_plane, positions, radii, cover, width, gram, extent, out):
    """Gradients of each image: 3 by position (covariant, grid steps), radius, cover, width."""
    m1 = by_field.shape[1]
    real = gram.dtype.type
    half = real(0.5) * width
    scale = real(1) / width
    one, two, three, six, zero = real(1), real(2), real(3), real(6), real(0)
    for image in range(len(positions)):
        outer, inner = radii[image] + half, radii[image] - half
        if outer <= 0:
            continue
        share = cover[image]
        p0, p1, p2 = positions[image]
        low = max(first_plane, int(np.ceil(p0 - outer * extent[0])))
        high = min(after_plane, int(np.floor(p0 + outer * extent[0])) + 1)
        if low >= high:
            continue
        j_low = max(0, int(np.ceil(p1 - outer * extent[1])))
        j_high = min(m1, int(np.floor(p1 + outer * extent[1])) + 1)
        outer_sq = outer * outer
        inner_sq = inner * inner if inner > 0 else zero
        shift = inner * scale
        origin = real(p2)
        s0, s1, s2, by_radius, by_cover, by_width = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(low, high):
            d0 = real(i - p0)
            for j in range(j_low, j_high):
                d1 = real(j - p1)
                w0, w1 = windows[i, j]
                quadratic, linear, first, after = interval(gram, outer_sq, d0, d1, origin, w0, w1)
                if first >= after:
                    continue
                middle, beyond = after, after
                if share == one:
                    _, _, core, core_end = interval(gram, inner_sq, d0, d1, origin, w0, w1)
                    if core < core_end:
                        middle, beyond = core, core_end
                twice = two * linear
                sum_slope, sum_along, sum_radius, sum_width, sum_cover = zero, zero, zero, zero, zero
                for part in range(2):
                    begin = first if part == 0 else beyond
                    end = middle if part == 0 else after
                    for k in range(begin, end):
                        d2 = real(k - p2)
                        distance = np.sqrt(quadratic + (twice + gram[2] * d2) * d2)
                        t = distance * scale - shift
                        t = t if t < one else one
                        t = t if t > zero else zero
                        left = one - t * t * (three - two * t)
                        factor = one - share * left
                        value = by_field[i, j, k] / (factor if factor > real(1e-20) else real(1e-20))
                        slope = value * share * six * t * (one - t) * scale
                        sum_radius += slope
                        sum_width += slope * (t - real(0.5))
                        sum_cover += value * left
                        slope /= max(distance, real(1e-12))
                        sum_slope += slope
                        sum_along += slope * d2
                s0 += d0 * sum_slope
                s1 += d1 * sum_slope
                s2 += sum_along
                by_radius += sum_radius
                by_width += sum_width
                by_cover += sum_cover
        out[image, 0] -= gram[0] * s0 + 0.5 * gram[3] * s1 + gram[4] * s2
        out[image, 1] -= 0.5 * gram[3] * s0 + gram[1] * s1 + gram[5] * s2
        out[image, 2] -= gram[4] * s0 + gram[5] * s1 + gram[2] * s2
        out[image, 3] -= by_radius
        out[image, 4] -= by_cover
        out[image, 5] -= by_width
