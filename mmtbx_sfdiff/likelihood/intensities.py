"""Intensities with their errors: what they say of amplitudes, without French & Wilson's step between.

The integrals over the true amplitude are done by Gauss-Legendre quadrature between limits that hold all but 1e-17 of the
integrand, in E rather than E^2, where every integrand is smooth; 64 points give 1e-10 or better.

References: French & Wilson (1978), Acta Cryst. A34, 517; Read & McCoy (2016), Acta Cryst. D72, 375 (LLGI, E_eff, D_obs).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

import numpy as np

from ..crystal import Crystal, as_miller_tensor
from ..numerics.precision import full_precision
from ..numerics.tensors import tensor_of
from .distributions import log_likelihood

_POINTS, _NARROWINGS, _DROP = 64, 5, 42.0


@dataclasses.dataclass(frozen=True, eq=False)
class Intensities:
    """Observed intensities of one data set, negative ones included.

    Attributes
    ----------
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) int64.
    i_obs, sigmas : torch.Tensor
        (n,) intensities and their standard deviations, all positive.
    r_free_flags : torch.Tensor or None
        (n,) bool, True for the free set.

    Raises
    ------
    ValueError
        Shapes that differ; a sigma that is not positive, or an intensity that is not finite.

    Examples
    --------
    >>> weak = torch.tensor([5.0, -1.0], dtype=torch.float64)
    >>> data = Intensities(crystal, torch.tensor([[1, 2, 3], [0, 2, 4]]), weak, torch.ones_like(weak))
    >>> len(data), data.work
    (2, tensor([True, True]))
    """

    crystal: Crystal
    miller_indices: torch.Tensor
    i_obs: torch.Tensor
    sigmas: torch.Tensor
    r_free_flags: torch.Tensor | None = None

    def __post_init__(self) -> None:
        indices = as_miller_tensor(self.miller_indices)
        object.__setattr__(self, "miller_indices", indices)
        for name in ("i_obs", "sigmas", "r_free_flags"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (len(indices),):
                raise ValueError(f"{name} must have one value for each of the {len(indices)} reflections.")
        bad = (~(torch.isfinite(self.i_obs) & torch.isfinite(self.sigmas) & (self.sigmas > 0))).nonzero()[:, 0]
        if len(bad):
            i = int(bad[0])
            raise ValueError(
                f"Reflection {tuple(indices[i].tolist())} has the intensity {float(self.i_obs[i]):g} with the standard deviation "
                f"{float(self.sigmas[i]):g}: leave out what has no finite value or no positive error."
            )

    def __len__(self) -> int:
        return len(self.miller_indices)

    @property
    def work(self) -> torch.Tensor:
        """(n,) bool selection of the working set: everything where there are no flags."""
        if self.r_free_flags is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.i_obs.device)
        return ~self.r_free_flags


@full_precision
def posterior_moments(
    i_obs: torch.Tensor, sigmas: torch.Tensor, centric: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """<E>, <E^2> and <E^4> of the true amplitude given a normalised intensity, with Wilson's distribution before it.

    Parameters
    ----------
    i_obs, sigmas : torch.Tensor
        (n,) intensity and standard deviation in units of epsilon Sigma.
    centric : torch.Tensor
        (n,) bool.

    Returns
    -------
    mean, mean_square, mean_fourth : torch.Tensor
        (n,) float64; <E> and <E^2> are French & Wilson's F and I.
    """
    i_obs, sigmas = i_obs.to(torch.float64), sigmas.to(torch.float64)

    def log_density(e: torch.Tensor) -> torch.Tensor:
        e, single = e.clamp(min=1e-150), centric.unsqueeze(-1)
        prior = torch.where(single, -0.5 * e.square(), e.log() - e.square())
        return prior - 0.5 * ((e.square() - i_obs.unsqueeze(-1)) / sigmas.unsqueeze(-1)).square()

    e, weights = _nodes(log_density, _furthest(i_obs, sigmas))
    logs = log_density(e)
    p = weights * (logs - logs.amax(-1, keepdim=True)).exp()
    p = p / p.sum(-1, keepdim=True)
    return (p * e).sum(-1), (p * e.square()).sum(-1), (p * e.square().square()).sum(-1)


def effective(i_obs: torch.Tensor, sigmas: torch.Tensor, centric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Effective amplitude and its correlation with the truth: the Rice or Woolfson distribution of E with v = 1 - D^2, m = D E.

    It is chosen to have the posterior's <E^2> and <E^4>, which is in closed form: with u = <E^2>, V = <E^4> - u^2,

        v = u - sqrt(u^2 - V) (acentric),   v = u - sqrt(u^2 - V/2) (centric),   D = sqrt(1 - v),   E_eff = sqrt(u - v) / D

    (Read & McCoy match <E> and <E^2>.)

    Parameters
    ----------
    i_obs, sigmas, centric
        See :func:`posterior_moments`.

    Returns
    -------
    e_eff, d_obs : torch.Tensor
        (n,) float64; 0 <= d_obs <= 1.
    """
    _, u, fourth = posterior_moments(i_obs, sigmas, centric)
    spread = (fourth - u.square()) / torch.where(centric, 2.0, 1.0)
    v = (u - (u.square() - spread).clamp(min=0).sqrt()).clamp(0, 1 - 1e-12)
    d_obs = (1 - v).sqrt()
    return (u - v).clamp(min=0).sqrt() / d_obs, d_obs


