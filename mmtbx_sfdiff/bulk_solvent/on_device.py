"""Soft masks by an engine that takes atoms as they are given, and does not let the host look at them: a few launches a call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..crystal import Crystal
from ..kernels import checks, deferred
from ..kernels.atom_jobs import SpheresJob
from ..kernels.engines import AtomsEngine
from ..plans.cell import mask_grid
from .ball import Ball, fineness
from .mask_atoms import LARGEST_LENGTH
from .mask_values import Recipe

#: A group of models that an engine takes at a time, and what it takes.
Groups = list[tuple[slice, SpheresJob]]
# Of an image.
_NUMBERS = 6


def spheres_jobs(
    engine: AtomsEngine,
    atoms: Sequence[torch.Tensor],
    rows: Sequence[tuple[float, float, float]],
    candidates: torch.Tensor,
    crystal: Crystal,
    how: Recipe,
    shape: tuple[float, float],
    fine_step: float,
    smallest_radius: float,
) -> Groups:
    """The jobs of models: consecutive ones of the same lengths, as many at a time as memory allows.

    Parameters
    ----------
    engine : AtomsEngine
    atoms : sequence of torch.Tensor
        sites_cart, rounding, occupancies and radii of :class:`~.mask_atoms.MaskAtoms`.
    rows : sequence of tuple
        r_probe, r_shrink and softness of each model.
    candidates : torch.Tensor
    crystal : Crystal
    how : Recipe
    shape : tuple of float
        v^(1/3) and b, in units of the softness.
    fine_step, smallest_radius : float
        Å.
    """
    sites_cart, rounding, occupancies, radii = atoms
    device = sites_cart.device
    checks.look(device)
    dtype = how.kernel_dtype(sites_cart.dtype)
    fine = fineness(crystal, how.n_real, fine_step)
    points = math.prod(how.n_real) * fine**3
    if points > engine.largest:
        raise ValueError(f"The fine grid of a mask with {points} points is too large: use a larger grid_step.")
    grid = mask_grid(crystal, how.n_real)
    # Kernels count by 32 bits what they know of images, too.
    images = _NUMBERS * len(grid.rotations) * sites_cart.shape[1]
    most = max(1, min(how.memory // (points * dtype.itemsize), engine.largest // max(points, images)))
    limits = checks.LIMITS["sites_cart"][0], checks.LIMITS["occupancies"][0], LARGEST_LENGTH
    found: Groups = []
    first = 0
    while first < len(rows):
        after = first + 1
        while after < min(len(rows), first + most) and rows[after] == rows[first]:
            after += 1
        part, softness = slice(first, after), rows[first][2]
        ball = Ball(rows[first][1], shape[1] * softness)
        found.append(
            (
                part,
                SpheresJob(
                    grid,
                    fine,
                    ball.reach,
                    ball.value,
                    rows[first],
                    (shape[0] * softness) ** 3,
                    dtype,
                    sites_cart[part],
                    rounding[part],
                    occupancies[part],
                    radii[part],
                    candidates,
                    crystal.fractionalization,
                    how.full_occupancy,
                    smallest_radius,
                    how.include_zero_occupancy,
                    limits,
                ),
            )
        )
        first = after
    return found


def said(device: torch.device) -> None:
    """Say what was wrong: at once where nobody has to wait for it, else what has arrived by now."""
    if deferred.is_deferred(device):
        checks.look(device)
    else:
        checks.raise_pending(device)
