"""The Triton engine, for GPUs (and by interpretation for the CPU); what it has no kernels for is done by torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..atom_jobs import AtomsJob, MapReflections, SpheresJob
from ..jobs import Columns, DensityGradients, DensityJob, DirectJob, MaskGrid, MaskJob
from ..reference import direct_sum
from ..reference.probe_shrink import HardMask
from . import density, maps, targets
from .soft_mask import LARGEST, SoftMask, mask_gradients_of_atoms, masks_of_atoms


class TritonEngine:
    """See :class:`~mmtbx_sfdiff.kernels.engines.Engine`."""

    name = "triton"
    # Gaussians end where they are cut, and the two terms of an atom add up.
    slack = 0.5
    batched = True
    largest = LARGEST

    def density(self, job: DensityJob) -> torch.Tensor:
        return density.splat(job)

    def density_pull_back(self, grid: torch.Tensor, job: DensityJob) -> DensityGradients:
        return density.gather(grid, job)

    def structure_factors(self, job: DensityJob) -> torch.Tensor:
        return density.values(job)

    def density_gradients(self, seed: torch.Tensor, job: DensityJob) -> DensityGradients:
        return density.gradients(seed, job)

    def structure_factors_of_atoms(self, job: AtomsJob, dtype: torch.dtype) -> torch.Tensor:
        return density.values_of_atoms(job, dtype)

    def gradients_of_atoms(
        self, seed: torch.Tensor, job: AtomsJob, wanted: tuple[bool, ...]
    ) -> list[torch.Tensor | None]:
        return density.gradients_of_atoms(seed, job, wanted)

    def masks_of_atoms(self, job: SpheresJob, out: torch.Tensor, volumes: torch.Tensor, field: torch.Tensor) -> None:
        masks_of_atoms(job, out, volumes, field)

    def mask_gradients_of_atoms(
        self,
        gradient: torch.Tensor,
        job: SpheresJob,
        volumes: torch.Tensor,
        field: torch.Tensor,
        results: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    ) -> None:
        mask_gradients_of_atoms(gradient, job, volumes, field, results)

    def map_factors(self, maps_: torch.Tensor, where: MapReflections) -> torch.Tensor:
        return maps.map_factors(maps_, where)

    def map_factors_transposed(self, f: torch.Tensor, where: MapReflections) -> torch.Tensor:
        return maps.map_factors_transposed(f, where)

    def amplitude_target(
        self, f: torch.Tensor, table: torch.Tensor, likelihood: bool, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return targets.amplitude_target(f, table, likelihood, dtype)

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


ENGINE = TritonEngine()
