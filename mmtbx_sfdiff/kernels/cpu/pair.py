"""A pair of Gaussians of one atom on the grid: its box, and tables of its factors along the axes and between them.

What :mod:`~mmtbx_sfdiff.kernels.cpu.splat` and :mod:`~mmtbx_sfdiff.kernels.cpu.gather` do alike before and between their
sums over grid points.  ``work`` holds, for each of the two, at 12 k what :func:`~.gaussian.gaussian` and
:func:`~.gaussian.outline` say of it, and at 24 + k its cut, which is 0 for a term that is left out.
"""

from __future__ import annotations

import math

from ..jit import jit_in_place
from .density_vectors import multiply, store_gaussian, store_plane

# Exponents that separate tables can hold, in single and in double precision.
LARGEST_EXPONENT = 80.0, 600.0
# Moments of one block of eight points: six a term.
MOMENTS = 6 * 2 * 8


def scratch_size(box):
    """Elements of scratch for boxes of at most ``box`` points along each axis (multiples of eight)."""
    nx, ny, nz = box
    return 2 * nx + 8 * ny + 7 * nz + 2 * ny * nz + (nz // 8 + 1) * MOMENTS + 64


@jit_in_place
def layout(box):
    """Where tables are in the scratch, two terms each, but for the ones and the moments of all blocks.

    Along x; y; y for one plane; y and what it is multiplied by from plane to plane; z; z for one plane; the same for z;
    ones; y and z.
    """
    bx, by, bz = box
    y = 2 * bx
    y_plane = y + 2 * by
    xy = y_plane + 2 * by
    z = xy + 4 * by
    z_plane = z + 2 * bz
    ones = z_plane + 4 * bz
    yz = ones + bz
    return 0, y, y_plane, xy, xy + 2 * by, z, z_plane, z_plane + 2 * bz, ones, yz, yz + 2 * by * bz


@jit_in_place
def place_pair(work, site, box, limit):
    """The box of the pair: (state, wide, shape, i0, i1, j0, k0, n_x, n_y, n_z, n_rows).

    state: 1 to go on, 0 where there is nothing to do, -1 for a pair that is wider than ``box``.  The box's planes are
    i0..i1; its rows and columns are blocks of eight, n_y and n_z of them from j0 and k0; n_rows of the rows are used.
    ``wide`` is the term with the outline of both, where they are isotropic.  For shape see :func:`shape`.
    """
    if work[24] <= 0 and work[25] <= 0:
        return 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    # A term that is left out borrows the other one's shape, with amplitude zero.
    for k in range(2):
        if work[24 + k] <= 0:
            for i in range(12):
                work[12 * k + i] = work[12 * (1 - k) + i]
            work[24 + k] = work[25 - k]
    # Isotropic Gaussians are concentric and of one shape: the wider one has the outline of both.
    wide = 0 if work[9] >= work[21] else 1
    hx, hy, hz = max(work[9], work[21]), max(work[10], work[22]), max(work[11], work[23])
    # Also what is not a number is no longer one here.
    if not (hx < box[0] and hy < box[1] and hz < box[2]):
        return -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    sx, sy, sz = site
    i0, i1 = int(math.ceil(sx - hx)), int(math.floor(sx + hx))
    j0, j1 = int(math.ceil(sy - hy)), int(math.floor(sy + hy))
    k0, k1 = int(math.ceil(sz - hz)), int(math.floor(sz + hz))
    n_x, n_y, n_z = (i1 - i0 + 8) // 8, (j1 - j0 + 8) // 8, (k1 - k0 + 8) // 8
    if n_x < 1 or n_y < 1 or n_z < 1:
        return 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    if 8 * n_x > box[0] or 8 * n_y > box[1] or 8 * n_z > box[2]:
        return -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    # What the blocks of eight have to spare goes to both ends.
    j0 -= (8 * n_y - (j1 - j0 + 1)) // 2
    k0 -= (8 * n_z - (k1 - k0 + 1)) // 2
    return 1, wide, shape(work, hx, hy, hz, limit), i0, i1, j0, k0, n_x, n_y, n_z, j1 - j0 + 1


@jit_in_place
def crossed(work, shape):
    """Whether factors along x and y do not separate, or along z and another axis."""
    return work[3] != 0 or work[15] != 0 or shape > 0


@jit_in_place
def fill_tables(work, scratch, places, box, shape, blocks, n_rows, corner):
    """The tables of a pair, for a box of ``blocks`` blocks of eight points from ``corner``, seen from the atom."""
    one, zero = scratch.dtype.type(1), scratch.dtype.type(0)
    bx, by, bz = box
    n_x, n_y, n_z = blocks
    u, v, w = corner
    for k in range(2):
        o = 12 * k
        if shape < 2:
            store_gaussian(scratch, places[0] + k * bx, n_x, zero, zero, one * work[o], one * u)
            store_gaussian(scratch, places[1] + k * by, n_y, zero, zero, one * work[o + 1], one * v)
        if shape == 0:
            store_gaussian(scratch, places[5] + k * bz, n_z, zero, zero, one * work[o + 2], one * w)
        elif shape == 1:
            store_plane(
                scratch,
                places[9] + k * by * bz,
                n_z,
                n_rows,
                bz,
                one * (2 * work[o + 5]),
                one * work[o + 2],
                one * v,
                one * w,
            )
    if shape < 2 and crossed(work, shape):
        oblique_tables(work, scratch, shape, (places[3], places[4], places[6], places[7]), box, n_y, n_z, u, v, w)


@jit_in_place
def rows_of_plane(work, wide, aniso, u, sy, j0, n_y):
    """(first, number) of the rows of the plane at u that the pair reaches."""
    low0, high0 = row_range(work, wide, work[24 + wide], u)
    low1, high1 = low0, high0
    if aniso:
        low1, high1 = row_range(work, 1 - wide, work[25 - wide], u)
    first = max(int(math.ceil(sy + min(low0, low1))) - j0, 0)
    last = min(int(math.floor(sy + max(high0, high1))) - j0, 8 * n_y - 1)
    return first, last - first + 1


@jit_in_place
def fill_row(work, scratch, place, bz, n_z, u, v, w):
    """For shape 2: both terms along the row at (u, v)."""
    one = scratch.dtype.type(1)
    for k in range(2):
        o = 12 * k
        store_gaussian(
            scratch,
            place + k * bz,
            n_z,
            one * (work[o] * u * u + work[o + 1] * v * v + 2 * work[o + 3] * u * v),
            one * (2 * (work[o + 4] * u + work[o + 5] * v)),
            one * work[o + 2],
            one * w,
        )


@jit_in_place
def row_range(work, k, cut, u):
    rem = cut - work[12 * k + 6] * u * u
    if rem <= 0:
        return 1e30, -1e30
    s11 = work[12 * k + 7]
    centre, half = -work[12 * k + 8] * u / s11, math.sqrt(rem / s11)
    return centre - half, centre + half


@jit_in_place
def wrap(i, n):
    """i modulo n, where i is seldom outside the first period."""
    if 0 <= i < n:
        return i
    return i % n


@jit_in_place
def shape(work, hx, hy, hz, limit):
    """0: the contiguous axis separates; 1: two-axis tables; 2: an exponential a point.

    hx, hy, hz is half the box; limit the largest exponent that the tables can hold.
    """
    shape = 0
    for k in range(2):
        o = 12 * k
        steep = 2 * (abs(work[o + 4]) * (hx + 1) + abs(work[o + 5]) * (hy + 5)) * (hz + 5)
        if steep > 1e-9:
            shape = max(shape, 1)
        if max(steep, 2 * abs(work[o + 3]) * (hx + 1) * (hy + 5)) > limit:
            shape = 2
    return shape


@jit_in_place
def oblique_tables(work, scratch, shape, tables, box, n_y, n_z, u, v0, w0):
    """What makes tables for the plane at u out of those for one axis each: factors of (x, y) and of (x, z),
    and what they are multiplied by from plane to plane.

    tables: (running xy, ratio of xy, running xz, ratio of xz), two terms each.
    """
    one, zero = scratch.dtype.type(1), scratch.dtype.type(0)
    _, by, bz = box
    for k in range(2):
        cross = 2 * work[12 * k + 3]
        store_gaussian(scratch, tables[0] + k * by, n_y, zero, one * (cross * u), zero, one * v0)
        store_gaussian(scratch, tables[1] + k * by, n_y, zero, one * cross, zero, one * v0)
        if shape == 1:
            cross = 2 * work[12 * k + 4]
            store_gaussian(scratch, tables[2] + k * bz, n_z, zero, one * (cross * u), zero, one * w0)
            store_gaussian(scratch, tables[3] + k * bz, n_z, zero, one * cross, zero, one * w0)


@jit_in_place
def next_plane(scratch, shape, tables, box, n_y, n_z):
    """From the tables of one plane to those of the next."""
    _, by, bz = box
    for k in range(2):
        multiply(scratch, tables[0] + k * by, tables[0] + k * by, tables[1] + k * by, n_y)
        if shape == 1:
            multiply(scratch, tables[2] + k * bz, tables[2] + k * bz, tables[3] + k * bz, n_z)
