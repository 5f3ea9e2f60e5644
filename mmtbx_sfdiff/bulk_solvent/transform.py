"""Structure factors of a mask given on the grid of the whole unit cell.

    F_mask(h) = V/N sum_g mask(g) exp(+2 pi i h.x_g)

with the N grid points g at the fractional coordinates x_g, and the cell volume V: electrons, for a solvent of one
electron per Å^3.  As in mmtbx, reflections beyond 3 Å are set to zero unless asked otherwise.  The grid resolves far more
than that, so each axis is transformed for the frequencies only that are wanted of the axes before it.

Reference: ``mmtbx.masks.manager.compute_f_mask``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ..crystal import Crystal
from ..kernels import opaque
from ..kernels.atom_jobs import MapReflections
from ..kernels.engines import engine as engine_of
from ..kernels.engines import of_atoms
from ..kernels.threads import over
from ..plans import Plan, plan_of
from .operations import each_model, operation

#: mmtbx's Fmask_res_high, Å.
F_MASK_D_MIN = 3.0
# Grid points.
_PORTION = 2**16
_FEW, _MANY = 2**16, 2**20
R = TypeVar("R")
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def mask_structure_factors(
    mask: torch.Tensor,
    crystal: Crystal | Plan,
    miller_indices: Any = None,
    d_min: float | None = F_MASK_D_MIN,
) -> torch.Tensor:
    """Structure factors of a mask; linear in the mask, and differentiable any number of times.

    Parameters
    ----------
    mask : torch.Tensor
        (..., n1, n2, n3) float32 or float64, on the whole unit cell; point (i, j, k) is at (i/n1, j/n2, k/n3).
    crystal : Crystal or Plan
    miller_indices : torch.Tensor, flex.miller_index or miller.set
        (n, 3) integers, in any order, inside the asymmetric unit or not.  Left out with a plan, which has its own.
    d_min : float or None
        Structure factors with d < ``d_min`` (Å) are zero, as in mmtbx (``Fmask_res_high``, 3 Å).  None: no cut.

    Returns
    -------
    torch.Tensor
        (..., n) complex, in the precision and on the device of the mask.

    Raises
    ------
    ValueError
        A mask without three grid dimensions, or with a number that is not finite; an index, not cut away, that the grid
        cannot resolve.
    TypeError
        A mask that is not real floating point; Miller indices that are not integers.

    Examples
    --------
    >>> import torch
    >>> import mmtbx_sfdiff as sfdiff
    >>> from cctbx import crystal
    >>> symmetry = crystal.symmetry((10, 12, 14, 90, 90, 90), "P 21 21 21")
    >>> plan = sfdiff.plan(sfdiff.Crystal.from_cctbx(symmetry), torch.tensor([[0, 0, 0], [0, 1, 2], [4, 4, 4]]))
    >>> sfdiff.mask_structure_factors(torch.ones(20, 24, 28, dtype=torch.float64), plan).real.round().tolist()
    [1680.0, 0.0, 0.0]
    """
    if not isinstance(mask, torch.Tensor) or mask.dtype not in _COMPLEX:
        raise TypeError("mask must be a tensor of real floating-point numbers; convert it with .to(torch.float64).")
    if mask.ndim < 3 or not all(mask.shape[-3:]):
        raise ValueError(
            f"mask must have the shape (..., n1, n2, n3) with points along each axis, not {tuple(mask.shape)}."
        )
    plan = the_plan(crystal, miller_indices).to(mask.device)
    batch = mask.shape[:-3]
    flat = mask.reshape(math.prod(batch), *mask.shape[-3:])
    # torch.compile cannot pass objects on, and whoever calls what it made keeps them.
    kept = None if torch.compiler.is_compiling() else plan
    return apply_factors(flat, plan.handle, resolution(d_min), kept).reshape(*batch, len(plan))


def the_plan(crystal: Crystal | Plan, miller_indices: Any) -> Plan:
    """The plan that was given, or made of a crystal and indices.

    Raises
    ------
    TypeError
        Indices missing, or given beside a plan.
    """
    if isinstance(crystal, Plan):
        if miller_indices is not None:
            raise TypeError("A plan has its own Miller indices: leave miller_indices out, or give a crystal.")
        return crystal
    if miller_indices is None:
        raise TypeError("Miller indices are missing: give them after the crystal, or a plan in place of both.")
    return plan_of(crystal, miller_indices)


def resolution(d_min: float | None) -> float:
    """d_min as a number, 0 where there is no cut.

    Raises
    ------
    ValueError
        A limit that is not a positive number.
    """
    if d_min is None:
        return 0.0
    if not float(d_min) >= 0 or math.isinf(d_min):
        raise ValueError(f"d_min must be a positive number of Å, or None, not {d_min!r}.")
    return float(d_min)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskPlan:
    """Where the structure factors are in the transform of a grid.

    Attributes
    ----------
    limits : tuple of int
        Largest \\|h\\|, \\|k\\| and \\|l\\|.
    rows : torch.Tensor
        (n_kept,) int64, places in the transform to these limits, flat.
    scale : torch.Tensor
        (n_kept, 2) float64, what makes real and imaginary parts of F of those of the transform.
    kept : torch.Tensor or None
        (n_kept,) int64, which reflections these are; None: all.
    n : int
        Reflections in all.
    """

    limits: tuple[int, int, int]
    rows: torch.Tensor
    scale: torch.Tensor
    kept: torch.Tensor | None
    n: int


def mask_plan(plan: Plan, grid: Sequence[int], d_min: float) -> MaskPlan:
    """The :class:`MaskPlan` of a plan, made once for each grid and limit."""
    grid = tuple(int(n) for n in grid)
    return plan.part(("mask", grid, d_min), lambda: _make_plan(plan.crystal, plan.miller_indices, grid, d_min))


def inside_limit(
    crystal: Crystal, indices: torch.Tensor, grid: Sequence[int], d_min: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The indices within the limit of resolution, and their numbers, or None for all of them.

    Raises
    ------
    ValueError
        An index that the grid cannot resolve.
    """
    kept = None
    if d_min > 0:
        # The margin keeps a reflection exactly at the limit, whose d is rounded.
        within = crystal.to(indices.device).d_star_sq(indices) <= (1 + 1e-10) / d_min**2
        if not bool(within.all()):
            kept = within.nonzero()[:, 0]
            indices = indices[kept]
    too_fine = (2 * indices.abs() >= torch.tensor(grid, device=indices.device)).any(-1)
    if bool(too_fine.any()):
        worst = tuple(indices[too_fine][0].tolist())
        raise ValueError(
            f"The reflection {worst} is beyond the Nyquist limit of the mask's grid {tuple(grid)}: "
            "use a smaller grid_step, or a d_min that leaves it out."
        )
    return indices, kept


