"""The engine of kernels compiled by numba, for the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..jobs import Columns, DensityGradients, DensityJob, DirectJob, MaskGrid, MaskJob
from . import density, direct_sum
from .asymmetric_unit import unit_of
from .hard_mask import HardMask
from .mask_transform import UnitTransform
from .soft_mask import SoftMask


class CPUEngine:
    """See :class:`~mmtbx_sfdiff.kernels.engines.Engine`."""

    name = "cpu"
    # Rows run on beyond the cut to a multiple of eight points, so that the cut may be this much nearer.
    slack = 1.0
    batched = False
    largest = 2**62

    def density(self, job: DensityJob) -> torch.Tensor:
        return density.splat(job)

    def density_pull_back(self, grid: torch.Tensor, job: DensityJob) -> DensityGradients:
        return density.gather(grid, job)

    def structure_factors(self, job: DensityJob) -> torch.Tensor:
        return density.values(job)

    def density_gradients(self, seed: torch.Tensor, job: DensityJob) -> DensityGradients:
        return density.gradients(seed, job)

    def direct_sum(self, job: DirectJob) -> torch.Tensor:
        return direct_sum.direct_sum(job)

    def direct_sum_gradients(
        self, job: DirectJob, grad: torch.Tensor, wanted: tuple[bool, bool, bool]
    ) -> Sequence[torch.Tensor | None]:
        return direct_sum.direct_sum_gradients(job, grad, wanted)

    def mask_points(self, grid: MaskGrid) -> int:
        return len(unit_of(grid).places)

    def soft_mask(self, job: MaskJob) -> SoftMask:
        return SoftMask(job)

    def hard_mask(self, job: MaskJob) -> HardMask:
        return HardMask(job)

    def unit_transform(self, job: MaskJob, plan: Columns) -> UnitTransform:
        return UnitTransform(unit_of(job.grid), plan, job.grid.cell.volume, job.dtype)


ENGINE = CPUEngine()
