"""Atoms made ready for a grid, as two Triton kernels: nothing of a call is looked at by the host.

:func:`_survey` reads the parameters as the user has them: it finds numbers that are none, places the atoms in the cell, and
sums what the error model has to know of them (:mod:`~mmtbx_sfdiff.structure_factors.accuracy`), block by block.
:func:`_gaussians` makes Gaussians of them, as :mod:`~mmtbx_sfdiff.kernels.reference.gaussians` does: where each ends follows
from those sums.  What was wrong is told by :mod:`.findings`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .bins import bin_of
from .findings import GOOD

BLOCK = 128
#: Numbers of the survey of a block: contributions to F and to its two gradients, errors likewise, weights, atoms.
SUMS = 8


@triton.jit
def load_sites(sites, i, inside):
    """x, y, z of points (n, 3), in double precision."""
    return (
        tl.load(sites + 3 * i, mask=inside, other=0.0).to(tl.float64),
        tl.load(sites + 3 * i + 1, mask=inside, other=0.0).to(tl.float64),
        tl.load(sites + 3 * i + 2, mask=inside, other=0.0).to(tl.float64),
    )


@triton.jit
def _fine(value, limit):
    """Whether a number is one, and within its limit."""
    return tl.abs(value) <= limit


@triton.jit
def _position(e, bounds):
    """Place of an exponent among the tabulated ones: (number, share of the next)."""
    first, scale, growth, last = tl.load(bounds), tl.load(bounds + 1), tl.load(bounds + 2), tl.load(bounds + 3)
    at = tl.log(tl.maximum((e - first) / scale + 1, 1.0)) / growth
    at = tl.minimum(at, last)
    low = at.to(tl.int32)
    return low, at - low


@triton.jit
def _squares(table, order, kind, low, high, n_rows, n_e, inside):
    place = table + (order * n_rows + kind) * n_e + low
    return tl.load(place, mask=inside, other=0.0) * (1 - high) + tl.load(place + 1, mask=inside, other=0.0) * high


@triton.jit
def _survey(
    sites_cart,
    sites_step,
    residual,
    residual_step,
    u_iso,
    u_iso_step,
    u_star,
    u_star_step,
    occupancies,
    occupancies_step,
    fp,
    fp_step,
    fdp,
    fdp_step,
    use_u_iso,
    use_u_aniso,
    site_weights,
    types,
    frame,
    scales,
    limits,
    bounds,
    norms,
    aliases,
    sites,
    displacements,
    bad,
    keys,
    sums,
    status,
    n_atoms,
    blocks,
    n_rows,
    n_e,
    bins_x,
    bins_y,
    bins_z,
    A0: tl.constexpr,
    A1: tl.constexpr,
    A2: tl.constexpr,
    GRADIENT: tl.constexpr,
    EXTRA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of a block of atoms: fractional sites, (u_iso, u_star, weight, f', f''), whether bad, bins, sums.

    ``frame`` is fractionalization (9) and orthogonalization (9), ``scales`` 2 pi^2 s_max^2 and what f' counts for at least.
    """
    model, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_atoms
    f64 = tl.float64
    x, y, z = load_sites(sites_cart + model * sites_step, i, inside)
    u = tl.load(u_iso + model * u_iso_step + i, mask=inside, other=0.0).to(f64)
    place = u_star + model * u_star_step + 6 * i
    s0 = tl.load(place, mask=inside, other=0.0).to(f64)
    s1 = tl.load(place + 1, mask=inside, other=0.0).to(f64)
    s2 = tl.load(place + 2, mask=inside, other=0.0).to(f64)
    s3 = tl.load(place + 3, mask=inside, other=0.0).to(f64)
    s4 = tl.load(place + 4, mask=inside, other=0.0).to(f64)
    s5 = tl.load(place + 5, mask=inside, other=0.0).to(f64)
    weight = tl.load(occupancies + model * occupancies_step + i, mask=inside, other=0.0).to(f64)
    f1 = tl.load(fp + model * fp_step + i, mask=inside, other=0.0).to(f64)
    f2 = tl.load(fdp + model * fdp_step + i, mask=inside, other=0.0).to(f64)
    limit = tl.load(limits)
    good = _fine(x, limit) & _fine(y, limit) & _fine(z, limit) & _fine(u, tl.load(limits + 1))
    limit = tl.load(limits + 2)
    good &= _fine(s0, limit) & _fine(s1, limit) & _fine(s2, limit)
    good &= _fine(s3, limit) & _fine(s4, limit) & _fine(s5, limit)
    good &= _fine(weight, tl.load(limits + 3)) & _fine(f1, tl.load(limits + 4)) & _fine(f2, tl.load(limits + 5))
    # What is bad counts for nothing, and makes its model NaN in the end.
    x, y, z = tl.where(good, x, 0.0), tl.where(good, y, 0.0), tl.where(good, z, 0.0)
    iso = (tl.load(use_u_iso + i, mask=inside, other=0) != 0) & good
    aniso = (tl.load(use_u_aniso + i, mask=inside, other=0) != 0) & good
    u = tl.where(iso, u, tl.where(good, 0.0, 1.0))
    s0, s1, s2 = tl.where(aniso, s0, 0.0), tl.where(aniso, s1, 0.0), tl.where(aniso, s2, 0.0)
    s3, s4, s5 = tl.where(aniso, s3, 0.0), tl.where(aniso, s4, 0.0), tl.where(aniso, s5, 0.0)
    weight = tl.where(good, weight * tl.load(site_weights + i, mask=inside, other=0.0), 0.0)
    f1, f2 = tl.where(good, f1, 0.0), tl.where(good, f2, 0.0)

    own = residual + model * residual_step + 3 * i
    r = tl.load(own, mask=inside & good, other=0.0)
    a = x * tl.load(frame) + y * tl.load(frame + 1) + z * tl.load(frame + 2) + r
    r = tl.load(own + 1, mask=inside & good, other=0.0)
    b = x * tl.load(frame + 3) + y * tl.load(frame + 4) + z * tl.load(frame + 5) + r
    r = tl.load(own + 2, mask=inside & good, other=0.0)
    c = x * tl.load(frame + 6) + y * tl.load(frame + 7) + z * tl.load(frame + 8) + r
    a, b, c = a - tl.floor(a), b - tl.floor(b), c - tl.floor(c)
    out = model * n_atoms + i
    tl.store(sites + 3 * out, a, mask=inside)
    tl.store(sites + 3 * out + 1, b, mask=inside)
    tl.store(sites + 3 * out + 2, c, mask=inside)
    place = displacements + 10 * out
    tl.store(place, u, mask=inside)
    tl.store(place + 1, s0, mask=inside)
    tl.store(place + 2, s1, mask=inside)
    tl.store(place + 3, s2, mask=inside)
    tl.store(place + 4, s3, mask=inside)
    tl.store(place + 5, s4, mask=inside)
    tl.store(place + 6, s5, mask=inside)
    tl.store(place + 7, weight, mask=inside)
    tl.store(place + 8, f1, mask=inside)
    tl.store(place + 9, f2, mask=inside)
    tl.store(bad + out, (~good).to(tl.int8), mask=inside)
    p = a if A0 == 0 else (b if A0 == 1 else c)
    q = a if A1 == 0 else (b if A1 == 1 else c)
    s = a if A2 == 0 else (b if A2 == 1 else c)
    key = (bin_of(p, bins_x) * bins_y + bin_of(q, bins_y)) * bins_z + bin_of(s, bins_z)
    tl.store(keys + out, key, mask=inside)

    # U along Cartesian axes, and its smallest eigenvalue: the least root of a cubic, from below, where Newton's steps never
    # go beyond it.
    o00, o01, o02 = tl.load(frame + 9), tl.load(frame + 10), tl.load(frame + 11)
    o11, o12, o22 = tl.load(frame + 13), tl.load(frame + 14), tl.load(frame + 17)
    # The orthogonalization is upper triangular.
    t00, t01, t02 = o00 * s0 + o01 * s3 + o02 * s4, o00 * s3 + o01 * s1 + o02 * s5, o00 * s4 + o01 * s5 + o02 * s2
    t11, t12, t22 = o11 * s1 + o12 * s5, o11 * s5 + o12 * s2, o22 * s2
    xx, xy, xz = t00 * o00 + t01 * o01 + t02 * o02, t01 * o11 + t02 * o12, t02 * o22
    yy, yz, zz = t11 * o11 + t12 * o12, t12 * o22, t22 * o22
    mean = (xx + yy + zz) / 3
    d0, d1, d2 = xx - mean, yy - mean, zz - mean
    size = tl.sqrt(tl.maximum((d0 * d0 + d1 * d1 + d2 * d2 + 2 * (xy * xy + xz * xz + yz * yz)) / 6, 1e-30))
    half = (d0 * (d1 * d2 - yz * yz) - xy * (xy * d2 - yz * xz) + xz * (xy * yz - d1 * xz)) / (2 * size * size * size)
    half = tl.minimum(tl.maximum(half, -1.0), 1.0)
    root = tl.full((BLOCK,), -2.0, dtype=f64)
    for _ in range(16):
        slope = tl.maximum(3 * root * root - 3, 1e-9)
        root = tl.minimum(root - (root * root * root - 3 * root - 2 * half) / slope, -1.0)
    scale = tl.load(scales)
    e = (u + tl.where(aniso, mean + root * size, 0.0)) * scale
    kind = tl.load(types + i, mask=inside, other=0).to(tl.int32)
    square = tl.where(inside, weight * weight, 0.0)
    low, high = _position(e, bounds)
    if GRADIENT:
        low_mean, high_mean = _position((u + tl.maximum(mean, 0.0)) * scale, bounds)
    else:
        low_mean, high_mean = low, high
    first = sums + 8 * (model * blocks + block)
    extra = tl.zeros((BLOCK,), dtype=f64)
    if EXTRA:
        least = tl.load(scales + 1)
        f1, f2 = tl.maximum(tl.abs(f1), least), tl.maximum(tl.abs(f2), least)
        extra = f1 * f1 + f2 * f2
    for order in tl.static_range(3):
        own = _squares(norms, order, kind, low_mean, high_mean, n_rows, n_e, inside)
        error = _squares(aliases, order, kind, low, high, n_rows, n_e, inside)
        if EXTRA:
            error += extra * tl.load(aliases + (order * n_rows + n_rows - 1) * n_e + low, mask=inside, other=0.0)
        tl.store(first + order, tl.sum(square * own))
        tl.store(first + 3 + order, tl.sum(square * error))
    tl.store(first + 6, tl.sum(square))
    tl.store(first + 7, tl.sum((square > 0).to(f64)))
    # Less than the first tabulated exponent is no displacement.
    lost = good & ~(e >= tl.load(bounds))
    code = tl.where(inside & ~good, i * 4, tl.where(inside & lost, i * 4 + 1, GOOD))
    tl.store(status + model * blocks + block, tl.min(code, 0))


