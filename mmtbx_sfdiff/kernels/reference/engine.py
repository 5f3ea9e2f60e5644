"""The engine in plain torch operations, for any device: what every other engine is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..jobs import Columns, DensityGradients, DensityJob, DirectJob, MaskGrid, MaskJob
from . import density, direct_sum
from .probe_shrink import HardMask, SoftMask


class ReferenceEngine:
    """See :class:`~mmtbx_sfdiff.kernels.engines.Engine`."""

    name = "torch"
    # Gaussians end where they are cut, and the two terms of an atom add up.
    slack = 0.5
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
        return math.prod(grid.n_real)

    def soft_mask(self, job: MaskJob) -> SoftMask:
        return SoftMask(job)

    def hard_mask(self, job: MaskJob) -> HardMask:
        return HardMask(job)

    def unit_transform(self, job: MaskJob, plan: Columns) -> None:
        return None


ENGINE = ReferenceEngine()
