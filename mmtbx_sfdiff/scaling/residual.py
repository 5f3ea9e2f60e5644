"""Scale factors and R factors in resolution bins, in mmtbx's convention.

    R = sum |Fo - k |Fm|| / sum Fo,     k = sum Fo |Fm| / sum |Fm|^2   (equation 3)

over whatever reflections are given.  The scale is 0 where the model is, and R is 1e9 where the data are, as
in mmtbx.

Reference: ``scale`` and ``r_factor`` in ``mmtbx/bulk_solvent/bulk_solvent.h``.
"""

from __future__ import annotations

import torch

from ..numerics.residual import r_factor, scale
from .binning import Segments

__all__ = ["binned_r_factor", "binned_residual", "binned_scale", "r_factor", "scale"]


def binned_scale(f_obs: torch.Tensor, f_model: torch.Tensor, segments: Segments) -> torch.Tensor:
    """(n_bins,) least-squares scale in each bin."""
    denominator = segments.sum(f_model * f_model)
    return torch.where(denominator == 0, 0.0, segments.sum(f_obs * f_model) / denominator)


def binned_residual(f_obs: torch.Tensor, f_model: torch.Tensor, k: torch.Tensor, segments: Segments) -> torch.Tensor:
    """(n_bins,) sum |Fo - k |Fm|| in each bin, k (n_bins,)."""
    return segments.sum((f_obs - segments.spread(k) * f_model).abs())


def binned_r_factor(f_obs: torch.Tensor, f_model: torch.Tensor, segments: Segments) -> torch.Tensor:
    """(n_bins,) R in each bin, each with its own scale."""
    total = segments.sum(f_obs)
    residual = binned_residual(f_obs, f_model, binned_scale(f_obs, f_model, segments), segments)
    return torch.where(total == 0, 1e9, residual / total)
