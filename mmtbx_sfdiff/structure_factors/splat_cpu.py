"""Gaussians on a grid and off it again, compiled for the CPU.

``splat`` adds, for every atom of the asymmetric unit,

    rho(r) = sum_k w alpha_k pi^(3/2) det(M_k)^(-1/2) exp(-pi^2 r M_k^-1 r),     M_k = 2 pi^2 U* + e_k G* / s_max^2

(r fractional, G* the reciprocal metric, e_k = (b_k / 4) s_max^2 - sharpening) within the ellipsoid in which the exponent
stays below a cut.  Terms are taken in pairs.  Along the contiguous axis a row of grid points costs one multiplication
and addition a term and eight points: an isotropic Gaussian is a product of one-axis tables where that axis is orthogonal
to the others, and of three two-axis tables where it is not; an anisotropic one is treated as the latter, or, when it is
very oblique, with an exponential a point.  ``gather`` is the transpose and its derivatives: the moments up to the second
of a map under each Gaussian.

A thread owns a slab of the grid and goes through the atoms in one fixed order, so the grid is the same, bit for bit, for
any number of threads.  The kernels release the interpreter and run in a thread pool of this module's own: numba's
OpenMP pool and torch's would keep each other waiting.
"""
from __future__ import annotations

import math

import numba
import numpy as np

from .vector_code import (add_plane_moments, add_row_moments, add_row_moments_oblique, add_rows, add_rows_oblique,
                          moments_along, store_gaussian)

_jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
PI_SQ = math.pi ** 2
# A pair of terms whose cross terms exceed this share of the diagonal would overflow as separate tables.
_OBLIQUE_LIMIT = 0.45
# Where things are in the scratch table, beyond the tables whose length depends on the box.
_MOMENTS = 6 * 2 * 8


