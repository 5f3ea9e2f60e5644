"""Arithmetic in the tensors' own precision, whatever a caller has switched on around it.

Under ``torch.autocast`` every product of float32 matrices is done in bfloat16 or float16.  That suits a network, and
takes the digits from a structure factor: public operations of the equations leave autocast where they begin.
"""

from __future__ import annotations

import contextlib
import functools
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
