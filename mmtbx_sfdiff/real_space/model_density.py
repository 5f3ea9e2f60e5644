"""Electron density of a model on any grid of the unit cell.

Without a resolution limit it is the sum of the atoms' own densities, the transforms of their form factors,

    rho(r) = sum_atoms sum_k w a_k (2 pi)^(-3/2) det(M_k)^(-1/2) exp(-1/2 r^T M_k^-1 r),     M_k = U + b_k / (8 pi^2)

over the atoms and all their symmetry mates; with one it is the Fourier sum of their structure factors to d_min.  f' counts,
f'' does not: a real density has none.

References: Agarwal (1978), Acta Cryst. A34, 791; ``cctbx.xray.sampled_model_density``.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.utils.checkpoint import checkpoint

from ..atom_arrays import EIGHT_PI_SQ
from ..atoms import Atoms
from ..crystal import Crystal
from ..numerics.precision import full_precision
from ..structure_factors import structure_factors
from .fourier import Grid, checked_grid, fourier_map

# A term ends where exp(-x) has fallen to 1e-7 of its top.
_REACH = 16.0
# Values of a portion of atoms that are held at once.
_PORTION = 2**19
_PAIRS = (0, 3, 4, 3, 1, 5, 4, 5, 2)


@full_precision
def density(
    atoms: Atoms, crystal: Crystal, grid: Grid, d_min: float | None = None, accuracy: float = 1e-4
) -> torch.Tensor:
    """Electron density of a model, e/Å^3 (fm/Å^3 for neutrons), on the whole unit cell.

    Parameters
    ----------
    atoms : Atoms
        Parameters of shape (..., n_atoms, ...); leading dimensions are a batch of models.
    crystal : Crystal
        The crystal the atoms are in.
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
    >>> rho = sfdiff.density(atoms, crystal, grid=(48, 48, 64), d_min=2.0)    # doctest: +SKIP
    """
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
    cell = atoms.crystal
    batch = atoms.batch_shape
    n_models, n_points = batch.numel(), math.prod(grid)

    def flat(value: torch.Tensor, tail: int) -> torch.Tensor:
        own = value.shape[value.ndim - tail :]
        return value.expand(*batch, *own).reshape(-1, *own[1:]).to(torch.float64)

    weights = flat(atoms.occupancies * atoms.site_weights.to(atoms.dtype), 1)
    sites = flat(atoms.sites_frac, 2)
    model = torch.arange(n_models, device=atoms.device).repeat_interleave(atoms.n_atoms)
    types = atoms.type_index.repeat(n_models)
    metric = cell.orthogonalization
    u_star = flat(atoms.u_star, 2)[:, _PAIRS].reshape(-1, 3, 3)
    u_iso = torch.where(atoms.use_u_iso.repeat(n_models), flat(atoms.u_iso, 1), 0.0)
    u_star = torch.where(atoms.use_u_aniso.repeat(n_models)[:, None, None], u_star, 0.0)
    u = metric @ u_star @ metric.T + u_iso[:, None, None] * torch.eye(3, dtype=torch.float64, device=atoms.device)
    fp = flat(atoms.fp, 1)
    table = atoms.form_factors
    # The constant of a form factor, and f', are a term of width 0 before the atom moves.
    b = torch.cat([table.b, torch.zeros_like(table.b[:, :1])], 1)[types]
    a = torch.cat([table.a[types], (table.c[types] + fp)[:, None]], 1)
    if not a.requires_grad and not bool((a[:, -1] != 0).any()):
        a, b = a[:, :-1], b[:, :-1]
    _check(atoms, u, a, b)
    total = sites.new_zeros(n_models * n_points)
    translations = (cell.translations[:, None] + cell.centring[None]).reshape(-1, 3)
    rotations = cell.rotations.to(torch.float64).repeat_interleave(len(cell.centring), 0)
    # Site weights count each mate of an atom on a special position by its share.
    isotropic = not bool(atoms.use_u_aniso.any())
    box, order, per = _boxes(cell, grid, u, b)
    for start in range(0, len(sites), per):
        rows = order[start : start + per]
        chosen = (sites[rows], u[rows], a[rows], b[rows], weights[rows])
        for rotation, translation in zip(rotations, translations):
            part = _Portion(grid, box[rows].amax(0).tolist(), metric, rotation, translation, isotropic)
            if torch.is_grad_enabled() and any(x.requires_grad for x in chosen):
                values = checkpoint(part, *chosen, use_reentrant=False, preserve_rng_state=False)
            else:
                values = part(*chosen)
            places = part.places(chosen[0].detach()) + (model[rows] * n_points)[:, None]
            total = total.index_add(0, places.reshape(-1), values.reshape(-1))
    return total.reshape(*batch, *grid).to(atoms.dtype)


@dataclasses.dataclass(frozen=True)
class _Portion:
    """Densities of some atoms at the points of a box around each, after one symmetry operator."""

    grid: Grid
    half: list[int]
    metric: torch.Tensor
    rotation: torch.Tensor
    translation: torch.Tensor
    isotropic: bool

    def _offsets(self) -> torch.Tensor:
        ranges = [torch.arange(-n, n + 1, device=self.metric.device) for n in self.half]
        return torch.cartesian_prod(*ranges)

    def _nearest(self, sites: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor(self.grid, dtype=torch.float64, device=sites.device)
        return (self._moved(sites) * sizes).round()

    def _moved(self, sites: torch.Tensor) -> torch.Tensor:
        return sites @ self.rotation.T + self.translation

    def places(self, sites: torch.Tensor) -> torch.Tensor:
        """(n, m) numbers of the points."""
        sizes = torch.tensor(self.grid, device=sites.device)
        i, j, k = ((self._nearest(sites).to(torch.int64)[:, None] + self._offsets()) % sizes).unbind(-1)
        return (i * self.grid[1] + j) * self.grid[2] + k

    def __call__(
        self, sites: torch.Tensor, u: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        sizes = torch.tensor(self.grid, dtype=torch.float64, device=sites.device)
        at = (self._nearest(sites.detach())[:, None] + self._offsets()) / sizes
        r = (at - self._moved(sites)[:, None]) @ self.metric.T
        if self.isotropic:
            return self._isotropic(r.square().sum(-1), u[:, 0, 0], a, b, weights)
        turn = self.metric @ self.rotation @ torch.linalg.inv(self.metric)
        own = turn @ u @ turn.T
        result = torch.zeros_like(r[..., 0])
        identity = torch.eye(3, dtype=torch.float64, device=sites.device)
        for k in range(a.shape[1]):
            m = own + (b[:, k] / EIGHT_PI_SQ)[:, None, None] * identity
            # A term of no weight may have no width: it is given one.
            m = torch.where((a[:, k] != 0)[:, None, None], m, identity)
            height = weights * a[:, k] / (torch.linalg.det(m) * (2 * math.pi) ** 3).sqrt()
            exponent = torch.einsum("npi,nij,npj->np", r, torch.linalg.inv(m), r)
            result = result + height[:, None] * (-0.5 * exponent).exp()
        return result

    @staticmethod
    def _isotropic(
        square: torch.Tensor, u: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        result = torch.zeros_like(square)
        for k in range(a.shape[1]):
            m = torch.where(a[:, k] != 0, u + b[:, k] / EIGHT_PI_SQ, 1.0)
            height = weights * a[:, k] * (2 * math.pi * m) ** -1.5
            result = result + height[:, None] * (square * (-0.5 / m)[:, None]).exp()
        return result


def _boxes(crystal: Crystal, grid: Grid, u: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Half-widths (n, 3) of boxes in grid points, atoms from small to large ones, and how many make a portion."""
    widest = torch.linalg.eigvalsh(u.detach())[:, -1] + b.amax(1) / EIGHT_PI_SQ
    reach = (2 * _REACH * widest).sqrt()
    star = crystal.fractionalization.norm(dim=1)
    sizes = torch.tensor(grid, dtype=torch.float64, device=u.device)
    box = (reach[:, None] * star * sizes).ceil().to(torch.int64)
    points = int((2 * box.amax(0) + 1).prod()) if len(box) else 1
    return box, reach.argsort(), max(1, _PORTION // points)


def _check(atoms: Atoms, u: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    least = torch.linalg.eigvalsh(u.detach())[:, :1] + b / EIGHT_PI_SQ
    bad = ((least <= 0) & (a.detach() != 0)).any(1) | ~torch.isfinite(u.detach()).all((1, 2))
    if bool(bad.any()):
        i = int(bad.nonzero()[0, 0]) % atoms.n_atoms
        raise ValueError(
            f"The density of atom {i} ({atoms.labels[i] or atoms.scattering_types[i]}) is a point: its displacement parameters "
            "leave a term of its form factor without width. Give it a larger B, a table without constants (n_gaussian), or a d_min."
        )
