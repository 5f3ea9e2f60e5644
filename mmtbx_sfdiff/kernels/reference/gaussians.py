"""The Gaussians that stand for atoms on a grid, as tensors on any device.

What :mod:`~mmtbx_sfdiff.kernels.cpu.splat` works out atom by atom, for the engines that want it as arrays: for every atom and term the
quadratic form Q of the exponent in grid units, the normalised amplitude, and the exponent at which it ends.  Symmetric
matrices are packed as 00, 11, 22, 01, 02, 12.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from ..jobs import NotPositiveDefinite

_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussians:
    """Terms of atoms, models behind one another.

    Attributes
    ----------
    form : torch.Tensor
        (n, n_terms, 6) float64, Q along the grid's axes, grid units.
    amplitude : torch.Tensor
        (n, n_terms) float64.
    cut : torch.Tensor
        (n, n_terms) float64, the largest exponent; 0 where there is nothing.
    half : torch.Tensor
        (n, n_terms, 3) float64, half the box of u Q u <= cut, grid units.
    """

    form: torch.Tensor
    amplitude: torch.Tensor
    cut: torch.Tensor
    half: torch.Tensor


def gaussians(job, u_iso, u_star, weights, fp, keep_zero=False):
    """Gaussians of a density, differentiable in the parameters given.

    Parameters
    ----------
    job : DensityJob
    u_iso, u_star, weights, fp : torch.Tensor
        (n_models n_atoms, ...).
    keep_zero : bool
        Whether terms without weight are kept, for the sake of their gradient.

    Raises
    ------
    NotPositiveDefinite
        When an atom's displacement parameters are not positive definite.
    """
    setting = job.setting
    grid, table = setting.grid, setting.table
    device = weights.device
    n_models = len(weights) // job.n_atoms
    packing = [_PAIRS.index(tuple(sorted((grid.axes[i], grid.axes[j])))) for i, j in _PAIRS]
    reciprocal = setting.cell.reciprocal
    metric = torch.tensor([reciprocal[i, j] for i, j in _PAIRS], dtype=torch.float64, device=device)[packing]
    dims = torch.tensor(grid.dims, dtype=torch.float64, device=device)
    kinds, aniso = job.type_index.repeat(n_models), job.use_aniso.repeat(n_models)
    alphas, exponents = (torch.as_tensor(x, device=device)[kinds] for x in (table.alphas, table.exponents))
    constants = torch.as_tensor(table.constants, device=device)[kinds]
    fp64, weights64 = fp.to(torch.float64), weights.to(torch.float64)
    if job.dispersion:
        alphas, exponents = alphas[:, :0], exponents[:, :0]
        constants = torch.zeros_like(constants)
    if job.has_constant:
        alphas = torch.cat([alphas, (constants + fp64)[:, None]], 1)
        exponents = torch.cat([exponents, torch.zeros_like(constants)[:, None]], 1)
    e = exponents + (u_iso.to(torch.float64) * (2 * math.pi**2 * setting.s_sq) - setting.sharpening)[:, None]
    star = torch.where(aniso[:, None], u_star.to(torch.float64)[:, packing], 0.0) * (2 * math.pi**2)
    with torch.no_grad():
        typical = torch.where(weights64 != 0, weights64.abs(), setting.typical_weight)
        size = alphas.abs()
        if keep_zero and job.gradient:
            size = torch.cat([size[:, :-1], size[:, -1:].clamp(min=table.typical_factor)], 1)
        size = torch.where(size != 0, size, 1.0) * typical[:, None]
        kept = torch.ones_like(alphas, dtype=torch.bool) if keep_zero else (alphas != 0) & (weights64 != 0)[:, None]
    matrix = star[:, None] + (e / setting.s_sq)[..., None] * metric
    cofactors, determinant = _cofactors(matrix)
    with torch.no_grad():
        m00, m11, _, m01, _, _ = matrix.unbind(-1)
        bad = kept & ~((m00 > 0) & (m00 * m11 > m01 * m01) & (determinant > 0) & (determinant < math.inf))
        lost = ~torch.isfinite(job.sites.reshape(-1, 3)).all(-1)[:, None] | ~torch.isfinite(alphas * weights64[:, None])
        if device.type != "cuda" and bool(bad.any()):
            raise NotPositiveDefinite(int(bad.any(-1).nonzero()[0, 0]) % job.n_atoms)
        # On a GPU nobody waits for an answer: what no density can be made of makes its model NaN.
        bad = bad | lost
    # Whatever is not kept may be singular, and counts for nothing.
    determinant = torch.where(kept & ~bad, determinant, 1.0)
    inverse = cofactors / determinant[..., None]
    amplitude = alphas * weights64[:, None] * (math.pi**1.5 / grid.n_points) * determinant.rsqrt()
    form = inverse * (math.pi**2 / torch.stack([dims[i] * dims[j] for i, j in _PAIRS]))
    with torch.no_grad():
        twice = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0], dtype=torch.float64, device=device)
        width = 3 * setting.s_sq / (inverse @ (metric * twice))
        cut = torch.where(kept & ~bad, _cut(setting.cuts, width, torch.log(setting.tolerance / size)), 0.0).clamp(min=0)
        half = (cut[..., None] * matrix[..., :3].clamp(min=0)).sqrt() * (dims / math.pi)
        # Leaving the box that the setting promised is no number either.
        bad = bad | ~(half < torch.tensor(setting.box, dtype=torch.float64, device=device)).all(-1)
        cut, half = torch.where(bad, 1.0, cut), torch.where(bad[..., None], 2.0, half)
    form = torch.where(bad[..., None], 0.0, form)
    amplitude = torch.where(bad, math.nan, amplitude)
    return Gaussians(form, amplitude, cut, half)


def gaussian_gradients(job, gather):
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of sum(grid * density), in the shapes of the job's tensors.

    ``gather``: Gaussians -> moments (n, n_terms, 10) float64 of the grid under each of them, with their offsets (u, v, w)
    from its centre: sums of 1, u, v, w, uu, vv, ww, uv, uw, vw.
    """
    n_atoms = job.n_atoms
    given = job.u_iso, job.u_star, job.weights, job.fp
    leaves = [x.detach().to(torch.float64).reshape(-1, *x.shape[job.weights.ndim :]).requires_grad_() for x in given]
    with torch.enable_grad():
        found = gaussians(job, *leaves, keep_zero=True)
    with torch.no_grad():
        moments = gather(found)
        q = found.form.detach().unbind(-1)
        u, v, w = moments[..., 1:4].unbind(-1)
        along = torch.stack(
            [q[0] * u + q[3] * v + q[4] * w, q[3] * u + q[1] * v + q[5] * w, q[4] * u + q[5] * v + q[2] * w], -1
        )
        dims = torch.tensor(job.setting.grid.dims, dtype=torch.float64, device=along.device)
        along = (2 * found.amplitude.detach()[..., None] * along).sum(1) * dims
        sites = torch.empty_like(along)
        sites[:, list(job.setting.grid.axes)] = along
        # The exponent has the elements beside the diagonal twice.
        second = -found.amplitude.detach()[..., None] * torch.cat([moments[..., 4:7], 2 * moments[..., 7:]], -1)
    grads = torch.autograd.grad([found.amplitude, found.form], leaves, [moments[..., 0], second], allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads)]
    shape = (*job.weights.shape[:-1], n_atoms)
    return tuple(g.reshape(*shape, *g.shape[1:]) for g in (sites, *grads))


def _cofactors(matrix):
    """Cofactors and determinants of packed symmetric matrices (..., 6)."""
    a, b, c, d, e, f = matrix.unbind(-1)
    cofactors = torch.stack(
        [b * c - f * f, a * c - e * e, a * b - d * d, e * f - d * c, d * f - e * b, d * e - f * a], -1
    )
    return cofactors, a * cofactors[..., 0] + d * cofactors[..., 3] + e * cofactors[..., 4]


def _cut(cuts, width, level):
    table, width_first, width_step, level_first, level_step = cuts
    table = torch.as_tensor(table, device=width.device)
    x = ((width.log() - width_first) / width_step).nan_to_num(0.0).clamp(0, table.shape[0] - 1.001)
    y = ((level - level_first) / level_step).nan_to_num(0.0).clamp(0, table.shape[1] - 1.001)
    i, j = x.to(torch.int64), y.to(torch.int64)
    x, y = x - i, y - j
    return (table[i, j] * (1 - y) + table[i, j + 1] * y) * (1 - x) + (
        table[i + 1, j] * (1 - y) + table[i + 1, j + 1] * y
    ) * x
