"""What ``density_vectors`` and ``mask_vectors`` do, as plain loops for numba: the other side of :mod:`.ablation`.

Names, arguments and results (to rounding) are theirs.  The loops are written so that a compiler has a chance to make
vectors of them: unsigned offsets, which need no look for negative ones; sums in any order; scalars in registers; and the
same polynomial for exp, because a call of the C library's would end every attempt.
"""

from __future__ import annotations

import math

from mmtbx_sfdiff.kernels.jit import _policy

import numpy as np
from numba.core import types
from numba.extending import overload

_plain = _policy({"contract", "nsz", "arcp", "reassoc"}, _nrt=False)
DENSITY = (
    "add_moments",
    "add_moments_oblique",
    "add_rows",
    "add_rows_oblique",
    "finish_moments",
    "multiply",
    "store_gaussian",
    "store_plane",
)
MASK = ("attribute_blocks", "mark_blocks", "multiply_blocks", "weighted_sums")
_DENSITY_LANES, _MASK_LANES = 8, 16
_u = np.uint64


def _exp_of_negative(x):
    raise NotImplementedError("called from compiled code only")


def _constants(real, mantissa, degree):
    """The turns in x, the number that rounds, and the polynomial's coefficients."""
    terms = tuple(real(math.log(2) ** k / math.factorial(k)) for k in range(degree, -1, -1))
    return real(1 / math.log(2)), real(1.5 * 2.0**mantissa), terms


_SCALE_SINGLE, _MAGIC_SINGLE, _TERMS_SINGLE = _constants(np.float32, 23, 7)
_SCALE_DOUBLE, _MAGIC_DOUBLE, _TERMS_DOUBLE = _constants(np.float64, 52, 12)
_LOW_SINGLE, _LOW_DOUBLE = np.float32(-87), np.float64(-700)


def _single(x):
    turns = (x if x > _LOW_SINGLE else _LOW_SINGLE) * _SCALE_SINGLE
    shifted = turns + _MAGIC_SINGLE
    fraction = turns - (shifted - _MAGIC_SINGLE)
    value = _TERMS_SINGLE[0]
    for k in range(1, 8):
        value = value * fraction + _TERMS_SINGLE[k]
    exponent = np.float32(shifted).view(np.int32) << np.int32(23)
    return np.int32(np.float32(value).view(np.int32) + exponent).view(np.float32)


def _double(x):
    turns = (x if x > _LOW_DOUBLE else _LOW_DOUBLE) * _SCALE_DOUBLE
    shifted = turns + _MAGIC_DOUBLE
    fraction = turns - (shifted - _MAGIC_DOUBLE)
    value = _TERMS_DOUBLE[0]
    for k in range(1, 13):
        value = value * fraction + _TERMS_DOUBLE[k]
    exponent = np.float64(shifted).view(np.int64) << np.int64(52)
    return np.int64(np.float64(value).view(np.int64) + exponent).view(np.float64)


# Sums in any order would cancel the number that rounds.
@overload(_exp_of_negative, jit_options={"fastmath": {"contract", "nsz"}, "error_model": "numpy"})
def _(x):
    return _single if x == types.float32 else _double


@_plain
def store_gaussian(table, offset, n_blocks, a, b, c, first):
    real, at = table.dtype.type, _u(offset)
    a, b, c, first = real(a), real(b), real(c), real(first)
    for i in range(_DENSITY_LANES * n_blocks):
        t = real(i) + first
        table[at + _u(i)] = _exp_of_negative(-(a + t * (b + t * c)))


@_plain
def multiply(table, offset, x, y, n_blocks):
    at, x, y = _u(offset), _u(x), _u(y)
    for i in range(_DENSITY_LANES * n_blocks):
        table[at + _u(i)] = table[x + _u(i)] * table[y + _u(i)]


