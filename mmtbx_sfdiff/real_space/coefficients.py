"""Map coefficients: 2mFo-DFc, mFo-DFc, and anomalous differences.

    2mFo-DFc  acentric 2 m Fo - D |Fm|, centric m Fo        mFo-DFc  acentric 2 (m Fo - D |Fm|), centric m Fo - D |Fm|

times exp(i phi_model), with D = alpha and m the figure of merit at alpha and beta; the isotropic and anisotropic overall scales are
taken out again, as mmtbx does.

References: Read (1986), Acta Cryst. A42, 140; Roach (2003), Methods Enzymol. 374, 137; ``mmtbx.map_tools.electron_density_map``.
"""

from __future__ import annotations

import torch

from ..likelihood.alpha_beta import estimate_alpha_beta
from ..likelihood.distributions import figure_of_merit
from ..reflections import Reflections

_PER_ZONE = 100
KINDS = ("2mFo-DFc", "mFo-DFc")


def map_coefficients(
    reflections: Reflections, f_model: torch.Tensor, overall: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Coefficients of the two maps.

    Parameters
    ----------
    reflections : Reflections
        On the scale of F_model, without outliers: ``scales.selected(reflections)``.
    f_model : torch.Tensor
        (n,) complex scaled structure factors.
    overall : torch.Tensor, optional
        (n,) overall scale to divide by: ``scales.k_total``.

    Returns
    -------
    dict of str to torch.Tensor
        "2mFo-DFc" and "mFo-DFc": (n,) complex, without gradient.

    Raises
    ------
    ValueError
        Another number of structure factors than of reflections.

    Examples
    --------
    >>> selected, scales = fmodel.scales.selected(data), fmodel.scales
    >>> found = map_coefficients(selected, fmodel.f_model()[scales.selection], scales.k_total[scales.selection])
    >>> {kind: tuple(values.shape) for kind, values in found.items()} == dict.fromkeys(found, (len(selected),)), list(found)
    (True, ['2mFo-DFc', 'mFo-DFc'])
    """
    f_model = f_model.detach()
    known = estimate_alpha_beta(reflections, f_model, per_zone=_PER_ZONE, free_only=True)
    model, f_obs, centric = f_model.abs(), reflections.f_obs, known.centric
    variance = (known.epsilons * known.beta).clamp(min=torch.finfo(f_obs.dtype).tiny)
    merit = figure_of_merit(f_obs, known.alpha * model, variance, centric)
    phase = torch.where(model > 0, f_model / torch.where(model > 0, model, 1.0), 0.0)
    observed, calculated = merit * f_obs, known.alpha * model
    twice = torch.where(centric, 1.0, 2.0).to(model.dtype)
    k = 1.0 if overall is None else torch.where(overall != 0, 1 / torch.where(overall != 0, overall, 1.0), 0.0)
    found = {
        "2mFo-DFc": twice * observed - torch.where(centric, 0.0, calculated),
        "mFo-DFc": twice * (observed - calculated),
    }
    return {kind: k * value * phase for kind, value in found.items()}


def anomalous_difference_coefficients(
    reflections: Reflections, f_model: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients of the anomalous difference map, ``(|F(+)| - |F(-)|) exp(i phi) / 2i``, with peaks at anomalous scatterers.

    Parameters
    ----------
    reflections : Reflections
        With both mates of Friedel pairs as observations of their own.
    f_model : torch.Tensor
        (n,) complex; phi is the phase of the mean of F(+) and F(-)*.

    Returns
    -------
    miller_indices : torch.Tensor
        (m, 3) int64 of the first mate of each acentric pair.
    coefficients : torch.Tensor
        (m,) complex.

    Raises
    ------
    ValueError
        There are no pairs.

    Examples
    --------
    >>> indices = crystal.build_miller_indices(3.0, anomalous=True)
    >>> f = sfdiff.structure_factors(atoms.replace(fdp=torch.full_like(atoms.fdp, 3.0)), crystal, indices)
    >>> data = sfdiff.Reflections.from_arrays(crystal, indices, f.abs())
    >>> h, coefficients = anomalous_difference_coefficients(data, f)
    >>> len(h) == int((~crystal.centric_flags(indices)).sum()) // 2
    True
    """
    first, second = _pairs(reflections)
    if not len(first):
        raise ValueError(
            "The data have no Friedel pairs, so there is no anomalous difference: read F(+) and F(-) as they are (anomalous=True)."
        )
    mean = f_model.detach()[first] + f_model.detach()[second].conj()
    size = mean.abs()
    phase = torch.where(size > 0, mean / torch.where(size > 0, size, 1.0), 0.0)
    difference = reflections.f_obs[first] - reflections.f_obs[second]
    return reflections.miller_indices[first], difference * phase / 2j


def _pairs(reflections: Reflections) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of F(h) and F(-h), each acentric pair once, the positive index first."""
    h = reflections.miller_indices
    digits = torch.tensor([2**40, 2**20, 1], dtype=torch.int64, device=h.device)
    keys = (h * digits).sum(-1)
    ordered, order = keys.sort()
    place = torch.searchsorted(ordered, -keys).clamp(max=max(0, len(keys) - 1))
    has_mate = (ordered[place] == -keys) & (keys > 0) & ~reflections.crystal.centric_flags(h)
    first = has_mate.nonzero()[:, 0]
    return first, order[place[first]]
