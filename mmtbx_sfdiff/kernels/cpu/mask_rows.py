"""The rows of a grid that a sphere meets, and where it meets them."""

from __future__ import annotations

import numpy as np

from ..jit import jit_in_place
from .mask_vectors import LANES

_SHIFT = LANES.bit_length() - 1


@jit_in_place
def blocks_of(n):
    """Blocks of LANES points that hold n."""
    return (n + LANES - 1) >> _SHIFT


@jit_in_place
def sphere(position, radius, width, extent, gram, first_plane, after_plane, m1):
    """The planes and rows that a sphere of influence may touch, and t = offset + scale d^2, as (..., gram[2] scale)."""
    real = gram.dtype.type
    half = real(0.5)
    reach = np.sqrt(radius * (radius + width))
    low = max(first_plane, int(np.ceil(position[0] - reach * extent[0])))
    high = min(after_plane, int(np.floor(position[0] + reach * extent[0])) + 1)
    j_low = max(0, int(np.ceil(position[1] - reach * extent[1])))
    j_high = min(m1, int(np.floor(position[1] + reach * extent[1])) + 1)
    scale = half / (radius * width)
    return low, high, j_low, j_high, scale, half - half * radius / width, gram[2] * scale


@jit_in_place
def chords(position, radius, width, scale, offset, plane, j_low, j_high, gram, windows, first, after, constant, linear):
    """For the rows of a plane, the points [first, after) within the sphere and the row's window, and t as
    constant + linear d + gram[2] scale d^2 along the row; d in steps from the centre.
    """
    real, integer = gram.dtype.type, np.int32
    # A conversion cuts off towards zero, where floor would be a call: up from below zero, so that it is cut from above.
    up, down = real(4096), integer(4095)
    outer_sq = radius * (radius + width)
    per_c = real(1) / gram[2]
    cell = integer(np.floor(position[2]))
    origin = real(position[2] - np.floor(position[2])) + up
    d0, start = real(plane - position[0]), real(j_low - position[1])
    begins, ends = windows[0, plane, j_low:j_high], windows[1, plane, j_low:j_high]
    for n in range(j_high - j_low):
        d1 = start + real(n)
        along = gram[4] * d0 + gram[5] * d1
        square = (gram[0] * d0 + gram[3] * d1) * d0 + gram[1] * d1 * d1
        shift = along * per_c
        left = (outer_sq - (square - along * shift)) * per_c
        # A sphere that is not reached ends before it begins.
        length = np.sqrt(max(left, real(0))) if left > real(0) else real(-1)
        first[n] = max(begins[n], cell + integer(origin - shift - length) - down)
        after[n] = min(ends[n], cell + integer(origin - shift + length) - down)
        constant[n] = square * scale + offset
        linear[n] = (scale + scale) * along
