"""How well a density agrees with a map: correlation, least squares, and the correlation residue by residue.

Reference: Jones et al. (1991), Acta Cryst. A47, 110; ``mmtbx.maps.correlation``.
"""

from __future__ import annotations

import torch

from ..atoms import Atoms
from ..numerics.precision import full_precision
from ..numerics.residual import ratio
from .fourier import checked_grid


@full_precision
def map_correlation(rho: torch.Tensor, observed: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Pearson's correlation of maps over grid points, (...,), differentiable; 0 where one of them is constant.

    Parameters
    ----------
    rho : torch.Tensor
        (..., n1, n2, n3)
    observed : torch.Tensor
        (n1, n2, n3), or of a batch.
    weights : torch.Tensor, optional
        (n1, n2, n3) not negative; 0 leaves a point out.

    Raises
    ------
    ValueError
        Maps on different grids.

    Examples
    --------
    >>> rho = sfdiff.density(atoms, crystal, (24, 32, 36))
    >>> round(float(map_correlation(rho, 2 * rho + 1)), 6)
    1.0
    """
    a, b, w = _flat(rho, observed, weights)
    total = w.sum(-1, keepdim=True)
    a = a - ratio((w * a).sum(-1, keepdim=True), total)
    b = b - ratio((w * b).sum(-1, keepdim=True), total)
    square = (w * a * a).sum(-1) * (w * b * b).sum(-1)
    positive = square > 0
    return torch.where(positive, (w * a * b).sum(-1) / torch.where(positive, square, 1.0).sqrt(), 0.0)


@full_precision
def map_least_squares(
    rho: torch.Tensor, observed: torch.Tensor, weights: torch.Tensor | None = None, scale: str = "fit"
) -> torch.Tensor:
    """sum w (observed - k rho - c)^2 / sum w (observed - mean)^2, (...,), differentiable.

    Parameters
    ----------
    rho, observed, weights
        See :func:`map_correlation`.
    scale : {"fit", "unit"}
        k and c by least squares (the target is then 1 - correlation^2), or 1 and 0.

    Raises
    ------
    ValueError
        Maps on different grids; an unknown scale.

    Examples
    --------
    >>> rho = sfdiff.density(atoms, crystal, (24, 32, 36))
    >>> abs(float(map_least_squares(rho, 2 * rho + 1))) < 1e-9, float(map_least_squares(rho, rho, scale="unit"))
    (True, 0.0)
    """
    if scale not in ("fit", "unit"):
        raise ValueError(f"scale must be 'fit' or 'unit', not {scale!r}.")
    if scale == "fit":
        return 1 - map_correlation(rho, observed, weights).square()
    a, b, w = _flat(rho, observed, weights)
    mean = ratio((w * b).sum(-1, keepdim=True), w.sum(-1, keepdim=True))
    return ratio((w * (b - a).square()).sum(-1), (w * (b - mean).square()).sum(-1))


@full_precision
def residue_correlation(
    rho: torch.Tensor, observed: torch.Tensor, atoms: Atoms, groups: torch.Tensor, radius: float = 1.5
) -> torch.Tensor:
    """Correlation of two maps around each residue, (n_groups,), differentiable in both maps.

    Parameters
    ----------
    rho, observed : torch.Tensor
        (n1, n2, n3)
    atoms : Atoms
        One model; where its atoms are decides which points count, and has no gradient.
    groups : torch.Tensor
        (n_atoms,) int64, which residue each atom belongs to, from 0; negative ones take no part.
    radius : float
        Å; points within it of any atom of the residue count.

    Raises
    ------
    ValueError
        Maps on different grids; another number of groups than of atoms; a batch of models; a radius that is not positive.

    Examples
    --------
    >>> rho = sfdiff.density(atoms, crystal, (24, 32, 36))
    >>> residue_correlation(rho, rho, atoms, torch.arange(40) // 10).round(decimals=6)
    tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    if rho.shape != observed.shape or rho.ndim != 3:
        raise ValueError(f"Two maps of one grid are needed, not {tuple(rho.shape)} and {tuple(observed.shape)}.")
    if tuple(groups.shape) != (atoms.n_atoms,) or atoms.batch_shape:
        raise ValueError(f"groups must be one number for each of the {atoms.n_atoms} atoms of one model.")
    if not radius > 0:
        raise ValueError(f"radius must be positive, not {radius!r}.")
    found = []
    for group in range(int(groups.max()) + 1 if len(groups) else 0):
        points = _points_near(atoms, (groups == group).nonzero()[:, 0], radius, tuple(rho.shape))
        found.append(map_correlation(rho.reshape(-1)[points], observed.reshape(-1)[points]))
    return torch.stack(found) if found else rho.new_zeros(0)


def _points_near(atoms: Atoms, rows: torch.Tensor, radius: float, grid: tuple[int, ...]) -> torch.Tensor:
    """Numbers of the grid points within a radius of some atoms, each once."""
    sizes = torch.tensor(checked_grid(grid), dtype=torch.float64, device=atoms.device)
    cell = atoms.crystal
    half = (radius * cell.fractionalization.norm(dim=1) * sizes).ceil().to(torch.int64).tolist()
    offsets = torch.cartesian_prod(*[torch.arange(-n, n + 1, device=atoms.device) for n in half])
    sites = atoms.sites_frac.detach()[rows]
    at = (sites * sizes).round()[:, None] + offsets
    near = ((at / sizes - sites[:, None]) @ cell.orthogonalization.T).square().sum(-1) <= radius**2
    i, j, k = (at[near].to(torch.int64) % sizes.to(torch.int64)).unbind(-1)
    places: torch.Tensor = torch.unique((i * grid[1] + j) * grid[2] + k)
    return places


def _flat(
    rho: torch.Tensor, observed: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n = min(3, observed.ndim)
    if rho.shape[-n:] != observed.shape[-n:] or (weights is not None and weights.shape[-n:] != observed.shape[-n:]):
        raise ValueError(f"The maps are on different grids: {tuple(rho.shape[-n:])} and {tuple(observed.shape[-n:])}.")
    a, b = rho.flatten(-n), observed.flatten(-n)
    return a, b, torch.ones_like(b) if weights is None else weights.flatten(-n)