@_plain
def store_plane(table, offset, n_blocks, n_rows, width, b, c, first_row, first):
    real, at = table.dtype.type, _u(offset)
    b, c, first_row, first = real(b), real(c), real(first_row), real(first)
    for block in range(n_blocks):
        for lane in range(_DENSITY_LANES):
            i = _DENSITY_LANES * block + lane
            t = real(i) + first
            value = _exp_of_negative(-b * t * first_row)
            ratio, along = _exp_of_negative(-b * t), _exp_of_negative(-c * t * t)
            for j in range(n_rows):
                table[at + _u(j * width + i)] = value * along
                value *= ratio


@_plain
def add_rows(grid, start, stride, n_rows, table, x1, x2, y1, y2, z1, z2):
    real = grid.dtype.type
    x1, x2, z1, z2 = real(x1), real(x2), _u(z1), _u(z2)
    for j in range(n_rows):
        at = _u(start + j * stride)
        first, second = x1 * table[_u(y1 + j)], x2 * table[_u(y2 + j)]
        for lane in range(_DENSITY_LANES):
            grid[at + _u(lane)] += first * table[z1 + _u(lane)] + second * table[z2 + _u(lane)]


@_plain
def add_rows_oblique(grid, start, stride, n_rows, table, x1, x2, y1, y2, z1, z2, yz1, yz2, width):
    real = grid.dtype.type
    x1, x2, z1, z2 = real(x1), real(x2), _u(z1), _u(z2)
    for j in range(n_rows):
        at, row1, row2 = _u(start + j * stride), _u(yz1 + j * width), _u(yz2 + j * width)
        first, second = x1 * table[_u(y1 + j)], x2 * table[_u(y2 + j)]
        for lane in range(_DENSITY_LANES):
            i = _u(lane)
            grid[at + i] += first * table[z1 + i] * table[row1 + i] + second * table[z2 + i] * table[row2 + i]


@_plain
def _store_moments(table, out, u, zero, one, two):
    first = zero * u
    table[out] += zero
    table[out + _u(_DENSITY_LANES)] += first
    table[out + _u(2 * _DENSITY_LANES)] += first * u
    table[out + _u(3 * _DENSITY_LANES)] += one
    table[out + _u(4 * _DENSITY_LANES)] += one * u
    table[out + _u(5 * _DENSITY_LANES)] += two


@_plain
def add_moments(grid, start, stride, n_rows, table, y1, y2, first_y, x1, x2, u, out):
    real = grid.dtype.type
    first_y, x1, x2, u = real(first_y), real(x1), real(x2), real(u)
    for lane in range(_DENSITY_LANES):
        a0 = a1 = a2 = b0 = b1 = b2 = real(0)
        for j in range(n_rows):
            value, y = grid[_u(start + j * stride + lane)], first_y + real(j)
            a, b = value * table[_u(y1 + j)], value * table[_u(y2 + j)]
            a0 += a
            a1 += a * y
            a2 += a * y * y
            b0 += b
            b1 += b * y
            b2 += b * y * y
        _store_moments(table, _u(out + lane), u, x1 * a0, x1 * a1, x1 * a2)
        _store_moments(table, _u(out + 6 * _DENSITY_LANES + lane), u, x2 * b0, x2 * b1, x2 * b2)


@_plain
def add_moments_oblique(grid, start, stride, n_rows, table, y1, y2, first_y, yz1, yz2, width, z1, z2, x1, x2, u, out):
    real = grid.dtype.type
    first_y, x1, x2, u = real(first_y), real(x1), real(x2), real(u)
    for lane in range(_DENSITY_LANES):
        a0 = a1 = a2 = b0 = b1 = b2 = real(0)
        for j in range(n_rows):
            value, y = grid[_u(start + j * stride + lane)], first_y + real(j)
            a = value * table[_u(y1 + j)] * table[_u(yz1 + j * width + lane)]
            b = value * table[_u(y2 + j)] * table[_u(yz2 + j * width + lane)]
            a0 += a
            a1 += a * y
            a2 += a * y * y
            b0 += b
            b1 += b * y
            b2 += b * y * y
        first, second = x1 * table[_u(z1 + lane)], x2 * table[_u(z2 + lane)]
        _store_moments(table, _u(out + lane), u, first * a0, first * a1, first * a2)
        _store_moments(table, _u(out + 6 * _DENSITY_LANES + lane), u, second * b0, second * b1, second * b2)


