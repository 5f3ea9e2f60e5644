"""alpha and beta for a refinement whose free set is small.

mmtbx estimates them from the free set, or from the work set where that has fewer than 300 reflections: then every cycle finds
the model better than it is, and fits noise. Here their course with resolution, and with each reflection's sigma, comes from the many work
reflections; one factor for beta and one for alpha, the same for all reflections, are those under which the free set is most likely.
As in mmtbx the free set decides nothing else.

Reference: :mod:`mmtbx_sfdiff.likelihood.alpha_beta`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import numpy as np

from ..likelihood import targets
from ..likelihood.alpha_beta import AlphaBeta, estimate_alpha_beta

_BETA_FACTORS = np.exp(np.linspace(0.0, 2.0, 21))
_ALPHA_FACTORS = (0.94, 0.96, 0.98, 1.0)
_LEAST_FREE = 10  # fewer say nothing


def cross_validated(reflections: Any, f_model: torch.Tensor, used: dict[str, Any]) -> AlphaBeta:
    """alpha and beta of every reflection.

    Parameters
    ----------
    reflections : Reflections
    f_model : torch.Tensor
        (n,) scaled structure factors.
    used : dict
        ``selection`` and ``f_obs_scale``, of the scales.
    """
    free = reflections.r_free_flags
    selection = used["selection"]
    if free is None or int((free & selection).sum()) < _LEAST_FREE or int((~free & selection).sum()) < _LEAST_FREE:
        work_only = dataclasses.replace(reflections, r_free_flags=None)
        of_work: AlphaBeta = estimate_alpha_beta(work_only, f_model, **used)
        return of_work
    swapped = dataclasses.replace(reflections, r_free_flags=~free)
    with torch.no_grad():
        ab: AlphaBeta = estimate_alpha_beta(swapped, f_model, **used)
        if reflections.sigmas is not None:
            ab = _with_sigmas(ab, reflections.sigmas / used["f_obs_scale"])
        rows = (free & selection).nonzero()[:, 0]
        test = swapped.select(rows)
        parts = [getattr(ab, name)[rows] for name in ("alpha", "beta", "epsilons", "centric")]
        # All pairs of factors at once, (n_factors, n_free).
        c, a = torch.cartesian_prod(*(torch.as_tensor(f).to(ab.alpha) for f in (_BETA_FACTORS, _ALPHA_FACTORS))).T
        scaled = AlphaBeta(parts[0] * a[:, None], parts[1] * c[:, None], *parts[2:])
        best = targets.maximum_likelihood(test, f_model[rows], scaled, f_obs_scale=used["f_obs_scale"]).argmin()
    return dataclasses.replace(ab, alpha=ab.alpha * a[best], beta=ab.beta * c[best])


def _with_sigmas(ab: AlphaBeta, sigmas: torch.Tensor) -> AlphaBeta:
    """beta of a shell holds the mean error of its data: each reflection's own in its place."""
    variance = sigmas.square() / ab.epsilons
    mean = torch.zeros_like(variance)
    for b in ab.beta.unique():
        mean[ab.beta == b] = variance[ab.beta == b].median()
    beta = (ab.beta - mean).clamp(min=0.3 * ab.beta) + torch.minimum(variance, 20 * mean)
    return dataclasses.replace(ab, beta=torch.where(ab.beta > 0, beta, ab.beta))
