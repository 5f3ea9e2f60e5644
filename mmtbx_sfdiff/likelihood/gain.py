"""How much better a model explains the data than no model: sigmaA and the log-likelihood gain, in natural logarithms.

    LLG = sum_h [ln p(E_obs | D sigmaA E_c, 1 - D^2 sigmaA^2) - ln p(E_obs | 0, 1)]

p is Rice's (acentric) or Woolfson's (centric) distribution, and D = 1 for amplitudes.  For intensities E_obs and D are the
effective amplitude and its correlation with the true one: LLGI.

References: Read (1986), Acta Cryst. A42, 140; McCoy et al. (2007), J. Appl. Cryst. 40, 658; Read & McCoy (2016), Acta Cryst. D72,
375; ``mmtbx.scaling.sigmaa_estimation``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..numerics.amplitudes import amplitudes
from ..numerics.precision import full_precision
from ..reflections import Reflections
from .alpha_beta import AlphaBeta
from .distributions import log_cosh, log_i0
from .intensities import Intensities, log_likelihood_of_intensities
from .normalization import ResolutionKernel
from .sigmaa import sigmaa
from .sizes import a_number
from .wilson import EValues, e_values, mean_intensity

_LARGEST = 0.999


def sigma_a(data: Reflections | Intensities, f_model: torch.Tensor) -> torch.Tensor:
    """sigmaA of every reflection: the correlation of observed and calculated normalised amplitudes, by resolution.

    Parameters
    ----------
    data : Reflections or Intensities
        Estimated from their free set; where nothing is free from all of them, which is too high for a model that was fitted
        to them.
    f_model : torch.Tensor
        (n,) structure factors or amplitudes, on any scale.

    Returns
    -------
    torch.Tensor
        (n,) float64, between 0 and 1, without gradient.  For amplitudes what
        ``mmtbx.scaling.sigmaa_estimation.sigmaa_estimator`` gives (kernels of 200 free reflections, 20 nodes, 13 terms); for
        intensities, whose errors lower the correlation, that of the effective amplitudes divided by the local mean of D.

    Raises
    ------
    ValueError
        Another number of structure factors than of reflections; too few reflections; values that are not finite.

    Examples
    --------
    >>> s = sfdiff.sigma_a(data, fmodel.f_model())
    >>> s.shape, bool((s > 0.9).all())
    (torch.Size([881]), True)
    """
    model = _amplitudes(data, f_model).detach().to(torch.float64)
    if model.ndim != 1:
        raise ValueError(f"sigma_a is of one model, not of a batch of shape {tuple(model.shape[:-1])}.")
    crystal, indices = data.crystal, data.miller_indices
    d_star_sq = crystal.d_star_sq(indices)
    order = d_star_sq.argsort(stable=True)
    epsilon, centric = crystal.epsilons(indices).to(torch.float64)[order], crystal.centric_flags(indices)[order]
    free = ~data.work[order]
    free = free if bool(free.any()) else ~free
    kernel = ResolutionKernel(d_star_sq[order])

    def normalized(intensity: torch.Tensor) -> torch.Tensor:
        return (intensity / kernel.mean(intensity)).sqrt()

    if isinstance(data, Intensities):
        observed = e_values(data)
        assert observed.d_obs is not None
        e_obs, d_obs = observed.e[order], observed.d_obs[order]
        mean_d = kernel.mean(d_obs)
    else:
        e_obs, mean_d = normalized(data.f_obs.detach().to(torch.float64)[order].square() / epsilon), None
    e_calc = normalized(model[order].square() / epsilon)
    found = sigmaa(e_obs, e_calc, centric, free, d_star_sq[order] ** 1.5)
    if mean_d is not None:
        found = (found / mean_d).clamp(max=_LARGEST)
    return torch.empty_like(found).index_copy_(0, order, found)


@full_precision
def llg(
    data: Reflections | Intensities,
    f_model: torch.Tensor,
    sigma_a: torch.Tensor | None = None,
    e_values: EValues | None = None,
    selection: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-likelihood gain of a model over Wilson's distribution, nats: higher is better, and 0 is no model.

    Parameters
    ----------
    data : Reflections or Intensities
        The work set counts.  Of a Friedel pair each mate counts half: the model's error is the same in both.
    f_model : torch.Tensor
        (..., n) structure factors or amplitudes, on any scale.
    sigma_a : torch.Tensor, optional
        (n,); by default :func:`sigma_a` of this model (of a batch: of each).  Give it, and keep it for some steps, in a loop.
        (..., n) of several: the gain of each.
    e_values : EValues, optional
        Of the data, where they are known already.
    selection : torch.Tensor, optional
        (n,) bool, the reflections in use; by default those that the FModel uses whose ``reflections`` these are, or all.
    scale : torch.Tensor, optional
        (..., n) what F_model is divided by, :func:`~mmtbx_sfdiff.likelihood.gain.calculated_scale` of a model, to be kept for some steps.

    Returns
    -------
    torch.Tensor
        (...,) float64, differentiable (twice) in F_model.  sigmaA and the normalisation of F_model are constants of the
        derivative.

    Raises
    ------
    ValueError
        As :func:`sigma_a`; a sigmaA outside [0, 1).

    Examples
    --------
    >>> sites = atoms.sites_cart.clone().requires_grad_()
    >>> gain = sfdiff.llg(data, fmodel.f_model(sites))
    >>> (-gain).backward()
    >>> bool(gain > 1000), sites.grad.shape
    (True, torch.Size([40, 3]))
    """
    model = _amplitudes(data, f_model).to(torch.float64)
    observed = _e_values(data) if e_values is None else e_values
    weights = _weights(data, selection)
    e_calc = model / (calculated_scale(data, model.detach()) if scale is None else scale)
    if sigma_a is None:
        s = _each(model.detach(), lambda row: _sigma_a(data, row))
    else:
        s = sigma_a.detach().to(torch.float64)
        if not bool(((s >= 0) & (s < 1)).all()):
            raise ValueError("sigma_a must lie in [0, 1): 1 would make the data certain.")
    d_obs = 1.0 if observed.d_obs is None else observed.d_obs
    gain = (weights * _gain(observed.e, d_obs * s * e_calc, 1 - (d_obs * s).square(), observed.centric)).sum(-1)
    return a_number(gain, data, f_model)


