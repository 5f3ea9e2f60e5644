"""What is worked out of a tensor, found again as long as the tensor lives and is not changed; a bounded number of things."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch.utils.weak import TensorWeakRef

T = TypeVar("T")


class Kept:
    """The last few things that were made, by key; safe for several threads.

    Parameters
    ----------
    size : int
        How many are kept.
    """

    def __init__(self, size: int = 32) -> None:
        self.size, self._made, self._lock = size, OrderedDict[Hashable, Any](), threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make()`` gives, or gave for this key.  Two threads may make it twice; they get the same."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]  # type: ignore[no-any-return]
        made = make()
        with self._lock:
            made = self._made.setdefault(key, made)
            while len(self._made) > self.size:
                self._made.popitem(last=False)
        return made

    def __len__(self) -> int:
        return len(self._made)


class TensorCache:
    """Results by tensor and key.

    Parameters
    ----------
    size : int
        How many are kept.
    """

    def __init__(self, size: int = 32) -> None:
        self.size, self._entries, self._lock = size, OrderedDict[Hashable, Any](), threading.Lock()

    def get(self, tensor: torch.Tensor, key: Hashable, make: Callable[[], T]) -> T:
        """``make()``, or what it gave for this tensor and key before.

        Parameters
        ----------
        tensor : torch.Tensor
            Its identity and version count, not its values; those of inference mode, which have no such count, are
            compared.
        key : hashable
        make : callable
            Must not keep the tensor itself in its result, which would keep both for ever.
        """
        place = id(tensor), key
        with self._lock:
            entry = self._entries.get(place)
            if entry is not None:
                self._entries.move_to_end(place)
        if entry is not None and entry[0]() is tensor and _unchanged(tensor, entry[1]):
            return entry[2]  # type: ignore[no-any-return]
        made = make()
        state = tensor.clone() if tensor.is_inference() else tensor._version
        with self._lock:
            self._entries[place] = TensorWeakRef(tensor), state, made
            self._entries.move_to_end(place)
            for old in [place for place, entry in self._entries.items() if entry[0]() is None]:
                del self._entries[old]
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)
        return made

    def __len__(self) -> int:
        return len(self._entries)


def _unchanged(tensor: torch.Tensor, state: Any) -> bool:
    if isinstance(state, torch.Tensor):
        return tensor.is_inference() and torch.equal(tensor, state)
    return not tensor.is_inference() and tensor._version == state