@triton.jit
def _level(sums, levels, model, blocks, BLOCKS: tl.constexpr):
    """(tolerance, weight of a typical atom) of a model."""
    lane = tl.arange(0, BLOCKS)
    place = sums + 8 * (model * blocks + lane)
    norm = tl.sum(tl.load(place, mask=lane < blocks, other=0.0))
    square = tl.sum(tl.load(place + 6, mask=lane < blocks, other=0.0))
    atoms = tl.sum(tl.load(place + 7, mask=lane < blocks, other=0.0))
    none = atoms == 0
    atoms = tl.where(none, 1.0, atoms)
    tolerance = tl.load(levels) * tl.sqrt(tl.where(none, 1.0, norm) / atoms)
    typical = tl.sqrt(tl.where(none, 1.0, square) / atoms)
    # Where these numbers are known already, they are taken.
    known = tl.load(levels + 1) > 0
    return tl.where(known, tl.load(levels + 1), tolerance), tl.where(known, tl.load(levels + 2), typical)


@triton.jit
def _cut(cuts, numbers, width, level, n_widths, n_levels, inside):
    """The exponent at which a Gaussian ends: linear in a table over log(width) and log(level)."""
    x = (tl.log(tl.maximum(width, 1e-37)) - tl.load(numbers + 11)) / tl.load(numbers + 12)
    y = (level - tl.load(numbers + 13)) / tl.load(numbers + 14)
    x = tl.minimum(tl.maximum(x, 0.0), n_widths - 1.001)
    y = tl.minimum(tl.maximum(y, 0.0), n_levels - 1.001)
    i, j = x.to(tl.int32), y.to(tl.int32)
    x, y = x - i, y - j
    place = cuts + i * n_levels + j
    low = tl.load(place, mask=inside, other=0.0) * (1 - y) + tl.load(place + 1, mask=inside, other=0.0) * y
    place += n_levels
    high = tl.load(place, mask=inside, other=0.0) * (1 - y) + tl.load(place + 1, mask=inside, other=0.0) * y
    return low * (1 - x) + high * x


