"""Tensors of what people give, whatever defaults of dtype and device a program has set."""

from __future__ import annotations

from typing import Any

import torch

import numpy as np


def number_of(value: Any, name: str) -> float:
    """A Python number of what people give for one: NumPy's and torch's scalars, too.

    Raises
    ------
    TypeError
        It is not one number; the name stands in the sentence.

    Examples
    --------
    >>> number_of(np.float16(3), "d_min"), number_of(torch.tensor(3), "d_min")
    (3.0, 3.0)
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be one number, not {value!r}.".replace("\n", " ")) from None


def tensor_of(values: Any, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> torch.Tensor:
    """A tensor of numbers; one that is a tensor keeps its graph.

    ``torch.as_tensor`` reads numbers of Python in the default dtype, and puts arrays on the default device.

    Parameters
    ----------
    values : torch.Tensor or array-like
        Arrays and sequences are copied; numbers of Python are read in double precision.
    dtype, device
        Of the result; by default those that there are, or the CPU.

    Examples
    --------
    >>> tensor_of([0.1, 0.2]).dtype
    torch.float64
    """
    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(np.array(values))
    result: torch.Tensor = values.to(dtype=dtype or values.dtype, device=device or values.device)
    return result
