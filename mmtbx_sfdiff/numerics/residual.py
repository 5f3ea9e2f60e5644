"""The least-squares scale of amplitudes, and R, once for all who need them; in mmtbx's convention.

    k = sum w Fo |Fm| / sum w |Fm|^2,     R = sum |Fo - k |Fm|| / sum Fo   (equation 3)

Where the model is zero k is 0, and R is then 1; where the data are zero R is 1e9, as in mmtbx.

Reference: ``scale`` and ``r_factor`` in ``mmtbx/bulk_solvent/bulk_solvent.h``.
"""

from __future__ import annotations

import torch

NO_DATA = 1e9


def ratio(numerator: torch.Tensor, denominator: torch.Tensor, otherwise: float = 0.0) -> torch.Tensor:
    """Their quotient, and ``otherwise`` (with no gradient) where the denominator is 0."""
    zero = denominator == 0
    return torch.where(zero, otherwise, numerator / torch.where(zero, 1.0, denominator))


def scale(f_obs: torch.Tensor, f_model: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Least-squares scale (...,) of amplitudes f_model (..., n) to f_obs (n,), differentiable.

    Parameters
    ----------
    f_obs, f_model : torch.Tensor
        Amplitudes.
    weights : torch.Tensor, optional
        (n,); zeros leave reflections out.
    """
    weighted = f_model if weights is None else weights * f_model
    return ratio(_dot(f_obs, weighted), _dot(weighted, f_model))


def r_factor(
    f_obs: torch.Tensor,
    f_model: torch.Tensor,
    k: torch.Tensor | float | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """R (...,) of amplitudes f_model (..., n) against f_obs (n,), differentiable.

    Parameters
    ----------
    f_obs, f_model : torch.Tensor
        Amplitudes.
    k : torch.Tensor or float, optional
        The scale; by default the least-squares one.
    weights : torch.Tensor, optional
        (n,) of 0 and 1: which reflections count.
    """
    k = scale(f_obs, f_model, weights) if k is None else k
    scaled = k * f_model if f_model.ndim == 1 or not isinstance(k, torch.Tensor) else k.unsqueeze(-1) * f_model
    difference = (f_obs - scaled).abs()
    if weights is not None:
        difference, f_obs = weights * difference, weights * f_obs
    return ratio(difference.sum(-1), f_obs.sum(-1), NO_DATA)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sums of products over the last dimension; of two vectors by BLAS, as the scaling has always added them."""
    return a @ b if a.ndim == b.ndim == 1 and a.dtype == b.dtype else (a * b).sum(-1)
