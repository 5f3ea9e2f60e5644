"""Working storage that is used again.

Arrays of many megabytes come from the system page by page, each cleared when it is first written to, and go back to it:
of a mask that takes ten milliseconds this was five.  Here what is no longer referred to is kept for the next call, up to
:data:`MOST` bytes in the process.
"""

from __future__ import annotations

import collections
import math
import os
import threading
from collections.abc import Sequence
from typing import Any

import torch

import numpy as np

#: Bytes that wait to be used again.
MOST = 2**28
# Bytes; smaller arrays are not worth it.
_LEAST = 2**16
_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.int64: np.dtype(np.int64),
}


class _Pool:
    """Buffers that nobody uses, the one that was used last behind the others."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        # A finalizer may run while its own thread is in here.
        self.lock = threading.RLock()
        self.waiting: collections.deque[np.ndarray] = collections.deque()
        self.size = 0

    def take(self, size: int) -> np.ndarray:
        """A buffer of ``size`` bytes."""
        with self.lock:
            for number, buffer in enumerate(reversed(self.waiting), 1):
                if buffer.nbytes == size:
                    del self.waiting[-number]
                    self.size -= size
                    return buffer
        return np.empty(size, dtype=np.uint8)

    def give_back(self, buffer: np.ndarray) -> None:
        with self.lock:
            self.waiting.append(buffer)
            self.size += buffer.nbytes
            while self.size > MOST:
                self.size -= self.waiting.popleft().nbytes


_POOL = _Pool()

if hasattr(os, "register_at_fork"):
    # Another thread may have held the lock.
    os.register_at_fork(after_in_child=_POOL.forget)


class _Lease:
    """What arrays of a buffer refer to; the buffer goes back when the last of them is gone."""

    def __init__(self, buffer: np.ndarray) -> None:
        self.buffer = buffer
        self.__array_interface__ = buffer.__array_interface__

    def __del__(self) -> None:
        _POOL.give_back(self.buffer)


def scratch(n: int, dtype: np.dtype) -> np.ndarray:
    """An array (n,) with anything in it; its memory is used again when nothing refers to it any more."""
    dtype = np.dtype(dtype)
    size = n * dtype.itemsize
    if size < _LEAST:
        return np.empty(n, dtype=dtype)
    # Sizes in steps of an eighth or less, so that calls that differ a little share buffers.
    step = 2 ** max(0, math.frexp(size)[1] - 4)
    return np.asarray(_Lease(_POOL.take(-(-size // step) * step)))[:size].view(dtype)


def scratch_like(tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor with anything in it, like ``tensor``; on a CPU one of :func:`scratch`."""
    dtype = tensor.dtype if dtype is None else dtype
    if tensor.device.type != "cpu":
        return tensor.new_empty(shape, dtype=dtype)
    return torch.from_numpy(scratch(math.prod(shape), _NUMPY[dtype])).view(shape)
