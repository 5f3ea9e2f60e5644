"""Reflections out of a transform and back into a spectrum, compiled for the CPU."""
from __future__ import annotations

import numpy as np

from .gaussian_cpu import jit


@jit
def read_reflections(transform, rows, conjugate, phase, factor, first, last, result):
    """result[h] = factor[h] sum_G phase[G, h] (transform or its conjugate)[rows[G, h]] for h in [first,
    last)."""
    for h in range(first, last):
        result[h] = 0
    for g in range(rows.shape[0]):
        for h in range(first, last):
            value = transform[rows[g, h]]
            if conjugate[g, h]:
                value = np.conj(value)
            result[h] += phase[g, h] * value
    for h in range(first, last):
        result[h] *= factor[h]


@jit
def write_reflections(
    transform,
    targets,
    mirror,
    starts,
    sources,
    conjugate,
    phase,
    factor,
    grad,
    first,
     last):
    """The transpose of :func:`read_reflections`, as a half-complex spectrum whose real transform is
    dT/d(grid).

    targets[first:last] of the spectrum are written; mirror is the Friedel mate within the half, or -1.
    """
    n = factor.shape[0]
    for u in range(first, last):
        total = transform.dtype.type(0)
        for i in range(starts[u], starts[u + 1]):
            g, h = sources[i] // n, sources[i] % n
            value = grad[h] * factor[h]
            if conjugate[g, h]:
                total += np.conj(value) * phase[g, h]
            else:
                total += value * np.conj(phase[g, h])
        total = total * transform.real.dtype.type(0.5)
        if mirror[u] == targets[u]:
            transform[targets[u]] = 2 * total.real
        else:
            transform[targets[u]] = total
            if mirror[u] >= 0:
                transform[mirror[u]] = np.conj(total)
