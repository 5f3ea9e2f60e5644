"""|F| whose derivatives are numbers where F is 0, to every order."""

from __future__ import annotations

import torch


def amplitudes(f: torch.Tensor) -> torch.Tensor:
    """|F| of complex or real F.

    At 0 its derivatives are 0, as torch has the first one; torch's second one there is NaN, and its first is NaN for numbers
    so small that their size underflows.

    Examples
    --------
    >>> amplitudes(torch.tensor([3 + 4j, 0]))
    tensor([5., 0.])
    """
    if not f.is_complex():
        return f.abs()
    size = f.detach().abs()
    small = size < torch.finfo(size.dtype).tiny
    return torch.where(small, size, f.masked_fill(small, 1.0).abs())
