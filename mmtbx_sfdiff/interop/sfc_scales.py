"""Scales behind SFcalculator's names: mmtbx's scales of this package, adjustable bin by bin.

There, ``F = k_iso(bin) k_aniso(bin) (F_protein + k_mask(bin) F_mask)`` is fitted by gradient descent.  Here the scales are
those of :func:`mmtbx_sfdiff.update_all_scales`, which vary within a bin; the lists ``kisos``, ``kmasks`` and ``uanisos`` hold
their averages, and what is done to an element of a list (by an optimizer, or by hand) is done to the scales of its bin.
"""

from __future__ import annotations

import dataclasses

import torch

import numpy as np

from ..reflections import Reflections
from ..scaling import update_all_scales
from .sfc_utils import aniso_scaling


@dataclasses.dataclass(frozen=True, eq=False)
class BinScales:
    """Scales of each reflection, and the averages of the bins that they were made with.

    Attributes
    ----------
    total, mask : torch.Tensor
        (n,) float32: the overall scale, and that of the solvent.
    kisos, kmasks : torch.Tensor
        (n_bins,) averages of the two.
    uanisos : torch.Tensor
        (n_bins, 6) U of the anisotropic scale.
    """

    total: torch.Tensor
    mask: torch.Tensor
    kisos: torch.Tensor
    kmasks: torch.Tensor
    uanisos: torch.Tensor

    @classmethod
    def plain(cls, n: int, n_bins: int, like: torch.Tensor) -> BinScales:
        """No scales: what the lists say is everything."""
        ones, zeros = like.new_ones(n), like.new_zeros(n)
        return cls(ones, zeros, like.new_ones(n_bins), like.new_zeros(n_bins), like.new_zeros(n_bins, 6))

    def f_total(self, f_protein, f_mask, kisos, kmasks, uanisos, bins, indices, reciprocal_cell) -> torch.Tensor:
        """Scaled structure factors (..., n) with the lists as they are now; differentiable in everything."""
        device = f_protein.device
        bins = torch.as_tensor(bins, device=device)
        k_iso, k_mask = torch.stack(list(kisos)).to(device), torch.stack(list(kmasks)).to(device)
        total = self.total * (k_iso / self.kisos)[bins]
        change = torch.stack(list(uanisos)).to(device) - self.uanisos
        factor = torch.ones_like(total)
        for i in range(len(change)):
            rows = (bins == i).nonzero()[:, 0]
            inside = np.asarray(indices)[rows.cpu().numpy()]
            factor = factor.index_copy(0, rows, aniso_scaling(change[i], reciprocal_cell, inside).to(factor))
        mask = self.mask + (k_mask - self.kmasks)[bins]
        return total * factor * (f_protein + mask * f_mask)


def determined(
    reflections: Reflections,
    f_protein: torch.Tensor,
    f_mask: torch.Tensor,
    bins: np.ndarray,
    n_bins: int,
    reciprocal_cell,
) -> tuple[BinScales, torch.Tensor]:
    """The :class:`BinScales` of the data, and which reflections they were found with, (n,) bool."""
    f_protein, f_mask = f_protein.detach().to(torch.complex128), f_mask.detach().to(torch.complex128)
    scales = update_all_scales(reflections, f_protein, f_mask)
    total = scales.k_total * scales.f_obs_scale
    mask = scales.k_masks[0]
    where = torch.as_tensor(bins, device=total.device)
    counts = torch.bincount(where, minlength=n_bins).clamp(min=1)
    uaniso = _anisotropy(scales.k_anisotropic, reflections.miller_indices, reciprocal_cell.to(total))
    isotropic = total / scales.k_anisotropic

    def mean(values):
        return torch.bincount(where, values, minlength=n_bins) / counts

    parts = total, mask, mean(isotropic), mean(mask), uaniso.expand(n_bins, 6)
    return BinScales(*(x.to(torch.float32).contiguous() for x in parts)), scales.selection


def _anisotropy(k_anisotropic: torch.Tensor, indices: torch.Tensor, reciprocal_cell: torch.Tensor) -> torch.Tensor:
    """U (6,) of SFcalculator's convention that repeats the anisotropic scale best."""
    h = indices.to(torch.float64) * reciprocal_cell[:3].to(torch.float64)
    cosines = reciprocal_cell[3:].to(torch.float64)
    (a, b, c), (alpha, beta, gamma) = h.unbind(-1), cosines
    design = torch.stack([a * a, b * b, c * c, 2 * a * b * gamma, 2 * a * c * beta, 2 * b * c * alpha], -1)
    target = -torch.log(k_anisotropic.to(torch.float64).clamp(min=1e-6)) / (2 * torch.pi**2)
    # An angle of 90 degrees leaves its component without effect: the least of all solutions is taken.
    return torch.linalg.lstsq(design.cpu(), target[:, None].cpu(), driver="gelsd").solution[:, 0].to(h.device)
