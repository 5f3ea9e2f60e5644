"""Electron density of a model on any grid of the unit cell.

Without a resolution limit it is the sum of the atoms' own densities, the transforms of their form factors,

    rho(r) = sum_atoms sum_k w a_k (2 pi)^(-3/2) det(M_k)^(-1/2) exp(-1/2 r^T M_k^-1 r),     M_k = U + b_k / (8 pi^2)

over the atoms and all their symmetry mates; with one it is the Fourier sum of their structure factors to d_min.  f' counts,
f'' does not: a real density has none.

References: Agarwal (1978), Acta Cryst. A34, 791; ``cctbx.xray.sampled_model_density``.
"""

from __future__ import annotations

import math

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..numerics import symmetric
from ..numerics.precision import full_precision
from ..plans import Plan
from ..structure_factors import structure_factors
from .fourier import Grid, checked_grid, fourier_map
from .gaussians import PointAtom, density_of


@full_precision
def density(
    atoms: Atoms, crystal: Crystal | Plan, grid: Grid, d_min: float | None = None, accuracy: float = 1e-4
) -> torch.Tensor:
    """Electron density of a model, e/Å^3 (fm/Å^3 for neutrons), on the whole unit cell.

    Parameters
    ----------
    atoms : Atoms
        Parameters of shape (..., n_atoms, ...); leading dimensions are a batch of models.
    crystal : Crystal or Plan
        The crystal the atoms are in, or a plan of it.
    grid : tuple of int
        Points along a, b, c; any.
    d_min : float, optional
        Resolution limit, Å: the Fourier sum of all structure factors to it, F(0,0,0) included.  By default there is none: the
        sum of the atoms' Gaussians, each to 1e-7 of its height; its transform tends to the structure factors as the grid is
        refined.
    accuracy : float
        With ``d_min``: of the structure factors.

    Returns
    -------
    torch.Tensor
        (..., n1, n2, n3) real in the atoms' dtype and on their device, differentiable in sites, u_iso, u_star, occupancies and
        f' (and f'' has no part).

    Raises
    ------
    ValueError
        Atoms of another crystal; a bad grid, or one too coarse for ``d_min``; without ``d_min``, an atom that is a point: its
        form factor has a constant (or there is f') and its displacement parameters are not positive.

    Examples
    --------
    >>> rho = sfdiff.density(atoms, crystal, grid=(24, 32, 36))
    >>> rho.shape, round(float(rho.mean() * crystal.volume) / (4 * 10 * (6 + 7 + 8 + 6)), 2)     # all electrons
    (torch.Size([24, 32, 36]), 1.0)
    """
    crystal = crystal.crystal if isinstance(crystal, Plan) else crystal
    if not atoms.crystal.is_same_as(crystal):
        raise ValueError(f"The atoms belong to {atoms.crystal!r}, not to {crystal!r}.")
    grid = checked_grid(grid)
    if d_min is None:
        return _sum_of_gaussians(atoms, grid)
    if not 0 < d_min < math.inf:
        raise ValueError(f"d_min must be positive, not {d_min!r}.")
    indices = crystal.build_miller_indices(d_min)
    indices = torch.cat([indices.new_zeros(1, 3), indices]).to(atoms.device)
    real = atoms.replace(fdp=torch.zeros_like(atoms.fdp))
    f = structure_factors(real, crystal, indices, accuracy=accuracy)
    return fourier_map(atoms.crystal, indices, f, grid)


def _sum_of_gaussians(atoms: Atoms, grid: Grid) -> torch.Tensor:
    batch, n_models = atoms.batch_shape, atoms.batch_shape.numel()
    names = {"sites_frac": 1, "u_iso": 0, "u_star": 1, "occupancies": 0, "fp": 0}

    def flat(name: str) -> torch.Tensor:
        value: torch.Tensor = getattr(atoms, name)
        tail = 1 + names[name]
        own = value.shape[value.ndim - tail :]
        return value.expand(*batch, *own).reshape(n_models, *own)

    sites, u_iso, u_star, occupancies, fp = map(flat, names)
    u_iso = torch.where(atoms.use_u_iso, u_iso, 0.0)
    u_star = torch.where(atoms.use_u_aniso[:, None], u_star, 0.0)
    weights = occupancies * atoms.site_weights.to(atoms.dtype)  # a mate on a special position counts by its share
    cell = atoms.crystal
    translations = (cell.translations[:, None] + cell.centring[None]).reshape(-1, 3)
    rotations = cell.rotations.to(torch.float64).repeat_interleave(len(cell.centring), 0)
    n_ops = len(rotations)
    n_mates = n_ops * atoms.n_atoms
    moved = torch.einsum("oij,maj->moai", rotations, sites.to(torch.float64)) + translations[:, None]
    tensors = torch.einsum("oij,majk,olk->moail", rotations, symmetric.full(u_star.to(torch.float64)), rotations)
    mates = (
        moved.reshape(n_models, n_mates, 3),
        u_iso.repeat(1, n_ops),
        symmetric.packed(tensors).reshape(n_models, n_mates, 6).to(atoms.dtype),
        weights.repeat(1, n_ops),
        fp.repeat(1, n_ops),
    )
    keep = None if torch.compiler.is_compiling() else (cell, atoms.form_factors)
    shared = atoms.use_u_aniso.repeat(n_ops), atoms.type_index.repeat(n_ops)
    try:
        rho = density_of(*mates, *shared, cell.handle, atoms.form_factors.handle, grid, keep)
    except PointAtom as error:
        i = error.atom % atoms.n_atoms
        raise ValueError(
            f"The density of atom {i} ({atoms.labels[i] or atoms.scattering_types[i]}) is a point: its displacement parameters "
            "leave a term of its form factor without width. Give it a larger B, a table without constants (n_gaussian), or a d_min."
        ) from None
    result: torch.Tensor = rho.reshape(*batch, *grid)
    return result
