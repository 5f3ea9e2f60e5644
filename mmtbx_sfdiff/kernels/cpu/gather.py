"""Gaussians off a grid again: the transpose of :mod:`~mmtbx_sfdiff.kernels.cpu.splat` and its derivatives, compiled for the CPU.

The moments up to the second of a map under each Gaussian give the gradients in its amplitude, position and
width.
"""

from __future__ import annotations

import math

from ..jit import jit_in_place
from .density_vectors import add_moments, add_moments_oblique, finish_moments, multiply
from .gaussian import PI_SQ, gaussian, outline, pair_terms
from .gaussian import cut as cut_of
from .pair import (
    LARGEST_EXPONENT,
    MOMENTS,
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
def gather(
    grid,
    dims,
    first_atom,
    last_atom,
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
    typical_weight,
    typical_factor,
    cuts,
    box,
    scratch,
    work,
    grad_sites,
    grad_e,
    grad_ustar,
    grad_weights,
    grad_fp,
):
    """Derivatives of sum(grid * density) for order[first_atom:last_atom]: the transpose of :func:`splat`.

    grad_sites in grid units; grad_ustar in the units of 2 pi^2 U*.  Returns as :func:`splat`.
    """
    nx, ny, nz, row = dims
    type_index, alphas, exponents, constants, n_terms, has_constant = types
    one = grid.dtype.type(1)
    zero = grid.dtype.type(0)
    limit = LARGEST_EXPONENT[0] if grid.itemsize == 4 else LARGEST_EXPONENT[1]
    bx, by, bz = box
    places = layout(box)
    x_table, y_table, y_plane, xy_tables, xy_ratios, z_table, z_plane, z_ratios, ones_table, yz_table, moments = places
    for l in range(bz):
        scratch[ones_table + l] = one
    n_all = n_terms + (1 if has_constant else 0)
    for position in range(first_atom, last_atom):
        a = order[position]
        weight = weights[a]
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
                work[24 + k], work[26 + k], work[28 + k] = 0.0, 0.0, alpha
                work[30 + k] = e
                if first_term + k >= n_all:
                    continue
                norm, width = gaussian(e, star, use_aniso[a], geometry, work, k)
                if not width > 0:
                    return a + 1
                amplitude = abs(alpha)
                if alpha == 0 or (first_term + k == n_terms and typical_factor > 0):
                    amplitude = max(amplitude, typical_factor)
                amplitude *= abs(weight if weight != 0 else typical_weight)
                if amplitude == 0:
                    continue
                cut = cut_of(cuts, width, math.log(tolerance / amplitude))
                if cut <= 0:
                    continue
                outline(work, k, cut, geometry, use_aniso[a], e)
                work[24 + k], work[26 + k] = cut, norm
            state, wide, shape, i0, i1, j0, k0, n_x, n_y, n_z, used = place_pair(work, (sx, sy, sz), box, limit)
            if state < 0:
                return -1
            if state == 0:
                continue
            oblique = crossed(work, shape)
            v0, w0 = j0 - sy, k0 - sz
            fill_tables(work, scratch, places, box, shape, (n_x, n_y, n_z), used, (i0 - sx, v0, w0))
            for l in range(n_z * MOMENTS):
                scratch[moments + l] = zero
            y_used = y_plane if oblique else y_table
            kz = wrap(k0, nz)
            for i in range(i0, i1 + 1):
                if oblique and shape < 2 and i > i0:
                    next_plane(scratch, shape, (xy_tables, xy_ratios, z_plane, z_ratios), box, n_y, n_z)
                ix = wrap(i, nx)
                u = i - sx
                j_first, n_rows = rows_of_plane(work, wide, use_aniso[a], u, sy, j0, n_y)
                if n_rows < 1:
                    continue
                x0, x1 = one, one
                if shape < 2:
                    x0, x1 = scratch[x_table + i - i0], scratch[x_table + bx + i - i0]
                    if oblique:
                        for k in range(2):
                            multiply(scratch, y_plane + k * by, y_table + k * by, xy_tables + k * by, n_y)
                done = 0
                while done < n_rows:
                    jy = wrap(j0 + j_first + done, ny)
                    run = min(n_rows - done, ny - jy)
                    if shape == 2:
                        run = 1
                    j = j_first + done
                    start = (ix * ny + jy) * row + kz
                    if shape == 2:
                        v = v0 + j
                        fill_row(work, scratch, z_plane, bz, n_z, u, v, w0)
                    for block in range(n_z):
                        at = start + 8 * block
                        out = moments + block * MOMENTS
                        if shape == 0:
                            add_moments(
                                grid,
                                at,
                                row,
                                run,
                                scratch,
                                y_used + j,
                                y_used + by + j,
                                one * (v0 + j),
                                x0,
                                x1,
                                one * u,
                                out,
                            )
                        elif shape == 1:
                            add_moments_oblique(
                                grid,
                                at,
                                row,
                                run,
                                scratch,
                                y_used + j,
                                y_used + by + j,
                                one * (v0 + j),
                                yz_table + j * bz + 8 * block,
                                yz_table + (by + j) * bz + 8 * block,
                                bz,
                                z_plane + 8 * block,
                                z_plane + bz + 8 * block,
                                x0,
                                x1,
                                one * u,
                                out,
                            )
                        else:
                            add_moments_oblique(
                                grid,
                                at,
                                row,
                                run,
                                scratch,
                                ones_table,
                                ones_table,
                                one * v,
                                z_plane + 8 * block,
                                z_plane + bz + 8 * block,
                                bz,
                                ones_table,
                                ones_table,
                                one,
                                one,
                                one * u,
                                out,
                            )
                    done += run
            for k in range(2):
                if work[26 + k] == 0:
                    continue
                o = 12 * k
                m = finish_moments(
                    scratch,
                    moments + 48 * k,
                    MOMENTS,
                    n_z,
                    z_table + k * bz if shape == 0 else ones_table,
                    8 if shape == 0 else 0,
                    one * w0,
                )
                alpha, e = work[28 + k], work[30 + k]
                scale = work[26 + k] * alpha * weight
                grad_weights[a] += work[26 + k] * alpha * m[0]
                if first_term + k == n_terms:
                    grad_fp[a] += work[26 + k] * weight * m[0]
                q00, q11, q22, q01, q02, q12 = (
                    work[o],
                    work[o + 1],
                    work[o + 2],
                    work[o + 3],
                    work[o + 4],
                    work[o + 5],
                )
                grad_sites[a, 0] += 2 * scale * (q00 * m[1] + q01 * m[2] + q02 * m[3])
                grad_sites[a, 1] += 2 * scale * (q01 * m[1] + q11 * m[2] + q12 * m[3])
                grad_sites[a, 2] += 2 * scale * (q02 * m[1] + q12 * m[2] + q22 * m[3])
                if not use_aniso[a]:
                    second = q00 * m[4] + q11 * m[5] + q22 * m[6] + 2 * (q01 * m[7] + q02 * m[8] + q12 * m[9])
                    grad_e[a] += scale * (second - 1.5 * m[0]) / e
                    continue
                # d/dM of pi^(3/2) det(M)^(-1/2) exp(-pi^2 r M^-1 r): -M^-1/2 + pi^2 M^-1 r r M^-1, r = u / N.
                n00, n11, n22, n01, n02, n12 = (
                    geometry[14],
                    geometry[15],
                    geometry[16],
                    geometry[17],
                    geometry[18],
                    geometry[19],
                )
                r00, r11, r22 = m[4] * n00, m[5] * n11, m[6] * n22
                r01, r02, r12 = m[7] * n01, m[8] * n02, m[9] * n12
                i00, i11, i22 = q00 / (PI_SQ * n00), q11 / (PI_SQ * n11), q22 / (PI_SQ * n22)
                i01, i02, i12 = q01 / (PI_SQ * n01), q02 / (PI_SQ * n02), q12 / (PI_SQ * n12)
                # T = R M^-1, then M^-1 T.
                t00, t01, t02 = (
                    r00 * i00 + r01 * i01 + r02 * i02,
                    r00 * i01 + r01 * i11 + r02 * i12,
                    r00 * i02 + r01 * i12 + r02 * i22,
                )
                t10, t11, t12 = (
                    r01 * i00 + r11 * i01 + r12 * i02,
                    r01 * i01 + r11 * i11 + r12 * i12,
                    r01 * i02 + r11 * i12 + r12 * i22,
                )
                t20, t21, t22 = (
                    r02 * i00 + r12 * i01 + r22 * i02,
                    r02 * i01 + r12 * i11 + r22 * i12,
                    r02 * i02 + r12 * i12 + r22 * i22,
                )
                g00 = PI_SQ * (i00 * t00 + i01 * t10 + i02 * t20) - 0.5 * i00 * m[0]
                g11 = PI_SQ * (i01 * t01 + i11 * t11 + i12 * t21) - 0.5 * i11 * m[0]
                g22 = PI_SQ * (i02 * t02 + i12 * t12 + i22 * t22) - 0.5 * i22 * m[0]
                g01 = PI_SQ * (i00 * t01 + i01 * t11 + i02 * t21) - 0.5 * i01 * m[0]
                g02 = PI_SQ * (i00 * t02 + i01 * t12 + i02 * t22) - 0.5 * i02 * m[0]
                g12 = PI_SQ * (i01 * t02 + i11 * t12 + i12 * t22) - 0.5 * i12 * m[0]
                grad_ustar[a, 0] += scale * g00
                grad_ustar[a, 1] += scale * g11
                grad_ustar[a, 2] += scale * g22
                grad_ustar[a, 3] += 2 * scale * g01
                grad_ustar[a, 4] += 2 * scale * g02
                grad_ustar[a, 5] += 2 * scale * g12
                grad_e[a] += (
                    scale
                    / geometry[0]
                    * (
                        g00 * geometry[1]
                        + g11 * geometry[2]
                        + g22 * geometry[3]
                        + 2 * (g01 * geometry[4] + g02 * geometry[5] + g12 * geometry[6])
                    )
                )
    return 0