@full_precision
def intensity_likelihood(
    data: Intensities,
    f_model: torch.Tensor,
    alpha_beta: AlphaBeta,
    selection: torch.Tensor | None = None,
    f_obs_scale: float = 1.0,
) -> torch.Tensor:
    """Mean over work reflections of -ln p(I_obs | F_model), the errors of the intensities integrated: no French & Wilson step.

    Parameters
    ----------
    data : Intensities
    f_model : torch.Tensor
        (..., n) complex, on the scale of ``sqrt(i_obs) / f_obs_scale``.
    alpha_beta : AlphaBeta
        For instance from :func:`alpha_beta_of_sigma_a`.
    selection : torch.Tensor, optional
        (n,) bool, the reflections in use; by default all.
    f_obs_scale : float

    Returns
    -------
    torch.Tensor
        (...,) float64, differentiable in F_model.

    Examples
    --------
    >>> data = data.select(torch.arange(100))
    >>> intensities = Intensities(crystal, data.miller_indices, data.f_obs**2, 2 * data.f_obs * data.sigmas + 1)
    >>> f_model = fmodel.f_model()[:100].requires_grad_()
    >>> known = alpha_beta_of_sigma_a(intensities, f_model, torch.full((100,), 0.95))
    >>> intensity_likelihood(intensities, f_model, known).backward()
    >>> f_model.grad.shape
    torch.Size([100])
    """
    work = data.work if selection is None else data.work & selection
    work = work & (alpha_beta.beta > 0)
    square = f_obs_scale**2
    variance = torch.where(work, alpha_beta.epsilons * alpha_beta.beta, 1.0)
    values = log_likelihood_of_intensities(
        data.i_obs / square, data.sigmas / square, alpha_beta.alpha * amplitudes(f_model), variance, alpha_beta.centric
    )
    return -torch.where(work, values, 0.0).sum(-1) / work.sum().clamp(min=1)


