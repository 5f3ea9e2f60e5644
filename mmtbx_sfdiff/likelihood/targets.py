"""What is minimised, and what is reported: least squares, maximum likelihood, R factors.

Every function takes scaled structure factors (..., n), is differentiable in them, and returns (...,).
Reflections that are not selected do not count; the free ones never enter a target.

References: Afonine, Grosse-Kunstleve, Adams (2005), CCP4 Newsl. 42; Lunin, Afonine & Urzhumtsev (2002), Acta
Cryst. A58, 270; ``cctbx/xray/targets/{least_squares,mlf}.h``, ``mmtbx.refinement.targets``.
"""

from __future__ import annotations

import math

import torch

from . import bessel

LEAST_SQUARES_WEIGHTS = ("sigma", "unit")
_LEAST_BETA = 1e-3


def least_squares(reflections, f_model, selection=None, f_obs_scale=1.0):
    """``T = sum over work reflections of ((Fo - |Fm|) / sigma)^2`` (equation 9)

    Parameters
    ----------
    reflections : Reflections
        With sigmas; those that are not positive leave their reflections out.
    f_model : torch.Tensor
        (..., n) complex, on the scale of ``f_obs / f_obs_scale``.
    selection : torch.Tensor, optional
        (n,) bool, the reflections in use.
    f_obs_scale : float
        See ``Scales.f_obs_scale``.

    Returns
    -------
    torch.Tensor
        (...,)

    Raises
    ------
    ValueError
        When the reflections have no sigmas.
    """
    if reflections.sigmas is None:
        raise ValueError(
            "The least-squares target needs the standard deviations of f_obs, and there are none; use "
            "normalized_least_squares with weights='unit', or the maximum-likelihood target."
        )
    work = _used(reflections, selection) & reflections.work & (reflections.sigmas > 0)
    # Weights of zero leave reflections out sooner than a selection does.
    w = torch.where(work, reflections.sigmas / f_obs_scale, math.inf) ** -2
    return (w * (reflections.f_obs / f_obs_scale - f_model.abs()).square()).sum(-1)


def normalized_least_squares(reflections, f_model, weights="unit", scale="k1", selection=None, f_obs_scale=1.0):
    """``T = sum w (Fo - k |Fm|)^2 / sum w Fo^2`` over work reflections: mmtbx's ``ls_w..._k...``.

    Parameters
    ----------
    reflections, f_model, selection, f_obs_scale
        See :func:`least_squares`.
    weights : {"unit", "sigma"}
        w = 1 (``ls_wunit``) or 1/sigma^2 (``ls_wexp``).
    scale : {"k1", "unit"}
        k by least squares, or 1.

    Returns
    -------
    torch.Tensor
        (...,)
    """
    if weights not in LEAST_SQUARES_WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(LEAST_SQUARES_WEIGHTS)}, not {weights!r}.")
    if scale not in ("k1", "unit"):
        raise ValueError(f"scale must be 'k1' or 'unit', not {scale!r}.")
    if weights == "sigma" and reflections.sigmas is None:
        raise ValueError("Weights from standard deviations need sigmas, and there are none; use weights='unit'.")
    work = _used(reflections, selection) & reflections.work
    f_obs, model = reflections.f_obs / f_obs_scale, f_model.abs()
    w = work.to(f_obs.dtype)
    if weights == "sigma":
        w = torch.where(work, reflections.sigmas / f_obs_scale, math.inf) ** -2
    # The derivative with respect to k vanishes at the least-squares k, so that k counts as a constant.
    k = _scale(w * f_obs, f_obs, model, w).detach() if scale == "k1" else 1.0
    return (w * (f_obs - k * model).square()).sum(-1) / (w * f_obs.square()).sum()


def maximum_likelihood(reflections, f_model, alpha_beta, selection=None, f_obs_scale=1.0):
    """Mean over work reflections of -ln p(Fo | Fm): mmtbx's ``ml``.

        acentric  -ln(2 Fo / eb) + (Fo^2 + a^2 Fm^2) / eb - ln I0(2 a Fo Fm / eb)
        centric   -1/2 ln(2 / pi eb) + (Fo^2 + a^2 Fm^2) / 2eb - ln cosh(a Fo Fm / eb)

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
    """
    work = _used(reflections, selection) & reflections.work
    n_work = int(work.sum())
    # What the reference leaves at 0 is left out here; it still counts in the mean.
    work = work & (alpha_beta.alpha > 0) & (alpha_beta.beta > _LEAST_BETA) & (reflections.f_obs > 0)
    rows = work.nonzero()[:, 0]
    f_obs, a, eb, centric = (
        x.index_select(0, rows)
        for x in (
            reflections.f_obs / f_obs_scale,
            alpha_beta.alpha,
            alpha_beta.epsilons * alpha_beta.beta,
            alpha_beta.centric,
        )
    )
    model = f_model.index_select(-1, rows).abs()
    x = a * f_obs * model / eb
    squares = (f_obs.square() + (a * model).square()) / eb
    acentric = -(2 * f_obs / eb).log() + squares - _LogI0.apply(2 * x)
    log_cosh = x + torch.nn.functional.softplus(-2 * x) - math.log(2)
    values = torch.where(centric, -0.5 * (2 / (math.pi * eb)).log() + 0.5 * squares - log_cosh, acentric)
    return torch.where(model > 0, values, 0.0).sum(-1) / max(n_work, 1)


def r_factors(reflections, f_model, selection=None, f_obs_scale=1.0):
    """R-work and R-free, each with its own overall scale as in mmtbx                                (equation
    3).

    Parameters
    ----------
    reflections, f_model, selection, f_obs_scale
        See :func:`least_squares`.

    Returns
    -------
    r_work, r_free : torch.Tensor
        (...,); ``r_free`` is over all reflections where none are free.
    """
    used = _used(reflections, selection)
    work, free = used & reflections.work, used & ~reflections.work
    if not bool(free.any()):
        free = work
    return tuple(_r(reflections.f_obs[s] / f_obs_scale, f_model[..., s].abs()) for s in (work, free))


def _used(reflections, selection):
    return torch.ones_like(reflections.work) if selection is None else selection


def _scale(weighted, f_obs, model, w):
    """Least-squares scale, (..., 1)."""
    return ((weighted * model).sum(-1) / (w * model.square()).sum(-1)).unsqueeze(-1)


def _r(f_obs, model):
    k = _scale(f_obs, f_obs, model, torch.ones_like(f_obs))
    return (f_obs - k * model).abs().sum(-1) / f_obs.sum()


class _LogI0(torch.autograd.Function):
    """ln I0(x), and I1(x) / I0(x) as its derivative, both as cctbx approximates them (to 1e-7)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return bessel.log_i0(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * bessel.i1_over_i0(x)
