"""Arithmetic in the tensors' own precision, whatever has been asked of torch for the whole process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_lock = threading.Lock()
_within, _asked = 0, "highest"


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever ``torch.set_float32_matmul_precision`` says.

    torch knows one precision for the process: it is put back when the last of several threads has left.
    """
    global _within, _asked
    with _lock:
        if _within == 0:
            _asked = torch.get_float32_matmul_precision()
            if _asked != "highest":
                torch.set_float32_matmul_precision("highest")
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0 and _asked != "highest":
                torch.set_float32_matmul_precision(_asked)
