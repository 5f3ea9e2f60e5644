"""What is minimised, and what is reported: least squares, maximum likelihood, R factors.

Every function takes scaled structure factors (..., n), is differentiable in them (twice), and returns (...,).
Reflections that are not selected do not count; the free ones never enter a target.

Selection and scale are, unless given, those that ``FModel.target`` takes: the reflections of an FModel with scales know them
(``fmodel.reflections``; the FModel itself may be given, too).  Other reflections are all used, on their own scale, and a target
whose number depends on it warns where F_model is evidently on another.

References: Afonine, Grosse-Kunstleve, Adams (2005), CCP4 Newsl. 42; Lunin, Afonine & Urzhumtsev (2002), Acta
Cryst. A58, 270; ``cctbx/xray/targets/{least_squares,mlf}.h``, ``mmtbx.refinement.targets``.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch

from ..numerics import residual
from ..numerics.amplitudes import amplitudes
from ..numerics.precision import full_precision
from .distributions import log_likelihood
from .sizes import a_number

if TYPE_CHECKING:
    from ..reflections import Reflections
    from .alpha_beta import AlphaBeta

LEAST_SQUARES_WEIGHTS = ("sigma", "unit")
_LEAST_BETA = 1e-3
# Outside this range mmtbx divides f_obs by k1.
_SAME_SCALE = (0.9, 1.1)


@full_precision
def least_squares(
    reflections: Reflections | Any,
    f_model: torch.Tensor,
    selection: torch.Tensor | None = None,
    f_obs_scale: float | None = None,
) -> torch.Tensor:
    """``T = sum over work reflections of ((Fo - |Fm|) / sigma)^2`` (equation 9).

    Parameters
    ----------
    reflections : Reflections or FModel
        With sigmas; those that are not positive leave their reflections out.
    f_model : torch.Tensor
        (..., n) complex, on the scale of ``f_obs / f_obs_scale``.
    selection : torch.Tensor, optional
        (n,) bool, the reflections in use; by default those that the FModel uses whose ``reflections`` these are, or all.
    f_obs_scale : float, optional
        See ``Scales.f_obs_scale``; by default that of the FModel, or 1.

    Returns
    -------
    torch.Tensor
        (...,)

    Raises
    ------
    ValueError
        When the reflections have no sigmas.

    Warns
    -----
    UserWarning
        Nothing says on which scale F_model is, and it differs from that of ``f_obs`` by more than a tenth.

    Examples
    --------
    >>> f_model = fmodel.f_model()
    >>> t = sfdiff.targets.least_squares(fmodel.reflections, f_model)
    >>> bool(t == fmodel.target("least_squares")), bool(t == sfdiff.targets.least_squares(data, f_model, **fmodel.in_use()))
    (True, True)
    """
    reflections, selection, k = _in_use(reflections, selection, f_obs_scale, f_model)
    if reflections.sigmas is None:
        raise ValueError(
            "The least-squares target needs the standard deviations of f_obs, and there are none; use "
            "normalized_least_squares with weights='unit', or the maximum-likelihood target."
        )
    return weighted_squares(reflections, *least_squares_constants(reflections, selection, k), f_model)


def least_squares_constants(
    reflections: Reflections, selection: torch.Tensor, f_obs_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`least_squares` needs beside F_model: weights (n,), and f_obs on its scale.

    Examples
    --------
    >>> w, f_obs = least_squares_constants(data, torch.ones_like(data.work), 1.0)
    >>> w.shape, bool((f_obs == data.f_obs).all())
    (torch.Size([881]), True)
    """
    return _sigma_weights(reflections, selection & reflections.work, f_obs_scale), reflections.f_obs / f_obs_scale


def weighted_squares(
    reflections: Reflections, w: torch.Tensor, f_obs: torch.Tensor, f_model: torch.Tensor
) -> torch.Tensor:
    """``sum of w (f_obs - |f_model|)^2``, (...,), of constants of :func:`least_squares_constants`.

    Raises
    ------
    ValueError
        Structure factors that are not finite.

    Examples
    --------
    >>> float(weighted_squares(data, torch.ones(2), torch.tensor([5.0, 1.0]), torch.tensor([3 + 4j, 3])))
    4.0
    """
    return a_number((w * (f_obs - amplitudes(f_model)).square()).sum(-1), reflections, f_model)


