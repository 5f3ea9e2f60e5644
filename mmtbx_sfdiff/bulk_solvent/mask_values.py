"""A mask at the points at which an engine works it out, and what becomes of it: the map of the cell, or F_mask.

An engine knows a mask at one point of each orbit of the grid, or at all points of the cell.  Both ways on are linear.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch

from ..crystal import Crystal
from ..kernels import opaque
from ..kernels.engines import Engine
from ..kernels.engines import engine as engine_of
from ..kernels.jobs import MaskJob
from ..plans import Plan
from ..plans.cell import mask_grid
from ..plans.miller import make_miller_plan
from .operations import each_model, operation
from .transform import inside_limit, mask_plan

#: Bytes.
MASK_MEMORY = 256 * 2**20
_PRECISION = {"single": torch.float32, "double": torch.float64}
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a mask of spheres is worked out: what crosses into the operations as one string.

    Attributes
    ----------
    n_real : tuple of int
    engine : str
        Name of the engine.
    precision : {"single", "double"}
        Of compiled kernels.
    memory : int
        Bytes.
    full_occupancy : float
    include_zero_occupancy : bool
    lengths_vary : bool
        Whether a length may want a gradient.
    """

    n_real: tuple[int, int, int]
    engine: str
    precision: str = "single"
    memory: int = MASK_MEMORY
    full_occupancy: float = 0.0
    include_zero_occupancy: bool = False
    lengths_vary: bool = False

    def packed(self) -> str:
        """As a string."""
        n1, n2, n3 = self.n_real
        return (
            f"{n1} {n2} {n3} {self.engine} {self.precision} {self.memory} {self.full_occupancy} "
            f"{int(self.include_zero_occupancy)} {int(self.lengths_vary)}"
        )

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def unpacked(text: str) -> Recipe:
        """What was packed."""
        n1, n2, n3, engine, precision, memory, full, zero, vary = text.split()
        return Recipe(
            (int(n1), int(n2), int(n3)), engine, precision, int(memory), float(full), zero == "1", vary == "1"
        )

    def engine_on(self, device: torch.device) -> Engine:
        return engine_of(device, self.engine)

    def kernel_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What the engine works in, for atoms of this dtype."""
        return dtype if self.engine == "torch" else _PRECISION[self.precision]

    def job(
        self, crystal: Crystal, fine: int, reach: float, dtype: torch.dtype, kept: int = 0, at_once: int = 1
    ) -> MaskJob:
        """A job of one of so many models that share the memory."""
        grid = mask_grid(crystal, self.n_real)
        return MaskJob(grid, fine, reach, dtype, self.memory // at_once, kept, device=crystal.device)

    def plain_job(self, crystal: Crystal, dtype: torch.dtype) -> MaskJob:
        """A job for what does not depend on the ball."""
        return self.job(crystal, 1, 0.0, dtype)


@functools.lru_cache(maxsize=64)
def n_points(crystal: int, recipe: str) -> int:
    """Points at which the engine knows a mask."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        how, there = Recipe.unpacked(recipe), opaque.held(crystal)
        if how.engine != "cpu":
            return math.prod(how.n_real)
        return how.engine_on(there.device).mask_points(mask_grid(there, how.n_real))


def _fake_cell(values: torch.Tensor, crystal: int, recipe: str) -> torch.Tensor:
    return values.new_empty((len(values), *Recipe.unpacked(recipe).n_real))


@operation("mask_on_cell", fake=_fake_cell)
def on_cell(values: torch.Tensor, crystal: int, recipe: str) -> torch.Tensor:
    """(n_models, n1, n2, n3) from (n_models, n_points)."""
    how, out = Recipe.unpacked(recipe), _fake_cell(values, crystal, recipe)
    there = opaque.held(crystal)
    mask = how.engine_on(values.device).soft_mask(how.plain_job(there, values.dtype))
    each_model(len(values), lambda i: mask.to_cell(values[i], out[i]), values.device)
    return out


def _fake_points(cell: torch.Tensor, crystal: int, recipe: str) -> torch.Tensor:
    return cell.new_empty((len(cell), n_points(crystal, recipe)))


@operation("mask_from_cell", fake=_fake_points)
def from_cell(cell: torch.Tensor, crystal: int, recipe: str) -> torch.Tensor:
    """The transpose of :func:`on_cell`."""
    how, out = Recipe.unpacked(recipe), _fake_points(cell, crystal, recipe)
    there = opaque.held(crystal)
    mask = how.engine_on(cell.device).soft_mask(how.plain_job(there, cell.dtype))
    each_model(len(cell), lambda i: out[i].copy_(mask.from_cell(cell[i])), cell.device)
    return out


class OnCell(opaque.Function):
    """Values at the engine's points on the whole cell."""

    HANDLES = (1,)

    @staticmethod
    def forward(values, crystal, recipe):
        return on_cell(values, crystal, recipe)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.how = inputs[1:]

    @staticmethod
    def backward(ctx, gradient):
        return apply_from_cell(gradient, *ctx.how), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return apply_on_cell(tangent, *ctx.how)


