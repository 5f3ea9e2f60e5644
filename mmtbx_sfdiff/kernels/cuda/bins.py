"""Points of periodic cells sorted into bins, for Triton kernels whose programs own a tile of a grid.

A program visits the bins from the one that holds the lowest centre within reach of its tile to that of the highest.
Numbers of bins beyond the cell stand for the bins of the cell that they repeat, so that cells smaller than the reach
need nothing of their own.  The bins of a row along the last axis follow one another, and so do their points.
"""

from __future__ import annotations

import math

import torch

import triton
import triton.language as tl


def bin_numbers(spacings, size):
    """How many bins a cell has along each axis for bins about ``size`` Å wide.

    ``spacings``: lengths of the reciprocal axes, Å^-1.
    """
    return tuple(max(1, int(1 / (float(s) * size))) for s in spacings)


def sort_into_bins(fractions, models, n_models, bins):
    """Sort points by model and bin, stably.

    Parameters
    ----------
    fractions : torch.Tensor
        (n, 3) in [0, 1).
    models : torch.Tensor
        (n,) int64.
    n_models : int
    bins : tuple of int

    Returns
    -------
    order : torch.Tensor
        (n,) int64.
    starts : torch.Tensor
        (n_models n_bins + 1,) int32, where each bin begins in that order.
    """
    sizes = torch.tensor(bins, device=fractions.device)
    cell = torch.minimum((fractions * sizes).to(torch.int64), sizes - 1)
    key = ((models * bins[0] + cell[:, 0]) * bins[1] + cell[:, 1]) * bins[2] + cell[:, 2]
    key, order = torch.sort(key, stable=True)
    edges = torch.arange(n_models * math.prod(bins) + 1, device=fractions.device)
    return order, torch.searchsorted(key, edges).to(torch.int32)


def periods_within(extent, tile, dims):
    """A bound on how many cells away from its own a tile's bins may lie."""
    return 2 + max(math.ceil((float(e) + t) / n) for e, t, n in zip(extent, tile, dims))


@triton.jit
def bin_range(first_point, points, extent, bins, n):
    """First and last bin along an axis for a tile of so many points and a reach of ``extent`` grid steps."""
    return (
        tl.floor((first_point - extent) * bins / n).to(tl.int32),
        tl.floor((first_point + points - 1 + extent) * bins / n).to(tl.int32),
    )


@triton.jit
def period(bin_, bins, far):
    """In which cell a bin lies: bin_ // bins, for bin_ >= -far bins."""
    return (bin_ + far * bins) // bins - far