@full_precision
def log_likelihood_of_intensities(
    i_obs: torch.Tensor, sigmas: torch.Tensor, model: torch.Tensor, variance: torch.Tensor, centric: torch.Tensor
) -> torch.Tensor:
    """ln p(I | F_model) = ln integral N(I; F^2, sigma) p(F; m, v) dF, p being Rice's or Woolfson's; differentiable in m.

    Parameters
    ----------
    i_obs, sigmas : torch.Tensor
        (n,) intensities and standard deviations.
    model : torch.Tensor
        (..., n) m, on the scale of sqrt(i_obs).
    variance : torch.Tensor
        (n,) v.
    centric : torch.Tensor
        (n,) bool.

    Returns
    -------
    torch.Tensor
        (..., n) float64, to 1e-8 or better.
    """
    i_obs, sigmas, model, variance = (tensor_of(x, torch.float64) for x in (i_obs, sigmas, model, variance))
    # In units of sqrt(v), so that limits and steps are numbers of order 1.
    size = variance.sqrt()
    i_obs, sigmas, model = i_obs / variance, sigmas / variance, model / size
    one = torch.ones((), dtype=torch.float64, device=model.device)

    def log_density(f: torch.Tensor) -> torch.Tensor:
        f = f.clamp(min=1e-150)
        data = -0.5 * ((f.square() - i_obs.unsqueeze(-1)) / sigmas.unsqueeze(-1)).square()
        return data + log_likelihood(f, model.unsqueeze(-1), one, centric.unsqueeze(-1))

    furthest = torch.maximum(_furthest(i_obs, sigmas), model.detach() + math.sqrt(2 * _DROP))
    with torch.no_grad():
        f, weights = _nodes(log_density, furthest)
    logs = log_density(f)
    return torch.logsumexp(logs + weights.log(), -1) - (sigmas * math.sqrt(2 * math.pi)).log() - variance.log()


def _furthest(i_obs: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """An amplitude beyond which the error of an intensity leaves nothing."""
    return (i_obs.clamp(min=0) + math.sqrt(2 * _DROP) * sigmas).sqrt() + 1e-6


def _nodes(
    log_density: Callable[[torch.Tensor], torch.Tensor], high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (..., n, m) and weights of the quadrature, between limits beyond which the integrand is below exp(-42) of its top.

    The limits are narrowed from [0, high] by looking at the points themselves.
    """
    x, w = (torch.as_tensor(v, device=high.device) for v in np.polynomial.legendre.leggauss(_POINTS))
    low = torch.zeros_like(high)
    for _ in range(_NARROWINGS):
        points = torch.linspace(0, 1, _POINTS + 1, dtype=torch.float64, device=high.device)
        at = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * points
        logs = log_density(at)
        inside = logs > logs.amax(-1, keepdim=True) - _DROP
        first = inside.to(torch.uint8).argmax(-1)
        last = _POINTS - inside.flip(-1).to(torch.uint8).argmax(-1)
        # One point further on each side: between two points the integrand may still be above.
        low = at.gather(-1, (first - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
        high = at.gather(-1, (last + 1).clamp(max=_POINTS).unsqueeze(-1)).squeeze(-1)
    half = (high - low).unsqueeze(-1) / 2
    return low.unsqueeze(-1) + half * (x + 1), half * w
