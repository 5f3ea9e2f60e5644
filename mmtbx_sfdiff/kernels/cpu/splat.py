"""Gaussians on a grid and off it again, compiled for the CPU.

``splat`` adds, for every atom of the asymmetric unit,

    rho(r) = sum_k w alpha_k pi^(3/2) det(M_k)^(-1/2) exp(-pi^2 r M_k^-1 r),
    M_k = 2 pi^2 U* + e_k G* / s_max^2

(r fractional, G* the reciprocal metric, e_k = (b_k / 4) s_max^2 - sharpening) within the ellipsoid in which
the exponent stays below a cut.  Terms are taken in pairs.  Along the contiguous axis a row of grid points
costs one multiplication and addition a term and eight points: an isotropic Gaussian is a product of one-axis
tables where that axis is orthogonal to the others, and of three two-axis tables where it is not; an
anisotropic one is treated as the latter, or, when it is very oblique, with an exponential a point.
:mod:`~mmtbx_sfdiff.kernels.cpu.gather` is the transpose and its derivatives.

Every thread has a share of the atoms, neighbours in space, and a slab of its own to put them on.  The order
of all additions is fixed, so the grid is the same, bit for bit, every time for one number of threads.
"""

from __future__ import annotations

import math

from ..jit import jit
from .density_vectors import add_rows, add_rows_oblique, multiply, store_gaussian, store_plane
from .gaussian import (
    LARGEST_EXPONENT,
    gaussian,
    next_plane,
    oblique_tables,
    outline,
    pair_terms,
    row_range,
    wrap,
)
from .gaussian import cut as cut_of
from .gaussian import shape as shape_of


