"""The soft probe-shrink mask: equations E, V and mask of :mod:`.probe_shrink` as one differentiable operation.

The integral V is a sum over a grid ``fine`` times finer than the mask's, at most about 0.3 Å; E is smooth on that scale.
With a = 1/v and D = 1 - exp(-a V_free), going back is the chain rule,

    dmask(x)/dV(x) = a exp(-a V(x)) / D
    dT/dE(y)       = sum_x B(|x - y|) dT/dV(x)                        the same convolution, transposed
    dT/dx_j        = sum_y dT/dE(y) E(y) c_j S'(t_j) / [1 - c_j (1 - S(t_j))] dphi_j/dx_j / w

with t_j = phi_j / w + 1/2; radii, occupancies and lengths likewise.  Differentiable once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..crystal import Crystal
from ..kernels import opaque
from ..kernels.scratch import scratch_like
from .mask_values import Recipe, n_points
from .on_device import said
from .operations import DifferentiableOnce, LastDerivative, each_model, operation
from .soft_groups import EDGE_RATIO, Group, groups_of, jobs_of
from .transform import side_by_side

# Of an exponential, beside a Fourier transform's.
_WORK = 0.25


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
    jobs = jobs_of(atoms, lengths, candidates, there, how)
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
    groups = groups_of(atoms, lengths, candidates, crystal, recipe)
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
    jobs = None if how.lengths_vary else jobs_of(atoms, lengths, candidates, there, how)
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
    groups = groups_of(atoms, lengths, candidates, crystal, recipe)
    results = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (atoms[0], *atoms[2:], lengths))

    def one(number: int) -> None:
        group, device = groups[number], gradient.device
        # With another number of threads there may be less room than there was, and boxes are others.
        known = group.rows(field) if 0 < field.shape[1] == group.field_size else None
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
    group: Group, by_mask: torch.Tensor, volume: torch.Tensor, by_volume: torch.Tensor, by_width: float
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
    group: Group,
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
