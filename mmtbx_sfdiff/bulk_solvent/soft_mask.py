"""The soft probe-shrink mask: equations E, V and mask of :mod:`.probe_shrink` as one differentiable operation.

The integral V is a sum over a grid ``fine`` times finer than the mask's, at most about 0.3 Å; E is smooth on that scale.
With a = 1/v and D = 1 - exp(-a V_free), going back is the chain rule,

    dmask(x)/dV(x) = a exp(-a V(x)) / D
    dT/dE(y)       = sum_x B(|x - y|) dT/dV(x)                        the same convolution, transposed
    dT/dx_j        = sum_y dT/dE(y) E(y) c_j S'(t_j) / [1 - c_j (1 - S(t_j))] dphi_j/dx_j / w

with t_j = phi_j / w + 1/2; radii, occupancies and lengths likewise.  Differentiable once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from ..crystal import Crystal
from ..kernels import opaque
from ..kernels.engines import AtomsEngine, SoftMask, of_atoms
from ..kernels.recent import Recent
from ..kernels.scratch import scratch_like
from .ball import Ball, fineness
from .mask_atoms import LARGEST_LENGTH, Spheres, spheres
from .mask_values import Recipe, n_points
from .on_device import Groups, said, spheres_jobs
from .operations import DifferentiableOnce, LastDerivative, each_model, operation
from .transform import side_by_side

#: v^(1/3) and b, in units of the softness.
VOLUME_RATIO = 0.75
EDGE_RATIO = 0.375
#: Steps of the fine grid, Å.
FINE_STEP = 0.31
#: Å; what is softer than hard is at least this soft.
SMALLEST_SOFTNESS = 1e-3
#: Å; spheres below count for nothing.
SMALLEST_RADIUS = 1e-3
# Of an exponential, beside a Fourier transform's.
_WORK = 0.25
# On a CPU the fields E of several models may take one in so many bytes of the memory; those of more are worked out again.
_FIELDS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
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


_recent: Recent[list[_Group]] = Recent()


def _groups(
    atoms: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    candidates: torch.Tensor,
    crystal: int,
    recipe: str,
) -> list[_Group]:
    """The models as an engine takes them: for the gradient the same as for the values."""

    def make(*tensors: torch.Tensor) -> list[_Group]:
        *atoms, lengths, candidates = tensors
        return _make_groups(atoms, lengths, candidates, opaque.held(crystal), Recipe.unpacked(recipe))

    return _recent.get((*atoms, lengths, candidates), (crystal, recipe), make)


def _make_groups(
    atoms: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    candidates: torch.Tensor,
    crystal: Crystal,
    how: Recipe,
) -> list[_Group]:
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
    found: list[_Group] = []
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
            kept = how.memory // len(models) * len(part)
            if len(models) > 1 and not engine.batched:
                kept //= _FIELDS
            job = how.job(crystal, fine, ball.reach, dtype, kept)
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
        found.append(_Group(range(first, after), part, softness, ball, mask, weights, sites, reach, cover, slope))
    return found


def _jobs(
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


def _fake(
    atoms: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    candidates: torch.Tensor,
    crystal: int,
    recipe: str,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n_models, points = len(atoms[0]), n_points(crystal, recipe)
    own = Recipe.unpacked(recipe).kernel_dtype(atoms[0].dtype)
    return (
        atoms[0].new_empty((n_models, points), dtype=dtype),
        atoms[0].new_empty((n_models, points if keep else 0), dtype=own),
        atoms[0].new_empty((n_models, 0), dtype=own),
    )


@operation("soft_mask", fake=_fake)
def soft_mask(
    atoms: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    candidates: torch.Tensor,
    crystal: int,
    recipe: str,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mask (n_models, n_points) in ``dtype``; with ``keep`` also V and, if it is not too large, E, of each model.

    ``atoms`` are sites_cart, rounding, occupancies and radii of :class:`~.mask_atoms.MaskAtoms`, ``lengths`` (n_models, 3)
    r_probe, r_shrink and softness.
    """
    there, how = opaque.held(crystal), Recipe.unpacked(recipe)
    n_models, points, own = len(atoms[0]), n_points(crystal, recipe), how.kernel_dtype(atoms[0].dtype)
    jobs = _jobs(atoms, lengths, candidates, there, how)
    if jobs is not None:
        engine, parts = jobs
        fine_points = points * parts[0][1].fine ** 3
        kept = keep and fine_points * own.itemsize * n_models <= how.memory
        masks, volumes, field = (
            atoms[0].new_empty((n_models, size), dtype=kind)
            for size, kind in ((points, dtype), (points if keep else 0, own), (fine_points if kept else 0, own))
        )
        for part, job in parts:
            engine.masks_of_atoms(job, masks[part], volumes[part], field[part])
        said(masks.device)
        return masks, volumes, field
    groups = _groups(atoms, lengths, candidates, crystal, recipe)
    sizes = {group.field_size for group in groups} if keep else set()
    values, volumes, field = (
        scratch_like(atoms[0], (n_models, size), kind)
        for size, kind in (
            (points, dtype),
            (points if keep else 0, own),
            (sizes.pop() if len(sizes) == 1 else 0, own),
        )
    )

    def one(number: int) -> None:
        group = groups[number]
        into = group.rows(field) if field.shape[1] else None
        (found,) = group.mask.forward(*group.atoms, [group.weights], into)
        if keep:
            group.rows(volumes).copy_(found)
        out = group.rows(values)

        def part(first: int, after: int) -> None:
            exponents = torch.div(found[first:after].to(dtype), -group.volume)
            torch.expm1(exponents, out=out[first:after]).div_(-group.most)

        side_by_side(values.device, len(out), part, _WORK)

    each_model(len(groups), one, values.device)
    return values, volumes, field