def _make_plan(crystal: Crystal, given: torch.Tensor, grid: tuple[int, ...], d_min: float) -> MaskPlan:
    indices, kept = inside_limit(crystal, given, grid, d_min)
    # Only l >= 0 is kept of the transform of a real map; the sign in the exponent is the opposite of torch's.
    flip = indices[:, 2] < 0
    half = torch.where(flip[:, None], -indices, indices)
    h, k, l = (int(n) for n in half.abs().amax(0)) if len(half) else (0, 0, 0)
    shape = [2 * h + 1, 2 * k + 1, l + 1]
    rows = ((half[:, 0] % shape[0]) * shape[1] + half[:, 1] % shape[1]) * shape[2] + half[:, 2]
    scale = crystal.volume / math.prod(grid)
    sign = 2 * flip.to(torch.float64) - 1
    return MaskPlan((h, k, l), rows, torch.stack([torch.ones_like(sign), sign], -1) * scale, kept, len(given))


def reflection_grid(plan: Plan, grid: Sequence[int], d_min: float) -> MapReflections:
    """Where the reflections are in the whole transform of a grid, for an engine that reads them there."""
    dims = (int(grid[0]), int(grid[1]), int(grid[2]))

    def make() -> MapReflections:
        indices, kept = inside_limit(plan.crystal, plan.miller_indices, dims, d_min)
        every = torch.zeros_like(plan.miller_indices) if kept is not None else indices
        every = every if kept is None else every.index_copy(0, kept, indices)
        weight = torch.ones(len(every), dtype=torch.float64, device=every.device)
        weight = weight if kept is None else torch.zeros_like(weight).index_fill(0, kept, 1.0)
        h, k, l = every.unbind(-1)
        # One of each pair of Friedel mates, also of those that the half transform has both of.
        flip = (l < 0) | ((l == 0) & ((k < 0) | ((k == 0) & (h < 0))))
        half = torch.where(flip[:, None], -every, every)
        n3 = dims[2] // 2 + 1
        rows = ((half[:, 0] % dims[0]) * dims[1] + half[:, 1] % dims[1]) * n3 + half[:, 2]
        targets, gather = torch.unique(rows, return_inverse=True)
        h, k, l = targets // (dims[1] * n3), targets // n3 % dims[1], targets % n3
        mate = ((-h % dims[0]) * dims[1] + -k % dims[1]) * n3
        counts = torch.bincount(gather, minlength=len(targets))
        starts = torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)])
        return MapReflections(
            dims,
            rows,
            ~flip,
            weight * (plan.crystal.volume / math.prod(dims)),
            targets,
            torch.where(l == 0, mate, -1),
            starts,
            torch.argsort(gather, stable=True),
        )

    return plan.part(("map", dims, d_min), make)


