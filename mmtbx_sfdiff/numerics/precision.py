"""Arithmetic in the tensors' own precision, whatever a caller has switched on around it.

Under ``torch.autocast`` every product of float32 matrices is done in bfloat16 or float16.  That suits a network, and
takes the digits from a structure factor: public operations of the equations leave autocast where they begin.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")
_DEVICES = ("cpu", "cuda")


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """A context in which autocast is off for CPU and CUDA."""
    with contextlib.ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def full_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: the function computes as it would outside ``torch.autocast``."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not any(torch.is_autocast_enabled(device) for device in _DEVICES):
            return function(*args, **kwargs)
        with without_autocast():
            return function(*args, **kwargs)

    return wrapped


def widened(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in ``dtype`` if it is of lower precision; its gradient comes back in its own.

    Warns
    -----
    UserWarning
        The gradient of a float16 tensor overflows.  It is infinite then, as torch's conversion has it and loss scaling looks for.

    Examples
    --------
    >>> widened(torch.ones(2, dtype=torch.bfloat16), torch.float32).dtype
    torch.float32
    """
    if not value.is_floating_point() or torch.finfo(value.dtype).eps <= torch.finfo(dtype).eps:
        return value
    wide = value.to(dtype)
    if value.dtype == torch.float16 and wide.requires_grad and wide.device.type == "cpu":
        if not torch.compiler.is_compiling():
            wide.register_hook(_tell_overflow)
    return wide


def _tell_overflow(gradient: torch.Tensor) -> None:
    try:
        largest = float(gradient.detach().abs().max()) if gradient.numel() else 0.0
    except RuntimeError:  # inside vmap nobody can look
        return
    if largest > torch.finfo(torch.float16).max:
        warnings.warn(
            f"The gradient is up to {largest:.3g}, and float16 ends at 65504: some of it is infinite; give the tensor as float32 or "
            "bfloat16, or scale the loss down.",
            stacklevel=2,
        )
