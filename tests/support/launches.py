"""What a call would launch on a GPU, counted on the CPU, where Triton's kernels run in its interpreter.

Counted are aten operations that are no views and compute something (an allocation is none), Triton launches, Fourier transforms
by themselves, and what makes a host wait for a GPU.  An aten operation that is several kernels counts once and is listed
under ``several``; what a card does, only its profiler says.

The process has to start with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from mmtbx_sfdiff.kernels import deferred, engines, opaque
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations that hand a number to the host, or whose size depends on numbers: the host waits.
_WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "is_nonzero",
    "unique_dim",
    "_unique2",
    "unique_consecutive",
    "masked_select",
}
#: Operations that are several kernels.
_SEVERAL = {
    "sort",
    "argsort",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "cumsum",
    "bincount",
    "searchsorted",
    "segment_reduce",
    "index_add_",
    "linalg_det",
    "_linalg_det",
    "index",
    "topk",
}
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"}
# What aten does without a launch, though its schema does not say that it is a view.
_VIEWS = {"_unsafe_view", "lift_fresh", "detach", "alias", "_reshape_alias", "_conj", "_neg_view", "resolve_conj"}


@dataclasses.dataclass
class Count:
    """What was counted: names and numbers."""

    aten: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    triton: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    transforms: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    waits: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    several: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def launches(self) -> int:
        """Besides those of Fourier transforms."""
        return self.aten.total() + self.triton.total()

    def clear(self) -> None:
        """Begin anew."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).clear()

    def __str__(self) -> str:
        return (
            f"{self.launches} launches ({self.triton.total()} Triton: {dict(self.triton)}; aten: {dict(self.aten)}), "
            f"{self.transforms.total()} transforms, waits {dict(self.waits)}, of several kernels {dict(self.several)}"
        )


class _Mode(TorchDispatchMode):
    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, name = function._schema.name.split("::")
        if space == opaque.NAMESPACE:
            # Within our operations modes are off; this one stays on.
            with self:
                keys = torch._C._dispatch_tls_local_include_set(), opaque._EXCLUDED
                with torch._C._ForceDispatchKeyGuard(*keys), torch.no_grad():
                    return function.plain(*args, **(kwargs or {}))
        found = function(*args, **(kwargs or {}))
        if space == "aten":
            self._add(name, function, args, found)
        return found

    def _add(self, name: str, function: Any, args: Any, found: Any) -> None:
        count = self.count
        if name.startswith("_fft"):
            count.transforms[name] += 1
            return
        if name in _WAITS:
            count.waits[name] += 1
        if name == "index" and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
            count.waits["index by a mask"] += 1
        if (
            function.is_view
            or name in _ALLOCATIONS
            or name in _VIEWS
            or not isinstance(found, (torch.Tensor, tuple, list))
        ):
            return
        if name in ("reshape", "contiguous", "to", "_to_copy") and isinstance(found, torch.Tensor):
            source = args[0]
            if found.data_ptr() == source.data_ptr():
                return
        if isinstance(found, torch.Tensor) and not found.numel():
            return
        count.aten[name] += 1
        if name in _SEVERAL:
            count.several[name] += 1


@contextlib.contextmanager
def counting() -> Iterator[Count]:
    """Count in this block, in which tensors of the CPU are treated as on a GPU."""
    count = Count()
    import triton.runtime.interpreter as interpreter

    run = interpreter.GridExecutor.__call__

    def counted(self: Any, *args: Any, **keywords: Any) -> Any:
        count.triton[self.fn.__name__] += 1
        # What the interpreter does with tensors is not what a card would.
        with torch.utils._python_dispatch._disable_current_modes():
            return run(self, *args, **keywords)

    interpreter.GridExecutor.__call__ = counted
    try:
        with deferred.everywhere(), engines.everywhere("triton"), _Mode(count):
            yield count
    finally:
        interpreter.GridExecutor.__call__ = run
