"""Symmetric 3 x 3 tensors, packed as 11, 22, 33, 12, 13, 23."""

from __future__ import annotations

import math
from typing import Any

import torch

#: Row and column of each packed component.
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
#: Which packed component stands in each of the nine places, row after row.
FULL = (0, 3, 4, 3, 1, 5, 4, 5, 2)
#: Which of the nine places each packed component is read from.
PACKED = (0, 4, 8, 1, 2, 5)


def full(tensors: Any) -> Any:
    """(..., 3, 3) of packed (..., 6); a tensor of a tensor, an array of an array.

    Examples
    --------
    >>> import numpy as np
    >>> full(np.arange(6)).tolist()
    [[0, 3, 4], [3, 1, 5], [4, 5, 2]]
    """
    return tensors[..., FULL].reshape(*tensors.shape[:-1], 3, 3)


def packed(tensors: Any) -> Any:
    """(..., 6) of symmetric (..., 3, 3).

    Examples
    --------
    >>> import numpy as np
    >>> packed(full(np.arange(6))).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return tensors.reshape(*tensors.shape[:-2], 9)[..., PACKED]


def least_eigenvalue(tensors: torch.Tensor) -> torch.Tensor:
    """Smallest eigenvalue (...) of symmetric tensors (..., 3, 3).

    In closed form: thousands of calls of a solver take longer than an FFT.

    Reference: O. K. Smith, Commun. ACM 4 (1961) 168.

    Examples
    --------
    >>> least_eigenvalue(torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))).round(decimals=12).item()
    1.0
    """
    mean = tensors.diagonal(dim1=-2, dim2=-1).mean(-1)
    rest = tensors - mean[..., None, None] * torch.eye(3, dtype=tensors.dtype, device=tensors.device)
    size = ((rest * rest).sum((-1, -2)) / 6).sqrt().clamp(min=1e-30)
    half_det = torch.linalg.det(rest / size[..., None, None]) / 2
    angle = torch.acos(half_det.clamp(-1, 1)) / 3
    return mean + 2 * size * torch.cos(angle + 2 * math.pi / 3)
