"""The soft probe-shrink mask as Triton kernels; see :mod:`~mmtbx_sfdiff.bulk_solvent.probe_shrink` for what is computed.

The fine grid of the whole cell is cut into tiles, and a program owns a tile: it goes through the images of atoms in the
bins around it, in a fixed order, and writes E once.  V is the weighted sum of E over a ball at every coarse point, and
its transpose is, at the fine points of each parity, such a sum over coarse ones.  Going back, a program owns an image and
walks over its box.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .atoms import load_sites
from .bins import bin_of, bin_range, points_of_tile, tile_of, walk_length, walk_step
from .findings import GOOD, lost_models


@triton.jit
def _step(distance_sq, radius, half_inverse_width):
    """t of S(t)."""
    t = 0.5 + (distance_sq / radius - radius) * half_inverse_width
    return tl.minimum(tl.maximum(t, 0.0), 1.0)


@triton.jit
def spheres(
    sites_cart,
    sites_step,
    rounding,
    rounding_step,
    occupancies,
    occupancies_step,
    radii,
    radii_step,
    candidates,
    frame,
    operators,
    numbers,
    position,
    keys,
    radius,
    cover,
    extents,
    status,
    n_atoms,
    blocks,
    n_operators,
    bins_x,
    bins_y,
    bins_z,
    ZERO_COUNTS: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of a block of atoms: images in fine grid steps and their bins, radii with the probe's, and cover.

    ``operators`` (n, 12) are rotations and translations on fractional sites; ``numbers`` fine grid points (3), r_probe, width,
    smallest radius, full occupancy, and limits of sites, occupancies and radii.
    """
    model, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_atoms
    f64 = tl.float64
    x, y, z = load_sites(sites_cart + model * sites_step, i, inside)
    occupancy = tl.load(occupancies + model * occupancies_step + i, mask=inside, other=0.0).to(f64)
    r = tl.load(radii + model * radii_step + i, mask=inside, other=0.0)
    part = inside & (tl.load(candidates + i, mask=inside, other=0) != 0)
    limit = tl.load(numbers + 7)
    good = (tl.abs(x) <= limit) & (tl.abs(y) <= limit) & (tl.abs(z) <= limit)
    good &= tl.abs(occupancy) <= tl.load(numbers + 8)
    if not ZERO_COUNTS:
        part &= occupancy > 0
    fits = (r >= 0) & (r <= tl.load(numbers + 9))
    lost = inside & (~good | (part & ~fits))
    code = tl.min(tl.where(lost, i, GOOD), 0)
    tl.store(status + model * blocks + block, code)
    part &= good & fits
    x, y, z = tl.where(part, x, 0.0), tl.where(part, y, 0.0), tl.where(part, z, 0.0)
    place = rounding + model * rounding_step + 3 * i
    a = x * tl.load(frame) + y * tl.load(frame + 1) + z * tl.load(frame + 2) + tl.load(place, mask=part, other=0.0)
    b = (
        x * tl.load(frame + 3)
        + y * tl.load(frame + 4)
        + z * tl.load(frame + 5)
        + tl.load(place + 1, mask=part, other=0.0)
    )
    c = (
        x * tl.load(frame + 6)
        + y * tl.load(frame + 7)
        + z * tl.load(frame + 8)
        + tl.load(place + 2, mask=part, other=0.0)
    )
    for g in range(n_operators):
        o = operators + 12 * g
        p = a * tl.load(o) + b * tl.load(o + 1) + c * tl.load(o + 2) + tl.load(o + 9)
        q = a * tl.load(o + 3) + b * tl.load(o + 4) + c * tl.load(o + 5) + tl.load(o + 10)
        s = a * tl.load(o + 6) + b * tl.load(o + 7) + c * tl.load(o + 8) + tl.load(o + 11)
        p, q, s = p - tl.floor(p), q - tl.floor(q), s - tl.floor(s)
        image = (model * n_operators + g) * n_atoms + i
        tl.store(position + 3 * image, p * tl.load(numbers), mask=inside)
        tl.store(position + 3 * image + 1, q * tl.load(numbers + 1), mask=inside)
        tl.store(position + 3 * image + 2, s * tl.load(numbers + 2), mask=inside)
        key = (bin_of(p, bins_x) * bins_y + bin_of(q, bins_y)) * bins_z + bin_of(s, bins_z)
        tl.store(keys + image, key, mask=inside)
    r = tl.where(part, r + tl.load(numbers + 3), 0.0)
    r = tl.where(r < tl.load(numbers + 5), 0.0, r)
    t = tl.full((BLOCK,), 1.0, dtype=f64)
    if FULL:
        t = tl.minimum(tl.maximum(occupancy / tl.load(numbers + 6), 0.0), 1.0)
    if ZERO_COUNTS:
        t = tl.where(occupancy > 0, t, 1.0)
    t = tl.where(part, t, 0.0)
    tl.store(radius + model * n_atoms + i, r.to(radius.dtype.element_ty), mask=inside)
    tl.store(cover + model * n_atoms + i, (t * t * (3 - 2 * t)).to(cover.dtype.element_ty), mask=inside)
    tl.store(extents + model * blocks + block, tl.sqrt(tl.max(r * (r + tl.load(numbers + 4)), 0)))


