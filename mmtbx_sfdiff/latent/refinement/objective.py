"""What the data say of a model while its coordinates are poor: four targets, each a sum over the work set.

``floored_gaussian``  sum_b n_b / 2 ln( <(Fo - k_b |Fm|)^2>_b + f^2 <Fo^2>_b )

    The likelihood of Gaussian errors whose variance is unknown in each resolution bin b and is replaced by
    its most likely value, which is the model's own error, never less than a floor: f (0.15) of the bin's root
    mean square F_obs. Without the floor the variance of a bin of few reflections can vanish; with
    experimental sigmas instead (equation 9) the data outweigh a prior by hundreds while the model is still
    far from the truth. k_b by least squares.

``least_squares``     sum ((Fo - |Fm|) / sigma)^2                                        (equation 9)
``maximum_likelihood``  -ln p(Fo | Fm), with mmtbx's alpha and beta

``likelihood_gain``   -LLG: nats above Wilson's distribution (:func:`mmtbx_sfdiff.llg`), with

    sigmaA(s) = a exp(-b s^2 / 4),   0 <= a < 1, b >= 0

    the most likely one for the work set, found anew with scales and mask. Two numbers fit little noise, and the fall-off, b = 8 pi^2 / 3
    of the mean square error of the sites, leaves to low resolution what a poor model can be judged by. The free set has no part in it.
"""

from __future__ import annotations

from typing import Any

import torch

from ...fmodel import FModel
from ...likelihood import EValues, llg, targets
from ...likelihood.gain import calculated_scale
from ...reflections import Reflections

OBJECTIVES = ("floored_gaussian", "least_squares", "maximum_likelihood", "likelihood_gain")
FLOOR = 0.15
_PER_BIN = 100
_LARGEST_SIGMA_A = 0.98
_AMPLITUDES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, _LARGEST_SIGMA_A)
_FALL_OFFS = (0.0, 0.5, 1.0, 2.0, 4.0, 7.0, 12.0, 20.0, 35.0, 60.0, 100.0, 170.0, 300.0)  # Å²


def work_bins(
    reflections: Reflections, selection: torch.Tensor | None = None, per_bin: int = _PER_BIN
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resolution bins of equal numbers of work reflections.

    Parameters
    ----------
    reflections : Reflections
    selection : torch.Tensor, optional
        (n,) bool, those in use.
    per_bin : int
        Work reflections in each, about.

    Returns
    -------
    rows : torch.Tensor
        (n_work,) int64, the reflections in use of the work set.
    bins : torch.Tensor
        (n_work,) int64
    """
    work = reflections.work if selection is None else reflections.work & selection
    rows = work.nonzero()[:, 0]
    s_sq = reflections.crystal.d_star_sq(reflections.miller_indices[rows])
    n_bins = max(1, len(rows) // per_bin)
    bins = torch.empty_like(rows)
    bins[s_sq.argsort(stable=True)] = torch.arange(len(rows), device=rows.device) * n_bins // max(1, len(rows))
    return rows, bins


def floored_gaussian(
    reflections: Reflections,
    f_model: torch.Tensor,
    selection: torch.Tensor | None = None,
    f_obs_scale: Any = 1.0,
    floor: float = FLOOR,
    bins: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """See the module.

    Parameters
    ----------
    reflections, f_model, selection, f_obs_scale
        See :func:`mmtbx_sfdiff.likelihood.targets.least_squares`.
    floor : float
        Least error, as a fraction of the bin's root mean square F_obs.
    bins : tuple, optional
        From :func:`work_bins`, where they are known already.

    Returns
    -------
    torch.Tensor
        (...,), nats.
    """
    rows, bin_of = work_bins(reflections, selection) if bins is None else bins
    f_obs, model = reflections.f_obs[rows] / f_obs_scale, f_model[..., rows].abs()
    n_bins = int(bin_of.max()) + 1 if len(bin_of) else 0

    def binned(values: Any) -> torch.Tensor:
        zeros = torch.zeros(*values.shape[:-1], n_bins, dtype=values.dtype, device=values.device)
        return zeros.index_add(-1, bin_of, values)

    count = binned(torch.ones_like(f_obs))
    observed = binned(f_obs.square())
    # The derivative with respect to k vanishes at its least-squares value.
    k = (binned(f_obs * model) / binned(model.square()).clamp(min=1e-30)).detach()
    error = binned((f_obs - k[..., bin_of] * model).square())
    return (0.5 * count * (error / observed + floor**2).log()).sum(-1)


def objective(
    name: str,
    fmodel: FModel,
    f_model: torch.Tensor,
    floor: float = FLOOR,
    bins: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """One of :data:`OBJECTIVES` for structure factors of a scaled FModel, (...,) nats, a sum over the work
    set.

    Raises
    ------
    ValueError
        An unknown name; least squares without sigmas.
    """
    used = fmodel.in_use()
    if name == "floored_gaussian":
        return floored_gaussian(fmodel.reflections, f_model, floor=floor, bins=bins, **used)
    if name == "least_squares":
        return targets.least_squares(fmodel.reflections, f_model, **used)
    if name == "maximum_likelihood":
        n_work = int((fmodel.reflections.work & used["selection"]).sum())
        return n_work * targets.maximum_likelihood(fmodel.reflections, f_model, fmodel.alpha_beta(), **used)
    raise ValueError(f"Unknown objective {name!r}: choose from {', '.join(OBJECTIVES)}.")


def sigma_a_curve(
    reflections: Reflections,
    f_model: torch.Tensor,
    e_values: EValues,
    selection: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """The most likely sigmaA of the form a exp(-b s^2 / 4) for the work set.

    Parameters
    ----------
    reflections : Reflections
    f_model : torch.Tensor
        (n,) structure factors, on any scale.
    e_values : EValues
        Of the reflections.
    selection : torch.Tensor, optional
        (n,) bool, those in use.
    scale : torch.Tensor, optional
        (n,) of F_model, where it is known.

    Returns
    -------
    torch.Tensor
        (n,) float64.
    """
    quarter = reflections.crystal.d_star_sq(reflections.miller_indices).to(torch.float64) / 4

    def best(amplitudes: Any, fall_offs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a, b = torch.cartesian_prod(amplitudes, fall_offs).T[..., None]
        curves = (a * (-b * quarter).exp()).clamp(max=_LARGEST_SIGMA_A)
        k = int(llg(reflections, f_model, curves, e_values, selection, scale).argmax())
        return a[k], b[k], curves[k]

    def tensor(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=quarter.device)

    with torch.no_grad():
        scale = calculated_scale(reflections, f_model.detach().abs()) if scale is None else scale
        a, b, _ = best(tensor(_AMPLITUDES), tensor(_FALL_OFFS))
        near = tensor((0.9, 0.95, 1.0, 1.05, 1.1))
        shift = tensor((0.75, 0.87, 1.0, 1.15, 1.3))
        return best((a * near).clamp(max=_LARGEST_SIGMA_A), b * shift)[2]
