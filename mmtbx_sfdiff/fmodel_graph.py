"""CUDA graphs of an FModel: what is called again and again with the same shapes is launched once.

A call on a GPU is a few dozen launches for which nobody waits, and whose sizes do not depend on the atoms' values: no bin can
be too small.  So a captured call is right for any coordinates; what leaves the range that settings are made for is written
down on the device at every replay, and said by ``FModel.check()``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from .kernels import opaque
from .kernels.cuda.constants import keeping

_WARM_UP = 3
# Captured calls that are kept: each holds its working storage.
_MOST = 4


class _Captured:
    """One call: forward and backward graphs, and the tensors they read and write."""

    def __init__(
        self, function: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor, others: list[Any]
    ) -> None:
        # Changes whenever what the forward graph left for the backward one is no longer that of an earlier call.
        self.turn = 0
        self.given = given.detach().clone().requires_grad_()
        self.leaves = [self.given, *others]
        stream, device = torch.cuda.Stream(given.device), given.device
        stream.wait_stream(torch.cuda.current_stream(device))
        with keeping() as self.tables:
            with torch.cuda.stream(stream), torch.enable_grad():
                for _ in range(_WARM_UP):
                    value = function(self.given)
                    torch.autograd.grad(value, self.leaves, torch.ones_like(value), allow_unused=True)
            torch.cuda.current_stream(device).wait_stream(stream)
            self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.forward, stream=stream), torch.enable_grad():
                self.value = function(self.given)
            self.seed = torch.ones_like(self.value)
            with torch.cuda.graph(self.backward, pool=self.forward.pool(), stream=stream):
                self.gradients = torch.autograd.grad(self.value, self.leaves, self.seed, allow_unused=True)

    def run(self, given: torch.Tensor) -> int:
        """The forward graph of these coordinates; the turn that what it leaves belongs to."""
        self.given.detach().copy_(given)
        self.forward.replay()
        self.turn += 1
        return self.turn


class _Replay(torch.autograd.Function):
    """The captured call of (it, coordinates, the parameters that it reads).

    Graphs have one set of storage.  A backward pass that comes after another call of the same graph, or a second time, first goes
    forward again.
    """

    @staticmethod
    def forward(ctx: Any, captured: _Captured, given: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        ctx.captured, ctx.turn = captured, captured.run(given)
        ctx.save_for_backward(given, *others)
        return captured.value.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        captured: _Captured = ctx.captured
        given, *others = ctx.saved_tensors
        with torch.no_grad():
            found = _Replay._gradients(ctx, captured, given, gradient)
        if torch.is_grad_enabled():  # somebody may differentiate again
            found = [None if x is None else _Once.apply(x, gradient, given, *others) for x in found]
        return None, *found

    @staticmethod
    def _gradients(ctx: Any, captured: _Captured, given: torch.Tensor, gradient: torch.Tensor) -> list[Any]:
        if captured.turn != ctx.turn:
            captured.run(given)
        captured.seed.copy_(gradient)
        captured.backward.replay()
        # The backward graph has the storage of the forward one to write in.
        captured.turn += 1
        return [None if x is None else x.clone() for x in captured.gradients]


class _Once(torch.autograd.Function):
    """A gradient of a graph, which knows no derivative of it."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, *of: torch.Tensor) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        opaque.refused("what FModel.compile() captured")


