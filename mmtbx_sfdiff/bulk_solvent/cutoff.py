"""Equations 5-7 as one differentiable operation: from F_protein on unique indices to the mask on the grid.

With z the map brought to mean 0 and standard deviation 1, c the cutoff and s the steepness (of each voxel), mask =
sigmoid((c - z) s).  The cutoff is the level at which the mask's mean is the solvent fraction, or, without the average over
voxels, the percentile of z; its gradient is that of the implicit function, or the average over the values near the
percentile with Gaussian weights.  Differentiable once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from ..kernels import opaque
from ..plans import Plan
from .density_map import density_map, density_transposed
from .operations import DifferentiableOnce, LastDerivative, each_model, operation
from .transform import side_by_side

_NEWTON_STEPS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class _Map:
    """The normalized map of one model, (n1, n2, n3), its standard deviation, and the steepness, a number or of each voxel."""

    z: torch.Tensor
    sigma: float
    steepness: float | torch.Tensor

    def part(self, first: int, after: int) -> tuple[torch.Tensor, float | torch.Tensor]:
        """z and the steepness of some planes."""
        s = self.steepness
        return self.z[first:after], s if isinstance(s, float) else s[first:after]

    def sums(self, function: Any) -> list[float]:
        """Sums over the cell of what the function gives of z and the steepness of some planes: a tuple of tensors."""

        def some(first: int, after: int) -> list[float]:
            return [float(x.sum(dtype=torch.float64)) for x in function(first, after, *self.part(first, after))]

        found = side_by_side(self.z.device, len(self.z), some, self.z[0].numel())
        return [math.fsum(column) for column in zip(*found)]


def _normalized(
    values: torch.Tensor, there: Plan, grid: Sequence[int], steepness: float, voxel_average: bool
) -> _Map | None:
    """The map of F (n,); None where it is flat."""
    z = torch.empty(tuple(grid), dtype=values.real.dtype, device=values.device)
    density_map(values, there, z)
    n = z.numel()
    whole = _Map(z, 1.0, steepness)
    mean = whole.sums(lambda first, after, z, s: (z,))[0] / n
    side_by_side(z.device, len(z), lambda first, after: z[first:after].sub_(mean), z[0].numel())
    sigma = math.sqrt(whole.sums(lambda first, after, z, s: (z.square(),))[0] / n)
    if sigma == 0:
        return None
    side_by_side(z.device, len(z), lambda first, after: z[first:after].div_(sigma), z[0].numel())
    if not voxel_average:
        return _Map(z, sigma, steepness)
    of_voxel = torch.empty_like(z)

    def some(first: int, after: int) -> None:
        variance: Any = math.pi**2 / (3 * steepness**2)
        for axis in range(3):
            variance = variance + _change(z, first, after, axis).square() / 12
        torch.mul(torch.rsqrt(3 * variance), math.pi, out=of_voxel[first:after])

    side_by_side(z.device, len(z), some, z[0].numel())
    return _Map(z, sigma, of_voxel)


def _change(z: torch.Tensor, first: int, after: int, axis: int) -> torch.Tensor:
    """Half the difference of the two neighbours along an axis, of some planes.

    A sigmoid is close to the distribution function of a normal variable of variance pi^2 / (3 steepness^2); a linear
    function that changes by d1, d2, d3 along the edges of a box has the variance (d1^2 + d2^2 + d3^2) / 12 in it.
    """
    if axis == 0:
        return (_planes(z, first + 1, after + 1) - _planes(z, first - 1, after - 1)) / 2
    part = z[first:after]
    return (part.roll(-1, axis) - part.roll(1, axis)) / 2


def _planes(z: torch.Tensor, first: int, after: int) -> torch.Tensor:
    """Planes of a periodic map."""
    if first >= 0 and after <= len(z):
        return z[first:after]
    return z[torch.arange(first, after, device=z.device) % len(z)]


def _mask(z: torch.Tensor, s: float | torch.Tensor, level: float) -> torch.Tensor:
    return torch.sigmoid((level - z) * s)


def percentile(values: torch.Tensor, fraction: float) -> float:
    """The value below which a fraction of the values lies, interpolated linearly between the two closest ranks."""
    n = values.numel()
    position = fraction * (n - 1)
    low = min(int(position), n - 1)
    flat = values.reshape(-1)
    first = float(torch.kthvalue(flat, low + 1).values)
    second = float(torch.kthvalue(flat, min(low + 2, n)).values)
    return first + (second - first) * (position - low)


def _enclosing_level(there: _Map, fraction: float, level: float) -> float:
    """The level at which the mask's mean is the fraction, from a first guess."""
    n = there.z.numel()

    def excess_and_slope(first: int, after: int, z: torch.Tensor, s: Any) -> tuple[torch.Tensor, torch.Tensor]:
        mask = _mask(z, s, level)
        return mask, mask * (1 - mask) * s

    for step in range(_NEWTON_STEPS + 1):
        total, slope = there.sums(excess_and_slope)
        change = (total / n - fraction) / max(slope / n, 1e-6)
        level -= change if step == _NEWTON_STEPS else min(max(change, -0.1), 0.1)
    return level


