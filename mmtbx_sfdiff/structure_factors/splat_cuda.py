"""Gaussians on a grid and off it again on a GPU, as Triton kernels.

The grid is cut into tiles, and a program owns a tile: it goes through the Gaussians that reach the tile, in
the order of their numbers, and writes the tile once.  There are no atomic additions, so the result is the
same, bit for bit, every time.  Going back, a program owns a Gaussian and walks over its box.  Which Gaussian
reaches which tile is worked out with torch operations; the transforms are those of
:mod:`.splat_torch`.

Runs on a CPU under TRITON_INTERPRET=1, which is how it is tested where there is no GPU.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import splat_torch
from .gaussians import gaussians, half_lengths
from .splat_torch import SLACK, _grid_sites  # noqa: F401

# Points of a tile along each axis; a program's points are one vector.
_TILE = (4, 8, 16)
_LANES = 256


@triton.jit
def _splat_tile(grid, tiles, starts, members, centre, form, amplitude, cut, n_x, n_y, n_z,
                tiles_y, tiles_z, TX: tl.constexpr, TY: tl.constexpr, TZ: tl.constexpr):
    tile = tl.load(tiles + tl.program_id(0))
    lane = tl.arange(0, TX * TY * TZ)
    x = tile // (tiles_y * tiles_z) * TX + lane // (TY * TZ)
    y = tile // tiles_z % tiles_y * TY + lane // TZ % TY
    z = tile % tiles_z * TZ + lane % TZ
    first, last = tl.load(starts + tile), tl.load(starts + tile + 1)
    total = tl.zeros((TX * TY * TZ,), dtype=grid.dtype.element_ty)
    for i in range(first, last):
        # The members of a tile are (Gaussian, image): the centre is that of the image that reaches it.
        g = tl.load(members + i)
        u = x - tl.load(centre + 3 * i)
        v = y - tl.load(centre + 3 * i + 1)
        w = z - tl.load(centre + 3 * i + 2)
        exponent = (tl.load(form + 6 * g) * u * u + tl.load(form + 6 * g + 1) * v * v
                    + tl.load(form + 6 * g + 2) * w * w + 2 * (tl.load(form + 6 * g + 3) * u * v
                    + tl.load(form + 6 * g + 4) * u * w + tl.load(form + 6 * g + 5) * v * w))
        total += tl.where(exponent <= tl.load(cut + g), tl.load(amplitude + g) * tl.exp(-exponent), 0.0)
    tl.store(grid + (x * n_y + y) * n_z + z, total, mask=(x < n_x) & (y < n_y) & (z < n_z))


@triton.jit
def _gather_box(grid, first_point, box, centre, form, cut, moments, n_x, n_y, n_z, LANES: tl.constexpr):
    g = tl.program_id(0)
    x0, y0, z0 = tl.load(first_point + 3 * g), tl.load(first_point + \
                         3 * g + 1), tl.load(first_point + 3 * g + 2)
    b_x, b_y, b_z = tl.load(box + 3 * g), tl.load(box + 3 * g + 1), tl.load(box + 3 * g + 2)
    c_x, c_y, c_z = tl.load(centre + 3 * g), tl.load(centre + 3 * g + 1), tl.load(centre + 3 * g + 2)
    q00, q11, q22 = tl.load(form + 6 * g), tl.load(form + 6 * g + 1), tl.load(form + 6 * g + 2)
    q01, q02, q12 = tl.load(form + 6 * g + 3), tl.load(form + 6 * g + 4), tl.load(form + 6 * g + 5)
    end = tl.load(cut + g)
    zero = tl.zeros((LANES,), dtype=grid.dtype.element_ty)
    m0, mx, my, mz = zero, zero, zero, zero
    mxx, myy, mzz, mxy, mxz, myz = zero, zero, zero, zero, zero, zero
    for start in range(0, b_x * b_y * b_z, LANES):
        lane = start + tl.arange(0, LANES)
        inside = lane < b_x * b_y * b_z
        i, j, k = x0 + lane // (b_y * b_z), y0 + lane // b_z % b_y, z0 + lane % b_z
        u, v, w = i - c_x, j - c_y, k - c_z
        exponent = q00 * u * u + q11 * v * v + q22 * w * w + 2 * (q01 * u * v + q02 * u * w + q12 * v * w)
        # Boxes begin within one cell below the origin or above it, so that these are the residues.
        i, j, k = (i % n_x + n_x) % n_x, (j % n_y + n_y) % n_y, (k % n_z + n_z) % n_z
        value = tl.load(grid + (i * n_y + j) * n_z + k, mask=inside, other=0.0)
        value = tl.where(inside & (exponent <= end), value * tl.exp(-exponent), 0.0)
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
    """The density grid, (n_p, n_q, n_s)."""
    setting = job.setting
    dims, dtype = setting.grid.dims, setting.dtype
    grid = torch.zeros(dims, dtype=dtype, device=job.sites.device)
    with torch.no_grad():
        atom, form, amplitude, cut = gaussians(job, job.u_iso, job.u_star, job.weights, job.fp)
        if not len(atom):
            return grid
        sites = _grid_sites(job)[atom]
        tiles, starts, members, centres, shape = _members(sites, half_lengths(form, cut), dims)
        _splat_tile[(len(tiles),)](
            grid, tiles, starts, members, centres.to(dtype).contiguous(), _packed(form).to(dtype),
            amplitude.to(dtype), cut.to(dtype), *dims, shape[1], shape[2],
            TX=_TILE[0], TY=_TILE[1], TZ=_TILE[2])
    return grid


def _packed(form):
    return torch.stack([form[:, 0, 0], form[:, 1, 1], form[:, 2, 2], form[:, 0, 1],
                       form[:, 0, 2], form[:, 1, 2]], -1).contiguous()


def _members(sites, half, dims):
    """Which Gaussian, and which of its periodic images, reaches which tile.

    Returns
    -------
    tiles : torch.Tensor
        Numbers of the tiles that are reached.
    starts, members : torch.Tensor
        members[starts[t]:starts[t + 1]] are the Gaussians of tile t, in increasing order.
    centres : torch.Tensor
        (n_members, 3) where the image is.
    shape : tuple of int
        Tiles along each axis.
    """
    device = sites.device
    shape = [-(-n // t) for n, t in zip(dims, _TILE)]
    owners = torch.arange(len(sites), device=device)
    tile = torch.zeros_like(owners)
    shifts = []
    for axis, (n, size) in enumerate(zip(dims, _TILE)):
        # All (image, tile) pairs along this axis, for every (Gaussian, tiles so far) pair.
        low, high = sites[owners, axis] - half[owners, axis], sites[owners, axis] + half[owners, axis]
        first_image, last_image = -torch.floor(high / n).to(torch.int64), - \
                                               torch.floor(low / n).to(torch.int64)
        owners, image, rest = _expand(first_image, last_image, owners, torch.stack([tile, *shifts], -1))
        centre = sites[owners, axis] + image * n
        first = (torch.ceil(centre - half[owners, axis]).clamp(min=0).to(torch.int64)) // size
        last = (torch.floor(centre + half[owners, axis]).clamp(max=n - 1).to(torch.int64)) // size
        owners, index, rest = _expand(first, last, owners, torch.cat([rest, image[:, None]], -1))
        tile = rest[:, 0] * shape[axis] + index
        shifts = list(rest[:, 1:].unbind(-1))
    order = torch.argsort(tile, stable=True)
    counts = torch.bincount(tile, minlength=shape[0] * shape[1] * shape[2])
    starts = torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)])
    period = torch.tensor(dims, dtype=torch.float64, device=device)
    centres = (sites[owners] + torch.stack(shifts, -1) * period)[order]
    return counts.nonzero()[:, 0], starts, owners[order].contiguous(), centres, shape


def _expand(first, last, owners, rest):
    """One row for each integer of [first, last]: (owners, integers, rest)."""
    counts = (last - first + 1).clamp(min=0)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    begin = torch.cumsum(counts, 0) - counts
    return owners[rows], first[rows] + torch.arange(len(rows), device=rows.device) - begin[rows], rest[rows]


def gather(grid, job):
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of sum(grid * density)."""
    setting = job.setting
    leaves = [x.detach().to(torch.float64).requires_grad_(True)
                       for x in (job.u_iso, job.u_star, job.weights, job.fp)]
    with torch.enable_grad():
        atom, form, amplitude, cut = gaussians(job, *leaves, keep_zero=True)
    dims, dtype = setting.grid.dims, setting.dtype
    moments = torch.zeros((len(atom), 10), dtype=dtype, device=grid.device)
    with torch.no_grad():
        sites = _grid_sites(job)[atom]
        half = half_lengths(form, cut)
        first = torch.ceil(sites - half).to(torch.int32)
        box = (torch.floor(sites + half).to(torch.int32) - first + 1).clamp(min=0)
        if len(atom):
            _gather_box[(len(atom),)](
                grid.contiguous(), first.contiguous(), box.contiguous(), sites.to(dtype).contiguous(),
                _packed(form).to(dtype), cut.to(dtype), moments, *dims, LANES=_LANES)
        moments = moments.to(torch.float64)
        second = moments[:, [4, 7, 8, 7, 5, 9, 8, 9, 6]].unflatten(-1, (3, 3))
        period = torch.tensor(dims, dtype=torch.float64, device=grid.device)
        by_site = 2 * amplitude[:, None] * torch.einsum("nij,nj->ni", form, moments[:, 1:4]) * period
        # A sum in a fixed order: index_add_ on a GPU is not.
        order = torch.argsort(atom, stable=True)
        lengths = torch.bincount(atom, minlength=len(job.weights))
        along = torch.segment_reduce(by_site[order].contiguous(), "sum", lengths=lengths, axis=0, unsafe=True)
        grad_sites = torch.empty_like(along)
        grad_sites[:, list(setting.grid.axes)] = along
    grads = torch.autograd.grad([amplitude, form], leaves, [moments[:, 0], - \
                                amplitude.detach()[:, None, None] * second], allow_unused=True)
    return grad_sites, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads))


def values(job):
    """Structure factors (n,) of one density."""
    return splat_torch.values(job, splat)


def gradients(seed, job):
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of one density, from dT/dF (n,)."""
    return splat_torch.gradients(seed, job, gather)
