"""Between planes of a grid and reflections, compiled for the CPU.

Of a transform only the columns (q, s) that hold a reflection are kept, each with its points along the first
axis one after another; they are the rows of a ``(n_columns, n_x)`` array.
"""
from __future__ import annotations

import numpy as np

from .gaussian_cpu import jit


@jit
def fold(slab, nz):
    """Add the points beyond nz of each row of (planes, n_y, more than nz) to those they are images of."""
    for i in range(slab.shape[0]):
        for j in range(slab.shape[1]):
            for k in range(nz, slab.shape[2]):
                slab[i, j, k % nz] += slab[i, j, k]


@jit
def unfold(slab, nz):
    """Repeat the points of each row beyond nz."""
    for i in range(slab.shape[0]):
        for j in range(slab.shape[1]):
            for k in range(nz, slab.shape[2]):
                slab[i, j, k] = slab[i, j, k - nz]


@jit
def pack(planes, columns, first_plane, packed):
    """packed[c, first_plane + i] = planes[i, columns[c]]."""
    for start in range(0, planes.shape[0], 8):
        stop = min(start + 8, planes.shape[0])
        for c in range(columns.shape[0]):
            for i in range(start, stop):
                packed[c, first_plane + i] = planes[i, columns[c]]


@jit
def unpack(packed, columns, first_plane, planes):
    """planes[i, columns[c]] = packed[c, first_plane + i]."""
    for start in range(0, planes.shape[0], 8):
        stop = min(start + 8, planes.shape[0])
        for c in range(columns.shape[0]):
            for i in range(start, stop):
                planes[i, columns[c]] = packed[c, first_plane + i]


@jit
def read_reflections(transform, rows, conjugate, phase, factor, first, last, result):
    """result[h] = factor[h] sum_G phase[G, h] (transform or its conjugate)[rows[G, h]] for h in [first,
    last)."""
    for h in range(first, last):
        total = transform.dtype.type(0)
        for g in range(rows.shape[0]):
            value = transform[rows[g, h]]
            if conjugate[g, h]:
                value = np.conj(value)
            total += phase[g, h] * value
        result[h] = total * factor[h]


@jit
def write_reflections(transform, targets, kinds, starts, sources, phase, factor, grad, first, last):
    """The transpose of :func:`read_reflections`: targets[first:last] of a half spectrum whose real transform
    is dT/d(grid).

    Of target e, sources[starts[e]:starts[e + 1]] are 2 (G n + h) + 1 where the conjugate is read; kinds[e] is
    1 for a Friedel mate, 2 for its own mate.
    """
    n = factor.shape[0]
    half = transform.real.dtype.type(0.5)
    for e in range(first, last):
        total = transform.dtype.type(0)
        for i in range(starts[e], starts[e + 1]):
            source = sources[i] // 2
            g, h = source // n, source % n
            value = grad[h] * factor[h]
            if sources[i] % 2:
                total += np.conj(value) * phase[g, h]
            else:
                total += value * np.conj(phase[g, h])
        if kinds[e] == 2:
            total = total.real + 0 * total
        else:
            total = total * half
            if kinds[e] == 1:
                total = np.conj(total)
        transform[targets[e]] = total