@triton.jit
def form_of(e, m, numbers):
    """Of M = 2 pi^2 U* + e G* / s_max^2: M, its inverse (times the determinant), and the determinant, packed.

    ``m`` is 2 pi^2 U* along the grid's axes: six tensors.
    """
    e = e / tl.load(numbers + 9)
    m0, m1, m2 = m[0] + e * tl.load(numbers), m[1] + e * tl.load(numbers + 1), m[2] + e * tl.load(numbers + 2)
    m3, m4, m5 = m[3] + e * tl.load(numbers + 3), m[4] + e * tl.load(numbers + 4), m[5] + e * tl.load(numbers + 5)
    c0, c1, c2 = m1 * m2 - m5 * m5, m0 * m2 - m4 * m4, m0 * m1 - m3 * m3
    c3, c4, c5 = m4 * m5 - m2 * m3, m3 * m5 - m1 * m4, m3 * m4 - m0 * m5
    return m0, m1, m2, c0, c1, c2, c3, c4, c5, m0 * c0 + m3 * c3 + m4 * c4


@triton.jit
def load_displacements(displacements, numbers, place, inside, P0, P1, P2, P3, P4, P5):
    """(u_iso, 2 pi^2 U* along the grid's axes (six), weight, f', f'') of atoms."""
    at = displacements + 10 * place
    two_pi_sq = 2 * tl.load(numbers + 18) * tl.load(numbers + 18)
    return (
        tl.load(at, mask=inside, other=0.0),
        tl.load(at + 1 + P0, mask=inside, other=0.0) * two_pi_sq,
        tl.load(at + 1 + P1, mask=inside, other=0.0) * two_pi_sq,
        tl.load(at + 1 + P2, mask=inside, other=0.0) * two_pi_sq,
        tl.load(at + 1 + P3, mask=inside, other=0.0) * two_pi_sq,
        tl.load(at + 1 + P4, mask=inside, other=0.0) * two_pi_sq,
        tl.load(at + 1 + P5, mask=inside, other=0.0) * two_pi_sq,
        tl.load(at + 7, mask=inside, other=0.0),
        tl.load(at + 8, mask=inside, other=0.0),
        tl.load(at + 9, mask=inside, other=0.0),
    )


