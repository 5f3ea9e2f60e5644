"""The soft probe-shrink mask on the CPU; see :mod:`~mmtbx_sfdiff.bulk_solvent.probe_shrink` for what is computed.

Rows along c are contiguous, and the kernels do the same thing to sixteen points of a row at a time.  A fine row is kept
a second time split by parity (every ``fine``-th point), because the weighted sum of E over a ball at every coarse point of
a row is then a few hundred multiplications of contiguous numbers.  Its transpose is, at the fine points of each parity,
such a sum over coarse ones; it is wanted where 0 < E < 1 only, because elsewhere E does not change with the atoms.
"""

from __future__ import annotations

import dataclasses

import torch

import numpy as np

from ..jit import jit_in_place
from ..jobs import MaskJob
from ..scratch import scratch
from ..threads import over
from .asymmetric_unit import NEVER
from .fine_grid import Box, FineGrid
from .mask_rows import blocks_of, chords, sphere
from .mask_vectors import (
    LANES,
    SUMS,
    TOGETHER,
    attribute_blocks,
    mark_blocks,
    multiply_blocks,
    weighted_sums,
)

# Field, its split copy and the gradient.
_ARRAYS = 3
# Elements behind the last row that whole blocks may read.
_BEYOND = LANES * TOGETHER
_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Field:
    """A box, what its images are to the mask, and E."""

    box: Box
    radii: np.ndarray
    cover: np.ndarray
    width: np.floating
    gram: np.ndarray
    values: np.ndarray

    def images(self, chosen):
        """What the kernels take of a slice of the images."""
        box = self.box
        return box.positions[chosen], self.radii[chosen], self.cover[chosen], self.width, self.gram, box.extent