@_plain
def finish_moments(table, moments, block_size, n_blocks, z, z_size, first):
    real = table.dtype.type
    first = real(first)
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = s9 = real(0)
    for block in range(n_blocks):
        at, weights = _u(moments + block_size * block), _u(z + z_size * block)
        for lane in range(_DENSITY_LANES):
            i = at + _u(lane)
            weight, t = table[weights + _u(lane)], real(_DENSITY_LANES * block + lane) + first
            m0 = weight * table[i]
            mx = weight * table[i + _u(_DENSITY_LANES)]
            my = weight * table[i + _u(3 * _DENSITY_LANES)]
            mz = m0 * t
            s0 += m0
            s1 += mx
            s2 += my
            s3 += mz
            s4 += weight * table[i + _u(2 * _DENSITY_LANES)]
            s5 += weight * table[i + _u(5 * _DENSITY_LANES)]
            s6 += mz * t
            s7 += weight * table[i + _u(4 * _DENSITY_LANES)]
            s8 += mx * t
            s9 += my * t
    return s0, s1, s2, s3, s4, s5, s6, s7, s8, s9


@_plain
def _step(d, a0, a1, a2):
    """t and S at d."""
    real = type(d)
    t = a0 + d * (a1 + d * a2)
    t = t if t < real(1) else real(1)
    t = t if t > real(0) else real(0)
    return t, t * t * (real(3) - real(2) * t)


@_plain
def multiply_blocks(field, index, n_blocks, a0, a1, a2, start, share):
    real, at = field.dtype.type, _u(index)
    a0, a1, a2, start, share = real(a0), real(a1), real(a2), real(start), real(share)
    kept = real(1) - share
    for i in range(_MASK_LANES * n_blocks):
        field[at + _u(i)] *= kept + share * _step(real(i) + start, a0, a1, a2)[1]


@_plain
def attribute_blocks(field, index, n_blocks, a0, a1, a2, start, share, d0, d1, all_sums, sums):
    real, at = field.dtype.type, _u(index)
    a0, a1, a2, start, share = real(a0), real(a1), real(a2), real(start), real(share)
    d0, d1, kept, least = real(d0), real(d1), real(1) - share, real(2.0**-60)
    total = along = centred = left = real(0)
    for i in range(_MASK_LANES * n_blocks):
        d = real(i) + start
        t, s = _step(d, a0, a1, a2)
        factor = kept + share * s
        # Where the factor is zero so is the field.
        usable = factor > least
        value = field[at + _u(i)] / (factor if usable else real(1))
        value = value if usable else real(0)
        slope = value * t * (real(1) - t)
        total += slope
        along += slope * d
        centred += slope * (t - real(0.5))
        left += value * (real(1) - s)
    # One lane of each sum is enough.
    sums[0] += total * d0
    sums[_MASK_LANES] += total * d1
    sums[2 * _MASK_LANES] += along
    if all_sums:
        sums[3 * _MASK_LANES] += total
        sums[4 * _MASK_LANES] += centred
        sums[5 * _MASK_LANES] += left


@_plain
def mark_blocks(field, index, n_blocks, marks):
    real, at = field.dtype.type, _u(index)
    for n in range(n_blocks):
        found = False
        for i in range(_MASK_LANES):
            value = field[at + _u(_MASK_LANES * n + i)]
            found |= (value > real(0)) & (value < real(1))
        marks[n] = found


@_plain
def weighted_sums(out, data, index, n_blocks, offsets, weights, first, after):
    n = _MASK_LANES * n_blocks
    for i in range(n):
        out[_u(i)] = 0
    for s in range(first, after):
        weight, at = weights[_u(s)], _u(index + offsets[_u(s)])
        for i in range(n):
            out[_u(i)] += weight * data[at + _u(i)]