def _fake_factors(mask: torch.Tensor, plan: int, d_min: float) -> torch.Tensor:
    return mask.new_empty((len(mask), len(opaque.held(plan))), dtype=_COMPLEX[mask.dtype])


@operation("mask_factors", fake=_fake_factors)
def mask_factors(mask: torch.Tensor, plan: int, d_min: float) -> torch.Tensor:
    """F (n_models, n) of masks (n_models, n1, n2, n3)."""
    grid = mask.shape[1:]
    engine = of_atoms(engine_of(mask.device))
    if engine is not None and len(mask):
        return engine.map_factors(mask, reflection_grid(opaque.held(plan), grid, d_min))
    where = mask_plan(opaque.held(plan), grid, d_min)
    out = _fake_factors(mask, plan, d_min)

    def one(i: int) -> None:
        low = low_frequencies(mask[i], where.limits)
        if not bool(low.reshape(-1)[0].isfinite()):
            _not_finite(mask)
        f = torch.view_as_real(low.reshape(-1).index_select(0, where.rows)) * where.scale.to(mask.dtype)
        f = torch.view_as_complex(f)
        if where.kept is None:
            out[i] = f
        else:
            out[i] = 0
            out[i].index_copy_(0, where.kept, f)

    each_model(len(mask), one, mask.device)
    return out


def _not_finite(mask: torch.Tensor) -> None:
    bad = (~mask.isfinite()).nonzero()
    if len(bad):
        model, *point = bad[0].tolist()
        where = f" of model {model} of the batch" if len(mask) > 1 else ""
        raise ValueError(
            f"The mask is {float(mask[model, point[0], point[1], point[2]]):g} at the grid point {tuple(point)}{where}: "
            "it must be finite."
        )


def _fake_map(f: torch.Tensor, grid: Sequence[int], plan: int, d_min: float) -> torch.Tensor:
    return f.new_empty((len(f), *grid), dtype=f.real.dtype)


@operation("mask_factors_transposed", fake=_fake_map)
def mask_factors_transposed(f: torch.Tensor, grid: Sequence[int], plan: int, d_min: float) -> torch.Tensor:
    """dT/d(mask) (n_models, n1, n2, n3) from dT/dF (n_models, n)."""
    engine = of_atoms(engine_of(f.device))
    if engine is not None and len(f):
        return engine.map_factors_transposed(f, reflection_grid(opaque.held(plan), grid, d_min))
    where = mask_plan(opaque.held(plan), grid, d_min)
    out = _fake_map(f, grid, plan, d_min)
    h, k, l = where.limits

    def one(i: int) -> None:
        given = f[i] if where.kept is None else f[i].index_select(0, where.kept)
        parts = torch.view_as_real(given.resolve_conj()) * where.scale.to(out.dtype)
        low = f.new_zeros((2 * h + 1) * (2 * k + 1) * (l + 1))
        low.index_add_(0, where.rows, torch.view_as_complex(parts))
        from_low_frequencies(low.view(2 * h + 1, 2 * k + 1, l + 1), where.limits, out[i])

    each_model(len(f), one, f.device)
    return out


