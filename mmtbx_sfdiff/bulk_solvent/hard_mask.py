"""The hard probe-shrink mask, its surface located between grid points, as a differentiable operation.

With phi(y) the distance from y to the nearest sphere, x is solvent where psi(x) = max [phi(y) - |x - y|] over the y with
phi(y) >= 0 is above -r_shrink; y on a grid of at most 0.15 Å steps.  The mask is a smooth step of psi + r_shrink, as wide as
1.2 grid steps.  See :mod:`~mmtbx_sfdiff.kernels.cpu.hard_mask`.  Differentiable almost everywhere, once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from ..crystal import Crystal
from ..kernels import opaque
from ..kernels.engines import HardMask
from .ball import fineness
from .mask_atoms import LARGEST_LENGTH, Spheres, spheres
from .mask_values import Recipe, n_points
from .operations import DifferentiableOnce, LastDerivative, each_model, operation

#: Steps of the fine grid, Å.
HARD_STEP = 0.151
#: Distances from the spheres, Å, that are told apart.
_TOP = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
    """One model: its atoms, its engine, and the width of the step, Å."""

    spheres: Spheres
    radii: torch.Tensor
    r_shrink: float
    low: float
    step: float
    mask: HardMask


def _models(
    atoms: Sequence[torch.Tensor], lengths: torch.Tensor, candidates: torch.Tensor, crystal: Crystal, how: Recipe
) -> list[_Model]:
    step = 1.2 * (crystal.volume / math.prod(how.n_real)) ** (1 / 3)
    fine = fineness(crystal, how.n_real, HARD_STEP)
    made: dict[float, HardMask] = {}
    found = []
    sites_cart, rounding, occupancies, radii = atoms
    models = spheres(sites_cart, rounding, occupancies, radii, candidates, crystal, how.include_zero_occupancy)
    for one, (r_probe, r_shrink, _) in zip(models, lengths.tolist()):
        for name, value in (("r_probe", r_probe), ("r_shrink", r_shrink)):
            if not 0 <= value <= LARGEST_LENGTH:
                raise ValueError(
                    f"{name} must be one number that is not negative and at most {LARGEST_LENGTH:g} Å, not {value:g}."
                )
        low = -r_shrink - step / 2
        if low not in made:
            job = how.job(crystal, fine, _TOP - low, sites_cart.dtype)
            made[low] = how.engine_on(sites_cart.device).hard_mask(job)
        found.append(_Model(one, one.radii + r_probe, r_shrink, low, step, made[low]))
    return found


def _fake(
    atoms: Sequence[torch.Tensor], lengths: torch.Tensor, candidates: torch.Tensor, crystal: int, recipe: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values = atoms[0].new_empty((len(atoms[0]), n_points(crystal, recipe)))
    return values, torch.empty_like(values), torch.empty_like(values, dtype=torch.int64)


@operation("hard_mask", fake=_fake)
def hard_mask(
    atoms: Sequence[torch.Tensor], lengths: torch.Tensor, candidates: torch.Tensor, crystal: int, recipe: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mask (n_models, n_points), psi, and the number of the fine point that decides it.

    Arguments as of :func:`~.soft_mask.soft_mask`; the softness does not matter.
    """
    there, how = opaque.held(crystal), Recipe.unpacked(recipe)
    models = _models(atoms, lengths, candidates, there, how)
    values, psi, source = _fake(atoms, lengths, candidates, crystal, recipe)

    def one(i: int) -> None:
        model = models[i]
        psi[i], source[i] = model.mask.psi(model.spheres.sites, model.radii, model.low, _TOP)
        t = ((psi[i] + model.r_shrink) / model.step + 0.5).clamp_(0, 1)
        values[i] = t * t * (3 - 2 * t)

    each_model(len(models), one, values.device)
    return values, psi, source


def _fake_gradient(
    gradient: torch.Tensor, atoms: Sequence[torch.Tensor], lengths: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return atoms[0].new_empty(atoms[0].shape), torch.empty_like(atoms[3]), torch.empty_like(lengths)


@operation("hard_mask_gradient", fake=_fake_gradient)
def hard_mask_gradient(
    gradient: torch.Tensor,
    atoms: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    psi: torch.Tensor,
    source: torch.Tensor,
    candidates: torch.Tensor,
    crystal: int,
    recipe: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients by sites_cart, radii and lengths from that by the mask, (n_models, n_points)."""
    there, how = opaque.held(crystal), Recipe.unpacked(recipe)
    models = _models(atoms, lengths, candidates, there, how)
    results = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (atoms[0], atoms[3], lengths))
    by_sites, by_radii, by_lengths = results

    def one(i: int) -> None:
        model, n = models[i], atoms[0].shape[1]
        t = ((psi[i] + model.r_shrink) / model.step + 0.5).clamp_(0, 1)
        by_psi = gradient[i] * (6 / model.step) * t * (1 - t)
        sites, radii = model.mask.pull_back(by_psi, source[i], model.spheres.sites, model.radii, _TOP)
        by_sites[i] = model.spheres.among_all(sites @ there.fractionalization, n)
        by_radii[i] = model.spheres.among_all(radii, n)
        by_lengths[i, 0], by_lengths[i, 1] = radii.sum(), by_psi.sum()

    each_model(len(models), one, gradient.device)
    return by_sites, by_radii, by_lengths


class HardValues(DifferentiableOnce):
    """sites_cart, rounding, occupancies, radii, lengths, candidates, crystal, recipe -> mask, psi, source."""

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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return hard_mask([sites_cart, rounding, occupancies, radii], lengths, candidates, crystal, recipe)

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
            return (None,) * 8
        *atoms, lengths, candidates, psi, source = ctx.saved_tensors
        by_sites, by_radii, by_lengths = apply_hard_gradient(
            gradient, *atoms, lengths, psi, source, candidates, ctx.crystal, ctx.recipe
        )
        return by_sites, None, None, by_radii, by_lengths, None, None, None


class HardGradient(LastDerivative):
    """The gradient of :class:`HardValues`."""

    SHARED = (8,)

    @staticmethod
    def forward(
        gradient: torch.Tensor,
        sites_cart: torch.Tensor,
        rounding: torch.Tensor,
        occupancies: torch.Tensor,
        radii: torch.Tensor,
        lengths: torch.Tensor,
        psi: torch.Tensor,
        source: torch.Tensor,
        candidates: torch.Tensor,
        crystal: int,
        recipe: str,
    ) -> tuple[torch.Tensor, ...]:
        atoms = [sites_cart, rounding, occupancies, radii]
        return hard_mask_gradient(gradient, atoms, lengths, psi, source, candidates, crystal, recipe)


apply_hard_values = opaque.caller(HardValues)
apply_hard_gradient = opaque.caller(HardGradient)
