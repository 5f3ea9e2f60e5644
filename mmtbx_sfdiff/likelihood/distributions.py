"""Distributions of an observed amplitude around a calculated one: Rice (acentric) and Woolfson (centric).

    acentric  p(F | m) = 2F/v exp[-(F^2 + m^2)/v] I0(2 F m / v)                       (Rice)
    centric   p(F | m) = sqrt(2 / pi v) exp[-(F^2 + m^2)/2v] cosh(F m / v)             (Woolfson)

with m = alpha |F_model| or sigmaA E_c, and v = epsilon beta or 1 - sigmaA^2.  The Bessel functions are torch's exponentially
scaled ones: exact to rounding, and value, gradient and curvature are of one function.  (mmtbx's polynomials, 1e-7 in I0 and
1e-4 in places, are in :mod:`.bessel`; estimates that have to end where mmtbx's do use those.)

References: Sim (1959), Acta Cryst. 12, 813; Woolfson (1956), Acta Cryst. 9, 804; ``mmtbx/max_lik/max_lik.h``.
"""

from __future__ import annotations

import math

import torch

_LN2 = math.log(2.0)


def log_i0(x: torch.Tensor) -> torch.Tensor:
    """ln I0(x) of x >= 0, any shape; differentiable twice."""
    return torch.special.i0e(x).log() + x


def i1_over_i0(x: torch.Tensor) -> torch.Tensor:
    """I1(x) / I0(x) of any x: the figure of merit of an acentric reflection; differentiable."""
    return torch.special.i1e(x) / torch.special.i0e(x)


def log_cosh(x: torch.Tensor) -> torch.Tensor:
    """ln cosh x of x >= 0; differentiable twice, also at 0."""
    return x + torch.nn.functional.softplus(-2 * x) - _LN2


def log_rice(f_obs: torch.Tensor, model: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """ln p of acentric amplitudes.

    Parameters
    ----------
    f_obs : torch.Tensor
        (n,) positive.
    model : torch.Tensor
        (..., n) not negative: m above.
    variance : torch.Tensor
        (n,) positive: v above.

    Returns
    -------
    torch.Tensor
        (..., n)
    """
    return (2 * f_obs / variance).log() - (f_obs - model).square() / variance + _log_i0e(2 * f_obs * model / variance)


def log_woolfson(f_obs: torch.Tensor, model: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """ln p of centric amplitudes; arguments as of :func:`log_rice`."""
    x = f_obs * model / variance
    log_scaled_cosh = torch.nn.functional.softplus(-2 * x) - _LN2
    return 0.5 * (2 / (math.pi * variance)).log() - (f_obs - model).square() / (2 * variance) + log_scaled_cosh


def log_likelihood(
    f_obs: torch.Tensor, model: torch.Tensor, variance: torch.Tensor, centric: torch.Tensor
) -> torch.Tensor:
    """ln p of amplitudes, Rice where acentric and Woolfson where centric.

    Parameters
    ----------
    f_obs, model, variance
        See :func:`log_rice`.
    centric : torch.Tensor
        (n,) bool.

    Returns
    -------
    torch.Tensor
        (..., n)
    """
    return torch.where(centric, log_woolfson(f_obs, model, variance), log_rice(f_obs, model, variance))


def figure_of_merit(
    f_obs: torch.Tensor, model: torch.Tensor, variance: torch.Tensor, centric: torch.Tensor
) -> torch.Tensor:
    """Expected cosine of the phase error, (..., n): I1/I0 (acentric) or tanh (centric).

    Parameters
    ----------
    f_obs, model, variance, centric
        See :func:`log_likelihood`.
    """
    x = f_obs * model / variance
    return torch.where(centric, x.tanh(), i1_over_i0(2 * x))


def _log_i0e(x: torch.Tensor) -> torch.Tensor:
    return torch.special.i0e(x).log()