@full_precision
def intensity_least_squares(
    reflections: Reflections | Any,
    f_model: torch.Tensor,
    selection: torch.Tensor | None = None,
    f_obs_scale: float | None = None,
) -> torch.Tensor:
    """``T = sum over work reflections of ((Fo^2 - |Fm|^2) / sigma_I)^2``, ``sigma_I = 2 Fo sigma + sigma^2``.

    Near the data it is :func:`least_squares`; weak reflections, and the sums of intensities of a twin, are treated as they were measured.

    Parameters
    ----------
    reflections, f_model, selection, f_obs_scale
        See :func:`least_squares`.

    Returns
    -------
    torch.Tensor
        (...,)

    Raises
    ------
    ValueError
        When the reflections have no sigmas.

    Examples
    --------
    >>> t = sfdiff.targets.intensity_least_squares(fmodel.reflections, fmodel.f_model())
    >>> bool(t == fmodel.target("intensity_least_squares"))
    True
    """
    reflections, selection, k = _in_use(reflections, selection, f_obs_scale, f_model)
    if reflections.sigmas is None:
        raise ValueError(
            "Least squares of intensities needs the standard deviations of f_obs, and there are none; use the "
            "maximum-likelihood target."
        )
    f_obs, sigmas = reflections.f_obs / k, reflections.sigmas / k
    chosen = selection & reflections.work & (sigmas > 0)
    sigma_i = torch.where(chosen, 2 * f_obs * sigmas + sigmas.square(), math.inf)
    square = f_model.real.square() + f_model.imag.square() if f_model.is_complex() else f_model.square()
    return a_number(((f_obs.square() - square) / sigma_i).square().sum(-1), reflections, f_model)


@full_precision
def normalized_least_squares(
    reflections: Reflections | Any,
    f_model: torch.Tensor,
    weights: str = "unit",
    scale: str = "k1",
    selection: torch.Tensor | None = None,
    f_obs_scale: float | None = None,
) -> torch.Tensor:
    """``T = sum w (Fo - k |Fm|)^2 / sum w Fo^2`` over work reflections: mmtbx's ``ls_w..._k...``.

    Parameters
    ----------
    reflections, f_model, selection, f_obs_scale
        See :func:`least_squares`; with ``scale="k1"`` the scale of the data makes no difference.
    weights : {"unit", "sigma"}
        w = 1 (``ls_wunit``) or 1/sigma^2 (``ls_wexp``).
    scale : {"k1", "unit"}
        k by least squares (0 where F_model is), or 1.

    Returns
    -------
    torch.Tensor
        (...,)

    Raises
    ------
    ValueError
        Unknown weights or scale; weights from sigmas where there are none; see :func:`least_squares`.

    Examples
    --------
    >>> f_model = data.f_obs + 0j
    >>> float(sfdiff.targets.normalized_least_squares(data, 2 * f_model)) < 1e-20      # k1 makes up for the scale
    True
    """
    if weights not in LEAST_SQUARES_WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(LEAST_SQUARES_WEIGHTS)}, not {weights!r}.")
    if scale not in ("k1", "unit"):
        raise ValueError(f"scale must be 'k1' or 'unit', not {scale!r}.")
    reflections, selection, overall = _in_use(reflections, selection, f_obs_scale, f_model, scale == "unit")
    if weights == "sigma" and reflections.sigmas is None:
        raise ValueError("Weights from standard deviations need sigmas, and there are none; use weights='unit'.")
    work = selection & reflections.work
    f_obs, model = reflections.f_obs / overall, amplitudes(f_model)
    w = _sigma_weights(reflections, work, overall) if weights == "sigma" else work.to(f_obs.dtype)
    if scale == "k1":
        # k stays on the graph: it does not change the gradient, but the curvature is not that of a constant k.
        model = residual.scale(f_obs, model, w).unsqueeze(-1) * model
    value = residual.ratio((w * (f_obs - model).square()).sum(-1), (w * f_obs.square()).sum())
    return a_number(value, reflections, f_model)


@full_precision
def maximum_likelihood(
    reflections: Reflections | Any,
    f_model: torch.Tensor,
    alpha_beta: AlphaBeta,
    selection: torch.Tensor | None = None,
    f_obs_scale: float | None = None,
) -> torch.Tensor:
    """Mean over work reflections of -ln p(Fo | Fm): mmtbx's ``ml``.

        acentric  -ln(2 Fo / eb) + (Fo^2 + a^2 Fm^2) / eb - ln I0(2 a Fo Fm / eb)
        centric   -1/2 ln(2 / pi eb) + (Fo^2 + a^2 Fm^2) / 2eb - ln cosh(a Fo Fm / eb)

    The Bessel function is exact; mmtbx's polynomial differs by up to 1e-7.

    Parameters
    ----------
    reflections, f_model, selection, f_obs_scale
        See :func:`least_squares`.
    alpha_beta : AlphaBeta
        From :func:`~mmtbx_sfdiff.likelihood.alpha_beta.estimate_alpha_beta`; keep it while minimising, and estimate it
        again afterwards.

    Returns
    -------
    torch.Tensor
        (...,)

    Raises
    ------
    ValueError
        See :func:`least_squares`.

    Examples
    --------
    >>> t = sfdiff.targets.maximum_likelihood(fmodel.reflections, fmodel.f_model(), fmodel.alpha_beta())
    >>> bool(t == fmodel.target("maximum_likelihood"))
    True
    """
    reflections, selection, k = _in_use(reflections, selection, f_obs_scale, f_model)
    counted, work = likelihood_counts(reflections, alpha_beta, selection)
    f_obs = torch.where(counted, reflections.f_obs / k, 1.0)
    alpha = torch.where(counted, alpha_beta.alpha, 1.0)
    variance = torch.where(counted, alpha_beta.epsilons * alpha_beta.beta, 1.0)
    model = amplitudes(f_model)
    values = log_likelihood(f_obs, alpha * model, variance, alpha_beta.centric)
    value = -torch.where(counted & (model != 0), values, 0.0).sum(-1) / work.sum().clamp(min=1)
    return a_number(value, reflections, f_model)