@triton.jit
def arrange(position, radius, cover, place, centers, records, n_atoms, n_images, total, BLOCK: tl.constexpr):
    """Images in the order of their bins: centres, and (radius, cover)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    atom = i // n_images * n_atoms + i % n_images % n_atoms
    target = tl.load(place + i, mask=inside, other=0)
    for axis in tl.static_range(3):
        tl.store(centers + 3 * target + axis, tl.load(position + 3 * i + axis, mask=inside, other=0.0), mask=inside)
    tl.store(records + 2 * target, tl.load(radius + atom, mask=inside, other=0.0), mask=inside)
    tl.store(records + 2 * target + 1, tl.load(cover + atom, mask=inside, other=0.0), mask=inside)


@triton.jit
def accessibility(
    field,
    starts,
    centers,
    records,
    geometry,
    extent,
    reach,
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
    BLOCKS: tl.constexpr,
    TX: tl.constexpr,
    TY: tl.constexpr,
    TZ: tl.constexpr,
):
    """E in a tile.  ``extent`` is the half box of a sphere of 1 Å, ``reach`` (n_models, blocks) how far atoms matter, Å."""
    model, x0, y0, z0 = tile_of(tl.program_id(0), tiles_x, tiles_y, tiles_z, TX, TY, TZ)
    l_x, l_y, l_z = points_of_tile(TX, TY, TZ)
    g_xx, g_yy, g_zz = tl.load(geometry), tl.load(geometry + 1), tl.load(geometry + 2)
    g_xy, g_xz, g_yz = tl.load(geometry + 3), tl.load(geometry + 4), tl.load(geometry + 5)
    half_inverse_width = tl.load(geometry + 6)
    block = tl.arange(0, BLOCKS)
    far_off = tl.max(tl.load(reach + model * blocks + block, mask=block < blocks, other=0.0)) + 1e-6
    e_x, e_y, e_z = tl.load(extent) * far_off, tl.load(extent + 1) * far_off, tl.load(extent + 2) * far_off
    lo_x, hi_x = bin_range(x0, TX, e_x, bins_x, n_x)
    lo_y, hi_y = bin_range(y0, TY, e_y, bins_y, n_y)
    lo_z, hi_z = bin_range(z0, TZ, e_z, bins_z, n_z)
    total = tl.full((TX * TY * TZ,), 1.0, dtype=field.dtype.element_ty)
    for step in range(walk_length(lo_x, hi_x, lo_y, hi_y, lo_z, hi_z, bins_z, far)):
        first, last, cell_x, cell_y, cell_z = walk_step(
            step, starts, model, lo_x, lo_y, hi_y, lo_z, hi_z, bins_x, bins_y, bins_z, far
        )
        for i in range(first, last):
            r = tl.load(records + 2 * i)
            c_x = (tl.load(centers + 3 * i) + (cell_x * n_x - x0)).to(total.dtype)
            c_y = (tl.load(centers + 3 * i + 1) + (cell_y * n_y - y0)).to(total.dtype)
            c_z = (tl.load(centers + 3 * i + 2) + (cell_z * n_z - z0)).to(total.dtype)
            if (
                (r > 0)
                & (c_x > -e_x)
                & (c_x < TX - 1 + e_x)
                & (c_y > -e_y)
                & (c_y < TY - 1 + e_y)
                & (c_z > -e_z)
                & (c_z < TZ - 1 + e_z)
            ):
                u, v, w = l_x - c_x, l_y - c_y, l_z - c_z
                d = g_xx * u * u + g_yy * v * v + g_zz * w * w + 2 * (g_xy * u * v + g_xz * u * w + g_yz * v * w)
                t = _step(d, r, half_inverse_width)
                total *= 1 - tl.load(records + 2 * i + 1) * (1 - t * t * (3 - 2 * t))
    x, y, z = x0 + l_x, y0 + l_y, z0 + l_z
    place = ((model.to(tl.int64) * n_x + x) * n_y + y) * n_z + z
    tl.store(field + place, total, mask=(x < n_x) & (y < n_y) & (z < n_z))


@triton.jit
def ball_sum(
    field,
    volumes,
    masks,
    steps,
    weights,
    shape,
    status,
    row,
    kind,
    sites_cart,
    sites_step,
    occupancies,
    occupancies_step,
    radii,
    radii_step,
    n_steps,
    total,
    m_x,
    m_y,
    m_z,
    fine,
    n_models,
    blocks,
    VOLUMES: tl.constexpr,
    MASKS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """At each coarse point V, the weighted sum of the fine points around it, and the mask; steps are residues, 0 <= step < n.

    ``shape``: -1 / v, and -1 / [1 - exp(-V_free / v)].
    """
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < total
    n_x, n_y, n_z = m_x * fine, m_y * fine, m_z * fine
    model = point // (m_x * m_y * m_z)
    x, y, z = point // (m_y * m_z) % m_x * fine, point // m_z % m_y * fine, point % m_z * fine
    result = tl.zeros((BLOCK,), dtype=field.dtype.element_ty)
    for k in range(n_steps):
        i, j, l = x + tl.load(steps + 3 * k), y + tl.load(steps + 3 * k + 1), z + tl.load(steps + 3 * k + 2)
        i, j, l = tl.where(i < n_x, i, i - n_x), tl.where(j < n_y, j, j - n_y), tl.where(l < n_z, l, l - n_z)
        place = ((model.to(tl.int64) * n_x + i) * n_y + j) * n_z + l
        result += tl.load(weights + k) * tl.load(field + place, mask=inside, other=0.0)
    for lane in range(blocks):
        # What was bad in a model makes all of it NaN.
        code = tl.load(status + model * blocks + lane, mask=inside, other=GOOD)
        result = tl.where(code < GOOD, float("nan"), result)
    if VOLUMES:
        tl.store(volumes + point, result, mask=inside)
    if MASKS:
        value = (tl.exp(result.to(tl.float64) * tl.load(shape)) - 1) * tl.load(shape + 1)
        tl.store(masks + point, value.to(masks.dtype.element_ty), mask=inside)
        if tl.program_id(0) == 0:
            found = tl.full((), 2147483647, dtype=tl.int32)
            atom = tl.full((), 0, dtype=tl.int32)
            for start in range(0, n_models, 16):
                models = start + tl.arange(0, 16)
                code = lost_models(models, n_models, status, blocks, BLOCKS)
                first = tl.min(tl.where((code < GOOD) & (models < n_models), models, 2147483647), 0)
                new = (found == 2147483647) & (first < 2147483647)
                atom = tl.where(new, tl.min(tl.where(models == first, code, 2147483647), 0), atom)
                found = tl.where(new, first, found)
            if (found < 2147483647) & (tl.load(row) == 0):
                tl.store(row, tl.load(kind))
                tl.store(row + 1, found.to(tl.float64))
                tl.store(row + 2, atom.to(tl.float64))
                tl.store(row + 3, n_models)
                for axis in tl.static_range(3):
                    tl.store(row + 4 + axis, tl.load(sites_cart + found * sites_step + 3 * atom + axis).to(tl.float64))
                tl.store(row + 7, tl.load(occupancies + found * occupancies_step + atom).to(tl.float64))
                tl.store(row + 8, tl.load(radii + found * radii_step + atom))


@triton.jit
def by_volumes(by_masks, volumes, out, shape, total, BLOCK: tl.constexpr):
    """dT/dV from dT/d(mask)."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < total
    slope = tl.exp(tl.load(volumes + point, mask=inside, other=0.0).to(tl.float64) * tl.load(shape))
    value = tl.load(by_masks + point, mask=inside, other=0.0).to(tl.float64) * slope
    tl.store(out + point, (value * tl.load(shape) * tl.load(shape + 1)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def ball_spread(gradient, field, out, starts, steps, weights, total, m_x, m_y, m_z, fine, BLOCK: tl.constexpr):
    """E dT/dE at the fine points of one parity, where 0 < E < 1; elsewhere E does not change with the atoms."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    parity = tl.program_id(1)
    inside = point < total
    model = point // (m_x * m_y * m_z)
    x, y, z = point // (m_y * m_z) % m_x, point // m_z % m_y, point % m_z
    f_x, f_y, f_z = x * fine + parity // (fine * fine), y * fine + parity // fine % fine, z * fine + parity % fine
    place = ((model.to(tl.int64) * m_x * fine + f_x) * m_y * fine + f_y) * m_z * fine + f_z
    value = tl.load(field + place, mask=inside, other=0.0)
    changing = inside & (value > 0) & (value < 1)
    result = tl.zeros((BLOCK,), dtype=out.dtype.element_ty)
    if tl.max(changing.to(tl.int32)) > 0:
        for k in range(tl.load(starts + parity), tl.load(starts + parity + 1)):
            i, j, l = x + tl.load(steps + 3 * k), y + tl.load(steps + 3 * k + 1), z + tl.load(steps + 3 * k + 2)
            i, j, l = tl.where(i < m_x, i, i - m_x), tl.where(j < m_y, j, j - m_y), tl.where(l < m_z, l, l - m_z)
            source = ((model.to(tl.int64) * m_x + i) * m_y + j) * m_z + l
            result += tl.load(weights + k) * tl.load(gradient + source, mask=changing, other=0.0)
    tl.store(out + place, result * value, mask=inside)


@triton.jit
def attribute(
    by_field,
    out,
    position,
    radius,
    cover,
    geometry,
    extent,
    width,
    n_atoms,
    n_images,
    n_x,
    n_y,
    n_z,
    LANES: tl.constexpr,
):
    """Of one image: sums that make its gradients by position, radius, cover and width."""
    i = tl.program_id(0)
    model = i // n_images
    atom = model * n_atoms + i % n_images % n_atoms
    g_xx, g_yy, g_zz = tl.load(geometry), tl.load(geometry + 1), tl.load(geometry + 2)
    g_xy, g_xz, g_yz = tl.load(geometry + 3), tl.load(geometry + 4), tl.load(geometry + 5)
    half_inverse_width = tl.load(geometry + 6)
    r, cover_i = tl.load(radius + atom), tl.load(cover + atom)
    c_x, c_y, c_z = tl.load(position + 3 * i), tl.load(position + 3 * i + 1), tl.load(position + 3 * i + 2)
    reach = tl.sqrt((r * (r + tl.load(width))).to(tl.float64)) * 1.000001
    h_x, h_y, h_z = reach * tl.load(extent), reach * tl.load(extent + 1), reach * tl.load(extent + 2)
    x0, y0, z0 = tl.ceil(c_x - h_x).to(tl.int32), tl.ceil(c_y - h_y).to(tl.int32), tl.ceil(c_z - h_z).to(tl.int32)
    b_x = tl.floor(c_x + h_x).to(tl.int32) - x0 + 1
    b_y = tl.floor(c_y + h_y).to(tl.int32) - y0 + 1
    b_z = tl.floor(c_z + h_z).to(tl.int32) - z0 + 1
    zero = tl.zeros((LANES,), dtype=by_field.dtype.element_ty)
    c_x, c_y, c_z = (c_x - x0).to(zero.dtype), (c_y - y0).to(zero.dtype), (c_z - z0).to(zero.dtype)
    first = model.to(tl.int64) * n_x
    s_u, s_v, s_w, s_r, s_c, s_width = zero, zero, zero, zero, zero, zero
    # An atom without a radius counts for nothing.
    n_points = tl.where(r > 0, b_x * b_y * b_z, 0)
    for start in range(0, n_points, LANES):
        lane = start + tl.arange(0, LANES)
        x, y, z = lane // (b_y * b_z), lane // b_z % b_y, lane % b_z
        u, v, w = x - c_x, y - c_y, z - c_z
        d = g_xx * u * u + g_yy * v * v + g_zz * w * w + 2 * (g_xy * u * v + g_xz * u * w + g_yz * v * w)
        t = _step(d, r, half_inverse_width)
        near = (lane < n_points) & (t < 1)
        # The box may begin below the origin, and in a small cell it laps over itself.
        x, y, z = ((x0 + x) % n_x + n_x) % n_x, ((y0 + y) % n_y + n_y) % n_y, ((z0 + z) % n_z + n_z) % n_z
        value = tl.load(by_field + ((first + x) * n_y + y) * n_z + z, mask=near, other=0.0)
        below = 1 - t * t * (3 - 2 * t)
        factor = 1 - cover_i * below
        # Where the factor is 0, so is E, and with it this.
        value = tl.where(near & (factor > 0), value / tl.where(factor > 0, factor, 1.0), 0.0)
        by_t = value * cover_i * 6 * t * (1 - t) * half_inverse_width
        by_d = by_t / r
        s_u += by_d * u
        s_v += by_d * v
        s_w += by_d * w
        s_r -= by_t * (d / (r * r) + 1)
        s_c -= value * below
        s_width -= by_t * (d / r - r) * 2 * half_inverse_width
    tl.store(out + 6 * i, tl.sum(s_u))
    tl.store(out + 6 * i + 1, tl.sum(s_v))
    tl.store(out + 6 * i + 2, tl.sum(s_w))
    tl.store(out + 6 * i + 3, tl.sum(s_r))
    tl.store(out + 6 * i + 4, tl.sum(s_c))
    tl.store(out + 6 * i + 5, tl.sum(s_width))


@triton.jit
def of_images(
    sums,
    occupancies,
    occupancies_step,
    candidates,
    status,
    frame,
    operators,
    numbers,
    gram,
    by_sites,
    by_occupancies,
    by_radii,
    by_cover,
    by_width,
    n_atoms,
    blocks,
    n_operators,
    ZERO_COUNTS: tl.constexpr,
    FULL: tl.constexpr,
    ALL: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """From the sums of images to gradients in the atoms' sites, occupancies, radii; with GIVEN in cover and width."""
    model, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_atoms
    f64 = tl.float64
    zero = tl.zeros((BLOCK,), dtype=f64)
    a, b, c, by_r, by_c, by_w = zero, zero, zero, zero, zero, zero
    for g in range(n_operators):
        place = sums + 6 * ((model * n_operators + g) * n_atoms + i)
        u = tl.load(place, mask=inside, other=0.0).to(f64)
        v = tl.load(place + 1, mask=inside, other=0.0).to(f64)
        w = tl.load(place + 2, mask=inside, other=0.0).to(f64)
        x = -2 * tl.load(numbers) * (u * tl.load(gram) + v * tl.load(gram + 1) + w * tl.load(gram + 2))
        y = -2 * tl.load(numbers + 1) * (u * tl.load(gram + 3) + v * tl.load(gram + 4) + w * tl.load(gram + 5))
        z = -2 * tl.load(numbers + 2) * (u * tl.load(gram + 6) + v * tl.load(gram + 7) + w * tl.load(gram + 8))
        o = operators + 12 * g
        a += x * tl.load(o) + y * tl.load(o + 3) + z * tl.load(o + 6)
        b += x * tl.load(o + 1) + y * tl.load(o + 4) + z * tl.load(o + 7)
        c += x * tl.load(o + 2) + y * tl.load(o + 5) + z * tl.load(o + 8)
        by_r += tl.load(place + 3, mask=inside, other=0.0).to(f64)
        by_c += tl.load(place + 4, mask=inside, other=0.0).to(f64)
        by_w += tl.load(place + 5, mask=inside, other=0.0).to(f64)
    out = model * n_atoms + i
    one = model + tl.arange(0, 1)
    lost = tl.min(lost_models(one, model + 1, status, blocks, BLOCKS), 0) < GOOD
    nan = tl.where(lost, float("nan"), 0.0)
    for axis in tl.static_range(3):
        value = a * tl.load(frame + axis) + b * tl.load(frame + 3 + axis) + c * tl.load(frame + 6 + axis) + nan
        tl.store(by_sites + 3 * out + axis, value.to(by_sites.dtype.element_ty), mask=inside)
    if ALL:
        occupancy = tl.load(occupancies + model * occupancies_step + i, mask=inside, other=0.0).to(f64)
        part = inside & (tl.load(candidates + i, mask=inside, other=0) != 0)
        slope = zero
        if FULL:
            t = tl.minimum(tl.maximum(occupancy / tl.load(numbers + 6), 0.0), 1.0)
            slope = 6 * t * (1 - t) / tl.load(numbers + 6)
        slope = tl.where(part & (occupancy > 0), slope, 0.0)
        value = by_c * slope + nan
        tl.store(by_occupancies + out, value.to(by_occupancies.dtype.element_ty), mask=inside)
        value = tl.where(part, by_r, 0.0) + nan
        tl.store(by_radii + out, value.to(by_radii.dtype.element_ty), mask=inside)
    if GIVEN:
        tl.store(by_cover + out, by_c + nan, mask=inside)
        tl.store(by_width + out, by_w + nan, mask=inside)
