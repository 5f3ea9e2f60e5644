"""The independent variables of a refinement, as one vector that a minimiser moves.

Sites move in Å. An isotropic displacement parameter is bounded on both sides by a logistic function; an
anisotropic one is L L^T with L lower triangular, so that it stays positive. Atoms on special positions are
projected onto them. Hydrogens ride: they move with the atom that they are bonded to, and their displacement parameters
change in proportion to its own. An anisotropic atom may also keep the shape of its tensor and change its size alone: one variable
in the place of six, as for tensors that came from TLS groups.

Each variable is divided by the square root of the curvature that the target is expected to have in it (a
diagonal preconditioner): atoms with large B, and displacement parameters beside sites, else differ by orders of
magnitude.

The curvatures are those of :mod:`.curvature`.
"""

from __future__ import annotations

import torch

import numpy as np

from ..atom_arrays import EIGHT_PI_SQ

B_LOW, B_HIGH = 1.0, 300.0  # Å²; widened where the model is outside already
LEAST_ANISOTROPIC_B = 0.1  # Å², along any axis
_MATRIX = (0, 3, 4, 3, 1, 5, 4, 5, 2)
_LOWER = ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2))
_LEAST_CURVATURE = 1e-3  # of the median: an atom without scattering must not run away


class Variables:
    """Sites and displacement parameters of a model as a function of one vector.

    Parameters
    ----------
    atoms : Atoms
        A single model; where the vector is zero.
    sites, adp : bool
        What is refined.
    parents : torch.Tensor, optional
        (n_atoms,) int64: row of the atom that each one rides on, its own for those that do not ride. By default hydrogens ride
        on the nearest other atom: only an unlabeled model needs that.
    scaled : bool
        Whether anisotropic atoms change the size of their tensors alone.

    Attributes
    ----------
    n : int
        Length of the vector.
    """

    def __init__(self, atoms, sites=True, adp=True, parents=None, scaled=False):
        self.atoms, self.sites, self.adp = atoms, sites, adp
        if parents is None:
            hydrogen = torch.tensor([e.strip().upper() in ("H", "D") for e in atoms.elements], device=atoms.device)
            rides = hydrogen if not bool(hydrogen.all()) else torch.zeros_like(hydrogen)
        else:
            parents = parents.to(atoms.device)
            rides = parents != torch.arange(atoms.n_atoms, device=atoms.device)
        self.free = (~rides).nonzero()[:, 0]
        # Place among the free atoms of the one that each atom goes with: itself, or its parent.
        self.parent = self._parents(rides, parents)
        self._special = _special_positions(atoms)
        every = atoms.use_u_aniso[self.free]
        aniso = torch.zeros_like(every) if scaled else every
        self.iso_rows = (~aniso & (atoms.use_u_iso[self.free] | every)).nonzero()[:, 0]
        self.aniso_rows = aniso.nonzero()[:, 0]
        self._start()
        self.sizes = [3 * len(self.free) * sites, len(self.iso_rows) * adp, 6 * len(self.aniso_rows) * adp]
        self.n = sum(self.sizes)
        self.scale = torch.ones(self.n, dtype=torch.float64, device=atoms.device)

    def _parents(self, hydrogen, parents):
        atoms = self.atoms
        position = torch.zeros(atoms.n_atoms, dtype=torch.int64, device=atoms.device)
        position[self.free] = torch.arange(len(self.free), device=atoms.device)
        if parents is not None:
            return position[parents]
        sites = atoms.sites_cart.detach().to(torch.float64)
        for rows in hydrogen.nonzero()[:, 0].split(1000):
            position[rows] = torch.cdist(sites[rows], sites[self.free]).argmin(1)
        return position

    def _start(self):
        atoms = self.atoms
        f64 = torch.float64
        self._sites = atoms.sites_cart.detach().to(f64)[self.free]
        self._u_iso = atoms.u_iso.detach().to(f64)[self.free].clone()
        self._f = atoms.crystal.fractionalization.to(atoms.device)
        self._o = atoms.crystal.orthogonalization.to(atoms.device)
        tensors = atoms.use_u_aniso[self.free]
        if bool(tensors.any()):
            u_cart = self._o @ _matrix(atoms.u_star.detach().to(f64)[self.free[tensors]]) @ self._o.T
            self._u_iso[tensors] = (u_cart.diagonal(dim1=-2, dim2=-1).sum(-1) / 3).clamp(min=1e-3)
        u = self._u_iso[self.iso_rows]
        low = min(B_LOW / EIGHT_PI_SQ, 0.5 * float(u.min())) if len(u) else 0.0
        self.u_low = max(low, 1e-4)
        self.u_high = max(B_HIGH / EIGHT_PI_SQ, 2 * float(u.max())) if len(u) else 1.0
        fraction = ((u - self.u_low) / (self.u_high - self.u_low)).clamp(1e-4, 1 - 1e-4)
        self._logit = torch.logit(fraction)
        self._slope = fraction * (1 - fraction) * (self.u_high - self.u_low)
        u_cart = self._o @ _matrix(atoms.u_star.detach().to(f64)[self.free[self.aniso_rows]]) @ self._o.T
        values, vectors = torch.linalg.eigh(u_cart)
        positive = vectors @ torch.diag_embed(values.clamp(min=LEAST_ANISOTROPIC_B / EIGHT_PI_SQ)) @ vectors.mT
        self._cholesky = torch.linalg.cholesky(positive) if len(positive) else positive

    def vector(self):
        """(n,) zeros that ask for a gradient."""
        return torch.zeros(self.n, dtype=torch.float64, device=self.atoms.device, requires_grad=True)

    def precondition(self, curvature, of_restraints=(None, None)):
        """Set the scale of each variable.

        Parameters
        ----------
        curvature : Curvature
        of_restraints : (torch.Tensor or None, torch.Tensor or None)
            What restraints add to it, of sites (n_atoms, 3), Å^-2, and of ln U (n_atoms,).

        Returns
        -------
        float
            What the target is to be divided by for its expected curvature to be 1 in every variable.
        """
        u = self._u_iso.clone()
        if len(self.aniso_rows):
            u[self.aniso_rows] = self._cholesky.square().sum((-1, -2)) / 3
        of_sites, of_u = curvature(self.atoms, self.free, u)
        # An atom that does not scatter has the least curvature of one that does; a target without any, 1.
        of_sites, of_u = _at_least_a_little(of_sites), _at_least_a_little(of_u)
        three = of_sites[:, None].expand(-1, 3)
        if of_restraints[0] is not None:
            three = three + of_restraints[0].to(three)[self.free]
        of_ln_u = of_u.new_zeros(len(u)) if of_restraints[1] is None else of_restraints[1].to(of_u)[self.free]
        of_u = of_u + of_ln_u / u.square().clamp(min=1e-8)
        of_u_aniso = of_u[self.aniso_rows] / 5 * 4 * u[self.aniso_rows]
        parts = [three.reshape(-1)] * self.sites
        parts += [of_u[self.iso_rows] * self._slope.square(), of_u_aniso.repeat_interleave(6)] * self.adp
        all_parts = torch.cat(parts)
        unit = float((of_sites if self.sites else all_parts).median())
        self.scale = (all_parts.clamp(min=_LEAST_CURVATURE * unit) / unit).rsqrt()
        return unit

    def longest(self, direction, shift=0.4, change=1.0):
        """The largest multiple of a direction (n,) that moves no atom by more than ``shift`` Å along an axis, and no variable of
        the size of a displacement parameter by more than ``change``."""
        moved = (direction * self.scale).abs()
        limits = [limit / float(part.max()) for part, limit in zip(moved.split(self.sizes)[:2], (shift, change))
                  if len(part) and float(part.max()) > 0]  # fmt: skip
        return min([1.0, *limits])

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
        before = atoms.u_iso.detach().to(torch.float64)
        riding = (before * ratio[self.parent]).index_put((self.free,), u_iso)
        changes = {"u_iso": torch.where(atoms.use_u_iso, riding, before).to(atoms.dtype)}
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


def _at_least_a_little(curvature):
    present = curvature[(curvature > 0) & curvature.isfinite()]
    if not len(present):
        return torch.ones_like(curvature)
    return curvature.nan_to_num(0.0).clamp(min=_LEAST_CURVATURE * float(present.median()))
