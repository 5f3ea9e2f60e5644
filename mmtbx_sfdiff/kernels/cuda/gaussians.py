"""Gaussians on a grid and off it again, as Triton kernels, and the chain rule from their moments to the atoms' parameters.

The grid is cut into tiles, and a program owns a tile: it goes through the atoms in the bins around it, in a fixed order,
and writes the tile once.  Going back, a program owns a Gaussian and walks over its box.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .atoms import form_of, load_displacements
from .bins import bin_range, points_of_tile, tile_of, walk_length, walk_step
from .findings import GOOD, report, verdicts


@triton.jit
def splat_tile(
    grid,
    starts,
    centers,
    reach,
    records,
    extents,
    blocks,
    n_x,
    n_y,
    n_z,
    bins_x,
    bins_y,
    bins_z,
    tiles_x,
    tiles_y,
    tiles_z,
    far,
    TERMS: tl.constexpr,
    BLOCKS: tl.constexpr,
    TX: tl.constexpr,
    TY: tl.constexpr,
    TZ: tl.constexpr,
):
    """The density in a tile."""
    model, x0, y0, z0 = tile_of(tl.program_id(0), tiles_x, tiles_y, tiles_z, TX, TY, TZ)
    l_x, l_y, l_z = points_of_tile(TX, TY, TZ)
    block = tl.arange(0, BLOCKS)
    place = extents + 3 * (model * blocks + block)
    lo_x, hi_x = bin_range(x0, TX, tl.max(tl.load(place, mask=block < blocks, other=0.0)) + 1e-3, bins_x, n_x)
    lo_y, hi_y = bin_range(y0, TY, tl.max(tl.load(place + 1, mask=block < blocks, other=0.0)) + 1e-3, bins_y, n_y)
    lo_z, hi_z = bin_range(z0, TZ, tl.max(tl.load(place + 2, mask=block < blocks, other=0.0)) + 1e-3, bins_z, n_z)
    total = tl.zeros((TX * TY * TZ,), dtype=grid.dtype.element_ty)
    for step in range(walk_length(lo_x, hi_x, lo_y, hi_y, lo_z, hi_z, bins_z, far)):
        first, last, cell_x, cell_y, cell_z = walk_step(
            step, starts, model, lo_x, lo_y, hi_y, lo_z, hi_z, bins_x, bins_y, bins_z, far
        )
        for atom in range(first, last):
            c_x = (tl.load(centers + 3 * atom) + (cell_x * n_x - x0)).to(total.dtype)
            c_y = (tl.load(centers + 3 * atom + 1) + (cell_y * n_y - y0)).to(total.dtype)
            c_z = (tl.load(centers + 3 * atom + 2) + (cell_z * n_z - z0)).to(total.dtype)
            e_x, e_y, e_z = tl.load(reach + 3 * atom), tl.load(reach + 3 * atom + 1), tl.load(reach + 3 * atom + 2)
            if (
                (c_x > -e_x)
                & (c_x < TX - 1 + e_x)
                & (c_y > -e_y)
                & (c_y < TY - 1 + e_y)
                & (c_z > -e_z)
                & (c_z < TZ - 1 + e_z)
            ):
                u, v, w = l_x - c_x, l_y - c_y, l_z - c_z
                for g in range(atom * TERMS, (atom + 1) * TERMS):
                    q = records + 8 * g
                    exponent = (
                        tl.load(q) * u * u
                        + tl.load(q + 1) * v * v
                        + tl.load(q + 2) * w * w
                        + 2 * (tl.load(q + 3) * u * v + tl.load(q + 4) * u * w + tl.load(q + 5) * v * w)
                    )
                    total += tl.where(exponent < tl.load(q + 7), tl.load(q + 6) * tl.exp(-exponent), 0.0)
    x, y, z = x0 + l_x, y0 + l_y, z0 + l_z
    place = ((model.to(tl.int64) * n_x + x) * n_y + y) * n_z + z
    tl.store(grid + place, total, mask=(x < n_x) & (y < n_y) & (z < n_z))


@triton.jit
def gather_box(
    grid, centers, halves, records, moments, n_atoms, n_x, n_y, n_z, TERMS: tl.constexpr, LANES: tl.constexpr
):
    """Sums of the grid under a Gaussian, times 1, u, v, w, uu, vv, ww, uv, uw, vw of the offsets from its centre."""
    g = tl.program_id(0)
    atom = g // TERMS
    model = (atom // n_atoms).to(tl.int64)
    c_x, c_y, c_z = tl.load(centers + 3 * atom), tl.load(centers + 3 * atom + 1), tl.load(centers + 3 * atom + 2)
    h_x, h_y, h_z = tl.load(halves + 3 * g), tl.load(halves + 3 * g + 1), tl.load(halves + 3 * g + 2)
    x0, y0, z0 = tl.ceil(c_x - h_x).to(tl.int32), tl.ceil(c_y - h_y).to(tl.int32), tl.ceil(c_z - h_z).to(tl.int32)
    b_x = tl.floor(c_x + h_x).to(tl.int32) - x0 + 1
    b_y = tl.floor(c_y + h_y).to(tl.int32) - y0 + 1
    b_z = tl.floor(c_z + h_z).to(tl.int32) - z0 + 1
    zero = tl.zeros((LANES,), dtype=grid.dtype.element_ty)
    c_x, c_y, c_z = (c_x - x0).to(zero.dtype), (c_y - y0).to(zero.dtype), (c_z - z0).to(zero.dtype)
    q = records + 8 * g
    q00, q11, q22, q01, q02, q12 = (
        tl.load(q),
        tl.load(q + 1),
        tl.load(q + 2),
        tl.load(q + 3),
        tl.load(q + 4),
        tl.load(q + 5),
    )
    end = tl.load(q + 7)
    m0, mx, my, mz = zero, zero, zero, zero
    mxx, myy, mzz, mxy, mxz, myz = zero, zero, zero, zero, zero, zero
    n_points = tl.where(end > 0, b_x * b_y * b_z, 0)
    for start in range(0, n_points, LANES):
        lane = start + tl.arange(0, LANES)
        i, j, k = lane // (b_y * b_z), lane // b_z % b_y, lane % b_z
        u, v, w = i - c_x, j - c_y, k - c_z
        exponent = q00 * u * u + q11 * v * v + q22 * w * w + 2 * (q01 * u * v + q02 * u * w + q12 * v * w)
        near = (lane < n_points) & (exponent < end)
        # The box may begin below the origin, and in a small cell it laps over itself.
        i, j, k = ((x0 + i) % n_x + n_x) % n_x, ((y0 + j) % n_y + n_y) % n_y, ((z0 + k) % n_z + n_z) % n_z
        value = tl.load(grid + ((model * n_x + i) * n_y + j) * n_z + k, mask=near, other=0.0)
        value = tl.where(near, value * tl.exp(-exponent), 0.0)
        m0 += value
        mx += value * u
        my += value * v
        mz += value * w
        mxx += value * u * u
        myy += value * v * v
        mzz += value * w * w
        mxy += value * u * v
        mxz += value * u * w
        myz += value * v * w
    out = moments + 10 * g
    tl.store(out, tl.sum(m0))
    tl.store(out + 1, tl.sum(mx))
    tl.store(out + 2, tl.sum(my))
    tl.store(out + 3, tl.sum(mz))
    tl.store(out + 4, tl.sum(mxx))
    tl.store(out + 5, tl.sum(myy))
    tl.store(out + 6, tl.sum(mzz))
    tl.store(out + 7, tl.sum(mxy))
    tl.store(out + 8, tl.sum(mxz))
    tl.store(out + 9, tl.sum(myz))


@triton.jit
def chain(
    moments,
    records,
    displacements,
    types,
    terms,
    numbers,
    frame,
    use_u_iso,
    use_u_aniso,
    site_weights,
    by_sites,
    by_u_iso,
    by_u_star,
    by_occupancies,
    by_constant,
    sums,
    status,
    limits,
    row,
    kinds,
    parameters,
    n_models,
    n_atoms,
    blocks,
    A0: tl.constexpr,
    A1: tl.constexpr,
    A2: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    P4: tl.constexpr,
    P5: tl.constexpr,
    TERMS: tl.constexpr,
    DISPERSION: tl.constexpr,
    SITES: tl.constexpr,
    U_ISO: tl.constexpr,
    U_STAR: tl.constexpr,
    OCCUPANCIES: tl.constexpr,
    CONSTANT: tl.constexpr,
    ADD: tl.constexpr,
    REPORT: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """From moments (n, n_terms, 10) to gradients in the parameters that are wanted.

    With M of :func:`~.atoms.form_of`, K its inverse, amplitude A = alpha w det(M)^(-1/2) (...) and Q = pi^2 K, the gradient in M
    is -1/2 A m0 K - K S K, where S holds the gradient in K: -A times the second moments.
    """
    model, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_atoms
    atom = model * n_atoms + i
    f64 = tl.float64
    u, a0, a1, a2, a3, a4, a5, weight, f1, f2 = load_displacements(
        displacements, numbers, atom, inside, P0, P1, P2, P3, P4, P5
    )
    kind = tl.load(types + i, mask=inside, other=0).to(tl.int32)
    n_p, n_q, n_s = tl.load(numbers + 6), tl.load(numbers + 7), tl.load(numbers + 8)
    pi = tl.load(numbers + 18)
    zero = tl.zeros((BLOCK,), dtype=f64)
    along_p, along_q, along_s, by_w, by_f = zero, zero, zero, zero, zero
    p0, p1, p2, p3, p4, p5 = zero, zero, zero, zero, zero, zero
    for t in range(TERMS):
        place = terms + 2 * (kind * TERMS + t)
        alpha, e = tl.load(place, mask=inside, other=0.0), tl.load(place + 1, mask=inside, other=0.0)
        if t == TERMS - 1:
            alpha = f2 if DISPERSION else alpha + f1
        elif DISPERSION:
            alpha = zero
        e += u * (2 * pi * pi * tl.load(numbers + 9)) - tl.load(numbers + 10)
        m0, m1, m2, c0, c1, c2, c3, c4, c5, det = form_of(e, (a0, a1, a2, a3, a4, a5), numbers)
        g = atom * TERMS + t
        used = inside & (tl.load(records + 8 * g + 7, mask=inside, other=0.0) > 0)
        det = tl.where(used, det, 1.0)
        base = pi * tl.sqrt(pi) / (n_p * n_q * n_s) / tl.sqrt(det)
        amplitude = alpha * weight * base
        k0, k1, k2, k3, k4, k5 = c0 / det, c1 / det, c2 / det, c3 / det, c4 / det, c5 / det
        at = moments + 10 * g
        n0 = tl.load(at, mask=used, other=0.0).to(f64)
        # Moments of offsets in cells rather than grid steps.
        x = tl.load(at + 1, mask=used, other=0.0).to(f64) / n_p
        y = tl.load(at + 2, mask=used, other=0.0).to(f64) / n_q
        z = tl.load(at + 3, mask=used, other=0.0).to(f64) / n_s
        xx = tl.load(at + 4, mask=used, other=0.0).to(f64) / (n_p * n_p)
        yy = tl.load(at + 5, mask=used, other=0.0).to(f64) / (n_q * n_q)
        zz = tl.load(at + 6, mask=used, other=0.0).to(f64) / (n_s * n_s)
        xy = tl.load(at + 7, mask=used, other=0.0).to(f64) / (n_p * n_q)
        xz = tl.load(at + 8, mask=used, other=0.0).to(f64) / (n_p * n_s)
        yz = tl.load(at + 9, mask=used, other=0.0).to(f64) / (n_q * n_s)
        slope = tl.where(used, 2 * pi * pi * amplitude, 0.0)
        along_p += slope * (k0 * x + k3 * y + k4 * z)
        along_q += slope * (k3 * x + k1 * y + k5 * z)
        along_s += slope * (k4 * x + k5 * y + k2 * z)
        by_w += tl.where(used, alpha * base * n0, 0.0)
        if t == TERMS - 1:
            by_f = tl.where(used, weight * base * n0, 0.0)
        # K (moments) K, symmetric.
        r00, r01, r02 = k0 * xx + k3 * xy + k4 * xz, k0 * xy + k3 * yy + k4 * yz, k0 * xz + k3 * yz + k4 * zz
        r10, r11, r12 = k3 * xx + k1 * xy + k5 * xz, k3 * xy + k1 * yy + k5 * yz, k3 * xz + k1 * yz + k5 * zz
        r20, r21, r22 = k4 * xx + k5 * xy + k2 * xz, k4 * xy + k5 * yy + k2 * yz, k4 * xz + k5 * yz + k2 * zz
        second = tl.where(used, pi * pi * amplitude, 0.0)
        whole = tl.where(used, -0.5 * amplitude * n0, 0.0)
        p0 += whole * k0 + second * (r00 * k0 + r01 * k3 + r02 * k4)
        p1 += whole * k1 + second * (r10 * k3 + r11 * k1 + r12 * k5)
        p2 += whole * k2 + second * (r20 * k4 + r21 * k5 + r22 * k2)
        p3 += whole * k3 + second * (r00 * k3 + r01 * k1 + r02 * k5)
        p4 += whole * k4 + second * (r00 * k4 + r01 * k5 + r02 * k2)
        p5 += whole * k5 + second * (r10 * k4 + r11 * k5 + r12 * k2)
    one = model + tl.arange(0, 1)
    lost = tl.min(verdicts(one, n_models, sums, status, limits, blocks, BLOCKS), 0) < GOOD
    nan = tl.where(lost, float("nan"), 0.0)
    if SITES:
        x = along_p if A0 == 0 else (along_q if A1 == 0 else along_s)
        y = along_p if A0 == 1 else (along_q if A1 == 1 else along_s)
        z = along_p if A0 == 2 else (along_q if A1 == 2 else along_s)
        for axis in tl.static_range(3):
            value = x * tl.load(frame + axis) + y * tl.load(frame + 3 + axis) + z * tl.load(frame + 6 + axis)
            _store(by_sites + 3 * atom + axis, value + nan, inside, ADD)
    if U_ISO:
        value = p0 * tl.load(numbers) + p1 * tl.load(numbers + 1) + p2 * tl.load(numbers + 2)
        value += 2 * (p3 * tl.load(numbers + 3) + p4 * tl.load(numbers + 4) + p5 * tl.load(numbers + 5))
        value = tl.where(tl.load(use_u_iso + i, mask=inside, other=0) != 0, 2 * pi * pi * value, 0.0)
        _store(by_u_iso + atom, value + nan, inside, ADD)
    if U_STAR:
        used = inside & (tl.load(use_u_aniso + i, mask=inside, other=0) != 0)
        two = tl.where(used, 2 * pi * pi, 0.0)
        out = by_u_star + 6 * atom
        _store(out + P0, two * p0 + nan, inside, ADD)
        _store(out + P1, two * p1 + nan, inside, ADD)
        _store(out + P2, two * p2 + nan, inside, ADD)
        _store(out + P3, 2 * two * p3 + nan, inside, ADD)
        _store(out + P4, 2 * two * p4 + nan, inside, ADD)
        _store(out + P5, 2 * two * p5 + nan, inside, ADD)
    if OCCUPANCIES:
        value = by_w * tl.load(site_weights + i, mask=inside, other=0.0)
        _store(by_occupancies + atom, value + nan, inside, ADD)
    if CONSTANT:
        _store(by_constant + atom, by_f + nan, inside, False)
    if REPORT:
        if tl.program_id(0) == 0:
            report(row, n_models, n_atoms, sums, status, limits, blocks, kinds, BLOCKS, parameters)


@triton.jit
def _store(place, value, inside, ADD: tl.constexpr):
    """Write, or add to what is there."""
    kind = place.dtype.element_ty
    if ADD:
        value += tl.load(place, mask=inside, other=0.0).to(value.dtype)
    tl.store(place, value.to(kind), mask=inside)
