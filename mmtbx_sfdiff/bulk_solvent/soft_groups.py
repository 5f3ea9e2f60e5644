"""What an engine takes for the soft mask: spheres, ball and job of several models, set up once for values and gradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from ..crystal import Crystal
from ..kernels import opaque
from ..kernels.engines import AtomsEngine, SoftMask, of_atoms
from ..kernels.recent import Recent
from ..kernels.threads import models_at_once
from .ball import Ball, fineness
from .mask_atoms import LARGEST_LENGTH, Spheres, spheres
from .mask_values import Recipe
from .on_device import Groups, spheres_jobs

#: v^(1/3) and b, in units of the softness.
VOLUME_RATIO = 0.75
EDGE_RATIO = 0.375
#: Steps of the fine grid, Å.
FINE_STEP = 0.31
#: Å; what is softer than hard is at least this soft.
SMALLEST_SOFTNESS = 1e-3
#: Å; spheres below count for nothing.
SMALLEST_RADIUS = 1e-3
# Beside E, on a CPU, of a model that is worked on.
_FIELDS = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Consecutive models that an engine takes together: one, or, where it is batched, as many as its memory holds.

    ``sites`` (n, 3), ``radii`` with the probe's, ``cover`` c_j and ``slope``, its derivative by the occupancy, (n,) float64:
    the atoms of all of them, one model after another.
    """

    models: range
    spheres: Sequence[Spheres]
    softness: float
    ball: Ball
    mask: SoftMask
    weights: torch.Tensor
    sites: torch.Tensor
    radii: torch.Tensor
    cover: torch.Tensor
    slope: torch.Tensor

    @property
    def volume(self) -> float:
        """v, Å^3."""
        return (VOLUME_RATIO * self.softness) ** 3

    @property
    def free(self) -> float:
        """V_free, Å^3."""
        return float(self.weights.sum(dtype=torch.float64))

    @property
    def most(self) -> float:
        """1 - exp(-V_free / v)."""
        return -math.expm1(-self.free / self.volume)

    @property
    def atoms(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """What the engine takes."""
        return self.sites, self.radii, self.cover, self.softness

    @property
    def field_size(self) -> int:
        """Numbers of E of a model that may be kept."""
        return self.mask.field_size // len(self.models)

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Of values (n_models, n), those of this group, flat."""
        return values[self.models.start : self.models.stop].reshape(-1)


_recent: Recent[list[Group]] = Recent()


def groups_of(
    atoms: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    candidates: torch.Tensor,
    crystal: int,
    recipe: str,
) -> list[Group]:
    """The models as an engine takes them: for the gradient the same as for the values."""

    def make(*tensors: torch.Tensor) -> list[Group]:
        *atoms, lengths, candidates = tensors
        return _make_groups(atoms, lengths, candidates, opaque.held(crystal), Recipe.unpacked(recipe))

    return _recent.get((*atoms, lengths, candidates), (crystal, recipe), make)


def _make_groups(
    atoms: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    candidates: torch.Tensor,
    crystal: Crystal,
    how: Recipe,
) -> list[Group]:
    sites_cart, rounding, occupancies, radii = atoms
    models = spheres(sites_cart, rounding, occupancies, radii, candidates, crystal, how.include_zero_occupancy)
    rows = [tuple(row) for row in lengths.tolist()]
    for row in set(rows):
        check_lengths(*row)
    engine = how.engine_on(sites_cart.device)
    dtype = how.kernel_dtype(sites_cart.dtype)
    fine = fineness(crystal, how.n_real, FINE_STEP)
    points = math.prod(how.n_real) * fine**3
    size = max(1, min(how.memory // (points * dtype.itemsize), engine.largest // points)) if engine.batched else 1
    found: list[Group] = []
    for first in range(len(models)):
        if found and first < found[-1].models.stop:
            continue
        after = first + 1
        while after < min(len(models), first + size) and rows[after] == rows[first]:
            after += 1
        r_probe, r_shrink, softness = rows[first]
        part = models[first:after]
        ball = Ball(r_shrink, EDGE_RATIO * softness)
        same = found[-1] if found and not engine.batched and rows[first] == rows[first - 1] else None
        if same is None:
            at_once = 1 if engine.batched else models_at_once(len(models), sites_cart.device)
            if engine.batched or len(models) == 1:
                kept = how.memory // len(models) * len(part)
            else:
                # E is kept of all models, or worked out again: in half of the memory, and beside what is worked on.
                kept = how.memory // max(2 * len(models), len(models) + _FIELDS * at_once)
            job = how.job(crystal, fine, ball.reach, dtype, kept, at_once)
            if engine.batched:
                counts = torch.tensor([len(one.radii) for one in part])
                model = torch.arange(len(part)).repeat_interleave(counts).to(sites_cart.device)
                job = dataclasses.replace(job, models=model, n_models=len(part))
            mask = engine.soft_mask(job)
            weights = mask.weights(ball.value)
        else:
            mask, weights = same.mask, same.weights
        cover, slope = _cover(_joined([one.occupancies for one in part]), how)
        sites, reach = _joined([one.sites for one in part]), _joined([one.radii for one in part]) + r_probe
        reach = torch.where(reach < SMALLEST_RADIUS, 0.0, reach)
        found.append(Group(range(first, after), part, softness, ball, mask, weights, sites, reach, cover, slope))
    return found


def jobs_of(
    atoms: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    candidates: torch.Tensor,
    crystal: Crystal,
    how: Recipe,
) -> tuple[AtomsEngine, Groups] | None:
    """An engine that takes the atoms as they are, and its jobs; None where the engine is another."""
    engine = of_atoms(how.engine_on(atoms[0].device))
    if engine is None or 0 in atoms[2].shape:
        return None
    rows = [(row[0], row[1], row[2]) for row in lengths.tolist()]
    for row in set(rows):
        check_lengths(*row)
    shape = VOLUME_RATIO, EDGE_RATIO
    return engine, spheres_jobs(engine, atoms, rows, candidates, crystal, how, shape, FINE_STEP, SMALLEST_RADIUS)


def _joined(values: list[torch.Tensor]) -> torch.Tensor:
    return values[0] if len(values) == 1 else torch.cat(values)


def check_lengths(r_probe: float, r_shrink: float, softness: float) -> None:
    """Raise ValueError unless these are lengths of a soft mask."""
    for name, value in (("r_probe", r_probe), ("r_shrink", r_shrink), ("softness", softness)):
        if not 0 <= value <= LARGEST_LENGTH:
            raise ValueError(
                f"{name} must be one number that is not negative and at most {LARGEST_LENGTH:g} Å, not {value:g}."
            )
    if softness < SMALLEST_SOFTNESS:
        raise ValueError(
            f"softness must be at least {SMALLEST_SOFTNESS:g} Å, or the number 0 for the hard mask, not {softness:g}."
        )


def _cover(occupancies: torch.Tensor, how: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """c_j and its derivative by the occupancy, (n,) float64."""
    cover, slope = torch.ones_like(occupancies), torch.zeros_like(occupancies)
    if occupancies.device.type == "cpu" and occupancies.numpy().min(initial=math.inf) >= max(
        how.full_occupancy, 1e-300
    ):
        return cover, slope
    if how.full_occupancy > 0:
        t = (occupancies / how.full_occupancy).clamp(0, 1)
        cover, slope = t * t * (3 - 2 * t), 6 * t * (1 - t) / how.full_occupancy
    if how.include_zero_occupancy:
        cover = torch.where(occupancies > 0, cover, 1.0)
        slope = torch.where(occupancies > 0, slope, 0.0)
    return cover, slope
