"""Scales behind SFcalculator's names: mmtbx's scales of this package, adjustable bin by bin.

There, ``F = k_iso(bin) k_aniso(bin) (F_protein + k_mask(bin) F_mask)`` is fitted by gradient descent.  Here the scales are
those of :func:`mmtbx_sfdiff.update_all_scales`, which vary within a bin; the lists ``kisos``, ``kmasks`` and ``uanisos`` hold
their averages, and what is done to an element of a list (by an optimizer, or by hand) is done to the scales of its bin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch

import numpy as np

from ...reflections import Reflections
from ...scaling import update_all_scales
from .experiment import ExperimentState
from .utils import aniso_scaling, assert_numpy


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

    def f_total(
        self,
        f_protein: torch.Tensor,
        f_mask: torch.Tensor,
        kisos: Sequence[torch.Tensor],
        kmasks: Sequence[torch.Tensor],
        uanisos: Sequence[torch.Tensor],
        bins: np.ndarray,
        indices: np.ndarray,
        reciprocal_cell: torch.Tensor,
    ) -> torch.Tensor:
        """Scaled structure factors (..., n) with the lists as they are now; differentiable in everything."""
        device = f_protein.device
        where = torch.as_tensor(bins, device=device)
        k_iso, k_mask = torch.stack(list(kisos)).to(device), torch.stack(list(kmasks)).to(device)
        total = self.total * (k_iso / self.kisos)[where]
        change = torch.stack(list(uanisos)).to(device) - self.uanisos
        factor = torch.ones_like(total)
        for i in range(len(change)):
            rows = (where == i).nonzero()[:, 0]
            inside = indices[rows.cpu().numpy()]
            factor = factor.index_copy(0, rows, aniso_scaling(change[i], reciprocal_cell, inside).to(factor))
        mask = self.mask + (k_mask - self.kmasks)[where]
        return total * factor * (f_protein + mask * f_mask)


def determined(
    reflections: Reflections,
    f_protein: torch.Tensor,
    f_mask: torch.Tensor,
    bins: np.ndarray,
    n_bins: int,
    reciprocal_cell: torch.Tensor,
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

    def mean(values: torch.Tensor) -> torch.Tensor:
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
    u: torch.Tensor = torch.linalg.lstsq(design.cpu(), target[:, None].cpu(), driver="gelsd").solution[:, 0]
    return u.to(h.device)


class ScaleState(ExperimentState):
    """What ``SFcalculator`` knows of its scales: ``kisos``, ``kmasks``, ``uanisos``, and F scaled by them."""

    _base: BinScales | None = None
    _reflections: Reflections | None = None
    kisos: list[torch.Tensor]
    kmasks: list[torch.Tensor]
    uanisos: list[torch.Tensor]
    Fprotein_HKL: torch.Tensor
    Fmask_HKL: torch.Tensor

    def init_scales(self, requires_grad: bool = True) -> None:
        """Determine the scales from the data; without data, the customary ones."""
        if not hasattr(self, "Fo"):
            self._set_scales(requires_grad)
            return
        self._base, selected = determined(
            self._data(), self.Fprotein_HKL, self.Fmask_HKL, self.bins, self.n_bins, self.reciprocal_cell_paras
        )
        self.Outlier = ~selected.cpu().numpy() | (assert_numpy(self.Fo) <= 0)
        self._fill_lists(self._base.kisos, self._base.kmasks, self._base.uanisos, requires_grad)
        self.r_work, self.r_free = self.get_rfactors(self._f_total("", None, True).detach())

    def _data(self) -> Reflections:
        if self._reflections is None:
            self._reflections = Reflections.from_arrays(
                self._crystal,
                torch.as_tensor(self.HKL_array, dtype=torch.int64, device=self.device),
                self.Fo.to(torch.float64).clamp(min=0),
                sigmas=self.SigF.to(torch.float64),
                free=torch.as_tensor(self.free_flag, device=self.device) if self.free_flag.any() else None,
            )
        return self._reflections

    def _fill_lists(
        self,
        kisos: Iterable[torch.Tensor],
        kmasks: Iterable[torch.Tensor],
        uanisos: Iterable[torch.Tensor],
        requires_grad: bool,
    ) -> None:
        def leaves(values: Iterable[torch.Tensor]) -> list[torch.Tensor]:
            return [value.detach().clone().requires_grad_(requires_grad) for value in values]

        self.kisos, self.kmasks, self.uanisos = leaves(kisos), leaves(kmasks), leaves(uanisos)

    def _set_scales(
        self,
        requires_grad: bool,
        kiso: float = 1.0,
        kmask: float = 0.35,
        uaniso: Sequence[float] = (0.01, 0.01, 0.01, 1e-4, 1e-4, 1e-4),
    ) -> None:
        """The same scales in every bin, without data."""
        like = torch.zeros((), dtype=torch.float32, device=self.device)
        self._base = BinScales.plain(len(self._used_indices), self.n_bins, like)
        n = self.n_bins
        self._fill_lists(
            like.new_full((n,), kiso), like.new_full((n,), kmask), like.new_tensor([uaniso] * n), requires_grad
        )

    def get_scales_adam(
        self,
        lr: float = 0.01,
        n_steps: int = 100,
        sub_ratio: float = 0.7,
        initialize: bool = True,
        verbose: bool = False,
    ) -> None:
        """Determine the scales; they are found directly, so the options of a descent have no effect."""
        if (lr, n_steps, sub_ratio) != (0.01, 100, 0.7):
            self._once("lr, n_steps and sub_ratio have no effect: the scales are found without a descent.")
        self._need_data()
        self.init_scales(requires_grad=False)

    def get_scales_lbfgs(
        self,
        ls_steps: int = 3,
        r_steps: int = 3,
        ls_lr: float = 0.1,
        r_lr: float = 0.1,
        initialize: bool = True,
        verbose: bool = False,
    ) -> None:
        """As :meth:`get_scales_adam`."""
        if (ls_steps, r_steps, ls_lr, r_lr) != (3, 3, 0.1, 0.1):
            self._once("The numbers and rates of steps have no effect: the scales are found without a descent.")
        self._need_data()
        self.init_scales(requires_grad=False)

    def _need_data(self) -> None:
        if not hasattr(self, "Fo"):
            raise ValueError(
                "There are no amplitudes to determine scales from: give mtzdata, with set_experiment=True."
            )

    def freeze_scales(self) -> None:
        """No gradients in the lists of scales."""
        self._fill_lists(self.kisos, self.kmasks, self.uanisos, False)

    def unfreeze_scales(self) -> None:
        """Gradients in the lists of scales."""
        self._fill_lists(self.kisos, self.kmasks, self.uanisos, True)

    def calc_ftotal(
        self,
        bins: Iterable[int] | None = None,
        Return: bool = True,
        scale_mode: bool = False,
    ) -> torch.Tensor | None:
        """Scaled F of atoms and solvent into ``Ftotal_HKL`` (or ``Ftotal_asu``), on the scale of ``Fo``.

        ``bins``: zero in all others.  ``scale_mode``: no gradient in the atoms.
        """
        found = self._f_total("", bins, scale_mode)
        return found if Return else None

    def calc_ftotal_batch(self, bins: Iterable[int] | None = None, Return: bool = True) -> torch.Tensor | None:
        """The same of each model of a batch, (batch, n)."""
        found = self._f_total("_batch", bins, False)
        return found if Return else None

    def _f_total(self, suffix: str, bins: Iterable[int] | None, scale_mode: bool) -> torch.Tensor:
        if self._base is None:
            if not hasattr(self, "kmasks"):
                raise ValueError("There are no scales yet: call get_scales_adam(), init_scales() or _set_scales().")
            like = torch.zeros((), dtype=torch.float32, device=self.device)
            self._base = BinScales.plain(len(self._used_indices), self.n_bins, like)
        f_protein = getattr(self, f"Fprotein_{self._kind}{suffix}")
        f_mask = getattr(self, f"Fmask_{self._kind}{suffix}")
        if scale_mode:
            f_protein, f_mask = f_protein.detach(), f_mask.detach()
        found = self._base.f_total(
            f_protein,
            f_mask,
            self.kisos,
            self.kmasks,
            self.uanisos,
            self.bins,
            self._used_indices,
            self.reciprocal_cell_paras,
        )
        if bins is not None:
            found = torch.where(torch.as_tensor(np.isin(self.bins, list(bins)), device=found.device), found, 0)
        setattr(self, f"Ftotal_{self._kind}{suffix}", found)
        return found
