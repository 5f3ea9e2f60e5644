"""Points of periodic cells sorted into bins, for Triton kernels whose programs own a tile of a grid.

A program visits the bins from the one that holds the lowest centre within reach of its tile to that of the highest.
Numbers of bins beyond the cell stand for the bins of the cell that they repeat, so that cells smaller than the reach
need nothing of their own.  The bins of a row along the last axis follow one another, and so do their points.

Points are sorted by counting, for each, those that come before it: a pass over pairs, and no atomic operation, so that the
order is that of a stable sort, and no bin can be too small for what comes.
"""

from __future__ import annotations

import math

import torch

import triton
import triton.language as tl

# Points of a model that are still sorted by comparing pairs.
_PAIRS = 2**16
# Points that a program places, and those that it compares them with at a time: pairs have to fit its registers.
_BLOCK, _OTHERS = 128, 32


def bin_numbers(spacings, size):
    """How many bins a cell has along each axis for bins about ``size`` Å wide.

    ``spacings``: lengths of the reciprocal axes, Å^-1.
    """
    return tuple(max(1, int(1 / (float(s) * size))) for s in spacings)


def sort_into_bins(keys, n_bins):
    """Sort the points of each model by bin, stably; two launches.

    Parameters
    ----------
    keys : torch.Tensor
        (n_models, n) int32, the bin of each point.
    n_bins : int

    Returns
    -------
    place : torch.Tensor
        (n_models, n) int32: where each point is, those of all models counted.
    starts : torch.Tensor
        (n_models, n_bins + 1) int32: where each bin begins.
    """
    n_models, n = keys.shape
    starts = torch.empty((n_models, n_bins + 1), dtype=torch.int32, device=keys.device)
    if n <= _PAIRS:
        place, ordered = torch.empty_like(keys), torch.empty_like(keys)
        blocks = triton.cdiv(n, _BLOCK)
        _rank[(n_models * blocks,)](keys, place, ordered, n, blocks, BLOCK=_BLOCK, OTHERS=_OTHERS)
    else:
        ordered, order = torch.sort(keys, stable=True, dim=1)
        numbers = torch.arange(n_models * n, dtype=torch.int32, device=keys.device).view(n_models, n)
        place = torch.empty_like(keys).scatter_(1, order, numbers)
    blocks = triton.cdiv(n_bins + 1, _BLOCK)
    _starts[(n_models * blocks,)](ordered, starts, n, n_bins, blocks, STEPS=max(1, n).bit_length(), BLOCK=_BLOCK)
    return place, starts


def periods_within(reach, tile, dims):
    """A bound on how many cells away from its own a tile's bins may lie, for a reach of so many grid steps."""
    return 2 + max(math.ceil((r + t) / n) for r, t, n in zip(reach, tile, dims))


@triton.jit
def _rank(keys, place, ordered, n, blocks, BLOCK: tl.constexpr, OTHERS: tl.constexpr):
    """How many points come before each: those of a lower bin, and of its own with a lower number."""
    model = tl.program_id(0) // blocks
    first = model * n
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(keys + first + i, mask=i < n, other=0)
    before = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, n, OTHERS):
        j = start + tl.arange(0, OTHERS)
        other = tl.load(keys + first + j, mask=j < n, other=2147483647)
        same = (other[None, :] == own[:, None]) & (j[None, :] < i[:, None])
        before += tl.sum(((other[None, :] < own[:, None]) | same).to(tl.int32), 1)
    tl.store(place + first + i, first + before, mask=i < n)
    tl.store(ordered + first + before, own, mask=i < n)


@triton.jit
def _starts(ordered, starts, n, n_bins, blocks, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Where each bin begins, by bisection."""
    model = tl.program_id(0) // blocks
    bin_ = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros((BLOCK,), dtype=tl.int32)
    high = low + n
    for _ in range(STEPS):
        middle = (low + high) // 2
        open_ = low < high
        below = tl.load(ordered + model * n + middle, mask=open_, other=0) < bin_
        low = tl.where(open_ & below, middle + 1, low)
        high = tl.where(open_ & ~below, middle, high)
    tl.store(starts + model * (n_bins + 1) + bin_, model * n + low, mask=bin_ <= n_bins)


@triton.jit
def bin_of(fraction, bins):
    """The bin along an axis of a fraction in [0, 1)."""
    return tl.minimum((fraction * bins).to(tl.int32), bins - 1)


@triton.jit
def bin_range(first_point, points, extent, bins, n):
    """First and last bin along an axis for a tile of so many points and a reach of ``extent`` grid steps."""
    return (
        tl.floor((first_point - extent) * bins / n).to(tl.int32),
        tl.floor((first_point + points - 1 + extent) * bins / n).to(tl.int32),
    )


@triton.jit
def _period(bin_, bins, far):
    """In which cell a bin lies: bin_ // bins, for bin_ >= -far bins."""
    return (bin_ + far * bins) // bins - far


@triton.jit
def tile_of(tile, tiles_x, tiles_y, tiles_z, TX: tl.constexpr, TY: tl.constexpr, TZ: tl.constexpr):
    """(model, first point along each axis) of a program's tile."""
    return (
        tile // (tiles_x * tiles_y * tiles_z),
        tile // (tiles_y * tiles_z) % tiles_x * TX,
        tile // tiles_z % tiles_y * TY,
        tile % tiles_z * TZ,
    )


@triton.jit
def points_of_tile(TX: tl.constexpr, TY: tl.constexpr, TZ: tl.constexpr):
    """Where the points of a tile are in it, along each axis."""
    lane = tl.arange(0, TX * TY * TZ)
    return lane // (TY * TZ), lane // TZ % TY, lane % TZ


@triton.jit
def walk_length(lo_x, hi_x, lo_y, hi_y, lo_z, hi_z, bins_z, far):
    """How many steps a walk over these bins has: rows along the last axis, each of one cell."""
    cells = _period(hi_z, bins_z, far) - _period(lo_z, bins_z, far) + 1
    return (hi_x - lo_x + 1) * (hi_y - lo_y + 1) * cells


@triton.jit
def walk_step(step, starts, model, lo_x, lo_y, hi_y, lo_z, hi_z, bins_x, bins_y, bins_z, far):
    """One step: (first point, first point after it, the cell along each axis).  Steps have one order, and so has a sum."""
    first_z = _period(lo_z, bins_z, far)
    cells = _period(hi_z, bins_z, far) - first_z + 1
    rows_y = hi_y - lo_y + 1
    cell_z = first_z + step % cells
    b_y = lo_y + step // cells % rows_y
    b_x = lo_x + step // (cells * rows_y)
    cell_x, cell_y = _period(b_x, bins_x, far), _period(b_y, bins_y, far)
    row = ((b_x - cell_x * bins_x) * bins_y + b_y - cell_y * bins_y) * bins_z + model * (bins_x * bins_y * bins_z + 1)
    first = tl.load(starts + row + tl.maximum(lo_z - cell_z * bins_z, 0))
    last = tl.load(starts + row + tl.minimum(hi_z - cell_z * bins_z, bins_z - 1) + 1)
    return first, last, cell_x, cell_y, cell_z
