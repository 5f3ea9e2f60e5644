"""Structure factors on a grid, and those of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import numpy as np


def reciprocal_grid(
    Hp1_array: Any, Fp1_tensor: torch.Tensor, gridsize: Sequence[int], batchsize: int | None = None
) -> torch.Tensor:
    """Structure factors (n,) or (batch, n) on the grid of reciprocal space, zeros elsewhere; complex64."""
    h, k, l = torch.as_tensor(np.asarray(Hp1_array), device=Fp1_tensor.device, dtype=torch.int64).T
    n1, n2, n3 = gridsize
    place = ((h % n1) * n2 + k % n2) * n3 + l % n3
    grid: torch.Tensor = Fp1_tensor.new_zeros((*Fp1_tensor.shape[:-1], n1 * n2 * n3), dtype=torch.complex64)
    grid = grid.index_copy(-1, place, Fp1_tensor.to(torch.complex64))
    return grid.reshape(*grid.shape[:-1], n1, n2, n3)


def realmask2Fmask(
    real_grid_mask: torch.Tensor, H_array: Any, cell_volume: float = 1.0, batchsize: int | None = None
) -> torch.Tensor:
    """``V/N sum mask exp(2 pi i h.x)`` of a map (..., n1, n2, n3) at (n, 3) indices."""
    h, k, l = torch.as_tensor(np.asarray(H_array), device=real_grid_mask.device, dtype=torch.int64).T
    n1, n2, n3 = real_grid_mask.shape[-3:]
    transform: torch.Tensor = torch.fft.ifftn(real_grid_mask, dim=(-3, -2, -1)) * cell_volume
    return transform[..., h % n1, k % n2, l % n3]