class FromCell(opaque.Function):
    """The transpose of :class:`OnCell`."""

    HANDLES = (1,)

    @staticmethod
    def forward(cell, crystal, recipe):
        return from_cell(cell, crystal, recipe)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.how = inputs[1:]

    @staticmethod
    def backward(ctx, gradient):
        return apply_on_cell(gradient, *ctx.how), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return apply_from_cell(tangent, *ctx.how)


def _unit_transform(plan: Plan, how: Recipe, d_min: float, dtype: torch.dtype) -> Any:
    """The engine's transform of maps on its own points; None where it has none."""

    def make() -> Any:
        indices, _ = inside_limit(plan.crystal, plan.miller_indices, how.n_real, d_min)
        job = how.plain_job(plan.crystal, dtype)
        return how.engine_on(plan.device).unit_transform(job, make_miller_plan(plan.crystal, indices))

    return plan.part(("mask unit", how.n_real, how.engine, d_min, dtype), make)


def _fake_factors(values: torch.Tensor, dtype: torch.dtype, plan: int, recipe: str, d_min: float) -> torch.Tensor:
    return values.new_empty((len(values), len(opaque.held(plan))), dtype=_COMPLEX[dtype])


@operation("mask_unit_factors", fake=_fake_factors)
def unit_factors(values: torch.Tensor, dtype: torch.dtype, plan: int, recipe: str, d_min: float) -> torch.Tensor:
    """F (n_models, n), in the complex of ``dtype``, of values (n_models, n_points)."""
    there, how = opaque.held(plan), Recipe.unpacked(recipe)
    transform, kept = _unit_transform(there, how, d_min, values.dtype), mask_plan(there, how.n_real, d_min).kept
    out = _fake_factors(values, dtype, plan, recipe, d_min)

    def one(i: int) -> None:
        f = torch.from_numpy(transform.forward(values[i].contiguous().numpy()))
        if kept is None:
            out[i].copy_(f)
        else:
            out[i].zero_().index_copy_(0, kept, f.to(out.dtype))

    each_model(len(values), one, values.device)
    return out


def _fake_values(f: torch.Tensor, dtype: torch.dtype, plan: int, recipe: str, d_min: float) -> torch.Tensor:
    points = n_points(opaque.held(plan).crystal.handle, recipe)
    return f.new_empty((len(f), points), dtype=dtype)


@operation("mask_unit_factors_transposed", fake=_fake_values)
def unit_factors_transposed(f: torch.Tensor, dtype: torch.dtype, plan: int, recipe: str, d_min: float) -> torch.Tensor:
    """dT/d(values) (n_models, n_points), in ``dtype``, from dT/dF (n_models, n)."""
    there, how = opaque.held(plan), Recipe.unpacked(recipe)
    transform, kept = _unit_transform(there, how, d_min, dtype), mask_plan(there, how.n_real, d_min).kept
    out = _fake_values(f, dtype, plan, recipe, d_min)

    def one(i: int) -> None:
        given = f[i] if kept is None else f[i].index_select(0, kept)
        out[i].copy_(torch.from_numpy(transform.backward(given.resolve_conj().numpy())))

    each_model(len(f), one, f.device)
    return out


class UnitFactors(opaque.Function):
    """F of values at the engine's points: values, dtype of F's parts, plan, recipe, d_min."""

    HANDLES = (2,)

    @staticmethod
    def forward(values, dtype, plan, recipe, d_min):
        return unit_factors(values, dtype, plan, recipe, d_min)

    @staticmethod
    def setup_context(ctx, inputs, output):
        values, ctx.dtype, *ctx.how = inputs
        ctx.own = values.dtype

    @staticmethod
    def backward(ctx, gradient):
        return apply_unit_factors_transposed(gradient, ctx.own, *ctx.how), None, None, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return apply_unit_factors(tangent, ctx.dtype, *ctx.how)


class UnitFactorsTransposed(opaque.Function):
    """The transpose of :class:`UnitFactors`: dT/dF, dtype of the values, plan, recipe, d_min."""

    HANDLES = (2,)

    @staticmethod
    def forward(f, dtype, plan, recipe, d_min):
        return unit_factors_transposed(f, dtype, plan, recipe, d_min)

    @staticmethod
    def setup_context(ctx, inputs, output):
        f, ctx.dtype, *ctx.how = inputs
        ctx.own = f.real.dtype

    @staticmethod
    def backward(ctx, gradient):
        return apply_unit_factors(gradient, ctx.own, *ctx.how), None, None, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return apply_unit_factors_transposed(tangent, ctx.dtype, *ctx.how)


apply_on_cell = opaque.caller(OnCell)
apply_from_cell = opaque.caller(FromCell)
apply_unit_factors = opaque.caller(UnitFactors)
apply_unit_factors_transposed = opaque.caller(UnitFactorsTransposed)