@triton.jit
def _gaussians(
    sites,
    displacements,
    bad,
    types,
    place,
    sums,
    levels,
    terms,
    numbers,
    cuts,
    centers,
    reach,
    halves,
    records,
    extents,
    status,
    n_atoms,
    blocks,
    n_widths,
    n_levels,
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
    KEEP_ZERO: tl.constexpr,
    OF_CONSTANT: tl.constexpr,
    SORTED: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of a block of atoms: centres and half boxes in grid steps, and (form, amplitude, cut) of each term."""
    model, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_atoms
    atom = model * n_atoms + i
    tolerance, typical = _level(sums, levels, model, blocks, BLOCKS)
    u, m0, m1, m2, m3, m4, m5, weight, f1, f2 = load_displacements(
        displacements, numbers, atom, inside, P0, P1, P2, P3, P4, P5
    )
    spoiled = tl.load(bad + atom, mask=inside, other=0) != 0
    kind = tl.load(types + i, mask=inside, other=0).to(tl.int32)
    n_p, n_q, n_s = tl.load(numbers + 6), tl.load(numbers + 7), tl.load(numbers + 8)
    target = tl.load(place + atom, mask=inside, other=0) if SORTED else atom
    tl.store(centers + 3 * target, tl.load(sites + 3 * atom + A0, mask=inside, other=0.0) * n_p, mask=inside)
    tl.store(centers + 3 * target + 1, tl.load(sites + 3 * atom + A1, mask=inside, other=0.0) * n_q, mask=inside)
    tl.store(centers + 3 * target + 2, tl.load(sites + 3 * atom + A2, mask=inside, other=0.0) * n_s, mask=inside)
    pi = tl.load(numbers + 18)
    size_of = tl.where(weight != 0, tl.abs(weight), typical)
    box_p, box_q, box_s = (
        tl.zeros((BLOCK,), dtype=tl.float64),
        tl.zeros((BLOCK,), dtype=tl.float64),
        tl.zeros((BLOCK,), dtype=tl.float64),
    )
    lost = spoiled & inside
    for t in range(TERMS):
        row = terms + 2 * (kind * TERMS + t)
        alpha = tl.load(row, mask=inside, other=0.0)
        e = tl.load(row + 1, mask=inside, other=0.0)
        if t == TERMS - 1:
            alpha = f2 if DISPERSION else alpha + f1
        elif DISPERSION:
            alpha = tl.zeros_like(alpha)
        e += u * (2 * pi * pi * tl.load(numbers + 9)) - tl.load(numbers + 10)
        a0, a1, a2, c0, c1, c2, c3, c4, c5, det = form_of(e, (m0, m1, m2, m3, m4, m5), numbers)
        size = tl.abs(alpha)
        if OF_CONSTANT:
            if t == TERMS - 1:
                size = tl.maximum(size, tl.load(levels + 3))
        size = tl.where(size != 0, size, 1.0) * size_of
        nonzero = alpha != 0
        if OF_CONSTANT:
            nonzero |= t == TERMS - 1
        kept = inside & ~spoiled & nonzero
        if not KEEP_ZERO:
            kept &= weight != 0
        wrong = kept & ~((a0 > 0) & (c2 > 0) & (det > 0) & (det < float("inf")))
        det = tl.where(kept & ~wrong, det, 1.0)
        g0, g1, g2 = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
        g3, g4, g5 = tl.load(numbers + 3), tl.load(numbers + 4), tl.load(numbers + 5)
        trace = (c0 * g0 + c1 * g1 + c2 * g2 + 2 * (c3 * g3 + c4 * g4 + c5 * g5)) / det
        cut = _cut(
            cuts, numbers, 3 * tl.load(numbers + 9) / trace, tl.log(tolerance / size), n_widths, n_levels, inside
        )
        cut = tl.where(kept & ~wrong, tl.maximum(cut, 0.0), 0.0)
        h_p = tl.sqrt(cut * tl.maximum(a0, 0.0)) * n_p / pi
        h_q = tl.sqrt(cut * tl.maximum(a1, 0.0)) * n_q / pi
        h_s = tl.sqrt(cut * tl.maximum(a2, 0.0)) * n_s / pi
        # What leaves the largest box is lost as well, and so is its model.
        wrong |= ~((h_p < tl.load(numbers + 15)) & (h_q < tl.load(numbers + 16)) & (h_s < tl.load(numbers + 17)))
        wrong = (wrong & inside) | lost
        lost = wrong | lost
        det_root = pi * tl.sqrt(pi) / (n_p * n_q * n_s) / tl.sqrt(det)
        nothing = wrong | ~kept
        place_g = target * TERMS + t
        out = records + 8 * place_g
        kind_out = records.dtype.element_ty
        square = pi * pi / det
        tl.store(out, tl.where(nothing, 0.0, c0 * square / (n_p * n_p)).to(kind_out), mask=inside)
        tl.store(out + 1, tl.where(nothing, 0.0, c1 * square / (n_q * n_q)).to(kind_out), mask=inside)
        tl.store(out + 2, tl.where(nothing, 0.0, c2 * square / (n_s * n_s)).to(kind_out), mask=inside)
        tl.store(out + 3, tl.where(nothing, 0.0, c3 * square / (n_p * n_q)).to(kind_out), mask=inside)
        tl.store(out + 4, tl.where(nothing, 0.0, c4 * square / (n_p * n_s)).to(kind_out), mask=inside)
        tl.store(out + 5, tl.where(nothing, 0.0, c5 * square / (n_q * n_s)).to(kind_out), mask=inside)
        # A wrong one is a number that is none at a few points, from where it reaches all reflections.
        cut = tl.where(wrong, 1.0, cut)
        amplitude = tl.where(wrong, float("nan"), alpha * weight * det_root)
        h_p, h_q, h_s = tl.where(wrong, 1.0, h_p), tl.where(wrong, 1.0, h_q), tl.where(wrong, 1.0, h_s)
        tl.store(out + 6, amplitude.to(kind_out), mask=inside)
        tl.store(out + 7, cut.to(kind_out), mask=inside)
        tl.store(halves + 3 * place_g, h_p, mask=inside)
        tl.store(halves + 3 * place_g + 1, h_q, mask=inside)
        tl.store(halves + 3 * place_g + 2, h_s, mask=inside)
        box_p, box_q, box_s = tl.maximum(box_p, h_p), tl.maximum(box_q, h_q), tl.maximum(box_s, h_s)
    tl.store(reach + 3 * target, box_p.to(reach.dtype.element_ty), mask=inside)
    tl.store(reach + 3 * target + 1, box_q.to(reach.dtype.element_ty), mask=inside)
    tl.store(reach + 3 * target + 2, box_s.to(reach.dtype.element_ty), mask=inside)
    first = extents + 3 * (model * blocks + block)
    tl.store(first, tl.max(tl.where(inside, box_p, 0.0), 0))
    tl.store(first + 1, tl.max(tl.where(inside, box_q, 0.0), 0))
    tl.store(first + 2, tl.max(tl.where(inside, box_s, 0.0), 0))
    before = tl.load(status + model * blocks + block)
    tl.store(status + model * blocks + block, tl.minimum(before, tl.min(tl.where(lost, i * 4 + 2, GOOD), 0)))