def scratch_size(box):
    """Elements of scratch for boxes of at most ``box`` points along each axis (multiples of eight)."""
    nx, ny, nz = box
    return 2 * nx + 4 * ny + 5 * nz + 3 * ny * nz + 2 * (nz // 8 + 1) * _MOMENTS + 64


@_jit
def place_atoms(sites, axes, dims, sites_grid, order):
    """Sites in grid units within the cell, and an order in which neighbours follow one another."""
    n = sites.shape[0]
    nx, ny, nz = dims
    ny_blocks, nz_blocks = ny // 8 + 1, nz // 16 + 1
    n_blocks = (nx // 4 + 1) * ny_blocks * nz_blocks
    counts = np.zeros(n_blocks + 1, np.int64)
    keys = np.empty(n, np.int64)
    for a in range(n):
        for i in range(3):
            x = sites[a, axes[i]]
            x -= math.floor(x)
            sites_grid[a, i] = x * dims[i]
        key = ((int(sites_grid[a, 0]) // 4) * ny_blocks + int(sites_grid[a, 1]) // 8) * nz_blocks
        key += int(sites_grid[a, 2]) // 16
        keys[a] = key
        counts[key + 1] += 1
    for key in range(n_blocks):
        counts[key + 1] += counts[key]
    for a in range(n):
        order[counts[keys[a]]] = a
        counts[keys[a]] += 1


@_jit
def _cut(cuts, width, level):
    """Exponent at which a Gaussian of this width may end: bilinear in log(width) and log(tolerance / amplitude)."""
    table, width_first, width_step, level_first, level_step = cuts
    x = (math.log(width) - width_first) / width_step
    y = (level - level_first) / level_step
    x = min(max(x, 0.0), table.shape[0] - 1.001)
    y = min(max(y, 0.0), table.shape[1] - 1.001)
    i, j = int(x), int(y)
    x -= i
    y -= j
    return ((table[i, j] * (1 - y) + table[i, j + 1] * y) * (1 - x)
            + (table[i + 1, j] * (1 - y) + table[i + 1, j + 1] * y) * x)


@_jit
def _gaussian(e, ustar, aniso, geometry, work, k):
    """Fill work[12 k ...] with Q (6) and return (normalisation of unit amplitude, effective width); width <= 0: bad.

    geometry: s_max^2, reciprocal metric (6), real metric / (N_i N_j) (6), volume, 1 / (N_i N_j) (6), number of points.
    """
    o = 12 * k
    s_sq = geometry[0]
    if not aniso:
        if e <= 0:
            return 0.0, -1.0
        # Everything about an isotropic Gaussian is a multiple of what it is for e = 1.
        scale = PI_SQ * s_sq / e
        for i in range(3):
            work[o + 6 + i] = geometry[21 + i] / e
        for i in range(6):
            work[o + i] = scale * geometry[7 + i]
        root = math.pi * s_sq / e
        return root * math.sqrt(root) * geometry[13] / geometry[20], e
    a = e / s_sq
    m00, m11, m22 = ustar[0] + a * geometry[1], ustar[1] + a * geometry[2], ustar[2] + a * geometry[3]
    m01, m02, m12 = ustar[3] + a * geometry[4], ustar[4] + a * geometry[5], ustar[5] + a * geometry[6]
    c00, c11, c22 = m11 * m22 - m12 * m12, m00 * m22 - m02 * m02, m00 * m11 - m01 * m01
    c01, c02, c12 = m02 * m12 - m01 * m22, m01 * m12 - m02 * m11, m01 * m02 - m00 * m12
    det = m00 * c00 + m01 * c01 + m02 * c02
    if m00 <= 0 or c22 <= 0 or det <= 0:
        return 0.0, -1.0
    scale = PI_SQ / det
    work[o] = c00 * scale * geometry[14]
    work[o + 1] = c11 * scale * geometry[15]
    work[o + 2] = c22 * scale * geometry[16]
    work[o + 3] = c01 * scale * geometry[17]
    work[o + 4] = c02 * scale * geometry[18]
    work[o + 5] = c12 * scale * geometry[19]
    trace = (c00 * geometry[1] + c11 * geometry[2] + c22 * geometry[3]
             + 2 * (c01 * geometry[4] + c02 * geometry[5] + c12 * geometry[6])) / det
    return math.pi ** 1.5 / math.sqrt(det) / geometry[20], 3 * s_sq / trace


@_jit
def _outline(work, k, cut, geometry, aniso, e):
    """What the ellipsoid u Q u <= cut needs: work[12 k + 6 ...] = w0, s11, s01, h_x, h_y, h_z."""
    o = 12 * k
    if not aniso:
        size = math.sqrt(cut * e)
        for i in range(3):
            work[o + 9 + i] = geometry[24 + i] * size
        return
    q00, q11, q22, q01, q02, q12 = work[o], work[o + 1], work[o + 2], work[o + 3], work[o + 4], work[o + 5]
    s11, s01 = q11 - q12 * q12 / q22, q01 - q02 * q12 / q22
    w0 = q00 - q02 * q02 / q22 - s01 * s01 / s11
    det = q22 * s11 * w0
    work[o + 6], work[o + 7], work[o + 8] = w0, s11, s01
    work[o + 9] = math.sqrt(cut / w0)
    work[o + 10] = math.sqrt(cut * (q00 * q22 - q02 * q02) / det)
    work[o + 11] = math.sqrt(cut * (q00 * q11 - q01 * q01) / det)


@_jit
def outline_of(q):
    """w0, s11, s01, h_x, h_y, h_z of an ellipsoid u Q u <= 1, Q packed."""
    work = np.zeros(12)
    work[:6] = q
    _outline(work, 0, 1.0, q, True, 1.0)
    return work[6:]


@_jit
def _pair_terms(a, k, weight, factors, e_iso, type_index, alphas, exponents, n_terms, has_constant, fp):
    """(amplitude without weight, e) of term k of an atom; the constant term, if any, is the last."""
    t = type_index[a]
    if k < n_terms:
        return alphas[t, k], exponents[t, k] + e_iso
    if has_constant and k == n_terms:
        return factors[t] + fp[a], e_iso
    return 0.0, 1.0


@_jit
def _row_range(work, k, cut, u):
    rem = cut - work[12 * k + 6] * u * u
    if rem <= 0:
        return 1e30, -1e30
    s11 = work[12 * k + 7]
    centre, half = -work[12 * k + 8] * u / s11, math.sqrt(rem / s11)
    return centre - half, centre + half


@_jit
def _touches(first, last, n, slab):
    """Whether a range of planes, periodic in n, has one in the slab."""
    if last - first >= n:
        return True
    shift = -n if last >= n else 0
    while shift <= n:
        if first + shift < slab[1] and last + shift >= slab[0]:
            return True
        shift += n
    return False


@_jit
def _wrap(i, n):
    """i modulo n, where i is seldom outside the first period."""
    if 0 <= i < n:
        return i
    return i % n


@_jit
def _shape(work, used0, used1):
    """0: the contiguous axis separates; 1: two-axis tables; 2: an exponential a point."""
    shape = 0
    for k in range(2):
        if (used0, used1)[k]:
            o = 12 * k
            q00, q11, q22 = work[o], work[o + 1], work[o + 2]
            xz, yz, xy = work[o + 4] ** 2 / (q00 * q22), work[o + 5] ** 2 / (q11 * q22), work[o + 3] ** 2 / (q00 * q11)
            if max(xz, yz) > 1e-20:
                shape = max(shape, 2 if max(xz, yz, xy) > _OBLIQUE_LIMIT else 1)
    return shape


@_jit
def splat(grid, dims, slab, order, sites_grid, e_iso, ustar, use_aniso, weights, fp, types, geometry, tolerance, cuts,
          box, scratch, work):
    """Add the atoms to grid[slab[0]:slab[1]].  Returns 0, or 1 + the number of an atom that is not positive definite.

    grid is flat; dims its (n_x, n_y, n_z); see :func:`_gaussian` for geometry; types is (type_index, alphas, exponents,
    constants, n_terms, has_constant).
    """
    nx, ny, nz = dims
    type_index, alphas, exponents, constants, n_terms, has_constant = types
    one = grid.dtype.type(1)
    zero = grid.dtype.type(0)
    bx, by, bz = box
    x_table, y_table, cy_table = 0, 2 * bx, 2 * bx + 2 * by
    z_table, cz_table, yz_table = cy_table + 2 * by, cy_table + 2 * by + 2 * bz, cy_table + 2 * by + 4 * bz
    rows_table = yz_table + 2 * by * bz
    ones_table = rows_table + by * bz
    scratch[ones_table] = one
    n_all = n_terms + (1 if has_constant else 0)
    for position in range(order.shape[0]):
        a = order[position]
        weight = weights[a]
        if weight == 0.0:
            continue
        sx, sy, sz = sites_grid[a, 0], sites_grid[a, 1], sites_grid[a, 2]
        for first_term in range(0, n_all, 2):
            for k in range(2):
                alpha, e = _pair_terms(a, first_term + k, weight, constants, e_iso[a], type_index, alphas, exponents,
                                       n_terms, has_constant, fp)
                amplitude = alpha * weight
                work[24 + k], work[26 + k] = 0.0, 0.0
                if amplitude == 0.0:
                    continue
                norm, width = _gaussian(e, ustar[a], use_aniso[a], geometry, work, k)
                if width <= 0:
                    return a + 1
                cut = _cut(cuts, width, math.log(tolerance / abs(amplitude)))
                if cut <= 0:
                    continue
                _outline(work, k, cut, geometry, use_aniso[a], e)
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
            i0, i1 = int(math.ceil(sx - hx)), int(math.floor(sx + hx))
            if not _touches(i0, i1, nx, slab):
                continue
            j0, k0 = int(math.ceil(sy - hy)), int(math.ceil(sz - hz))
            n_y = (int(math.floor(sy + hy)) - j0 + 8) // 8
            n_z = (int(math.floor(sz + hz)) - k0 + 8) // 8
            n_x = (i1 - i0 + 8) // 8
            if n_x < 1 or n_y < 1 or n_z < 1:
                continue
            if 8 * n_x > bx or 8 * n_y > by or 8 * n_z > bz:
                return -1
            v0, w0 = j0 - sy, k0 - sz
            shape = _shape(work, True, True)
            crossed = work[3] != 0 or work[15] != 0 or shape > 0
            for k in range(2):
                o = 12 * k
                if not crossed:
                    store_gaussian(scratch, x_table + k * bx, n_x, zero, zero, one * work[o], one * (i0 - sx))
                    store_gaussian(scratch, y_table + k * by, n_y, zero, zero, one * work[o + 1], one * v0)
                if shape == 0:
                    store_gaussian(scratch, z_table + k * bz, n_z, zero, zero, one * work[o + 2], one * w0)
                elif shape == 1:
                    for j in range(int(math.floor(sy + hy)) - j0 + 1):
                        store_gaussian(scratch, yz_table + (k * by + j) * bz, n_z, zero,
                                       one * (2 * work[o + 5] * (v0 + j)), one * work[o + 2], one * w0)
            kz = _wrap(k0, nz)
            wraps = kz + 8 * n_z > nz
            for i in range(i0, i1 + 1):
                ix = _wrap(i, nx)
                if not slab[0] <= ix < slab[1]:
                    continue
                u = i - sx
                low0, high0 = _row_range(work, wide, work[24 + wide], u)
                low1, high1 = low0, high0
                if use_aniso[a]:
                    low1, high1 = _row_range(work, 1 - wide, work[25 - wide], u)
                j_first = int(math.ceil(sy + min(low0, low1))) - j0
                j_last = int(math.floor(sy + max(high0, high1))) - j0
                j_first, j_last = max(j_first, 0), min(j_last, 8 * n_y - 1)
                n_rows = j_last - j_first + 1
                if n_rows < 1:
                    continue
                x0, x1 = one * work[26], one * work[27]
                if shape < 2:
                    if crossed:
                        for k in range(2):
                            o = 12 * k
                            store_gaussian(scratch, cy_table + k * by, n_y, one * (work[o] * u * u),
                                           one * (2 * work[o + 3] * u), one * work[o + 1], one * v0)
                            if shape == 1:
                                store_gaussian(scratch, cz_table + k * bz, n_z, zero, one * (2 * work[o + 4] * u),
                                               zero, one * w0)
                    else:
                        x0 *= scratch[x_table + i - i0]
                        x1 *= scratch[x_table + bx + i - i0]
                z_used = cz_table if shape else z_table
                y_used = cy_table if crossed else y_table
                if wraps:
                    for l in range(n_rows * 8 * n_z):
                        scratch[rows_table + l] = zero
                done = 0
                while done < n_rows:
                    jy = _wrap(j0 + j_first + done, ny)
                    run = n_rows if wraps else min(n_rows - done, ny - jy)
                    if shape == 2:
                        run = 1
                    start = (ix * ny + jy) * nz + kz
                    stride = nz
                    j = j_first + done
                    if shape == 2:
                        v = v0 + j
                        for k in range(2):
                            o = 12 * k
                            store_gaussian(
                                scratch, cz_table + k * bz, n_z,
                                one * (work[o] * u * u + work[o + 1] * v * v + 2 * work[o + 3] * u * v),
                                one * (2 * (work[o + 4] * u + work[o + 5] * v)), one * work[o + 2], one * w0)
                    for block in range(0, 8 * n_z, 8):
                        if wraps:
                            start = rows_table + done * 8 * n_z
                            stride = 8 * n_z
                            target = scratch
                        else:
                            target = grid
                        if shape == 1:
                            add_rows_oblique(target, start + block, stride, run, scratch, x0, x1,
                                             y_used + j, y_used + by + j, z_used + block, z_used + bz + block,
                                             yz_table + j * bz + block, yz_table + (by + j) * bz + block, bz)
                        elif shape == 0:
                            add_rows(target, start + block, stride, run, scratch, x0, x1, y_used + j, y_used + by + j,
                                     z_used + block, z_used + bz + block)
                        else:
                            add_rows(target, start + block, stride, run, scratch, x0, x1, ones_table, ones_table,
                                     z_used + block, z_used + bz + block)
                    done += run
                if wraps:
                    for j in range(n_rows):
                        row = (ix * ny + (j0 + j_first + j) % ny) * nz
                        at = kz
                        for l in range(8 * n_z):
                            grid[row + at] += scratch[rows_table + j * 8 * n_z + l]
                            at += 1
                            if at == nz:
                                at = 0
    return 0


@_jit
def gather(grid, dims, first_atom, last_atom, order, sites_grid, e_iso, ustar, use_aniso, weights, fp, types, geometry,
           tolerance, typical_weight, typical_factor, cuts, box, scratch, work, grad_sites, grad_e, grad_ustar, grad_weights, grad_fp):
    """Derivatives of sum(grid * density) for order[first_atom:last_atom]: the transpose of :func:`splat`.

    grad_sites in grid units; grad_ustar in the units of 2 pi^2 U*.  Returns as :func:`splat`.
    """
    nx, ny, nz = dims
    type_index, alphas, exponents, constants, n_terms, has_constant = types
    one = grid.dtype.type(1)
    zero = grid.dtype.type(0)
    bx, by, bz = box
    y_table = 0
    z_table, cz_table, ones_table = 2 * by, 2 * by + 2 * bz, 2 * by + 4 * bz
    yz_table = ones_table + bz
    rows_table = yz_table + 2 * by * bz
    row_moments = rows_table + by * bz
    box_moments = row_moments + _MOMENTS
    for l in range(bz):
        scratch[ones_table + l] = one
    n_all = n_terms + (1 if has_constant else 0)
    m = np.zeros(10)
    minv = np.zeros(6)
    for position in range(first_atom, last_atom):
        a = order[position]
        weight = weights[a]
        sx, sy, sz = sites_grid[a, 0], sites_grid[a, 1], sites_grid[a, 2]
        for first_term in range(0, n_all, 2):
            for k in range(2):
                alpha, e = _pair_terms(a, first_term + k, weight, constants, e_iso[a], type_index, alphas, exponents,
                                       n_terms, has_constant, fp)
                work[24 + k], work[26 + k], work[28 + k] = 0.0, 0.0, alpha
                work[30 + k] = e
                if first_term + k >= n_all:
                    continue
                norm, width = _gaussian(e, ustar[a], use_aniso[a], geometry, work, k)
                if width <= 0:
                    return a + 1
                amplitude = abs(alpha)
                if alpha == 0 or (first_term + k == n_terms and typical_factor > 0):
                    amplitude = max(amplitude, typical_factor)
                amplitude *= abs(weight if weight != 0 else typical_weight)
                if amplitude == 0:
                    continue
                cut = _cut(cuts, width, math.log(tolerance / amplitude))
                if cut <= 0:
                    continue
                _outline(work, k, cut, geometry, use_aniso[a], e)
                work[24 + k], work[26 + k] = cut, norm
            if work[24] <= 0 and work[25] <= 0:
                continue
            for k in range(2):
                if work[24 + k] <= 0:
                    for i in range(12):
                        work[12 * k + i] = work[12 * (1 - k) + i]
                    work[24 + k] = work[25 - k]
            # Isotropic Gaussians are concentric and of one shape: the wider one has the outline of both.
            wide = 0 if work[9] >= work[21] else 1
            hx, hy, hz = max(work[9], work[21]), max(work[10], work[22]), max(work[11], work[23])
            i0, i1 = int(math.ceil(sx - hx)), int(math.floor(sx + hx))
            j0, k0 = int(math.ceil(sy - hy)), int(math.ceil(sz - hz))
            n_y = (int(math.floor(sy + hy)) - j0 + 8) // 8
            n_z = (int(math.floor(sz + hz)) - k0 + 8) // 8
            if i1 < i0 or n_y < 1 or n_z < 1:
                continue
            if 8 * n_y > by or 8 * n_z > bz:
                return -1
            v0, w0 = j0 - sy, k0 - sz
            shape = _shape(work, True, True)
            crossed = work[3] != 0 or work[15] != 0 or shape > 0
            for k in range(2):
                o = 12 * k
                if not crossed:
                    store_gaussian(scratch, y_table + k * by, n_y, zero, zero, one * work[o + 1], one * v0)
                if shape == 0:
                    store_gaussian(scratch, z_table + k * bz, n_z, zero, zero, one * work[o + 2], one * w0)
                elif shape == 1:
                    for j in range(int(math.floor(sy + hy)) - j0 + 1):
                        store_gaussian(scratch, yz_table + (k * by + j) * bz, n_z, zero,
                                       one * (2 * work[o + 5] * (v0 + j)), one * work[o + 2], one * w0)
            for l in range(n_z * _MOMENTS):
                scratch[box_moments + l] = zero
            kz = _wrap(k0, nz)
            wraps = kz + 8 * n_z > nz
            for i in range(i0, i1 + 1):
                ix = _wrap(i, nx)
                u = i - sx
                low0, high0 = _row_range(work, wide, work[24 + wide], u)
                low1, high1 = low0, high0
                if use_aniso[a]:
                    low1, high1 = _row_range(work, 1 - wide, work[25 - wide], u)
                j_first = int(math.ceil(sy + min(low0, low1))) - j0
                j_last = int(math.floor(sy + max(high0, high1))) - j0
                j_first, j_last = max(j_first, 0), min(j_last, 8 * n_y - 1)
                n_rows = j_last - j_first + 1
                if n_rows < 1:
                    continue
                if wraps:
                    for j in range(n_rows):
                        row = (ix * ny + (j0 + j_first + j) % ny) * nz
                        at = kz
                        for l in range(8 * n_z):
                            scratch[rows_table + j * 8 * n_z + l] = grid[row + at]
                            at += 1
                            if at == nz:
                                at = 0
                if crossed and shape < 2:
                    for k in range(2):
                        o = 12 * k
                        store_gaussian(scratch, y_table + k * by, n_y, one * (work[o] * u * u),
                                       one * (2 * work[o + 3] * u), one * work[o + 1], one * v0)
                if shape == 1:
                    for k in range(2):
                        store_gaussian(scratch, cz_table + k * bz, n_z, zero, one * (2 * work[12 * k + 4] * u), zero,
                                       one * w0)
                for block in range(0, 8 * n_z, 8):
                    for l in range(48):
                        scratch[row_moments + l] = zero
                    done = 0
                    while done < n_rows:
                        jy = _wrap(j0 + j_first + done, ny)
                        run = n_rows if wraps else min(n_rows - done, ny - jy)
                        if shape == 2:
                            run = 1
                        j = j_first + done
                        start, stride = (ix * ny + jy) * nz + kz, nz
                        source = grid
                        if wraps:
                            start, stride = rows_table + done * 8 * n_z, 8 * n_z
                            source = scratch
                        if shape == 0:
                            add_row_moments(source, start + block, stride, run, scratch, y_table + j, y_table + by + j,
                                            one * (v0 + j), row_moments)
                        elif shape == 1:
                            add_row_moments_oblique(source, start + block, stride, run, scratch, y_table + j,
                                                    y_table + by + j, one * (v0 + j), yz_table + j * bz + block,
                                                    yz_table + (by + j) * bz + block, bz, row_moments)
                        else:
                            v = v0 + j
                            for k in range(2):
                                o = 12 * k
                                store_gaussian(
                                    scratch, cz_table + k * bz, 1,
                                    one * (work[o] * u * u + work[o + 1] * v * v + 2 * work[o + 3] * u * v),
                                    one * (2 * (work[o + 4] * u + work[o + 5] * v)), one * work[o + 2],
                                    one * (w0 + block))
                            add_row_moments_oblique(source, start + block, stride, run, scratch, ones_table, ones_table,
                                                    one * v, cz_table, cz_table + bz, bz, row_moments)
                        done += run
                    for k in range(2):
                        x = one if crossed else one * math.exp(-work[12 * k] * u * u)
                        z = cz_table + k * bz + block if shape == 1 else ones_table
                        add_plane_moments(scratch, row_moments + 24 * k, z, x, one * u,
                                          box_moments + (block // 8) * _MOMENTS + 48 * k)
            for k in range(2):
                if work[26 + k] == 0:
                    continue
                o = 12 * k
                for i in range(10):
                    m[i] = 0.0
                # Order: 1; x, y, z; xx, yy, zz; xy, xz, yz.
                for block in range(n_z):
                    at = box_moments + block * _MOMENTS + 48 * k
                    z = z_table + k * bz + 8 * block if shape == 0 else ones_table
                    w = one * (w0 + 8 * block)
                    m0, mz, mzz = moments_along(scratch, at, z, w)
                    mx, mxz, _ = moments_along(scratch, at + 8, z, w)
                    mxx, _, _ = moments_along(scratch, at + 16, z, w)
                    my, myz, _ = moments_along(scratch, at + 24, z, w)
                    mxy, _, _ = moments_along(scratch, at + 32, z, w)
                    myy, _, _ = moments_along(scratch, at + 40, z, w)
                    m[0] += m0
                    m[1] += mx
                    m[2] += my
                    m[3] += mz
                    m[4] += mxx
                    m[5] += myy
                    m[6] += mzz
                    m[7] += mxy
                    m[8] += mxz
                    m[9] += myz
                alpha, e = work[28 + k], work[30 + k]
                scale = work[26 + k] * alpha * weight
                grad_weights[a] += work[26 + k] * alpha * m[0]
                if first_term + k == n_terms:
                    grad_fp[a] += work[26 + k] * weight * m[0]
                q00, q11, q22, q01, q02, q12 = (work[o], work[o + 1], work[o + 2], work[o + 3], work[o + 4],
                                                work[o + 5])
                grad_sites[a, 0] += 2 * scale * (q00 * m[1] + q01 * m[2] + q02 * m[3])
                grad_sites[a, 1] += 2 * scale * (q01 * m[1] + q11 * m[2] + q12 * m[3])
                grad_sites[a, 2] += 2 * scale * (q02 * m[1] + q12 * m[2] + q22 * m[3])
                if not use_aniso[a]:
                    second = (q00 * m[4] + q11 * m[5] + q22 * m[6] + 2 * (q01 * m[7] + q02 * m[8] + q12 * m[9]))
                    grad_e[a] += scale * (second - 1.5 * m[0]) / e
                    continue
                # d/dM of pi^(3/2) det(M)^(-1/2) exp(-pi^2 r M^-1 r): -M^-1/2 + pi^2 M^-1 r r M^-1, r = u / N.
                for i in range(6):
                    minv[i] = work[o + i] / (PI_SQ * geometry[14 + i])
                n00, n11, n22, n01, n02, n12 = (geometry[14], geometry[15], geometry[16], geometry[17], geometry[18],
                                                geometry[19])
                r00, r11, r22 = m[4] * n00, m[5] * n11, m[6] * n22
                r01, r02, r12 = m[7] * n01, m[8] * n02, m[9] * n12
                i00, i11, i22, i01, i02, i12 = minv[0], minv[1], minv[2], minv[3], minv[4], minv[5]
                # T = R M^-1, then M^-1 T.
                t00, t01, t02 = (r00 * i00 + r01 * i01 + r02 * i02, r00 * i01 + r01 * i11 + r02 * i12,
                                 r00 * i02 + r01 * i12 + r02 * i22)
                t10, t11, t12 = (r01 * i00 + r11 * i01 + r12 * i02, r01 * i01 + r11 * i11 + r12 * i12,
                                 r01 * i02 + r11 * i12 + r12 * i22)
                t20, t21, t22 = (r02 * i00 + r12 * i01 + r22 * i02, r02 * i01 + r12 * i11 + r22 * i12,
                                 r02 * i02 + r12 * i12 + r22 * i22)
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
                grad_e[a] += scale / geometry[0] * (
                    g00 * geometry[1] + g11 * geometry[2] + g22 * geometry[3]
                    + 2 * (g01 * geometry[4] + g02 * geometry[5] + g12 * geometry[6]))
    return 0


@_jit
def read_reflections(transform, rows, conjugate, phase, factor, first, last, result):
    """result[h] = factor[h] sum_G phase[G, h] (transform or its conjugate)[rows[G, h]] for h in [first, last)."""
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


@_jit
def write_reflections(transform, targets, mirror, starts, sources, conjugate, phase, factor, grad, first, last):
    """The transpose of :func:`read_reflections`, as a half-complex spectrum whose real transform is dT/d(grid).

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
