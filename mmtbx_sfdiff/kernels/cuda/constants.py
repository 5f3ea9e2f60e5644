"""Small things that calls to kernels share: numbers on the device, and parameters as kernels step through them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch

_CONSTANTS: dict[tuple[object, ...], torch.Tensor] = {}
_MOST = 256
_kept: list[list[object]] = []
T = TypeVar("T")


@contextlib.contextmanager
def keeping() -> Iterator[list[object]]:
    """A list of the tables that kernels are given in this block: a captured graph reads them wherever they were."""
    found: list[object] = []
    _kept.append(found)
    try:
        yield found
    finally:
        _kept.remove(found)


def keep(table: T) -> T:
    """This table, which :func:`keeping` gets to know."""
    for found in _kept:
        found.append(table)
    return table


def constant(device: torch.device, *numbers: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """These numbers on a device, put there once: a kernel's own arguments would be rounded to single precision."""
    key = str(device), dtype, *numbers
    found = _CONSTANTS.get(key)
    if found is None:
        while len(_CONSTANTS) >= _MOST:
            _CONSTANTS.pop(next(iter(_CONSTANTS)))
        found = _CONSTANTS[key] = torch.tensor(numbers, dtype=dtype, device=device)
    return keep(found)


def flat(x: torch.Tensor, size: int) -> tuple[torch.Tensor, int]:
    """A parameter (n_models, n_atoms, ...) of ``size`` numbers an atom, and how far it is from one model to the next.

    Models may be the same (stride 0); where atoms do not follow one another it is copied.
    """
    inner = x[0] if len(x) else x
    if not inner.is_contiguous():
        x = x.contiguous()
    return x, x.stride(0) if len(x) > 1 else x.shape[1] * size
