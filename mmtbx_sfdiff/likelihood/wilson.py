"""Normalised amplitudes: E = F / sqrt(epsilon Sigma(h)), with Sigma a function of resolution and direction.

    Sigma(h) = <F^2 / epsilon> = exp[sum_j c_j phi_j(d*^2) - h B h^T]

phi_j are hat functions over the edges of the resolution shells and B is a tensor with the point group's symmetry.  The c_j and B
maximise Wilson's likelihood, sum w ln Sigma + w F^2 / (epsilon Sigma) with w = 1 (acentric) or 1/2 (centric); it is convex in
them, so that Newton's method ends at the one answer.  At last each shell gets the factor that makes <E^2> there exactly 1.

References: Wilson (1949), Acta Cryst. 2, 318; Popov & Bourenkov (2003), Acta Cryst. D59, 1145 (anisotropic Wilson scaling);
``mmtbx.scaling.absolute_scaling.ml_aniso_absolute_scaling``.
"""

from __future__ import annotations

import dataclasses

import torch

from ..crystal import Crystal
from ..numerics.symmetric import PAIRS
from ..reflections import Reflections, resolution_shells
from .intensities import Intensities, effective

_NEWTON_STEPS, _CONVERGED, _RIDGE = 50, 1e-12, 1e-10


@dataclasses.dataclass(frozen=True, eq=False)
class EValues:
    """Normalised amplitudes and their statistical constants, float64, one element a reflection, without gradients.

    Attributes
    ----------
    e : torch.Tensor
        (n,) E, with <E^2> = 1 in each shell of :func:`~mmtbx_sfdiff.reflections.resolution_shells`; of intensities the
        effective amplitude.
    sigma : torch.Tensor or None
        (n,) sigma(F) on the scale of E; None where there are no sigmas, or for intensities, whose errors are in ``d_obs``.
    epsilon : torch.Tensor
        (n,) statistical weights.
    centric : torch.Tensor
        (n,) bool.
    mean_intensity : torch.Tensor
        (n,) Sigma, <F^2/epsilon>, on the scale of the data.
    d_obs : torch.Tensor or None
        (n,) correlation of the effective with the true amplitude, for intensities.

    Examples
    --------
    >>> E = sfdiff.e_values(data)
    >>> bool(torch.allclose(E.e * (E.epsilon * E.mean_intensity).sqrt(), data.f_obs)), int(E.centric.sum())
    (True, 283)
    """

    e: torch.Tensor
    sigma: torch.Tensor | None
    epsilon: torch.Tensor
    centric: torch.Tensor
    mean_intensity: torch.Tensor
    d_obs: torch.Tensor | None = None


def e_values(data: Reflections | Intensities) -> EValues:
    """Normalised amplitudes of data, aware of symmetry (epsilon) and anisotropy.

    Parameters
    ----------
    data : Reflections or Intensities
        All reflections count, free ones too: no model enters.  Friedel mates are reflections of their own.

    Returns
    -------
    EValues
        Of intensities (negative ones too): ``e`` and ``d_obs`` are the effective amplitude and the correlation of Read &
        McCoy (2016), see :func:`~mmtbx_sfdiff.likelihood.intensities.effective`.

    Raises
    ------
    ValueError
        No reflections; values that are not finite; a resolution shell of zeros, or with a mean intensity below zero.

    Examples
    --------
    >>> E = sfdiff.e_values(data)
    >>> round(float(E.e.square().mean()), 2)
    1.0
    """
    crystal, indices = data.crystal, data.miller_indices
    epsilon, centric = crystal.epsilons(indices).to(torch.float64), crystal.centric_flags(indices)
    if isinstance(data, Intensities):
        observed = data.i_obs.detach().to(torch.float64) / epsilon
        mean = mean_intensity(crystal, indices, observed, centric)
        size = epsilon * mean
        e, d_obs = effective(data.i_obs.detach() / size, data.sigmas.detach() / size, centric)
        return EValues(e, None, epsilon, centric, mean, d_obs)
    f_obs = data.f_obs.detach().to(torch.float64)
    mean = mean_intensity(crystal, indices, f_obs.square() / epsilon, centric)
    size = (epsilon * mean).sqrt()
    sigma = None if data.sigmas is None else data.sigmas.detach().to(torch.float64) / size
    return EValues(f_obs / size, sigma, epsilon, centric, mean)


