"""Which reflections to leave out: amplitudes that Wilson statistics, or the model, say cannot be.

With z = I / (epsilon <I>):

* basic: p(z) < 1e-6, where p = exp(-z) (acentric) or erfc(sqrt(z/2)) (centric);
* extreme: the largest of n such values exceeds z with probability below 0.1;
* beam stop: beyond 10 Å, z below 0.01 (acentric) or 1.6e-4 (centric);
* model: the observation is so much less likely than the most likely amplitude that the largest of n such
  differences
  exceeds it with probability below 0.01 (:mod:`~mmtbx_sfdiff.likelihood.sigmaa`, :mod:`~mmtbx_sfdiff.likelihood.posterior`).

Each is repeated, because what is left out changes the statistics of the rest.

References: Read (1999), Acta Cryst. D55, 1759; ``mmtbx.scaling.outlier_rejection.outlier_manager`` and
``mmtbx.f_model.manager.remove_outliers``.
"""

from __future__ import annotations

import math

import torch

from ..likelihood import posterior
from ..likelihood.normalization import ResolutionKernel
from ..likelihood.sigmaa import sigmaa

_P_BASIC = 1e-6
_P_EXTREME = 0.1
_P_MODEL = 0.01
_BEAM_STOP_LEVEL, _BEAM_STOP_D = 0.01, 10.0
_LEAST_GAIN = 1e-10
# Below this z no reflection is improbable: p(z) > 0.1 even for the only one of its kind.
_ORDINARY = 2.0


def wilson_outliers(
    z: torch.Tensor, d_star_sq: torch.Tensor, centric: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outliers by Wilson statistics alone.

    Parameters
    ----------
    z : torch.Tensor
        (n,) normalised intensities.
    d_star_sq : torch.Tensor
        (n,) Å^-2.
    centric : torch.Tensor
        (n,) bool.

    Returns
    -------
    basic, extreme, beam_stop : torch.Tensor
        (n,) bool each, True for an outlier.
    """
    n_centric = int(centric.sum())
    n_acentric = len(z) - n_centric
    basic, extreme = torch.zeros_like(centric), torch.zeros_like(centric)
    large = (z > _ORDINARY).nonzero()[:, 0]
    strong, strong_centric = z[large], centric[large]
    at_most = torch.where(strong_centric, torch.erf((strong / 2).sqrt()), 1.0 - (-strong).exp())
    number = torch.where(strong_centric, float(n_centric), float(n_acentric)).to(z.dtype)
    basic[large] = 1.0 - at_most <= _P_BASIC
    extreme[large] = 1.0 - at_most.pow(number) <= _P_EXTREME
    low = (z < _BEAM_STOP_LEVEL**2 * math.pi / 2) | (~centric & (z < -math.log(1.0 - _BEAM_STOP_LEVEL)))
    beam_stop = low & (d_star_sq.rsqrt() > _BEAM_STOP_D)
    return basic, extreme, beam_stop


def model_outliers(
    e_obs: torch.Tensor, e_calc: torch.Tensor, centric: torch.Tensor, free: torch.Tensor, d_star_sq: torch.Tensor
) -> torch.Tensor:
    """Outliers given calculated amplitudes.

    Parameters
    ----------
    e_obs, e_calc : torch.Tensor
        (n,) normalised amplitudes.
    centric, free : torch.Tensor
        (n,) bool.
    d_star_sq : torch.Tensor
        (n,) Å^-2, ascending.

    Returns
    -------
    torch.Tensor
        (n,) bool, True for an outlier.
    """
    n = len(e_obs)
    s = sigmaa(e_obs, e_calc, centric, free, d_star_sq**1.5)
    result = torch.zeros_like(centric)
    # erf(sqrt(gain / 2))^n >= 1 - p
    least = (
        2.0 * float(torch.erfinv(torch.tensor((1.0 - _P_MODEL) ** (1.0 / n), dtype=torch.float64, device="cpu"))) ** 2
    )
    chosen = posterior.candidates(e_obs, e_calc, centric, s, 0.999 * least).nonzero()[:, 0]
    if not len(chosen):
        return result
    alpha, beta = posterior.distribution(s[chosen])
    columns = (e_obs[chosen], e_calc[chosen], centric[chosen], alpha, beta)
    for i, *values in zip(chosen.tolist(), *(column.tolist() for column in columns)):
        gain = max(posterior.log_likelihood_gain(*values), _LEAST_GAIN)
        if not 1.0 - math.erf(math.sqrt(gain / 2.0)) ** n > _P_MODEL:
            result[i] = True
    return result


def outliers(
    f_obs: torch.Tensor,
    epsilons: torch.Tensor,
    centric: torch.Tensor,
    free: torch.Tensor,
    d_star_sq: torch.Tensor,
    f_model: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """One round of the tests.

    Parameters
    ----------
    f_obs : torch.Tensor
        (n,) amplitudes.
    epsilons : torch.Tensor
        (n,) statistical weights of the reflections.
    centric, free : torch.Tensor
        (n,) bool.
    d_star_sq : torch.Tensor
        (n,) Å^-2, ascending.
    f_model : torch.Tensor, optional
        (n,) amplitudes; without them, or without free reflections, only Wilson statistics are used.

    Returns
    -------
    dict of str to torch.Tensor
        "basic", "extreme", "beam_stop" and "model" (where tested): (n,) bool, True for an outlier.
    """
    kernel = ResolutionKernel(d_star_sq)
    intensity = f_obs * f_obs / epsilons
    z = intensity / kernel.mean(intensity)
    found = dict(zip(("basic", "extreme", "beam_stop"), wilson_outliers(z, d_star_sq, centric)))
    if f_model is not None and bool(free.any()):
        intensity = f_model * f_model / epsilons
        found["model"] = model_outliers(z.sqrt(), (intensity / kernel.mean(intensity)).sqrt(), centric, free, d_star_sq)
    return found


def reject(
    f_obs: torch.Tensor,
    epsilons: torch.Tensor,
    centric: torch.Tensor,
    free: torch.Tensor,
    d_star_sq: torch.Tensor,
    f_model: torch.Tensor | None = None,
    rounds: int = 5,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Repeat :func:`outliers` on what is left, at most ``rounds`` times.

    Returns
    -------
    kept : torch.Tensor
        (n,) bool.
    reasons : dict of str to torch.Tensor
        For each test the indices of the reflections that it rejected.
    """
    kept = torch.arange(len(f_obs), device=f_obs.device)
    reasons: dict[str, list[torch.Tensor]] = {}
    for _ in range(rounds):
        found = outliers(
            f_obs[kept],
            epsilons[kept],
            centric[kept],
            free[kept],
            d_star_sq[kept],
            None if f_model is None else f_model[kept],
        )
        rejected = torch.zeros_like(free[kept])
        for name, flags in found.items():
            reasons.setdefault(name, []).append(kept[flags])
            rejected |= flags
        if not bool(rejected.any()):
            # Nothing changes any more: further rounds would find the same.
            break
        kept = kept[~rejected]
    selection = torch.zeros_like(free)
    selection[kept] = True
    return selection, {name: torch.cat(parts) for name, parts in reasons.items()}