class SoftMask:
    """One model's mask: ``forward`` gives V at the representatives, ``backward`` its gradients."""

    def __init__(self, job: MaskJob):
        self.job, self.grid, self.dtype = job, FineGrid(job), _NUMPY[job.dtype]
        self.unit, self.fine = self.grid.unit, self.grid.fine

    def weights(self, function):
        """A function of the distance at the fine grid's steps, times the volume of a step."""
        return torch.from_numpy((function(self.grid.lengths) * self.grid.voxel).astype(self.dtype))

    def _slabs(self):
        return self.grid.slabs(self.dtype.itemsize * _ARRAYS)

    @property
    def field_size(self):
        """Numbers of E that :meth:`forward` can hand over to :meth:`backward`, 0 where they are more than the job keeps."""
        slabs = self._slabs()
        size = int(np.prod(self.grid.shape(slabs[0]))) if len(slabs) == 1 else 0
        return size if size * self.dtype.itemsize <= self.job.kept else 0

    def _field(self, planes, sites, radii, cover, width, values=None, known=False):
        box = self.grid.box(planes, sites, np.sqrt(radii * (radii + width)))
        values = scratch(int(np.prod(box.shape)), self.dtype) if values is None else values.numpy()
        field = _Field(
            box,
            radii[box.atoms].astype(self.dtype),
            cover[box.atoms].astype(self.dtype),
            self.dtype.type(width),
            box.gram.astype(self.dtype),
            values.reshape(tuple(int(n) for n in box.shape)),
        )
        if known:
            return field

        def fill(first, after):
            field.values[first:after] = 1
            images = field.images(box.near(first, after))
            _accessibility(field.values, box.windows, first, after, *images, *_rows(field.values))

        over(len(field.values), fill)
        return field

    def _split(self, field):
        m0, m1, m2 = field.shape
        flat = scratch(field.size + _BEYOND, self.dtype)
        flat[field.size :] = 0
        split = flat[: field.size].reshape(m0, m1, self.fine, m2 // self.fine)
        over(m0, lambda first, after: _split(field, split, first, after))
        return flat

    def forward(self, sites, radii, cover, width, weights, field=None):
        """Weighted sums of E around each representative, (n_orbits,) for each array of weights; E into ``field``."""
        given = field
        sites, radii, cover = (values.detach().numpy() for values in (sites, radii, cover))
        out = [scratch(len(self.unit.places), self.dtype) for _ in weights]
        unit, fine = self.unit, self.fine
        starts = np.searchsorted(unit.places[:, 0], np.arange(unit.shape[0] + 1))
        for planes in self._slabs():
            field = self._field(planes, sites, radii, cover, width, given)
            split = self._split(field.values)
            m1, m2 = field.values.shape[1:]
            order, offsets = self.grid.by_memory(field.values.shape)
            for values, array in zip(out, weights):
                ordered = array.numpy()[order]
                over(
                    planes[1] - planes[0],
                    lambda first, after: _gather(
                        split,
                        m1,
                        m2,
                        unit.windows,
                        planes[0] + first,
                        planes[0] + after,
                        fine,
                        field.box.low,
                        offsets,
                        ordered,
                        unit.places,
                        starts,
                        values,
                        np.empty(m2 + _BEYOND, dtype=self.dtype),
                    ),
                )
        return [torch.from_numpy(values) for values in out]

    def backward(self, gradient, sites, radii, cover, width, weights, sites_only=False, field=None):
        """Gradients by sites, radii, cover and width from that by V, (n_orbits,); the last three are zero if ``sites_only``."""
        sites, radii, cover, gradient = (values.detach().numpy() for values in (sites, radii, cover, gradient))
        n, given = len(radii), field
        total = [np.zeros((n, 3)), np.zeros(n), np.zeros(n), 0.0]
        for planes in self._slabs():
            field = self._field(planes, sites, radii, cover, width, given, known=given is not None)
            # E is overwritten where it is ours.
            by_field = (
                field.values if given is None else scratch(field.values.size, self.dtype).reshape(field.values.shape)
            )
            windows = self._by_field(field, by_field, planes, gradient, weights.numpy())

            def attribute(first, after):
                chosen = field.box.near(first, after)
                images, out = field.images(chosen), np.zeros((chosen.stop - chosen.start, SUMS))
                sums = np.empty(LANES * SUMS, dtype=self.dtype), np.empty(SUMS, dtype=self.dtype)
                _attribute(by_field, windows, first, after, *images, not sites_only, out, *_rows(by_field), *sums)
                return chosen, out

            parts = np.zeros((len(field.radii), SUMS))
            for chosen, part in over(len(field.values), attribute):
                parts[chosen] += part
            found = field.box.to_atoms(parts[:, :3], n, parts[:, 3], parts[:, 4])
            for i in range(3):
                total[i] += found[i]
            total[3] += float(parts[:, 5].sum())
        return *(torch.from_numpy(values) for values in total[:3]), torch.tensor(total[3], dtype=torch.float64)

    def _by_field(self, field, out, planes, gradient, weights):
        """E dT/dE where 0 < E < 1 and 0 elsewhere, into ``out``; windows of the rows that hold all of it."""
        unit, fine, box = self.unit, self.fine, field.box
        # The gradient by V on the planes, with zeros around it as far as a step from the box's edge leads.
        pad = 2 * -(-self.grid.margin // fine) + 1
        shape = unit.shape + 2 * pad
        shape[0] += planes[1] - planes[0] - unit.shape[0]
        dense = scratch(int(np.prod(shape)) + _BEYOND, self.dtype)
        dense[:] = 0
        part = slice(*np.searchsorted(unit.places[:, 0], planes))
        strides = np.array([shape[1] * shape[2], shape[2], 1])
        origin = pad - np.array([planes[0], 0, 0])
        places, values = unit.places[part], gradient[part]
        over(len(places), lambda first, after: _lay_out(places, values, first, after, origin, strides, dense))
        order, offsets, starts = self.grid.by_parity(strides)
        weights = weights[order]
        windows = np.zeros_like(box.windows)
        over(
            len(field.values),
            lambda first, after: _spread(
                field.values,
                out,
                box.windows,
                windows,
                first,
                after,
                dense,
                origin,
                strides,
                fine,
                box.low,
                offsets,
                weights,
                starts,
                np.empty((fine, out.shape[2] // fine + _BEYOND), dtype=self.dtype),
                np.empty(out.shape[2] // LANES, dtype=np.uint8),
            ),
        )
        return windows

    def to_cell(self, values, out=None):
        """Values at representatives at all points of the cell, (n1, n2, n3)."""
        return self.grid.to_cell(values, out)

    def from_cell(self, gradient):
        """Sums over each orbit, (n_orbits,)."""
        return self.grid.from_cell(gradient)


def _rows(field):
    """Room for what :func:`chords` says of the rows of a plane."""
    rows = field.shape[1]
    return (*np.empty((2, rows), dtype=np.int32), *np.empty((2, rows), dtype=field.dtype))


@jit_in_place
def _accessibility(
    field,
    windows,
    first_plane,
    after_plane,
    positions,
    radii,
    cover,
    width,
    gram,
    extent,
    first,
    after,
    constant,
    linear,
):
    """Multiply the field by 1 - cover (1 - S(t)) of every image, t = 1/2 + (d^2 - R^2) / (2 R width)."""
    m1, m2 = field.shape[1], field.shape[2]
    flat = field.reshape(-1)
    real = gram.dtype.type
    for image in range(len(positions)):
        position, radius, share = positions[image], radii[image], cover[image]
        if radius <= 0:
            continue
        low, high, j_low, j_high, scale, offset, a2 = sphere(
            position, radius, width, extent, gram, first_plane, after_plane, m1
        )
        for i in range(low, high):
            chords(
                position, radius, width, scale, offset, i, j_low, j_high, gram, windows, first, after, constant, linear
            )
            for n in range(j_high - j_low):
                if first[n] < after[n]:
                    begin = first[n] & -LANES
                    multiply_blocks(
                        flat,
                        (i * m1 + j_low + n) * m2 + begin,
                        blocks_of(after[n] - begin),
                        constant[n],
                        linear[n],
                        a2,
                        real(begin - position[2]),
                        share,
                    )


@jit_in_place
def _split(field, split, first_plane, after_plane):
    fine = split.shape[2]
    for i in range(first_plane, after_plane):
        for j in range(field.shape[1]):
            row = field[i, j]
            for parity in range(fine):
                out = split[i, j, parity]
                for k in range(len(out)):
                    out[k] = row[k * fine + parity]


@jit_in_place
def _gather(split, m1, m2, windows, first_plane, after_plane, fine, low, offsets, weights, places, starts, out, acc):
    for i in range(first_plane, after_plane):
        number = starts[i]
        for j in range(windows.shape[1]):
            begin, end = windows[i, j]
            if begin >= end:
                continue
            index = ((i * fine - low[0]) * m1 + j * fine - low[1]) * m2 + begin - low[2] // fine
            weighted_sums(acc, split, index, blocks_of(end - begin), offsets, weights, 0, len(offsets))
            while number < starts[i + 1] and places[number, 1] == j:
                out[number] = acc[places[number, 2] - begin]
                number += 1


@jit_in_place
def _lay_out(places, values, first, after, origin, strides, out):
    for n in range(first, after):
        at = 0
        for a in range(3):
            at += (places[n, a] + origin[a]) * strides[a]
        out[at] = values[n]


@jit_in_place
def _any(marks, first, n):
    found = 0
    for k in range(first, first + n):
        found |= marks[k]
    return found != 0


@jit_in_place
def _weigh(given, row, total, fine):
    """Points with 0 < E < 1 times total[parity, k], others 0."""
    zero, one = row.dtype.type(0), row.dtype.type(1)
    if fine == 2:
        # The numbers are written out for the compiler to see.
        even, odd = total[0], total[1]
        for k in range(len(row) // 2):
            x, y = given[2 * k], given[2 * k + 1]
            row[2 * k] = x * even[k] if (x > zero) & (x < one) else zero
            row[2 * k + 1] = y * odd[k] if (y > zero) & (y < one) else zero
        return
    for k in range(len(row) // fine):
        for parity in range(fine):
            e = given[k * fine + parity]
            row[k * fine + parity] = e * total[parity, k] if (e > zero) & (e < one) else zero


@jit_in_place
def _spread(
    field, out, windows, active, first_plane, after_plane, dense, origin, strides, fine, low, offsets, weights, starts,
    total, marks,
):  # fmt: skip
    """E dT/dE at each fine point where 0 < E < 1, else 0, from dT/dV at the coarse points; ``out`` may be the field.

    ``active``: windows of the rows that hold all of it.
    """
    m2 = field.shape[2]
    flat = field.reshape(-1)
    for a in range(first_plane, after_plane):
        u = a + low[0]
        for b in range(field.shape[1]):
            row, given = out[a, b], field[a, b]
            w0, w1 = windows[0, a, b], windows[1, a, b]
            if w0 >= w1:
                continue
            mark_blocks(flat, (a * field.shape[1] + b) * m2, len(marks), marks)
            # E is complete within the window only.
            marks[: w0 // LANES] = 0
            marks[(w1 + LANES - 1) // LANES :] = 0
            active[0, a, b], active[1, a, b] = NEVER, 0
            v = b + low[1]
            index = (
                (u // fine + origin[0]) * strides[0] + (v // fine + origin[1]) * strides[1] + low[2] // fine + origin[2]
            )
            group = ((u % fine) * fine + v % fine) * fine
            block = 0
            while block < len(marks):
                if not _any(marks, block, fine):
                    row[block * LANES : (block + fine) * LANES] = 0
                    block += fine
                    continue
                begin = block
                while block < len(marks) and _any(marks, block, fine):
                    block += fine
                active[0, a, b] = min(active[0, a, b], begin * LANES)
                active[1, a, b] = block * LANES
                n = (block - begin) // fine
                for parity in range(fine):
                    weighted_sums(
                        total[parity],
                        dense,
                        index + begin // fine * LANES,
                        n,
                        offsets,
                        weights,
                        starts[group + parity],
                        starts[group + parity + 1],
                    )
                _weigh(given[begin * LANES : block * LANES], row[begin * LANES : block * LANES], total, fine)
            if active[0, a, b] < w0:
                row[active[0, a, b] : w0] = 0
            if active[1, a, b] > w1:
                row[w1 : active[1, a, b]] = 0


@jit_in_place
def _attribute(
    by_field, windows, first_plane, after_plane, positions, radii, cover, width, gram, extent, all_sums, out,
    first, after, constant, linear, lanes, sums,
):  # fmt: skip
    """Gradients of each image: 3 by position (covariant, grid steps), and with ``all_sums`` by radius, cover, width."""
    m1, m2 = by_field.shape[1], by_field.shape[2]
    flat = by_field.reshape(-1)
    real = gram.dtype.type
    half = real(0.5)
    for image in range(len(positions)):
        position, radius, share = positions[image], radii[image], cover[image]
        if radius <= 0:
            continue
        low, high, j_low, j_high, scale, offset, a2 = sphere(
            position, radius, width, extent, gram, first_plane, after_plane, m1
        )
        lanes[:] = 0
        for i in range(low, high):
            d0 = real(i - position[0])
            chords(
                position, radius, width, scale, offset, i, j_low, j_high, gram, windows, first, after, constant, linear
            )
            for n in range(j_high - j_low):
                if first[n] < after[n]:
                    begin = first[n] & -LANES
                    attribute_blocks(
                        flat,
                        (i * m1 + j_low + n) * m2 + begin,
                        blocks_of(after[n] - begin),
                        constant[n],
                        linear[n],
                        a2,
                        real(begin - position[2]),
                        share,
                        d0,
                        real(j_low + n - position[1]),
                        all_sums,
                        lanes,
                    )
        for k in range(SUMS):
            sums[k] = lanes[LANES * k : LANES * (k + 1)].sum()
        s0, s1, s2, total, total_t, total_left = sums
        slope = real(6) * share
        along = (scale + scale) * slope
        out[image, 0] -= along * (gram[0] * s0 + half * gram[3] * s1 + gram[4] * s2)
        out[image, 1] -= along * (half * gram[3] * s0 + gram[1] * s1 + gram[5] * s2)
        out[image, 2] -= along * (gram[4] * s0 + gram[5] * s1 + gram[2] * s2)
        out[image, 3] -= slope * (total_t / radius + total / width)
        out[image, 4] -= total_left
        out[image, 5] -= slope * total_t / width
