"""The independent variables of a refinement, as one vector that a minimiser moves.

Sites move in Å. An isotropic displacement parameter is bounded on both sides by a logistic function; an
anisotropic one is L L^T with L lower triangular, so that it stays positive. Atoms on special positions are
projected onto them. Hydrogens ride: they move with the nearest other atom, and their displacement parameters
change in proportion to its own.

Each variable is divided by the square root of the curvature that the target is expected to have in it (a
diagonal preconditioner): atoms with large B, and displacement parameters beside sites, else differ by orders of
magnitude.

Reference for the curvatures: Agarwal (1978), Acta Cryst. A34, 791; Tronrud (1999), Acta Cryst. A55, 700.
"""

from __future__ import annotations

import math

import torch

import numpy as np

B_LOW, B_HIGH = 1.0, 300.0  # Å²; widened where the model is outside already
LEAST_ANISOTROPIC_B = 0.1  # Å², along any axis
_EIGHT_PI_SQ = 8 * math.pi**2
_MATRIX = (0, 3, 4, 3, 1, 5, 4, 5, 2)
_LOWER = ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2))
_LEAST_CURVATURE = 1e-3  # of the median: an atom without scattering must not run away
_N_BINS = 40


class Variables:
    """Sites and displacement parameters of a model as a function of one vector.

    Parameters
    ----------
    atoms : Atoms
        A single model; where the vector is zero.
    sites, adp : bool
        What is refined.

    Attributes
    ----------
    n : int
        Length of the vector.
    """

    def __init__(self, atoms, sites=True, adp=True):
        self.atoms, self.sites, self.adp = atoms, sites, adp
        hydrogen = torch.tensor([e.strip().upper() in ("H", "D") for e in atoms.elements], device=atoms.device)
        if bool(hydrogen.all()):
            hydrogen = torch.zeros_like(hydrogen)
        self.free = (~hydrogen).nonzero()[:, 0]
        # Row of the free atom that each atom goes with: itself, or the nearest.
        self.parent = self._parents(hydrogen)
        self._special = _special_positions(atoms)
        aniso = atoms.use_u_aniso[self.free]
        self.iso_rows = (atoms.use_u_iso[self.free] & ~aniso).nonzero()[:, 0]
        self.aniso_rows = aniso.nonzero()[:, 0]
        self._start()
        self.sizes = [3 * len(self.free) * sites, len(self.iso_rows) * adp, 6 * len(self.aniso_rows) * adp]
        self.n = sum(self.sizes)
        self.scale = torch.ones(self.n, dtype=torch.float64, device=atoms.device)

    def _parents(self, hydrogen):
        atoms = self.atoms
        position = torch.zeros(atoms.n_atoms, dtype=torch.int64, device=atoms.device)
        position[self.free] = torch.arange(len(self.free), device=atoms.device)
        sites = atoms.sites_cart.detach().to(torch.float64)
        for rows in hydrogen.nonzero()[:, 0].split(1000):
            position[rows] = torch.cdist(sites[rows], sites[self.free]).argmin(1)
        return position

    def _start(self):
        atoms = self.atoms
        f64 = torch.float64
        self._sites = atoms.sites_cart.detach().to(f64)[self.free]
        self._u_iso = atoms.u_iso.detach().to(f64)[self.free]
        u = self._u_iso[self.iso_rows]
        low = min(B_LOW / _EIGHT_PI_SQ, 0.5 * float(u.min())) if len(u) else 0.0
        self.u_low = max(low, 1e-4)
        self.u_high = max(B_HIGH / _EIGHT_PI_SQ, 2 * float(u.max())) if len(u) else 1.0
        fraction = ((u - self.u_low) / (self.u_high - self.u_low)).clamp(1e-4, 1 - 1e-4)
        self._logit = torch.logit(fraction)
        self._slope = fraction * (1 - fraction) * (self.u_high - self.u_low)
        self._f = atoms.crystal.fractionalization.to(atoms.device)
        self._o = atoms.crystal.orthogonalization.to(atoms.device)
        u_cart = self._o @ _matrix(atoms.u_star.detach().to(f64)[self.free[self.aniso_rows]]) @ self._o.T
        values, vectors = torch.linalg.eigh(u_cart)
        positive = vectors @ torch.diag_embed(values.clamp(min=LEAST_ANISOTROPIC_B / _EIGHT_PI_SQ)) @ vectors.mT
        self._cholesky = torch.linalg.cholesky(positive) if len(positive) else positive

    def vector(self):
        """(n,) zeros that ask for a gradient."""
        return torch.zeros(self.n, dtype=torch.float64, device=self.atoms.device, requires_grad=True)

    def precondition(self, curvature):
        """Set the scale of each variable.

        Parameters
        ----------
        curvature : Curvature

        Returns
        -------
        float
            What the target is to be divided by for its expected curvature to be 1 in every variable.
        """
        u = self._u_iso.clone()
        if len(self.aniso_rows):
            u[self.aniso_rows] = self._cholesky.square().sum((-1, -2)) / 3
        of_sites, of_u = curvature(self.atoms, self.free, u)
        of_u_aniso = of_u[self.aniso_rows] / 5 * 4 * u[self.aniso_rows]
        parts = [of_sites.repeat_interleave(3)] * self.sites
        parts += [of_u[self.iso_rows] * self._slope.square(), of_u_aniso.repeat_interleave(6)] * self.adp
        all_parts = torch.cat(parts)
        unit = float((of_sites if self.sites else all_parts).median())
        self.scale = (all_parts.clamp(min=_LEAST_CURVATURE * unit) / unit).rsqrt()
        return unit

    def damping(self, vector, strength):
        """(penalty, its gradient (n,)) of shifts: springs of equal strength in Å for all sites."""
        weight = torch.full_like(self.scale, strength)
        n = self.sizes[0]
        weight[:n] *= self.scale[:n].square()
        gradient = weight * vector.detach()
        return 0.5 * float(gradient @ vector.detach()), gradient

    def __call__(self, vector):
        """The atoms for a vector (n,), with its gradient."""
        atoms = self.atoms
        shift, logit, lower = (vector * self.scale).split(self.sizes)
        changes = {}
        if self.sites:
            moved = self._sites + shift.reshape(-1, 3)
            change = (moved - self._sites)[self.parent]
            sites = self._on_special_positions(atoms.sites_cart.detach().to(torch.float64) + change)
            changes["sites_cart"] = sites.to(atoms.dtype)
        if self.adp:
            changes |= self._displacements(logit, lower)
        return atoms.replace(**changes)

    def _displacements(self, logit, lower):
        atoms = self.atoms
        ratio = torch.ones(len(self.free), dtype=torch.float64, device=atoms.device)
        u_iso, u_star = self._u_iso, None
        if len(self.iso_rows):
            u = self.u_low + (self.u_high - self.u_low) * torch.sigmoid(self._logit + logit)
            u_iso = u_iso.index_put((self.iso_rows,), u)
            ratio = ratio.index_put((self.iso_rows,), u / self._u_iso[self.iso_rows].clamp(min=self.u_low))
        if len(self.aniso_rows):
            full = torch.zeros(len(self.aniso_rows), 9, dtype=torch.float64, device=atoms.device)
            places = [3 * i + j for i, j in _LOWER]
            full = full.index_copy(1, torch.tensor(places, device=atoms.device), lower.reshape(-1, 6))
            cholesky = self._cholesky + full.reshape(-1, 3, 3)
            u_cart = cholesky @ cholesky.mT
            before = self._cholesky.square().sum((-1, -2))
            ratio = ratio.index_put((self.aniso_rows,), u_cart.diagonal(dim1=-2, dim2=-1).sum(-1) / before)
            new = self._f @ u_cart @ self._f.T
            new = torch.stack([new[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))], -1)
            u_star = new
        riding = atoms.u_iso.detach().to(torch.float64) * ratio[self.parent]
        changes = {"u_iso": riding.index_put((self.free,), u_iso).to(atoms.dtype)}
        if atoms.use_u_aniso.any():
            all_u = atoms.u_star.detach().to(torch.float64) * ratio[self.parent][:, None]
            if u_star is not None:
                all_u = all_u.index_put((self.free[self.aniso_rows],), u_star)
            for row, (_, _, average) in self._special.items():
                all_u = all_u.index_put((torch.tensor(row, device=atoms.device),), average @ all_u[row])
            changes["u_star"] = all_u.to(atoms.dtype)
        return changes

    def _on_special_positions(self, sites):
        if not self._special:
            return sites
        rows = torch.tensor(list(self._special), device=sites.device)
        rotation = torch.stack([r for r, _, _ in self._special.values()])
        translation = torch.stack([t for _, t, _ in self._special.values()])
        frac = (rotation @ (sites[rows] @ self._f.T)[:, :, None])[:, :, 0] + translation
        return sites.index_put((rows,), frac @ self._o.T)


