"""Between planes of a grid and reflections, compiled for the CPU.

Of a transform only the columns (q, s) that hold a reflection are kept, each with its points along the first
axis one after another; they are the rows of a ``(n_columns, n_x)`` array.
"""

from __future__ import annotations

from ..jit import jit_in_place


@jit_in_place
def merge(slab, first_plane, used, n_planes, first, planes):
    """Add what a slab has of the planes first, first + 1, ... of a grid of n_planes.

    The slab's planes used[0]:used[1] are first_plane + ... of the grid, modulo n_planes; the points of each
    row beyond n_z are added to those they are images of.
    """
    nz = planes.shape[2]
    for i in range(planes.shape[0]):
        at = (first + i - first_plane) % n_planes
        if not used[0] <= at < used[1]:
            continue
        for j in range(planes.shape[1]):
            row, to = slab[at, j], planes[i, j]
            for k in range(nz):
                to[k] += row[k]
            for start in range(nz, row.shape[0], nz):
                for k in range(min(nz, row.shape[0] - start)):
                    to[k] += row[start + k]


@jit_in_place
def unfold(slab, nz):
    """Repeat the points of each row beyond nz."""
    for i in range(slab.shape[0]):
        for j in range(slab.shape[1]):
            row = slab[i, j]
            for start in range(nz, row.shape[0], nz):
                for k in range(min(nz, row.shape[0] - start)):
                    row[start + k] = row[k]


@jit_in_place
def pack(planes, columns, first_plane, packed):
    """packed[c, first_plane + i] = planes[i, columns[c]]."""
    for start in range(0, planes.shape[0], 8):
        stop = min(start + 8, planes.shape[0])
        for c in range(columns.shape[0]):
            for i in range(start, stop):
                packed[c, first_plane + i] = planes[i, columns[c]]


@jit_in_place
def unpack(packed, columns, first_plane, planes):
    """planes[i, columns[c]] = packed[c, first_plane + i]."""
    for start in range(0, planes.shape[0], 8):
        stop = min(start + 8, planes.shape[0])
        for c in range(columns.shape[0]):
            for i in range(start, stop):
                planes[i, columns[c]] = packed[c, first_plane + i]


@jit_in_place
def turn_back(half, spectrum):
    """spectrum[i, q, s] = half[i, s, q] for those s that half has, and zero for the others."""
    n_s = half.shape[1]
    for i in range(half.shape[0]):
        for start in range(0, half.shape[2], 8):
            stop = min(start + 8, half.shape[2])
            for q in range(start, stop):
                for s in range(n_s, spectrum.shape[2]):
                    spectrum[i, q, s] = 0
            for s in range(n_s):
                for q in range(start, stop):
                    spectrum[i, q, s] = half[i, s, q]


@jit_in_place
def read_reflections(transform, rows, conjugate, phase, factor, first, last, result):
    """result[h] = factor[h] sum_G phase[G, h] (transform or its conjugate)[rows[G, h]] for h in [first,
    last)."""
    for h in range(first, last):
        total = transform.dtype.type(0)
        for g in range(rows.shape[0]):
            value = transform[rows[g, h]]
            if conjugate[g, h]:
                value = value.conjugate()
            total += phase[g, h] * value
        result[h] = total * factor[h]


@jit_in_place
def write_reflections(transform, targets, kinds, starts, readers, reflections, phase, factor, grad, first, last):
    """The transpose of :func:`read_reflections`: targets[first:last] of a half spectrum whose real transform
    is dT/d(grid).

    Target e is read by phase[readers[e']] of reflections[e'], starts[e] <= e' < starts[e + 1]; where the
    conjugate is read, the reader is -1 - readers[e'].  kinds[e] is 1 for a Friedel mate, 2 for its own mate.
    """
    half = transform.real.dtype.type(0.5)
    for e in range(first, last):
        total = transform.dtype.type(0)
        for i in range(starts[e], starts[e + 1]):
            h = reflections[i]
            value = grad[h] * factor[h]
            if readers[i] < 0:
                total += value.conjugate() * phase[-1 - readers[i]]
            else:
                total += value * phase[readers[i]].conjugate()
        if kinds[e] == 2:
            total = transform.dtype.type(total.real)
        else:
            total = total * half
            if kinds[e] == 1:
                total = total.conjugate()
        transform[targets[e]] = total