def mean_intensity(
    crystal: Crystal, miller_indices: torch.Tensor, intensity: torch.Tensor, centric: torch.Tensor
) -> torch.Tensor:
    """Sigma(h), the expected intensity of every reflection, (n,) float64.

    Parameters
    ----------
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) int64.
    intensity : torch.Tensor
        (n,) float64, divided by epsilon; single ones may be negative.
    centric : torch.Tensor
        (n,) bool.

    Raises
    ------
    ValueError
        See :func:`e_values`.
    """
    n = len(intensity)
    if n == 0:
        raise ValueError("There are no reflections to normalise.")
    bad = (~torch.isfinite(intensity)).nonzero()[:, 0]
    if len(bad):
        h = tuple(miller_indices[bad[0]].tolist())
        raise ValueError(f"The amplitude of reflection {h} is not finite: leave it out before normalising.")
    d_star_sq = crystal.d_star_sq(miller_indices)
    shells = resolution_shells(d_star_sq.rsqrt())
    means = torch.stack([intensity[rows].mean() for _, _, rows in shells])
    for (d_max, d_min, rows), value in zip(shells, means.tolist()):
        if not value > 0:
            raise ValueError(
                f"The mean intensity of the {len(rows)} reflections between {d_max:.2f} and {d_min:.2f} Å is {value:.3g}: "
                "no E values without a positive one; set a resolution limit, or leave out what was not measured."
            )
    edges = torch.tensor(
        [d**-2 for d in (shells[0][0], *(d_min for _, d_min, _ in shells))],
        dtype=torch.float64,
        device=intensity.device,
    )
    hats = _hats(d_star_sq, edges)
    start = torch.cat([means[:1], (means[1:] * means[:-1]).sqrt(), means[-1:]]).log()
    directions = _quadratic_forms(crystal, miller_indices)
    columns = torch.cat([hats, directions], 1)
    weights = torch.where(centric, 0.5, 1.0).to(torch.float64)
    coefficients = _fit(
        columns, intensity.clamp(min=0), weights, torch.cat([start, start.new_zeros(directions.shape[1])])
    )
    result = (columns @ coefficients).exp()
    for _, _, rows in shells:
        result[rows] *= (intensity[rows] / result[rows]).mean()
    return result


def _hats(x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """(n, n_edges) hat functions: a piecewise linear function is a sum of them."""
    width = (edges[1:] - edges[:-1]).clamp(min=1e-12)
    i = (torch.searchsorted(edges, x.contiguous(), right=True) - 1).clamp(0, len(width) - 1)
    share = ((x - edges[i]) / width[i]).clamp(0, 1)
    result = x.new_zeros(len(x), len(edges))
    rows = torch.arange(len(x), device=x.device)
    result[rows, i] = 1 - share
    result[rows, i + 1] = share
    return result


def _quadratic_forms(crystal: Crystal, miller_indices: torch.Tensor) -> torch.Tensor:
    """(n, m) values h B h^T of a basis of the tensors that the point group allows, scaled to at most 1."""
    rotations = crystal.rotations.to(torch.float64)
    allowed = []
    for i, j in PAIRS:
        unit = rotations.new_zeros(3, 3)
        unit[i, j] = unit[j, i] = 1.0
        # Equivalent reflections h R have the same value: the mean of R B R^T over the operators.
        allowed.append(torch.einsum("gij,jk,glk->il", rotations, unit, rotations) / len(rotations))
    _, size, basis = torch.linalg.svd(torch.stack(allowed).reshape(6, 9))
    tensors = basis[: int((size > 1e-9 * size[0]).sum())].reshape(-1, 3, 3)
    h = miller_indices.to(torch.float64)
    values = torch.einsum("ni,mij,nj->nm", h, tensors, h)
    return values / values.abs().amax(0).clamp(min=1e-300)


def _fit(columns: torch.Tensor, intensity: torch.Tensor, weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Coefficients that minimise sum w (eta + I exp(-eta)), eta = columns @ x, by Newton's method with halved steps."""
    # The isotropic part of B is a piecewise linear function, too: the ridge chooses among equal answers.
    ridge = _RIDGE * (weights @ columns.square()).max() * torch.eye(len(x), dtype=x.dtype, device=x.device)

    def value(x: torch.Tensor) -> torch.Tensor:
        eta = columns @ x
        return (weights * (eta + intensity * (-eta).exp())).sum()

    lowest = value(x)
    for _ in range(_NEWTON_STEPS):
        ratio = weights * intensity * (-(columns @ x)).exp()
        gradient = columns.T @ (weights - ratio)
        step = torch.linalg.solve(columns.T @ (ratio[:, None] * columns) + ridge, gradient)
        size = 1.0
        while size > 1e-6 and not bool((new := value(x - size * step)) <= lowest):
            size /= 2
        if size <= 1e-6:
            break
        x, before, lowest = x - size * step, lowest, new
        if float(before - lowest) <= _CONVERGED * len(intensity):
            break
    return x
