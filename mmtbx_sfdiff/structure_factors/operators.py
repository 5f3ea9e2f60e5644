"""The sum over the operators of the space group, F(h) = sum_G exp(2 pi i h.t) E(h R), and its transpose."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..kernels.threads import over, own_threads
from ..plans.miller import MillerPlan

# Reflections below which one thread does it.
_ENOUGH = 2**14


def sum_over_operators(miller: MillerPlan, e: torch.Tensor) -> torch.Tensor:
    """F(h) = sum_G exp(2 pi i h.t) E(h R): (n_models, n_unique) to (n_models, n)."""
    conjugate = miller.conjugate < 0
    result = torch.empty((len(e), miller.gather.shape[1]), dtype=e.dtype, device=e.device)
    phases = miller.phase.to(e.dtype)

    def part(first: int, after: int) -> None:
        total = result[:, first:after].zero_()
        for rows, turned, phase in zip(miller.gather, conjugate, phases):
            term = e[:, rows[first:after]]
            total += torch.where(turned[first:after], term.conj(), term) * phase[first:after]

    _over_reflections(e.device, result.shape[1], part)
    return result


def operators_transposed(miller: MillerPlan, grad: torch.Tensor) -> torch.Tensor:
    """dT/dE (n_models, n_unique) from dT/dF (n_models, n)."""
    conjugate, phases = miller.conjugate < 0, miller.phase.to(grad.dtype).conj()
    result = torch.zeros((len(grad), len(miller.indices)), dtype=grad.dtype, device=grad.device)
    with own_threads(grad.device):
        for rows, turned, phase in zip(miller.gather, conjugate, phases):
            term = grad * phase
            term = torch.where(turned, term.conj(), term).resolve_conj()
            for model in range(len(grad)):
                # Several operators, and several of the indices given, may read one place.
                if grad.device.type == "cpu":
                    result[model].index_add_(0, rows, term[model])
                else:
                    result[model].index_put_((rows,), term[model], accumulate=True)
    return result


def _over_reflections(device: torch.device, n: int, part: Callable[[int, int], None]) -> None:
    if device.type != "cpu" or n < _ENOUGH:
        with own_threads(device):
            part(0, n)
    else:
        over(n, part, per_thread=1)
