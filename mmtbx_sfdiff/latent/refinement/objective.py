"""What the data say of a model while its coordinates are poor: three targets, each a sum over the work set.

``floored_gaussian``  sum_b n_b / 2 ln( <(Fo - k_b |Fm|)^2>_b + f^2 <Fo^2>_b )

    The likelihood of Gaussian errors whose variance is unknown in each resolution bin b and is replaced by
    its most likely value, which is the model's own error, never less than a floor: f (0.15) of the bin's root
    mean square F_obs. Without the floor the variance of a bin of few reflections can vanish; with
    experimental sigmas instead (equation 9) the data outweigh a prior by hundreds while the model is still
    far from the truth. k_b by least squares.

``least_squares``     sum ((Fo - |Fm|) / sigma)^2                                        (equation 9)
``maximum_likelihood``  -ln p(Fo | Fm), with mmtbx's alpha and beta
"""

from __future__ import annotations

import torch

from ...likelihood import targets

OBJECTIVES = ("floored_gaussian", "least_squares", "maximum_likelihood")
FLOOR = 0.15
_PER_BIN = 100


def work_bins(reflections, selection=None, per_bin=_PER_BIN):
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


def floored_gaussian(reflections, f_model, selection=None, f_obs_scale=1.0, floor=FLOOR, bins=None):
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
    rows, bins = work_bins(reflections, selection) if bins is None else bins
    f_obs, model = reflections.f_obs[rows] / f_obs_scale, f_model[..., rows].abs()
    n_bins = int(bins.max()) + 1 if len(bins) else 0

    def binned(values):
        zeros = torch.zeros(*values.shape[:-1], n_bins, dtype=values.dtype, device=values.device)
        return zeros.index_add(-1, bins, values)

    count = binned(torch.ones_like(f_obs))
    observed = binned(f_obs.square())
    # The derivative with respect to k vanishes at its least-squares value.
    k = (binned(f_obs * model) / binned(model.square()).clamp(min=1e-30)).detach()
    error = binned((f_obs - k[..., bins] * model).square())
    return (0.5 * count * (error / observed + floor**2).log()).sum(-1)


def objective(name, fmodel, f_model, floor=FLOOR, bins=None):
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
