"""Sums of Gaussians on a grid of the whole cell, as one differentiable operation.

    rho(r) = sum_j sum_k w_j a_jk (2 pi)^(-3/2) det(M_jk)^(-1/2) exp(-1/2 r^T M_jk^-1 r),     M = U_j + b_k / (8 pi^2)

over atoms that are given with all their symmetry mates.  An engine of :mod:`mmtbx_sfdiff.kernels` makes the sum and its
gradients; second derivatives are those of the formula in plain torch (:func:`plain_density`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

import numpy as np

from ..atom_arrays import EIGHT_PI_SQ
from ..crystal import Crystal
from ..form_factors import FormFactors
from ..kernels import checks, engines, opaque
from ..kernels.jobs import DensityJob, DensitySetting
from ..kernels.threads import own_threads, share_models
from ..numerics import symmetric
from ..plans.cell import cell_of
from ..plans.grid import GridPlan
from ..structure_factors.tables import TermTable

#: A term ends where exp(-x) has fallen to 1e-7 of its top.
REACH = 16.0
# Resolution that exponents are measured in, Å^-2; any number.
_S_SQ = 1.0
# Values that the plain formula holds at once.
_PORTION = 2**19
# Of a parameter: as Å, electrons, turns of the cell.
_LARGEST = 1e6
_DTYPES = (torch.float32, torch.float64)
_PARAMETERS = 5


class PointAtom(ValueError):
    """A term of a form factor has no width; ``atom`` is its number among the atoms given."""

    def __init__(self, atom: int) -> None:
        self.atom = atom
        super().__init__(f"The density of atom {atom} is a point: give it larger displacement parameters.")


def setting_of(
    crystal: Crystal,
    form_factors: FormFactors,
    grid: Sequence[int],
    u_iso: torch.Tensor,
    u_star: torch.Tensor,
    dtype: torch.dtype,
) -> DensitySetting:
    """How an engine puts these atoms on the grid: every term to :data:`REACH`, without a blur.

    Raises
    ------
    ValueError
        Displacement parameters that spread an atom over more than eight cells.
    """
    metric = crystal.reciprocal_metric.cpu().numpy()
    # The contiguous axis is one that is orthogonal to the others, where there is one: cheaper there.
    scale = np.sqrt(np.diag(metric))
    oblique = np.abs(metric / np.outer(scale, scale)) > 1e-10
    alone = [sum(oblique[i]) == 1 for i in range(3)]
    last = max(range(3), key=lambda axis: (alone[axis], axis))
    p, q = (axis for axis in range(3) if axis != last)
    axes = (p, q, last)
    dims = (grid[p], grid[q], grid[last])
    table: Any = TermTable.from_form_factors(form_factors, _S_SQ)  # frozen, which no Protocol can say
    widest = 2 * math.pi**2 * (u_star[..., :3].amax((0, 1)).cpu().numpy() + float(u_iso.max()) * np.diag(metric))
    widest = widest + table.widest / _S_SQ * np.diag(metric)
    half = np.sqrt(REACH * np.maximum(widest, 0)) * np.array(grid) / math.pi
    box = tuple(8 * (int(2 * half[axis] + 1) // 8 + 2) for axis in axes)
    if any(b > max(8 * n, 512) for b, n in zip(box, dims)):
        raise ValueError(
            "Displacement parameters spread an atom over more than 8 unit cells: lower them, or give a d_min."
        )
    none = torch.zeros(0, dtype=torch.int64)
    place: Any = GridPlan(axes, dims, none, none, none, none, none, none)
    cuts = (np.full((2, 2), REACH), 0.0, 1.0, 0.0, 1.0)
    empty = torch.zeros(0, dtype=dtype)
    return DensitySetting(
        cell_of(crystal), place, dtype, 0.0, _S_SQ, cuts, 1.0, 1.0, table, empty, empty, (box[0], box[1], box[2])
    )


def _jobs(
    parameters: Sequence[torch.Tensor],
    use_aniso: torch.Tensor,
    type_index: torch.Tensor,
    crystal: int,
    form_factors: int,
    grid: Sequence[int],
    gradient: bool,
) -> Iterator[tuple[int | slice, DensityJob]]:
    """What the engine takes at a time."""
    sites, u_iso, u_star, weights, fp = parameters
    names = ("the fractional sites", "the displacement parameters", "the displacement parameters", "the weights", "f'")
    for name, value in zip(names, parameters):
        wrong = ~(value.abs() <= _LARGEST)
        if bool(wrong.any()):
            model, atom = wrong.reshape(*value.shape[:2], -1).any(-1).nonzero()[0].tolist()
            why = f"must be finite, and at most {_LARGEST:g} in size: correct them, or leave the atom out."
            raise checks.BadAtom(name, why, atom, model, len(sites))
    cell, table = opaque.held(crystal), opaque.held(form_factors)
    _check_widths(cell, table, u_iso, u_star, weights, fp, type_index)
    setting = setting_of(cell, table, grid, u_iso, u_star, weights.dtype)
    machine = engines.engine(weights.device)
    size = max(1, machine.largest // setting.grid.n_points) if machine.batched else 1
    for first in range(0, len(sites), size):
        part: int | slice = slice(first, first + size) if machine.batched else first
        yield (
            part,
            DensityJob(
                setting,
                sites[part],
                u_iso[part],
                u_star[part],
                weights[part],
                fp[part],
                use_aniso,
                type_index,
                False,
                gradient,
            ),
        )


def _check_widths(
    crystal: Crystal,
    table: FormFactors,
    u_iso: torch.Tensor,
    u_star: torch.Tensor,
    weights: torch.Tensor,
    fp: torch.Tensor,
    type_index: torch.Tensor,
) -> None:
    metric = crystal.orthogonalization
    anisotropic = metric @ symmetric.full(u_star.to(torch.float64)) @ metric.T
    least = u_iso.to(torch.float64)
    if bool((u_star != 0).any()):
        least = least + symmetric.least_eigenvalue(anisotropic)
    narrow = torch.where(table.a != 0, table.b, math.inf).amin(1) / EIGHT_PI_SQ
    constant = (table.c[type_index] + fp) != 0
    narrow = torch.where(constant, 0.0, narrow[type_index])
    bad = (least + narrow <= 0) & (weights != 0)
    if bool(bad.any()):
        raise PointAtom(int(bad.nonzero()[0, 1]))


def _fake(
    sites: torch.Tensor, u_iso: torch.Tensor, u_star: torch.Tensor, weights: torch.Tensor, fp: torch.Tensor, *rest: Any
) -> torch.Tensor:
    grid = rest[-1]
    return weights.new_empty((weights.shape[0], *grid))


@opaque.operation("gaussian_density", fake=_fake)
def _density(
    sites: torch.Tensor,
    u_iso: torch.Tensor,
    u_star: torch.Tensor,
    weights: torch.Tensor,
    fp: torch.Tensor,
    use_aniso: torch.Tensor,
    type_index: torch.Tensor,
    crystal: int,
    form_factors: int,
    grid: Sequence[int],
) -> torch.Tensor:
    result = weights.new_zeros((len(weights), *grid))
    if not weights.numel():
        return result
    with own_threads(weights.device):
        machine = engines.engine(weights.device)
        parameters = (sites, u_iso, u_star, weights, fp)

        def fill(part: int | slice, job: DensityJob) -> None:
            found = machine.density(job)
            batch = found.ndim - 3
            back = [job.setting.grid.axes.index(axis) for axis in range(3)]
            scale = job.setting.grid.n_points / job.setting.cell.volume
            result[part] = found.permute(*range(batch), *(batch + axis for axis in back)) * scale

        jobs = _jobs(parameters, use_aniso, type_index, crystal, form_factors, grid, False)
        share_models([functools.partial(fill, *job) for job in jobs], weights.device)
    return result


@opaque.operation("gaussian_density_gradients", fake=lambda grad, *rest: [torch.empty_like(x) for x in rest[:5]])
def _gradients(
    grad: torch.Tensor,
    sites: torch.Tensor,
    u_iso: torch.Tensor,
    u_star: torch.Tensor,
    weights: torch.Tensor,
    fp: torch.Tensor,
    use_aniso: torch.Tensor,
    type_index: torch.Tensor,
    crystal: int,
    form_factors: int,
    grid: Sequence[int],
) -> list[torch.Tensor]:
    parameters = (sites, u_iso, u_star, weights, fp)
    result = [torch.zeros_like(x) for x in parameters]
    if not weights.numel():
        return result
    with own_threads(weights.device):
        machine = engines.engine(weights.device)

        def fill(part: int | slice, job: DensityJob) -> None:
            seed = grad[part]
            batch = seed.ndim - 3
            seed = seed.permute(*range(batch), *(batch + axis for axis in job.setting.grid.axes))
            scale = job.setting.grid.n_points / job.setting.cell.volume
            found = machine.density_pull_back((seed * scale).contiguous(), job)
            for target, value in zip(result, found):
                target[part] = value.to(target.dtype)

        jobs = _jobs(parameters, use_aniso, type_index, crystal, form_factors, grid, True)
        share_models([functools.partial(fill, *job) for job in jobs], weights.device)
    return result


class Density(opaque.Function):
    """The map (n_models, n1, n2, n3) of (five parameters, use_aniso, type_index, crystal, form factors, grid, keep)."""

    SHARED = (5, 6)

    @staticmethod
    def forward(*args: Any) -> torch.Tensor:
        return _density(*args[:-1])  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.rest = inputs[7:]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        found = gradients_of(grad, *ctx.saved_tensors, *ctx.rest)
        return (*found, *(None,) * 6)


class DensityGradients(opaque.Function):
    """Gradients in the five parameters from dT/d(map), and the arguments of :class:`Density`."""

    SHARED = (6, 7)

    @staticmethod
    def forward(*args: Any) -> tuple[torch.Tensor, ...]:
        return tuple(_gradients(*args[:-1]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:8])
        ctx.rest = inputs[8:]

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        grad, *parameters, _, type_index = ctx.saved_tensors
        crystal, form_factors, grid, _ = ctx.rest
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (grad, *parameters)]
            rho = plain_density(leaves[1:], type_index, opaque.held(crystal), opaque.held(form_factors), grid)
            first = torch.autograd.grad(rho, leaves[1:], leaves[0], create_graph=True, allow_unused=True)
            pairs = [(x, c) for x, c in zip(first, cotangents) if x is not None and x.requires_grad]
            found = torch.autograd.grad(
                [x for x, _ in pairs], leaves, [c for _, c in pairs], allow_unused=True, materialize_grads=True
            )
        return (*found, *(None,) * 6)


density_of = opaque.caller(Density)
gradients_of = opaque.caller(DensityGradients)


def plain_density(
    parameters: Sequence[torch.Tensor],
    type_index: torch.Tensor,
    crystal: Crystal,
    form_factors: FormFactors,
    grid: Sequence[int],
) -> torch.Tensor:
    """The same map in torch operations, differentiable any number of times: slow, in portions that are not kept.

    Parameters
    ----------
    parameters : sequence of torch.Tensor
        Fractional sites (n_models, n, 3), u_iso (Å^2), u_star (fractional, 11 22 33 12 13 23), weights, f'.
    type_index : torch.Tensor
        (n,) rows of the form factors.
    grid : sequence of int
    """
    sites, u_iso, u_star, weights, fp = (x.to(torch.float64).flatten(0, 1) for x in parameters)
    n_models, n_points = len(parameters[0]), math.prod(grid)
    if not sites.numel():
        nothing = sum(x.sum() for x in parameters)  # still of the graph
        return parameters[0].new_zeros((n_models, *grid)) + nothing
    metric = crystal.orthogonalization
    identity = torch.eye(3, dtype=torch.float64, device=sites.device)
    u = metric @ symmetric.full(u_star) @ metric.T + u_iso[:, None, None] * identity
    types = type_index.repeat(n_models)
    # The constant of a form factor, and f', are a term of width 0 before the atom moves.
    a = torch.cat([form_factors.a[types], (form_factors.c[types] + fp)[:, None]], 1)
    b = torch.cat([form_factors.b, torch.zeros_like(form_factors.b[:, :1])], 1)[types]
    sizes = torch.tensor(tuple(grid), device=sites.device)
    whole = sizes.to(torch.float64)
    reach = (2 * REACH * (torch.linalg.eigvalsh(u.detach())[:, -1] + b.amax(1) / EIGHT_PI_SQ)).sqrt()
    box = (reach[:, None] * crystal.fractionalization.norm(dim=1) * sizes).ceil().to(torch.int64)
    portion = max(1, _PORTION // int((2 * box.amax(0) + 1).prod()))
    model = torch.arange(n_models, device=sites.device).repeat_interleave(len(type_index))
    total = sites.new_zeros(n_models * n_points)
    for rows in reach.argsort().split(portion):
        offsets = torch.cartesian_prod(*(torch.arange(-n, n + 1, device=sites.device) for n in box[rows].amax(0)))
        nearest = (sites.detach()[rows] * sizes).round().to(torch.int64)[:, None] + offsets
        i, j, k = (nearest % sizes).unbind(-1)
        places = (i * grid[1] + j) * grid[2] + k + (model[rows] * n_points)[:, None]
        arguments = (nearest / whole, metric, sites[rows], u[rows], a[rows], b[rows], weights[rows])
        values = checkpoint(_gaussians, *arguments, use_reentrant=False, preserve_rng_state=False)
        total = total.index_add(0, places.reshape(-1), values.reshape(-1))
    return total.reshape(n_models, *grid).to(parameters[0].dtype)


def _gaussians(
    at: torch.Tensor,
    metric: torch.Tensor,
    sites: torch.Tensor,
    u: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Densities (n, m) of atoms at points (n, m, 3), fractional."""
    r = (at - sites[:, None]) @ metric.T
    identity = torch.eye(3, dtype=torch.float64, device=sites.device)
    result = torch.zeros_like(r[..., 0])
    for k in range(a.shape[1]):
        m = u + (b[:, k] / EIGHT_PI_SQ)[:, None, None] * identity
        # A term of no weight may have no width: it is given one.
        m = torch.where((a[:, k] != 0)[:, None, None], m, identity)
        height = weights * a[:, k] / (torch.linalg.det(m) * (2 * math.pi) ** 3).sqrt()
        exponent = 0.5 * torch.einsum("npi,nij,npj->np", r, torch.linalg.inv(m), r)
        result = result + height[:, None] * torch.where(exponent <= REACH, (-exponent).exp(), 0.0)
    return result