def likelihood_counts(
    reflections: Reflections, alpha_beta: AlphaBeta, selection: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) bool: which reflections :func:`maximum_likelihood` sums over, and which count in the mean.

    What the reference leaves at 0 is left out of the first.

    Examples
    --------
    >>> counted, work = likelihood_counts(data, fmodel.alpha_beta(), fmodel.selection)
    >>> bool((counted & ~work).any())
    False
    """
    work = selection & reflections.work
    return work & (alpha_beta.alpha > 0) & (alpha_beta.beta > _LEAST_BETA) & (reflections.f_obs > 0), work


@full_precision
def r_factors(
    reflections: Reflections | Any,
    f_model: torch.Tensor,
    selection: torch.Tensor | None = None,
    f_obs_scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """R-work and R-free, each with its own overall scale as in mmtbx (equation 3).

    Parameters
    ----------
    reflections, f_model, selection, f_obs_scale
        See :func:`least_squares`; the scale of the data makes no difference.

    Returns
    -------
    r_work, r_free : torch.Tensor
        (...,); ``r_free`` is over all reflections where none are free.  A model of zeros has R = 1, data of zeros 1e9.

    Examples
    --------
    >>> r_work, r_free = sfdiff.targets.r_factors(fmodel.reflections, fmodel.f_model())
    >>> (float(r_work), float(r_free)) == fmodel.r_factors()
    True
    """
    reflections, selection, k = _in_use(reflections, selection, f_obs_scale, f_model, False)
    work, free = selection & reflections.work, selection & ~reflections.work
    free = torch.where(free.any(), free, work)
    f_obs, model = reflections.f_obs / k, amplitudes(f_model)
    r_work, r_free = (residual.r_factor(f_obs, model, weights=s.to(f_obs.dtype)) for s in (work, free))
    return a_number(r_work, reflections, f_model), a_number(r_free, reflections, f_model)


def _in_use(
    reflections: Any,
    selection: torch.Tensor | None,
    f_obs_scale: float | None,
    f_model: torch.Tensor,
    of_scale: bool = True,
) -> tuple[Reflections, torch.Tensor, float]:
    """Reflections, selection and scale; the model's scale is looked at where none was given, if the number is ``of_scale``.

    Raises
    ------
    ValueError
        Another number of structure factors than of reflections.
    TypeError
        Integers.
    """
    reflections = getattr(reflections, "reflections", reflections)
    n = len(reflections)
    if f_model.shape[-1:] != (n,):
        raise ValueError(
            f"f_model must have one value for each of the {n} reflections, not the shape {tuple(f_model.shape)}."
        )
    if not (f_model.is_complex() or f_model.is_floating_point()):
        raise TypeError(f"f_model must be complex, or amplitudes, not {f_model.dtype}.")
    if reflections._in_use is not None:
        selection = reflections._in_use[0] if selection is None else selection
        f_obs_scale = reflections._in_use[1] if f_obs_scale is None else f_obs_scale
    if selection is None:
        selection = torch.ones_like(reflections.work)
    if f_obs_scale is None:
        if of_scale:
            _check_scale(reflections.f_obs, f_model.detach().abs(), selection & reflections.work)
        f_obs_scale = 1.0
    return reflections, selection, f_obs_scale


def _check_scale(f_obs: torch.Tensor, model: torch.Tensor, work: torch.Tensor) -> None:
    """Warn where |F_model| is evidently not on the scale of f_obs."""
    if torch.compiler.is_compiling():
        return
    k = residual.scale(f_obs, model, work.to(f_obs.dtype))
    try:
        values = k.flatten().tolist()
    except RuntimeError:  # inside vmap, where no value can be looked at
        return
    off = [x for x in values if x > 0 and not _SAME_SCALE[0] <= x <= _SAME_SCALE[1]]
    if off:
        warnings.warn(
            f"f_obs is {max(off, key=lambda x: abs(math.log(x))):.3g} times F_model, and f_obs_scale was not given: give "
            "**fmodel.in_use(), or fmodel.reflections, to have the scale and the selection of fmodel.target(), or "
            "f_obs_scale=1.0 if F_model is meant to be on the scale of f_obs.",
            stacklevel=5,
        )


def _sigma_weights(reflections: Reflections, work: torch.Tensor, k: float) -> torch.Tensor:
    """1/sigma^2 (n,), 0 for what is not used and where sigma is not positive."""
    assert reflections.sigmas is not None
    # Weights of zero leave reflections out sooner than a selection does.
    return torch.where(work & (reflections.sigmas > 0), reflections.sigmas / k, math.inf) ** -2