def low_frequencies(mask: torch.Tensor, limits: tuple[int, int, int]) -> torch.Tensor:
    """Transform of a real map (n1, n2, n3) at the indices -h..h, -k..k, 0..l; negative ones behind the others."""
    h, k, l = limits
    n1, n2, n3 = mask.shape
    planes = torch.empty((n1, 2 * k + 1, l + 1), dtype=_COMPLEX[mask.dtype], device=mask.device)
    result = torch.empty((2 * h + 1, 2 * k + 1, l + 1), dtype=planes.dtype, device=mask.device)
    columns, spectrum = planes.view(n1, -1), result.view(2 * h + 1, -1)

    def within(first: int, after: int) -> None:
        for part, out in zip(mask[first:after].split(size), planes[first:after].split(size)):
            found = torch.fft.fft(torch.fft.rfft(part)[..., : l + 1], dim=-2)
            out[:, : k + 1] = found[:, : k + 1]
            out[:, k + 1 :] = found[:, n2 - k :]

    def across(first: int, after: int) -> None:
        found = torch.fft.fft(columns[:, first:after], dim=0)
        spectrum[: h + 1, first:after] = found[: h + 1]
        spectrum[h + 1 :, first:after] = found[n1 - h :]

    size = _portion(mask.device, n1, n2 * n3)
    side_by_side(mask.device, n1, within, n2 * n3)
    side_by_side(mask.device, columns.shape[1], across, n1)
    return result


def from_low_frequencies(low: torch.Tensor, limits: tuple[int, int, int], out: torch.Tensor) -> None:
    """The adjoint of :func:`low_frequencies`, into ``out`` (n1, n2, n3)."""
    h, k, l = limits
    n1, n2, n3 = out.shape
    spectrum = low.reshape(2 * h + 1, -1)
    planes = torch.empty((n1, 2 * k + 1, l + 1), dtype=low.dtype, device=low.device)
    columns = planes.view(n1, -1)

    def across(first: int, after: int) -> None:
        padded = low.new_zeros((n1, after - first))
        padded[: h + 1] = spectrum[: h + 1, first:after]
        padded[n1 - h :] = spectrum[h + 1 :, first:after]
        columns[:, first:after] = torch.fft.ifft(padded, dim=0, norm="forward")

    def within(first: int, after: int) -> None:
        for part, target in zip(planes[first:after].split(size), out[first:after].split(size)):
            padded = low.new_zeros((len(part), n2, l + 1))
            padded[:, : k + 1] = part[:, : k + 1]
            padded[:, n2 - k :] = part[:, k + 1 :]
            # A real inverse transform counts every l > 0 twice.
            padded[..., 1:] /= 2
            target.copy_(torch.fft.irfft(torch.fft.ifft(padded, dim=-2, norm="forward"), n=n3, norm="forward"))

    size = _portion(low.device, n1, n2 * n3)
    side_by_side(low.device, columns.shape[1], across, n1)
    side_by_side(low.device, n1, within, n2 * n3)


def _portion(device: torch.device, planes: int, points: int) -> int:
    """How many planes of a map at a time, so that what is made of them stays in the cache."""
    return max(1, planes if device.type != "cpu" else _PORTION // max(1, points))


def side_by_side(device: torch.device, n: int, function: Callable[[int, int], R], points: float = 1) -> list[R]:
    """What the function gives on ranges that cover 0..n, in this package's own threads: torch's would spin afterwards.

    ``points`` is how many numbers there are in each of the n, times the work for each, 1 for a Fourier transform; little
    is done at once, sooner than others wake.
    """
    if device.type == "cpu" and n * points > _FEW:
        return over(n, function, per_thread=2 if n * points < _MANY else 4)
    return [function(0, n)]


class Factors(opaque.Function):
    """F of masks: (n_models, n1, n2, n3), plan, d_min, the plan itself -> (n_models, n)."""

    @staticmethod
    def forward(mask: torch.Tensor, plan: int, d_min: float, kept: Plan | None) -> torch.Tensor:
        return mask_factors(mask, plan, d_min)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        mask, *ctx.how = inputs
        ctx.grid = list(mask.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return apply_factors_transposed(gradient, ctx.grid, *ctx.how), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *others: Any) -> torch.Tensor:
        return apply_factors(tangent, *ctx.how)


class FactorsTransposed(opaque.Function):
    """The transpose of :class:`Factors`."""

    @staticmethod
    def forward(f: torch.Tensor, grid: Sequence[int], plan: int, d_min: float, kept: Plan | None) -> torch.Tensor:
        return mask_factors_transposed(f, grid, plan, d_min)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.how = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return apply_factors(gradient, *ctx.how[1:]), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *others: Any) -> torch.Tensor:
        return apply_factors_transposed(tangent, *ctx.how)


apply_factors = opaque.caller(Factors)
apply_factors_transposed = opaque.caller(FactorsTransposed)
