"""CUDA graphs in play: on the CPU, in Triton's interpreter, a capture writes down what is launched and a replay does it again.

As on a card a replay knows tensors by where they are and runs no Python of ours, in a capture nothing may be handed to the host, and
when a backward graph has run, what its forward graph left is overwritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from mmtbx_sfdiff.kernels import deferred, engines

from . import launches


class _Stream:
    def __init__(self, device: Any = None) -> None:
        self.cuda_stream = 0

    def wait_stream(self, other: Any) -> None:
        pass


class Graph:
    """What was launched, in order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.made: list[torch.Tensor] = []
        self.shares: Graph | None = None
        self.replays = 0

    def pool(self) -> Graph:
        return self

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for call in self.calls:
                call()
            if self.shares is not None:
                for x in self.shares.made:
                    x.fill_(float("nan") if x.is_floating_point() or x.is_complex() else 99)


class _Recorder(launches._Mode):
    """Adds to a graph whatever the counts count."""

    def __init__(self, graph: Graph, count: launches.Count) -> None:
        super().__init__(count)
        self.graph = graph

    def _add(self, name: str, function: Any, args: Any, found: Any, keywords: Any = None) -> None:
        before = self.count.aten.total() + self.count.transforms.total()
        super()._add(name, function, args, found)
        if self.count.waits:
            raise RuntimeError(f"{name} in a capture: {dict(self.count.waits)}")
        if self.count.aten.total() + self.count.transforms.total() == before:
            return
        if isinstance(found, torch.Tensor) and any(found is x for x in args):
            self.graph.calls.append(lambda: function(*args, **(keywords or {})))
            return
        results = [found] if isinstance(found, torch.Tensor) else list(found)
        self.graph.made.extend(results)

        def again() -> None:
            new = function(*args, **(keywords or {}))
            for old, x in zip(results, [new] if isinstance(new, torch.Tensor) else new):
                old.copy_(x)

        self.graph.calls.append(again)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, name = function._schema.name.split("::")
        if space != "aten":
            return super().__torch_dispatch__(function, types, args, kwargs)
        found = function(*args, **(kwargs or {}))
        self._add(name, function, args, found, kwargs)
        if name.startswith(("empty", "new_empty")):
            self.graph.made.append(found)
        return found


@contextlib.contextmanager
def _capture(graph: Graph, pool: Graph | None = None, stream: Any = None) -> Iterator[None]:
    import triton.runtime.interpreter as interpreter

    graph.shares = pool
    run = interpreter.GridExecutor.__call__

    def recorded(self: Any, *args: Any, **keywords: Any) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            run(self, *args, **keywords)
        graph.calls.append(lambda: run(self, *args, **keywords))

    with mock.patch.object(interpreter.GridExecutor, "__call__", recorded), _Recorder(graph, launches.Count()):
        yield


@contextlib.contextmanager
def played() -> Iterator[None]:
    """In this block ``torch.cuda``'s graphs are these, and tensors of the CPU go to Triton."""
    patches = {
        "Stream": _Stream,
        "current_stream": lambda device=None: _Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": _capture,
    }
    with contextlib.ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(deferred.everywhere())
        stack.enter_context(engines.everywhere("triton"))
        yield