class Graphs:
    """Captured calls of one FModel, by what is calculated and for which shapes, scales and parameters."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, _Captured]] = {}

    def __deepcopy__(self, memo: Any) -> Graphs:
        return Graphs()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Graphs, ()

    def call(
        self,
        name: str,
        owners: tuple[Any, ...],
        function: Callable[[torch.Tensor], torch.Tensor],
        given: torch.Tensor,
        others: list[torch.Tensor],
        options: Hashable = None,
    ) -> torch.Tensor:
        """``function(given)``, captured at the first call for these ``owners``, objects that it reads as they are, and ``options``."""
        places = tuple(x.data_ptr() for x in others)
        key = name, tuple(given.shape), given.dtype, given.device, tuple(map(id, (*owners, *others))), places, options
        if key not in self._made:
            while len(self._made) >= _MOST:
                self._made.pop(next(iter(self._made)))
            # The owners are kept, so that no other object gets their numbers.
            self._made[key] = (owners, others), _Captured(function, given, others)
        found: torch.Tensor = _Replay.apply(self._made[key][1], given, *others)
        return found


class FModelGraphs:
    """The part of :class:`~mmtbx_sfdiff.FModel` that captures; see :meth:`compile`."""

    _graphs: Graphs | None = None
    _compiled_call_impl: Callable[..., Any] | None = None  # of torch.nn.Module

    def compile(self, *args: Any, **options: Any) -> None:
        """Make repeated calls of the same shapes faster.

        On a GPU, without arguments, :meth:`target` and calls of the module are captured as CUDA graphs, forward and backward,
        at their first call for a shape of coordinates, and replayed afterwards; after :meth:`update_scales` they are captured
        anew.  Their results can be differentiated once; call them from one stream and one thread at a time.  (Not yet run on a card.)

        Elsewhere, or with arguments, which are those of ``torch.compile``, it is ``torch.nn.Module.compile``: calls of the module
        itself are compiled.

        Raises
        ------
        ValueError
            On a GPU for an FModel that determines scales in its calls, or of a twin: these read numbers on the host.
        NotImplementedError
            With torch 2.5 or 2.6, whose compiler does not follow an FModel.

        Examples
        --------
        >>> other = fmodel.with_()
        >>> scales = other.update_scales()
        >>> f = other()
        >>> other.compile(backend="eager")
        >>> bool(torch.allclose(other(), f))
        True
        """
        device = self.reflections.f_obs.device  # type: ignore[attr-defined]
        if device.type != "cuda" or args or options:
            if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7):
                raise NotImplementedError(
                    f"torch {torch.__version__} cannot compile an FModel (2.5 and 2.6 were tried): take a newer one, "
                    "or compile functions of structure_factors and solvent_mask."
                )
            super().compile(*args, **options)  # type: ignore[misc]
            return
        if self.refresh_scales is not None or self.follow_scales or self.twin_law is not None:  # type: ignore[attr-defined]
            raise ValueError(
                "FModel.compile() captures CUDA graphs, in which no scales can be determined: make the FModel without "
                "refresh_scales, follow_scales and twin_law, or do not compile it."
            )
        self._graphs = Graphs()
        self._compiled_call_impl = self._captured_call

    def _captured_call(self, sites_cart: torch.Tensor | None = None, *args: Any, **options: Any) -> torch.Tensor:
        if args or options:
            return self.f_model(sites_cart, *args, **options)  # type: ignore[attr-defined, no-any-return]
        return self._captured("f_model", self.f_model, sites_cart)  # type: ignore[attr-defined]

    def _captured(
        self, name: str, function: Callable[[torch.Tensor], torch.Tensor], sites_cart: torch.Tensor | None
    ) -> torch.Tensor:
        """``function(sites_cart)`` by a graph."""
        assert self._graphs is not None
        given = self.atoms.sites_cart if sites_cart is None else sites_cart  # type: ignore[attr-defined]
        others = [x for x in self.parameters() if x is not given]  # type: ignore[attr-defined]
        mask = self.mask_options  # type: ignore[attr-defined]
        owners = (
            self.scales,  # type: ignore[attr-defined]
            self.reflections,  # type: ignore[attr-defined]
            self._alpha_beta,  # type: ignore[attr-defined]
            self._base,  # type: ignore[attr-defined]
            self._weights,  # type: ignore[attr-defined]
            self.f_partial,  # type: ignore[attr-defined]
            *(x for x in mask.values() if isinstance(x, torch.Tensor)),
        )
        numbers = tuple(sorted((key, repr(x)) for key, x in mask.items() if not isinstance(x, torch.Tensor)))
        options = self.method, self.accuracy, self.solvent, numbers  # type: ignore[attr-defined]
        return self._graphs.call(name, owners, function, given, others, options)
