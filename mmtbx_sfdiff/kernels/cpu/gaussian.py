"""One Gaussian as the compiled CPU kernels see it: its form, its outline on the grid, and where it ends.

The formulae are in :mod:`~mmtbx_sfdiff.kernels.cpu.splat`; :mod:`~mmtbx_sfdiff.kernels.cpu.pair` puts two of them on the grid.
"""

from __future__ import annotations

import math

import numpy as np

from ..jit import jit_in_place

PI_SQ = math.pi**2


def n_blocks(dims):
    """In how many blocks of grid points :func:`place_atoms` sorts atoms."""
    return (dims[0] // 4 + 1) * (dims[1] // 8 + 1) * (dims[2] // 16 + 1)


@jit_in_place
def place_atoms(sites, axes, dims, keys, counts, sites_grid, order):
    """Sites in grid units within the cell, and an order in which neighbours follow one another.

    keys: (n,) scratch; counts: :func:`n_blocks` + 1 zeros.  Returns 0, or 1 + the number of an atom that is nowhere.
    """
    n = sites.shape[0]
    _, ny, nz = dims
    ny_blocks, nz_blocks = ny // 8 + 1, nz // 16 + 1
    for a in range(n):
        for i in range(3):
            x = sites[a, axes[i]]
            x -= math.floor(x)
            if not 0 <= x <= 1:
                return a + 1
            sites_grid[a, i] = x * dims[i]
        key = ((int(sites_grid[a, 0]) // 4) * ny_blocks + int(sites_grid[a, 1]) // 8) * nz_blocks
        key += int(sites_grid[a, 2]) // 16
        keys[a] = key
        counts[key + 1] += 1
    for key in range(len(counts) - 1):
        counts[key + 1] += counts[key]
    for a in range(n):
        order[counts[keys[a]]] = a
        counts[keys[a]] += 1
    return 0


@jit_in_place
def cut(cuts, width, level):
    """Exponent at which a Gaussian of this width may end: bilinear in log(width) and log(tolerance /
    amplitude)."""
    table, width_first, width_step, level_first, level_step = cuts
    x = (math.log(width) - width_first) / width_step
    y = (level - level_first) / level_step
    # What is no number is cut off late.
    x = min(x, table.shape[0] - 1.001) if x > 0 else 0.0
    y = min(y, table.shape[1] - 1.001) if y > 0 else 0.0
    i, j = int(x), int(y)
    x -= i
    y -= j
    return (table[i, j] * (1 - y) + table[i, j + 1] * y) * (1 - x) + (
        table[i + 1, j] * (1 - y) + table[i + 1, j + 1] * y
    ) * x


@jit_in_place
def gaussian(e, ustar, aniso, geometry, work, k):
    """Fill work[12 k ...] with Q (6) and return (normalisation of unit amplitude, effective width); width <=
    0: bad.

    geometry: s_max^2, reciprocal metric (6), real metric / (N_i N_j) (6), volume, 1 / (N_i N_j) (6), number
    of points.
    """
    o = 12 * k
    s_sq = geometry[0]
    if not aniso:
        if not 0 < e < math.inf:
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
    if not (m00 > 0 and c22 > 0 and 0 < det < math.inf):
        return 0.0, -1.0
    scale = PI_SQ / det
    work[o] = c00 * scale * geometry[14]
    work[o + 1] = c11 * scale * geometry[15]
    work[o + 2] = c22 * scale * geometry[16]
    work[o + 3] = c01 * scale * geometry[17]
    work[o + 4] = c02 * scale * geometry[18]
    work[o + 5] = c12 * scale * geometry[19]
    trace = (
        c00 * geometry[1]
        + c11 * geometry[2]
        + c22 * geometry[3]
        + 2 * (c01 * geometry[4] + c02 * geometry[5] + c12 * geometry[6])
    ) / det
    return math.pi**1.5 / math.sqrt(det) / geometry[20], 3 * s_sq / trace


@jit_in_place
def outline(work, k, cut, geometry, aniso, e):
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


def outline_of(q):
    """w0, s11, s01, h_x, h_y, h_z of an ellipsoid u Q u <= 1, Q packed."""
    work = np.concatenate([q, np.zeros(6)])
    outline.py_func(work, 0, 1.0, q, True, 1.0)
    return work[6:]


@jit_in_place
def pair_terms(a, k, weight, factors, e_iso, type_index, alphas, exponents, n_terms, has_constant, fp):
    """(amplitude without weight, e) of term k of an atom; the constant term, if any, is the last."""
    t = type_index[a]
    if k < n_terms:
        return alphas[t, k], exponents[t, k] + e_iso
    if has_constant and k == n_terms:
        return factors[t] + fp[a], e_iso
    return 0.0, 1.0