@jit
def splat(
    grid,
    dims,
    first_plane,
    order,
    sites_grid,
    e_iso,
    ustar,
    use_aniso,
    weights,
    fp,
    types,
    geometry,
    tolerance,
    cuts,
    box,
    scratch,
    work,
):
    """Add the atoms ``order`` to a slab of the grid.  Returns 0, or 1 + the number of an atom that is not
    positive definite; and in work[:2] the range of planes of the slab that were written.

    grid is flat and its planes are first_plane, first_plane + 1, ... modulo n_x; dims is (n_x, n_y, n_z,
    length of a row): a row goes on beyond n_z, so that no Gaussian has to be wrapped round along it.  See
    :func:`gaussian` for geometry; types
    is (type_index, alphas, exponents, constants, n_terms, has_constant).
    """
    nx, ny, nz, row = dims
    type_index, alphas, exponents, constants, n_terms, has_constant = types
    one = grid.dtype.type(1)
    zero = grid.dtype.type(0)
    limit = LARGEST_EXPONENT[0] if grid.itemsize == 4 else LARGEST_EXPONENT[1]
    bx, by, bz = box
    x_table, y_table, cy_table = 0, 2 * bx, 2 * bx + 2 * by
    xy_tables = cy_table + 2 * by
    z_table = xy_tables + 4 * by
    cz_table = z_table + 2 * bz
    tables = xy_tables, xy_tables + 2 * by, cz_table, cz_table + 2 * bz
    yz_table = cz_table + 4 * bz
    ones_table = yz_table + 2 * by * bz
    scratch[ones_table] = one
    n_all = n_terms + (1 if has_constant else 0)
    lowest, highest = nx, -1
    for position in range(order.shape[0]):
        a = order[position]
        weight = weights[a]
        if weight == 0.0:
            continue
        sx, sy, sz = sites_grid[a, 0], sites_grid[a, 1], sites_grid[a, 2]
        star = ustar[a if use_aniso[a] else 0]
        for first_term in range(0, n_all, 2):
            for k in range(2):
                alpha, e = pair_terms(
                    a,
                    first_term + k,
                    weight,
                    constants,
                    e_iso[a],
                    type_index,
                    alphas,
                    exponents,
                    n_terms,
                    has_constant,
                    fp,
                )
                amplitude = alpha * weight
                work[24 + k], work[26 + k] = 0.0, 0.0
                if amplitude == 0.0:
                    continue
                norm, width = gaussian(e, star, use_aniso[a], geometry, work, k)
                if not width > 0:
                    return a + 1
                cut = cut_of(cuts, width, math.log(tolerance / abs(amplitude)))
                if cut <= 0:
                    continue
                outline(work, k, cut, geometry, use_aniso[a], e)
                work[24 + k], work[26 + k] = cut, amplitude * norm
            if work[24] <= 0 and work[25] <= 0:
                continue
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
            if not (hx < bx and hy < by and hz < bz):
                return -1
            i0, i1 = int(math.ceil(sx - hx)), int(math.floor(sx + hx))
            j0, k0 = int(math.ceil(sy - hy)), int(math.ceil(sz - hz))
            n_y = (int(math.floor(sy + hy)) - j0 + 8) // 8
            n_z = (int(math.floor(sz + hz)) - k0 + 8) // 8
            n_x = (i1 - i0 + 8) // 8
            if n_x < 1 or n_y < 1 or n_z < 1:
                continue
            if 8 * n_x > bx or 8 * n_y > by or 8 * n_z > bz:
                return -1
            # What the blocks of eight have to spare goes to both ends.
            j0 -= (8 * n_y - (int(math.floor(sy + hy)) - j0 + 1)) // 2
            k0 -= (8 * n_z - (int(math.floor(sz + hz)) - k0 + 1)) // 2
            v0, w0 = j0 - sy, k0 - sz
            shape = shape_of(work, hx, hy, hz, limit)
            crossed = work[3] != 0 or work[15] != 0 or shape > 0
            for k in range(2):
                o = 12 * k
                if shape < 2:
                    store_gaussian(scratch, x_table + k * bx, n_x, zero, zero, one * work[o], one * (i0 - sx))
                    store_gaussian(scratch, y_table + k * by, n_y, zero, zero, one * work[o + 1], one * v0)
                if shape == 0:
                    store_gaussian(scratch, z_table + k * bz, n_z, zero, zero, one * work[o + 2], one * w0)
                elif shape == 1:
                    store_plane(
                        scratch,
                        yz_table + k * by * bz,
                        n_z,
                        int(math.floor(sy + hy)) - j0 + 1,
                        bz,
                        one * (2 * work[o + 5]),
                        one * work[o + 2],
                        one * v0,
                        one * w0,
                    )
            if crossed and shape < 2:
                oblique_tables(work, scratch, shape, tables, box, n_y, n_z, i0 - sx, v0, w0)
            kz = wrap(k0, nz)
            for i in range(i0, i1 + 1):
                if crossed and shape < 2 and i > i0:
                    next_plane(scratch, shape, tables, box, n_y, n_z)
                ix = wrap(i - first_plane, nx)
                lowest, highest = min(lowest, ix), max(highest, ix)
                u = i - sx
                low0, high0 = row_range(work, wide, work[24 + wide], u)
                low1, high1 = low0, high0
                if use_aniso[a]:
                    low1, high1 = row_range(work, 1 - wide, work[25 - wide], u)
                j_first = int(math.ceil(sy + min(low0, low1))) - j0
                j_last = int(math.floor(sy + max(high0, high1))) - j0
                j_first, j_last = max(j_first, 0), min(j_last, 8 * n_y - 1)
                n_rows = j_last - j_first + 1
                if n_rows < 1:
                    continue
                x0, x1 = one * work[26], one * work[27]
                if shape < 2:
                    x0 *= scratch[x_table + i - i0]
                    x1 *= scratch[x_table + bx + i - i0]
                    if crossed:
                        for k in range(2):
                            multiply(scratch, cy_table + k * by, y_table + k * by, xy_tables + k * by, n_y)
                z_used = cz_table if shape else z_table
                y_used = cy_table if crossed else y_table
                done = 0
                while done < n_rows:
                    jy = wrap(j0 + j_first + done, ny)
                    run = min(n_rows - done, ny - jy)
                    if shape == 2:
                        run = 1
                    start = (ix * ny + jy) * row + kz
                    j = j_first + done
                    if shape == 2:
                        v = v0 + j
                        for k in range(2):
                            o = 12 * k
                            store_gaussian(
                                scratch,
                                cz_table + k * bz,
                                n_z,
                                one * (work[o] * u * u + work[o + 1] * v * v + 2 * work[o + 3] * u * v),
                                one * (2 * (work[o + 4] * u + work[o + 5] * v)),
                                one * work[o + 2],
                                one * w0,
                            )
                    for block in range(0, 8 * n_z, 8):
                        if shape == 1:
                            add_rows_oblique(
                                grid,
                                start + block,
                                row,
                                run,
                                scratch,
                                x0,
                                x1,
                                y_used + j,
                                y_used + by + j,
                                z_used + block,
                                z_used + bz + block,
                                yz_table + j * bz + block,
                                yz_table + (by + j) * bz + block,
                                bz,
                            )
                        elif shape == 0:
                            add_rows(
                                grid,
                                start + block,
                                row,
                                run,
                                scratch,
                                x0,
                                x1,
                                y_used + j,
                                y_used + by + j,
                                z_used + block,
                                z_used + bz + block,
                            )
                        else:
                            add_rows(
                                grid,
                                start + block,
                                row,
                                run,
                                scratch,
                                x0,
                                x1,
                                ones_table,
                                ones_table,
                                z_used + block,
                                z_used + bz + block,
                            )
                    done += run
    work[0], work[1] = lowest, highest + 1
    return 0