def _fake(values: torch.Tensor, fraction: torch.Tensor, there: int, grid: Sequence[int], *others: Any) -> Any:
    return values.new_empty((len(values), *grid), dtype=values.real.dtype), torch.empty_like(fraction)


@operation("cutoff_mask", fake=_fake)
def cutoff_mask(
    values: torch.Tensor,
    fraction: torch.Tensor,
    there: int,
    grid: Sequence[int],
    steepness: float,
    surface_width: float,
    voxel_average: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask (n_models, n1, n2, n3) of F (n_models, n), and the cutoff (n_models,)."""
    plan = opaque.held(there)
    _check(values, fraction, plan)
    masks, levels = _fake(values, fraction, there, grid)

    def one(i: int) -> None:
        found = _normalized(values[i], plan, grid, steepness, voxel_average)
        if found is None:
            masks[i], levels[i] = 1, 0
            return
        level = percentile(found.z, float(fraction[i]))
        if voxel_average:
            level = _enclosing_level(found, float(fraction[i]), level)
        levels[i] = level

        def some(first: int, after: int) -> None:
            masks[i, first:after] = _mask(*found.part(first, after), level)

        side_by_side(values.device, len(found.z), some, found.z[0].numel())

    each_model(len(values), one, values.device)
    return masks, levels


def _check(values: torch.Tensor, fraction: torch.Tensor, plan: Plan) -> None:
    wrong = ~((fraction > 0) & (fraction < 1))
    if bool(wrong.any()):
        raise ValueError(f"solvent_fraction must lie between 0 and 1, not {float(fraction[wrong][0]):g}.")
    bad = ~torch.view_as_real(values).isfinite().all(-1)
    if bool(bad.any()):
        model, number = bad.nonzero()[0].tolist()
        where = f" of model {model} of the batch" if len(values) > 1 else ""
        index = tuple(plan.miller_indices[number].tolist())
        raise ValueError(
            f"F_protein of the reflection {index}{where} is {complex(values[model, number])}: it must be finite."
        )


def _fake_gradient(gradient: torch.Tensor, values: torch.Tensor, *others: Any) -> torch.Tensor:
    return torch.empty_like(values)


@operation("cutoff_mask_gradient", fake=_fake_gradient)
def cutoff_mask_gradient(
    gradient: torch.Tensor,
    values: torch.Tensor,
    levels: torch.Tensor,
    there: int,
    steepness: float,
    surface_width: float,
    voxel_average: bool,
) -> torch.Tensor:
    """dT/dF (n_models, n) from that by the mask."""
    plan, result = opaque.held(there), torch.empty_like(values, memory_format=torch.contiguous_format)

    def one(i: int) -> None:
        found = _normalized(values[i], plan, gradient.shape[1:], steepness, voxel_average)
        result[i] = 0 if found is None else _by_values(found, gradient[i], float(levels[i]), surface_width, plan)

    each_model(len(values), one, values.device)
    return result


def _by_values(found: _Map, by_mask: torch.Tensor, level: float, surface_width: float, plan: Plan) -> torch.Tensor:
    z, n, device = found.z, found.z.numel(), found.z.device
    voxels = not isinstance(found.steepness, float)

    def slopes(first: int, after: int, z: torch.Tensor, s: Any) -> tuple[torch.Tensor, torch.Tensor]:
        mask = _mask(z, s, level)
        slope = mask * (1 - mask) * s
        return by_mask[first:after] * slope, slope

    by_level, total = found.sums(slopes)
    shift = by_level / max(total, 1e-6 * n) if voxels else 0.0
    by_z = torch.empty_like(z)
    by_variance = torch.empty_like(z) if voxels else None

    def values(first: int, after: int) -> None:
        part, s = found.part(first, after)
        mask = _mask(part, s, level)
        weight = (by_mask[first:after] - shift) * mask * (1 - mask)
        torch.mul(weight, -s, out=by_z[first:after])
        if by_variance is not None:
            # s = pi / sqrt(3 variance), so that ds/d(variance) = -3 s^3 / (2 pi^2).
            by_variance[first:after] = weight * (level - part) * s**3 * (-1.5 / math.pi**2)

    side_by_side(device, len(z), values, z[0].numel())
    if by_variance is not None:
        _add_changes(z, by_variance, by_z)
    else:
        _add_surface(z, level, surface_width, by_level, by_z)
    sums = _Map(by_z, 1.0, 1.0).sums(lambda first, after, g, s: (g, g * z[first:after]))
    mean, along = (x / n for x in sums)

    def back(first: int, after: int) -> None:
        by_z[first:after].sub_(mean).sub_(z[first:after], alpha=along).div_(found.sigma)

    side_by_side(device, len(z), back, z[0].numel())
    return density_transposed(by_z, plan)


def _add_changes(z: torch.Tensor, by_variance: torch.Tensor, by_z: torch.Tensor) -> None:
    """Add what the variance within voxels, the sum of the squared changes / 12, depends on z."""
    moved = torch.empty_like(z)
    for axis in range(3):

        def product(first: int, after: int, axis: int = axis) -> None:
            moved[first:after] = _change(z, first, after, axis) * by_variance[first:after] / 6

        def add(first: int, after: int, axis: int = axis) -> None:
            by_z[first:after] -= _change(moved, first, after, axis)

        side_by_side(z.device, len(z), product, z[0].numel())
        side_by_side(z.device, len(z), add, z[0].numel())


def _add_surface(z: torch.Tensor, level: float, width: float, by_level: float, by_z: torch.Tensor) -> None:
    """Add the gradient of the percentile, spread over the values near it."""
    # A softmax: it also holds where no value is near, in a map with a gap.
    weights = torch.softmax(((z - level) / width).square().mul_(-0.5).reshape(-1), 0).view(z.shape)
    by_z.add_(weights, alpha=by_level)


class Cutoff(DifferentiableOnce):
    """F, fraction, plan, grid, steepness, surface_width, voxel_average -> mask, cutoff."""

    HANDLES = (2,)

    @staticmethod
    def forward(
        values: torch.Tensor,
        fraction: torch.Tensor,
        there: int,
        grid: Sequence[int],
        steepness: float,
        surface_width: float,
        voxel_average: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return cutoff_mask(values, fraction, there, grid, steepness, surface_width, voxel_average)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        values, _, ctx.there, _, *ctx.how = inputs
        ctx.save_for_backward(values, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *others: Any) -> tuple[Any, ...]:
        values, levels = ctx.saved_tensors
        return apply_cutoff_gradient(gradient, values, levels, ctx.there, *ctx.how), None, None, None, None, None, None


class CutoffGradient(LastDerivative):
    """The gradient of :class:`Cutoff`."""

    @staticmethod
    def forward(
        gradient: torch.Tensor,
        values: torch.Tensor,
        levels: torch.Tensor,
        there: int,
        steepness: float,
        surface_width: float,
        voxel_average: bool,
    ) -> torch.Tensor:
        return cutoff_mask_gradient(gradient, values, levels, there, steepness, surface_width, voxel_average)


apply_cutoff = opaque.caller(Cutoff)
apply_cutoff_gradient = opaque.caller(CutoffGradient)