def _fake_gradient(
    gradient: torch.Tensor, atoms: Sequence[torch.Tensor], lengths: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    sites_cart, _, occupancies, radii = atoms
    sites = sites_cart.new_empty(sites_cart.shape)
    return sites, torch.empty_like(occupancies), torch.empty_like(radii), torch.empty_like(lengths)


@operation("soft_mask_gradient", fake=_fake_gradient)
def soft_mask_gradient(
    gradient: torch.Tensor,
    atoms: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    volumes: torch.Tensor,
    field: torch.Tensor,
    candidates: torch.Tensor,
    crystal: int,
    recipe: str,
    sites_only: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients by sites_cart, occupancies, radii and lengths, from that by the mask, (n_models, n_points).

    ``volumes`` and ``field`` are what :func:`soft_mask` kept; where they are empty, they are worked out again.
    """
    there, how = opaque.held(crystal), Recipe.unpacked(recipe)
    jobs = None if how.lengths_vary else _jobs(atoms, lengths, candidates, there, how)
    if jobs is not None:
        engine, parts = jobs
        of_atoms = [x.new_empty(x.shape) for x in (atoms[0], *atoms[2:])]
        for part, job in parts:
            into = [x[part] for x in of_atoms]
            kept = volumes[part], field[part]
            # What is not wanted is not filled; SoftValues.backward does not look at it.
            others = (None, None) if sites_only else (into[1], into[2])
            engine.mask_gradients_of_atoms(gradient[part], job, *kept, (into[0], *others))
        none = [lengths.new_empty(lengths.shape) if sites_only else lengths.new_zeros(lengths.shape)]
        by_sites, by_occupancies, by_radii, by_lengths = *of_atoms, *none
        return by_sites, by_occupancies, by_radii, by_lengths
    groups = _groups(atoms, lengths, candidates, crystal, recipe)
    results = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (atoms[0], *atoms[2:], lengths))

    def one(number: int) -> None:
        group, device = groups[number], gradient.device
        known = group.rows(field) if field.shape[1] else None
        if volumes.shape[1]:
            volume = group.rows(volumes)
        else:
            (volume,) = group.mask.forward(*group.atoms, [group.weights])
        by_mask = group.rows(gradient)
        by_volume = scratch_like(volume, volume.shape)

        def part(first: int, after: int) -> None:
            slope = torch.div(volume[first:after].to(by_mask.dtype), -group.volume).exp_()
            by_volume[first:after] = slope.div_(group.volume * group.most).mul_(by_mask[first:after])

        side_by_side(device, len(volume), part, _WORK)
        found = group.mask.backward(by_volume, *group.atoms, group.weights, sites_only, known)
        by_length = _by_lengths(group, by_mask, volume, by_volume, float(found[3])) if how.lengths_vary else None
        _hand_over(group, found, by_length, there, results)

    each_model(len(groups), one, gradient.device)
    sites, occupancies, radii, by_lengths = results
    return sites, occupancies, radii, by_lengths


def _by_lengths(
    group: _Group, by_mask: torch.Tensor, volume: torch.Tensor, by_volume: torch.Tensor, by_width: float
) -> torch.Tensor:
    """dT/d(r_shrink) and dT/d(softness) of each model of the group, (n, 2).

    With A = V / v and B = V_free / v, mask = (1 - exp(-A)) / (1 - exp(-B)).
    """
    n, v = len(group.models), group.volume
    changes = [group.mask.weights(f) for f in (group.ball.by_radius, group.ball.by_edge)]
    by_volume, volume = (x.reshape(n, -1).to(torch.float64) for x in (by_volume, volume))
    moved = [
        (by_volume * change.reshape(n, -1).to(torch.float64)).sum(-1)
        for change in group.mask.forward(*group.atoms, changes)
    ]
    mask = torch.expm1(-volume / v) / -group.most
    by_free = -(by_mask.reshape(n, -1).to(torch.float64) * mask).sum(-1) * (
        math.exp(-group.free / v) / (v * group.most)
    )
    by_v = -((by_volume * volume).sum(-1) + by_free * group.free) / v
    by_shrink, by_edge = (one + by_free * float(change.sum(dtype=torch.float64)) for one, change in zip(moved, changes))
    by_softness = EDGE_RATIO * by_edge + by_v * 3 * v / group.softness
    # An engine that takes several models gives the sum for the width.
    return torch.stack([by_shrink, by_softness + by_width / n], -1)


def _hand_over(
    group: _Group,
    found: Sequence[torch.Tensor],
    by_length: torch.Tensor | None,
    crystal: Crystal,
    results: tuple[torch.Tensor, ...],
) -> None:
    """What an engine gives, as gradients of what was given, into the results of all models."""
    by_sites, by_occupancies, by_radii, by_lengths = results
    counts = [len(one.radii) for one in group.spheres]
    parts = [values.split(counts) for values in (*found[:3], group.slope)]
    for number, model in enumerate(group.models):
        one, (sites, radii, cover, slope) = group.spheres[number], (part[number] for part in parts)
        n = by_sites.shape[1]
        by_sites[model] = one.among_all(sites @ crystal.fractionalization, n)
        by_radii[model] = one.among_all(radii, n)
        by_occupancies[model] = one.among_all(cover * slope, n)
        by_lengths[model, 0] = radii.sum()
        if by_length is not None:
            by_lengths[model, 1:] = by_length[number]


class SoftValues(DifferentiableOnce):
    """sites_cart, rounding, occupancies, radii, lengths, candidates, crystal, recipe, dtype, keep -> mask, V, E."""

    HANDLES = (6,)
    SHARED = (5,)

    @staticmethod
    def forward(
        sites_cart: torch.Tensor,
        rounding: torch.Tensor,
        occupancies: torch.Tensor,
        radii: torch.Tensor,
        lengths: torch.Tensor,
        candidates: torch.Tensor,
        crystal: int,
        recipe: str,
        dtype: torch.dtype,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        atoms = [sites_cart, rounding, occupancies, radii]
        return soft_mask(atoms, lengths, candidates, crystal, recipe, dtype, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6], *output[1:])
        ctx.crystal, ctx.recipe = inputs[6:8]
        ctx.mark_non_differentiable(*output[1:])
        if not torch.compiler.is_compiling():  # which knows no such method
            ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor | None, *others: Any) -> tuple[Any, ...]:
        if gradient is None:
            return (None,) * 10
        *atoms, lengths, candidates, volumes, field = ctx.saved_tensors
        sites_only = not any(ctx.needs_input_grad[2:5])
        found = apply_soft_gradient(
            gradient, *atoms, lengths, volumes, field, candidates, ctx.crystal, ctx.recipe, sites_only
        )
        by_sites, by_occupancies, by_radii, by_lengths = found
        if sites_only:
            return (by_sites, *[None] * 9)
        return by_sites, None, by_occupancies, by_radii, by_lengths, None, None, None, None, None


class SoftGradient(LastDerivative):
    """The gradient of :class:`SoftValues`."""

    SHARED = (8,)

    @staticmethod
    def forward(
        gradient: torch.Tensor,
        sites_cart: torch.Tensor,
        rounding: torch.Tensor,
        occupancies: torch.Tensor,
        radii: torch.Tensor,
        lengths: torch.Tensor,
        volumes: torch.Tensor,
        field: torch.Tensor,
        candidates: torch.Tensor,
        crystal: int,
        recipe: str,
        sites_only: bool,
    ) -> tuple[torch.Tensor, ...]:
        atoms = [sites_cart, rounding, occupancies, radii]
        return soft_mask_gradient(gradient, atoms, lengths, volumes, field, candidates, crystal, recipe, sites_only)


apply_soft_values = opaque.caller(SoftValues)
apply_soft_gradient = opaque.caller(SoftGradient)
