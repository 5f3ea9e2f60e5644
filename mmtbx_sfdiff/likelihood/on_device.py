"""Targets of amplitudes by an engine that takes them whole: value and first derivative in two launches.

What does not change with the model is put into a table once; the derivative is worked out with the value.  Derivatives of higher
order are those of the functions of :mod:`.targets`, which are evaluated again where they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from ..kernels import engines, opaque
from ..kernels.engines import AtomsEngine

if TYPE_CHECKING:
    from ..reflections import Reflections
    from .alpha_beta import AlphaBeta


def device_engine(f_model: torch.Tensor) -> AtomsEngine | None:
    """The engine for these structure factors, where there is one and plain autograd is all that looks on."""
    if not opaque.lasting() or forward_ad._current_level >= 0 or f_model.dtype not in _DTYPES:
        return None
    return engines.of_atoms(engines.engine(f_model.device))


_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def least_squares_table(w: torch.Tensor, f_obs: torch.Tensor) -> torch.Tensor:
    """(n, 6) float64 of weights and f_obs; see :meth:`~mmtbx_sfdiff.kernels.engines.AtomsEngine.amplitude_target`.

    Examples
    --------
    >>> least_squares_table(torch.ones(1), torch.tensor([5.0])).tolist()
    [[5.0, 1.0, 1.0, 0.0, 1.0, 1.0]]
    """
    ones, zeros = torch.ones_like(f_obs), torch.zeros_like(f_obs)
    return torch.stack([x.to(torch.float64) for x in (f_obs, ones, ones, zeros, w, ones)], -1).contiguous()


def likelihood_table(
    reflections: Reflections, alpha_beta: AlphaBeta, counted: torch.Tensor, work: torch.Tensor, f_obs_scale: float
) -> torch.Tensor:
    """(n, 6) float64, of which what is not ``counted`` has no weight, though all of ``work`` counts in the mean.

    Examples
    --------
    >>> every = torch.ones_like(data.work)
    >>> likelihood_table(data, fmodel.alpha_beta(), every, every, 1.0).shape
    torch.Size([881, 6])
    """

    def known(x: torch.Tensor) -> torch.Tensor:
        return torch.where(counted, x.to(torch.float64), 1.0)

    f_obs, alpha = known(reflections.f_obs) / f_obs_scale, known(alpha_beta.alpha)
    variance = known(alpha_beta.epsilons.to(torch.float64) * alpha_beta.beta)
    centric = alpha_beta.centric
    constant = torch.where(centric, 0.5 * (torch.pi * variance / 2).log(), -(2 * f_obs / variance).log())
    weight = counted / work.sum().clamp(min=1).to(torch.float64)
    q = torch.where(centric, 0.5, 1.0).to(torch.float64)
    return torch.stack([f_obs, alpha, 1 / variance, constant, weight, q], -1).contiguous()


class _AmplitudeTarget(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        f_model: torch.Tensor,
        engine: AtomsEngine,
        table: torch.Tensor,
        likelihood: bool,
        dtype: torch.dtype,
        plain: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        value, slopes = engine.amplitude_target(f_model.detach(), table, likelihood, dtype)
        ctx.save_for_backward(f_model, slopes)
        ctx.plain = plain
        return value

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        f_model, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Somebody may differentiate again.
            (slopes,) = torch.autograd.grad(ctx.plain(f_model), f_model, grad, create_graph=True)
            return slopes, None, None, None, None, None
        return slopes * grad.unsqueeze(-1), None, None, None, None, None


def amplitude_target(
    engine: AtomsEngine,
    f_model: torch.Tensor,
    table: torch.Tensor,
    likelihood: bool,
    dtype: torch.dtype,
    plain: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The target (...,) of structure factors (..., n) or amplitudes.

    Parameters
    ----------
    engine : AtomsEngine
    f_model : torch.Tensor
    table : torch.Tensor
        Of :func:`least_squares_table` or :func:`likelihood_table`.
    likelihood : bool
    dtype : torch.dtype
        Of the result.
    plain : callable
        The same function of f_model in torch's operations, of which higher derivatives are taken.
    """
    found: torch.Tensor = _AmplitudeTarget.apply(f_model, engine, table, likelihood, dtype, plain)
    return found
