"""The Gaussians that stand for atoms on a grid, as tensors on any device.

What :mod:`.splat_cpu` works out atom by atom, for the engines that want it as arrays: for every (atom, term)
the quadratic form Q of the exponent in grid units, the normalised amplitude, and the exponent at which it
ends.
"""
from __future__ import annotations

import math

import torch

from .splatting import FFTUnsuitable


def gaussians(job, u_iso, u_star, weights, fp, keep_zero=False):
    """Gaussians of a density, differentiable in the parameters given.

    Returns
    -------
    atom : torch.Tensor
        (n,) int64, the atom of each Gaussian.
    form : torch.Tensor
        (n, 3, 3) float64, Q along the grid's axes, grid units.
    amplitude : torch.Tensor
        (n,) float64.
    cut : torch.Tensor
        (n,) float64.

    Raises
    ------
    ValueError
        When an atom's displacement parameters are not positive definite.
    """
    atoms, setting = job.atoms, job.setting
    crystal, grid, table = atoms.crystal, setting.grid, setting.table
    device = weights.device
    axes = list(grid.axes)
    metric = crystal.reciprocal_metric[axes][:, axes]
    steps = torch.tensor([1.0 / n for n in grid.dims], dtype=torch.float64, device=device)
    kinds = atoms.type_index
    alphas, exponents = (torch.as_tensor(x, device=device)[kinds] for x in (table.alphas, table.exponents))
    constants = torch.as_tensor(table.constants, device=device)[kinds]
    fp64, weights64 = fp.to(torch.float64), weights.to(torch.float64)
    if job.dispersion:
        alphas, exponents = alphas[:, :0], exponents[:, :0]
        constants = torch.zeros_like(constants)
    if job.has_constant:
        alphas = torch.cat([alphas, (constants + fp64)[:, None]], 1)
        exponents = torch.cat([exponents, torch.zeros_like(constants)[:, None]], 1)
    e = exponents + (u_iso.to(torch.float64) * (2 * math.pi ** 2 * \
                     setting.s_sq) - setting.sharpening)[:, None]
    star = u_star.to(torch.float64)[..., [0, 3, 4, 3, 1, 5, 4, 5, 2]
                     ].unflatten(-1, (3, 3))[:, axes][:, :, axes]
    star = torch.where(atoms.use_u_aniso[:, None, None], star, 0.0) * (2 * math.pi ** 2)
    with torch.no_grad():
        typical = torch.where(weights64 != 0, weights64.abs(), setting.typical_weight)
        size = alphas.abs()
        if keep_zero and job.gradient:
            size[:, -1] = size[:, -1].clamp(min=table.typical_factor)
        size = torch.where(size != 0, size, 1.0) * typical[:, None]
        kept = torch.ones_like(
    alphas,
    dtype=torch.bool) if keep_zero else (
        alphas != 0) & (
            weights64 != 0)[
                :,
                 None]
    rows, terms = kept.nonzero(as_tuple=True)
    matrix = star[rows] + (e[rows, terms] / setting.s_sq)[:, None, None] * metric
    with torch.no_grad():
        bad = torch.linalg.eigvalsh(matrix)[:, 0] <= 0
        if bool(bad.any()):
            i = int(rows[bad][0])
            raise FFTUnsuitable(
    f"The displacement parameters of atom {i} ({atoms.labels[i].strip()}) are not positive "
    "definite enough for the FFT: raise them, or use method='direct'.")
    inverse = torch.linalg.inv(matrix)
    norm = math.pi ** 1.5 * torch.linalg.det(matrix).rsqrt() / grid.n_points
    amplitude = alphas[rows, terms] * weights64[rows] * norm
    form = math.pi ** 2 * inverse * steps[:, None] * steps
    with torch.no_grad():
        width = 3 * setting.s_sq / (inverse * metric).sum((-1, -2))
        cut = _cut(setting.cuts, width, torch.log(setting.tolerance / size[rows, terms]))
        chosen = cut > 0
    return rows[chosen], form[chosen], amplitude[chosen], cut[chosen]


def _cut(cuts, width, level):
    table, width_first, width_step, level_first, level_step = cuts
    table = torch.as_tensor(table, device=width.device)
    x = ((width.log() - width_first) / width_step).clamp(0, table.shape[0] - 1.001)
    y = ((level - level_first) / level_step).clamp(0, table.shape[1] - 1.001)
    i, j = x.to(torch.int64), y.to(torch.int64)
    x, y = x - i, y - j
    return ((table[i, j] * (1 - y) + table[i, j + 1] * y) * (1 - x)
            + (table[i + 1, j] * (1 - y) + table[i + 1, j + 1] * y) * x)


def half_lengths(form, cut):
    """Half the box of each ellipsoid u Q u <= cut: (n, 3) grid units."""
    return (cut[:, None] * torch.linalg.inv(form).diagonal(dim1=-2, dim2=-1)).sqrt()
