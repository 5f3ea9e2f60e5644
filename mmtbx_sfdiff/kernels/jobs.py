"""What crosses from the equations to the machines: frozen, typed jobs, and what an engine may answer."""

from __future__ import annotations

import dataclasses

import torch


class FFTUnsuitable(ValueError):
    """The FFT cannot do what is asked; direct summation can."""


@dataclasses.dataclass(frozen=True, eq=False)
class DensityJob:
    """The atoms of one density: tensors (n_atoms, ...) of one model, or (n_models, n_atoms, ...).

    ``fp`` is a constant term added to the form factor, or all of it when ``dispersion``; ``gradient`` says
    whether its gradient is wanted, so that zero terms are kept.
    """

    atoms: object
    setting: object
    sites: torch.Tensor
    u_iso: torch.Tensor
    u_star: torch.Tensor
    weights: torch.Tensor
    fp: torch.Tensor
    dispersion: bool
    gradient: bool

    @property
    def has_constant(self):
        return bool(self.dispersion or self.gradient or self.setting.table.constants.any() or (self.fp != 0).any())