def _matrix(u):
    return u[..., list(_MATRIX)].reshape(*u.shape[:-1], 3, 3)


def _special_positions(atoms):
    """{row: (rotation (3, 3), translation (3,), averaging of U* (6, 6))} of atoms on special positions."""
    structure = atoms._structure
    table = structure.site_symmetry_table()
    result = {}
    for i in table.special_position_indices():
        operators = table.get(i)
        op = operators.special_op()
        average = np.array([operators.average_u_star(tuple(row)) for row in np.eye(6).tolist()]).T
        result[int(i)] = tuple(
            torch.tensor(np.array(x), dtype=torch.float64, device=atoms.device)
            for x in (np.reshape(op.r().as_double(), (3, 3)), op.t().as_double(), average)
        )
    return result


class Curvature:
    """Expected second derivatives of a target with respect to sites and displacement parameters.

    Parameters
    ----------
    crystal : Crystal
    d_star_sq : torch.Tensor
        (n,) Å^-2, of work reflections.
    weights : torch.Tensor
        (n,) second derivative of the target with respect to |F_calc|.
    """

    def __init__(self, crystal, d_star_sq, weights):
        low, high = float(d_star_sq.min()), float(d_star_sq.max())
        bins = ((d_star_sq - low) / max(high - low, 1e-12) * _N_BINS).long().clamp(max=_N_BINS - 1)
        zeros = torch.zeros(_N_BINS, dtype=torch.float64, device=d_star_sq.device)
        self.weight = zeros.index_add(0, bins, weights.to(torch.float64))
        self.s_sq = low + (torch.arange(_N_BINS, device=d_star_sq.device) + 0.5) / _N_BINS * (high - low)
        # Half the square of a structure factor's change is in its amplitude, half in its phase.
        self.factor = 0.5 * crystal.order_p * crystal.centring.shape[0] ** 2

    def __call__(self, atoms, rows, u):
        """(n_rows,) curvature of sites (Å^-2) and of U (Å^-4), for U equivalent (n_rows,)."""
        f = atoms.form_factors(self.s_sq)[atoms.type_index[rows]]
        f = f + atoms.fp.detach().to(torch.float64)[rows, None]
        amplitude = f * atoms.occupancies.detach().to(torch.float64)[rows, None]
        power = amplitude.square() * (-4 * math.pi**2 * u[:, None] * self.s_sq).exp() * self.weight
        power = power * self.factor * atoms.site_weights[rows, None]
        of_sites = (power * (4 * math.pi**2 / 3) * self.s_sq).sum(1)
        of_u = (power * (2 * math.pi**2 * self.s_sq).square()).sum(1)
        return of_sites, of_u
