"""Gaussians on a grid and off it again on a GPU, as Triton kernels.

The grid is cut into tiles, and a program owns a tile: it goes through the atoms in the bins around it, in a fixed order,
and writes the tile once.  Going back, a program owns a Gaussian and walks over its box.  There are no atomic additions, so
the result is the same, bit for bit, every time.  The models of a batch are grids behind one another, and share each
launch; the transforms are those of :mod:`~mmtbx_sfdiff.kernels.reference.density`.

Runs on a CPU under TRITON_INTERPRET=1, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import math

import torch

import triton
import triton.language as tl

from ..reference import density as splat_torch
from ..reference.density import grid_sites
from ..reference.gaussians import gaussian_gradients, gaussians
from .bins import bin_numbers, bin_range, period, periods_within, sort_into_bins

#: Grid points of a batch.
LARGEST = 2**31 - 1
# Points of a tile along each axis, and points of a box that a program takes at a time.
_TILE = (8, 8, 8)
_LANES = 256
# Width of the bins that atoms are sorted into, Å.
_BIN = 3.0


@triton.jit
def _splat_tile(
    grid,
    starts,
    members,
    sites,
    reach,
    form,
    amplitude,
    cut,
    extent,
    n_terms,
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
    TX: tl.constexpr,
    TY: tl.constexpr,
    TZ: tl.constexpr,
):
    tile = tl.program_id(0)
    model = tile // (tiles_x * tiles_y * tiles_z)
    x0 = tile // (tiles_y * tiles_z) % tiles_x * TX
    y0 = tile // tiles_z % tiles_y * TY
    z0 = tile % tiles_z * TZ
    lane = tl.arange(0, TX * TY * TZ)
    l_x, l_y, l_z = lane // (TY * TZ), lane // TZ % TY, lane % TZ
    lo_x, hi_x = bin_range(x0, TX, tl.load(extent), bins_x, n_x)
    lo_y, hi_y = bin_range(y0, TY, tl.load(extent + 1), bins_y, n_y)
    lo_z, hi_z = bin_range(z0, TZ, tl.load(extent + 2), bins_z, n_z)
    total = tl.zeros((TX * TY * TZ,), dtype=grid.dtype.element_ty)
    for b_x in range(lo_x, hi_x + 1):
        cell_x = period(b_x, bins_x, far)
        for b_y in range(lo_y, hi_y + 1):
            cell_y = period(b_y, bins_y, far)
            row = ((model * bins_x + b_x - cell_x * bins_x) * bins_y + b_y - cell_y * bins_y) * bins_z
            for cell_z in range(period(lo_z, bins_z, far), period(hi_z, bins_z, far) + 1):
                first = tl.load(starts + row + tl.maximum(lo_z - cell_z * bins_z, 0))
                last = tl.load(starts + row + tl.minimum(hi_z - cell_z * bins_z, bins_z - 1) + 1)
                for i in range(first, last):
                    atom = tl.load(members + i)
                    c_x = (tl.load(sites + 3 * atom) + (cell_x * n_x - x0)).to(total.dtype)
                    c_y = (tl.load(sites + 3 * atom + 1) + (cell_y * n_y - y0)).to(total.dtype)
                    c_z = (tl.load(sites + 3 * atom + 2) + (cell_z * n_z - z0)).to(total.dtype)
                    e_x, e_y, e_z = (
                        tl.load(reach + 3 * atom),
                        tl.load(reach + 3 * atom + 1),
                        tl.load(reach + 3 * atom + 2),
                    )
                    if (
                        (c_x > -e_x)
                        & (c_x < TX - 1 + e_x)
                        & (c_y > -e_y)
                        & (c_y < TY - 1 + e_y)
                        & (c_z > -e_z)
                        & (c_z < TZ - 1 + e_z)
                    ):
                        u, v, w = l_x - c_x, l_y - c_y, l_z - c_z
                        for g in range(atom * n_terms, (atom + 1) * n_terms):
                            q = form + 6 * g
                            exponent = (
                                tl.load(q) * u * u
                                + tl.load(q + 1) * v * v
                                + tl.load(q + 2) * w * w
                                + 2 * (tl.load(q + 3) * u * v + tl.load(q + 4) * u * w + tl.load(q + 5) * v * w)
                            )
                            total += tl.where(
                                exponent < tl.load(cut + g), tl.load(amplitude + g) * tl.exp(-exponent), 0.0
                            )
    x, y, z = x0 + l_x, y0 + l_y, z0 + l_z
    tl.store(grid + ((model * n_x + x) * n_y + y) * n_z + z, total, mask=(x < n_x) & (y < n_y) & (z < n_z))


@triton.jit
def _gather_box(grid, sites, half, form, cut, moments, n_terms, n_atoms, n_x, n_y, n_z, LANES: tl.constexpr):
    g = tl.program_id(0)
    atom = g // n_terms
    model = atom // n_atoms
    c_x, c_y, c_z = tl.load(sites + 3 * atom), tl.load(sites + 3 * atom + 1), tl.load(sites + 3 * atom + 2)
    h_x, h_y, h_z = tl.load(half + 3 * g), tl.load(half + 3 * g + 1), tl.load(half + 3 * g + 2)
    x0, y0, z0 = tl.ceil(c_x - h_x).to(tl.int32), tl.ceil(c_y - h_y).to(tl.int32), tl.ceil(c_z - h_z).to(tl.int32)
    b_x = tl.floor(c_x + h_x).to(tl.int32) - x0 + 1
    b_y = tl.floor(c_y + h_y).to(tl.int32) - y0 + 1
    b_z = tl.floor(c_z + h_z).to(tl.int32) - z0 + 1
    zero = tl.zeros((LANES,), dtype=grid.dtype.element_ty)
    c_x, c_y, c_z = (c_x - x0).to(zero.dtype), (c_y - y0).to(zero.dtype), (c_z - z0).to(zero.dtype)
    q00, q11, q22 = tl.load(form + 6 * g), tl.load(form + 6 * g + 1), tl.load(form + 6 * g + 2)
    q01, q02, q12 = tl.load(form + 6 * g + 3), tl.load(form + 6 * g + 4), tl.load(form + 6 * g + 5)
    end = tl.load(cut + g)
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


def splat(job):
    """The density grids, (..., n_p, n_q, n_s)."""
    setting, batch = job.setting, job.weights.shape[:-1]
    dims, dtype, device = setting.grid.dims, setting.dtype, job.sites.device
    n_atoms, n_models = job.n_atoms, batch.numel()
    grid = torch.empty((*batch, *dims), dtype=dtype, device=device)
    with torch.no_grad():
        found = gaussians(job, *(x.flatten(0, len(batch)) for x in (job.u_iso, job.u_star, job.weights, job.fp)))
        sites, reach = grid_sites(job), found.half.amax(1)
        extent = reach.amax(0) + 1e-3
        spacing = setting.cell.reciprocal_lengths[list(setting.grid.axes)]
        bins = bin_numbers(spacing, _BIN)
        models = torch.arange(n_models, device=device).repeat_interleave(n_atoms)
        order, starts = sort_into_bins(sites / torch.tensor(dims, device=device), models, n_models, bins)
        tiles = [-(-n // t) for n, t in zip(dims, _TILE)]
        _splat_tile[(n_models * math.prod(tiles),)](
            grid,
            starts,
            order,
            sites,
            reach.to(dtype),
            found.form.to(dtype),
            found.amplitude.to(dtype),
            found.cut.to(dtype),
            extent,
            found.cut.shape[1],
            *dims,
            *bins,
            *tiles,
            periods_within(extent.tolist(), _TILE, dims),
            TX=_TILE[0],
            TY=_TILE[1],
            TZ=_TILE[2],
        )
    return grid


def gather(grid, job):
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of sum(grid * density)."""
    grid, dtype = grid.contiguous(), job.setting.dtype

    def moments(found):
        result = torch.empty((*found.cut.shape, 10), dtype=dtype, device=grid.device)
        _gather_box[(found.cut.numel(),)](
            grid,
            grid_sites(job),
            found.half,
            found.form.detach().to(dtype),
            found.cut.to(dtype),
            result,
            found.cut.shape[1],
            job.n_atoms,
            *job.setting.grid.dims,
            LANES=_LANES,
        )
        return result.to(torch.float64)

    return gaussian_gradients(job, moments)


def values(job):
    """Structure factors (..., n)."""
    return splat_torch.values(job, splat)


def gradients(seed, job):
    """Gradients (sites, u_iso, u_star, weights, f' or f''), from dT/dF (..., n)."""
    return splat_torch.gradients(seed, job, gather)
