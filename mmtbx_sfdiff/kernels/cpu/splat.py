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

from ..jit import jit_in_place
from .density_vectors import add_rows, add_rows_oblique, multiply
from .gaussian import cut as cut_of
from .gaussian import gaussian, outline, pair_terms
from .pair import (
    LARGEST_EXPONENT,
    crossed,
    fill_row,
    fill_tables,
    layout,
    next_plane,
    place_pair,
    rows_of_plane,
    wrap,
)


@jit_in_place
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
    limit = LARGEST_EXPONENT[0] if grid.itemsize == 4 else LARGEST_EXPONENT[1]
    bx, by, bz = box
    places = layout(box)
    x_table, y_table, y_plane, xy_tables, xy_ratios, z_table, z_plane, z_ratios, ones_table, yz_table, _ = places
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
            state, wide, shape, i0, i1, j0, k0, n_x, n_y, n_z, used = place_pair(work, (sx, sy, sz), box, limit)
            if state < 0:
                return -1
            if state == 0:
                continue
            oblique = crossed(work, shape)
            v0, w0 = j0 - sy, k0 - sz
            fill_tables(work, scratch, places, box, shape, (n_x, n_y, n_z), used, (i0 - sx, v0, w0))
            z_used = z_plane if shape else z_table
            y_used = y_plane if oblique else y_table
            kz = wrap(k0, nz)
            for i in range(i0, i1 + 1):
                if oblique and shape < 2 and i > i0:
                    next_plane(scratch, shape, (xy_tables, xy_ratios, z_plane, z_ratios), box, n_y, n_z)
                ix = wrap(i - first_plane, nx)
                lowest, highest = min(lowest, ix), max(highest, ix)
                u = i - sx
                j_first, n_rows = rows_of_plane(work, wide, use_aniso[a], u, sy, j0, n_y)
                if n_rows < 1:
                    continue
                x0, x1 = one * work[26], one * work[27]
                if shape < 2:
                    x0 *= scratch[x_table + i - i0]
                    x1 *= scratch[x_table + bx + i - i0]
                    if oblique:
                        for k in range(2):
                            multiply(scratch, y_plane + k * by, y_table + k * by, xy_tables + k * by, n_y)
                done = 0
                while done < n_rows:
                    jy = wrap(j0 + j_first + done, ny)
                    run = min(n_rows - done, ny - jy)
                    if shape == 2:
                        run = 1
                    start = (ix * ny + jy) * row + kz
                    j = j_first + done
                    if shape == 2:
                        fill_row(work, scratch, z_plane, bz, n_z, u, v0 + j, w0)
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
