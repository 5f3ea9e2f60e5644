"""What was made of the same tensors a moment ago: a backward pass asks for what its forward pass has set up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
#: Bytes of tensors beyond which nothing is kept of a call.
MOST = 2**24


class Recent(Generic[T]):
    """The last results of a function of tensors on the CPU, by the tensors' values.

    Arguments are copied, and compared with the copies, of which the results are made: a tensor that was changed in place is
    another one.  What has a NaN in it equals nothing.  Results must not be changed.  May be used by several threads.

    Parameters
    ----------
    most : int
        How many results are kept.

    Examples
    --------
    >>> import torch
    >>> recent, x = Recent(2), torch.ones(3)
    >>> recent.get([x], "sum", lambda x: float(x.sum())), recent.get([torch.ones(3)], "sum", lambda x: 0.0)
    (3.0, 3.0)
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        # Replaced, never changed: no lock is needed, nor lost in a fork.
        self._kept: tuple[tuple[Hashable, tuple[torch.Tensor, ...], T], ...] = ()

    def get(self, tensors: Sequence[torch.Tensor], key: Hashable, make: Callable[..., T]) -> T:
        """make(*tensors), or what it gave for the same tensors and the same key."""
        if any(x.device.type != "cpu" for x in tensors) or sum(x.numel() * x.itemsize for x in tensors) > MOST:
            return make(*tensors)
        for other, known, result in self._kept:
            if other == key and all(map(_same, tensors, known)):
                return result
        copies = tuple(x.detach().clone() for x in tensors)
        result = make(*copies)
        self._kept = ((key, copies, result), *self._kept[: self.most - 1])
        return result


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)
