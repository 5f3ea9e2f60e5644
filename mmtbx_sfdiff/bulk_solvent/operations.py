"""What the operations of all masks have in common: their threads, and the derivatives that they refuse."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..kernels import opaque
from ..kernels.threads import own_threads, share_models


def operation(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """:func:`~mmtbx_sfdiff.kernels.opaque.operation` in which torch never wakes threads of its own beside ours.

    The first argument is a tensor, or a sequence of tensors, that says which device it is.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def quiet(first: Any, *args: Any, **keywords: Any) -> Any:
            device = (first if isinstance(first, torch.Tensor) else first[0]).device
            with own_threads(device):
                return function(first, *args, **keywords)

        return opaque.operation(name, fake)(quiet)

    return decorate


def each_model(n_models: int, one: Callable[[int], Any], device: torch.device) -> list[Any]:
    """one(i) for each model; on a CPU, where there are enough of them, whole models to threads."""
    return share_models([functools.partial(one, i) for i in range(n_models)], device)


class DifferentiableOnce(opaque.Function):
    """A :class:`~mmtbx_sfdiff.kernels.opaque.Function` without a derivative in forward mode."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        opaque.refused("the solvent mask in forward mode")


class LastDerivative(opaque.Function):
    """The gradient of a :class:`DifferentiableOnce`: no second one follows."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        opaque.refused("the solvent mask")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        opaque.refused("the solvent mask")