def alpha_beta_of_sigma_a(
    data: Reflections | Intensities, f_model: torch.Tensor, sigma_a: torch.Tensor | None = None
) -> AlphaBeta:
    """alpha and beta that say of F what sigmaA says of E: alpha = sigmaA sqrt(Sigma_N / Sigma_P), beta = Sigma_N (1 - sigmaA^2).

    Parameters
    ----------
    data : Reflections or Intensities
    f_model : torch.Tensor
        (n,) structure factors or amplitudes.
    sigma_a : torch.Tensor, optional
        (n,); by default :func:`sigma_a`.

    Examples
    --------
    >>> known = alpha_beta_of_sigma_a(data, fmodel.f_model())
    >>> known.alpha.shape, bool((known.beta > 0).all())
    (torch.Size([881]), True)
    """
    model = _amplitudes(data, f_model).detach().to(torch.float64)
    s = _sigma_a(data, model) if sigma_a is None else sigma_a.detach().to(torch.float64)
    observed = e_values(data)
    scale = (observed.epsilon * observed.mean_intensity).sqrt() / calculated_scale(data, model)
    return AlphaBeta(s * scale, observed.mean_intensity * (1 - s.square()), observed.epsilon, observed.centric)


def calculated_scale(data: Reflections | Intensities, model: torch.Tensor) -> torch.Tensor:
    """sqrt(epsilon Sigma_P) of calculated amplitudes (..., n): what makes E values of them."""
    crystal, indices = data.crystal, data.miller_indices
    epsilon, centric = crystal.epsilons(indices).to(torch.float64), crystal.centric_flags(indices)
    mean = _each(
        model.detach().to(torch.float64), lambda row: mean_intensity(crystal, indices, row.square() / epsilon, centric)
    )
    return (epsilon * mean).sqrt()


def _each(values: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What a function of (n,) gives for each row of (..., n); of no rows there are none."""
    if not values.numel():
        return values
    return torch.stack([function(row) for row in values.reshape(-1, values.shape[-1])]).reshape(values.shape)


def friedel_weights(data: Reflections | Intensities) -> torch.Tensor:
    """(n,) float64: 1/2 for reflections whose Friedel mate is there too, 1 for all others."""
    h = data.miller_indices
    # An index and its mate have the same key; of a centric one the mate is an equivalent of itself and is not listed twice.
    digits = torch.tensor([1, 2**20, 2**40], dtype=torch.int64, device=h.device)
    keys, mates = (h * digits).sum(-1), (-h * digits).sum(-1)
    return torch.where(torch.isin(mates, keys), 0.5, 1.0).to(torch.float64)


def _gain(e: torch.Tensor, model: torch.Tensor, variance: torch.Tensor, centric: torch.Tensor) -> torch.Tensor:
    """ln p(E | m, v) - ln p(E | 0, 1), (..., n); also where E = 0."""
    x = e * model / variance
    half = 0.5 * (e.square() - variance.log())
    single = half - 0.5 * (e.square() + model.square()) / variance + log_cosh(x)
    double = 2 * half - (e.square() + model.square()) / variance + log_i0(2 * x)
    return torch.where(centric, single, double)


def _weights(data: Reflections | Intensities, selection: torch.Tensor | None) -> torch.Tensor:
    used = data.work
    if selection is None and isinstance(data, Reflections) and data._in_use is not None:
        selection = data._in_use[0]
    if selection is not None:
        used = used & selection
    return torch.where(used, friedel_weights(data), 0.0)


def _amplitudes(data: Reflections | Intensities, f_model: torch.Tensor) -> torch.Tensor:
    n = len(data)
    if f_model.shape[-1:] != (n,):
        raise ValueError(
            f"f_model must have one value for each of the {n} reflections, not shape {tuple(f_model.shape)}."
        )
    return amplitudes(f_model)


_e_values, _sigma_a = e_values, sigma_a
