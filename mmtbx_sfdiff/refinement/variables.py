"""The independent variables of a refinement, as one vector that a minimiser moves.

Sites move in Å, each atom by itself or in rigid bodies (:mod:`.rigid`). An isotropic displacement parameter is bounded on both sides by a
logistic function; atoms of a group have one. An anisotropic one is L L^T with L lower triangular, so that it stays positive. An
anisotropic atom may also keep the shape of its tensor and change its size alone: one variable in the place of six, as for tensors that
came from TLS groups; or its tensor is that of its TLS group (:mod:`.tls`) and a residual displacement. Occupancies: :mod:`.occupancies`.
Atoms on special positions are projected onto them. Hydrogens ride: they move with the atom that they are bonded to, and their
displacement parameters change in proportion to its own.

Each variable is divided by the square root of the curvature that the target is expected to have in it (a
diagonal preconditioner): atoms with large B, and displacement parameters beside sites, else differ by orders of
magnitude.

The curvatures are those of :mod:`.curvature`.
"""

from __future__ import annotations

from typing import Any

import torch

import numpy as np

from ..atom_arrays import EIGHT_PI_SQ
from ..atoms import Atoms
from ..numerics import symmetric
from .curvature import Curvature
from .occupancies import OccupancyVariables
from .parameters import Parameters
from .rigid import RigidBodies
from .tls import TLSGroups

B_LOW, B_HIGH = 1.0, 300.0  # Å²; widened where the model is outside already
LEAST_ANISOTROPIC_B = 0.1  # Å², along any axis
_LOWER = ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2))
_LEAST_CURVATURE = 1e-3  # of the median: an atom without scattering must not run away


class Variables:
    """Parameters of a model as a function of one vector.

    Parameters
    ----------
    atoms : Atoms
        A single model; where the vector is zero (with one displacement parameter for a group, with those of the group).
    sites, adp : bool
        What is refined.
    parents : torch.Tensor, optional
        (n_atoms,) int64: row of the atom that each one rides on, its own for those that do not ride. By default hydrogens ride
        on the nearest other atom: only an unlabeled model needs that.
    scaled : bool
        Whether anisotropic atoms change the size of their tensors alone.
    parameters : Parameters, optional
        Which atoms share variables; by default none do.

    Attributes
    ----------
    n : int
        Length of the vector.
    """

    def __init__(
        self,
        atoms: Atoms,
        sites: bool = True,
        adp: bool = True,
        parents: torch.Tensor | None = None,
        scaled: bool = False,
        parameters: Parameters | None = None,
    ) -> None:
        self.atoms, self.sites, self.adp = atoms, sites, adp
        shared = parameters or Parameters()
        if parents is None:
            rides = atoms.hydrogens if not bool(atoms.hydrogens.all()) else torch.zeros_like(atoms.hydrogens)
        else:
            parents = parents.to(atoms.device)
            rides = parents != torch.arange(atoms.n_atoms, device=atoms.device)
        self.free = (~rides).nonzero()[:, 0]
        # Place among the free atoms of the one that each atom goes with: itself, or its parent.
        self.parent = self._parents(rides, parents)
        self._special = _special_positions(atoms)
        every = atoms.use_u_aniso[self.free]
        tls = self._numbers(shared.tls)[self.free]
        self.tls_rows = (every & (tls >= 0)).nonzero()[:, 0] if adp else self.free[:0]
        in_tls = torch.zeros_like(every).index_fill(0, self.tls_rows, True)
        aniso = every & ~in_tls & (not scaled)
        self.iso_rows = (~aniso & (atoms.use_u_iso[self.free] | every)).nonzero()[:, 0]
        self.aniso_rows = aniso.nonzero()[:, 0]
        self._start(tls[self.tls_rows])
        group = self._numbers(shared.b_groups)[self.free[self.iso_rows]]
        group = torch.where(group >= 0, group, atoms.n_atoms + torch.arange(len(group), device=atoms.device))
        self._groups, self._group = torch.unique(group, return_inverse=True)
        self._bound()
        bodies = self._numbers(shared.bodies)
        self._bodies = RigidBodies(atoms.sites_cart, bodies) if sites and bool((bodies >= 0).any()) else None
        self._occupancies = OccupancyVariables(shared.alternatives, shared.alone, atoms.occupancies)
        of_sites = 3 * len(self.free) if self._bodies is None else self._bodies.n
        n_iso, n_tls = len(self._groups), 0 if self._tls is None else self._tls.n
        self.sizes = [of_sites * sites, n_iso * adp, 6 * len(self.aniso_rows) * adp, n_tls * adp, self._occupancies.n]
        self.n = sum(self.sizes)
        self.scale = torch.ones(self.n, dtype=torch.float64, device=atoms.device)

    def _numbers(self, groups: Any) -> torch.Tensor:
        """Groups as a tensor; -1 for all where there are none."""
        if groups is None:
            return torch.full((self.atoms.n_atoms,), -1, dtype=torch.int64, device=self.atoms.device)
        return torch.as_tensor(groups, dtype=torch.int64).to(self.atoms.device)

    def _parents(self, hydrogen: torch.Tensor, parents: torch.Tensor | None) -> torch.Tensor:
        atoms = self.atoms
        position = torch.zeros(atoms.n_atoms, dtype=torch.int64, device=atoms.device)
        position[self.free] = torch.arange(len(self.free), device=atoms.device)
        if parents is not None:
            return position[parents]
        sites = atoms.sites_cart.detach().to(torch.float64)
        for rows in hydrogen.nonzero()[:, 0].split(1000):
            position[rows] = torch.cdist(sites[rows], sites[self.free]).argmin(1)
        return position

    def _start(self, tls: torch.Tensor) -> None:
        atoms = self.atoms
        f64 = torch.float64
        self._sites = atoms.sites_cart.detach().to(f64)[self.free]
        self._u_iso = atoms.u_iso.detach().to(f64)[self.free].clone()
        self._f = atoms.crystal.fractionalization.to(atoms.device)
        self._o = atoms.crystal.orthogonalization.to(atoms.device)
        tensors = atoms.use_u_aniso[self.free]
        u_cart = self._o @ symmetric.full(atoms.u_star.detach().to(f64)[self.free]) @ self._o.T
        size = (u_cart.diagonal(dim1=-2, dim2=-1).sum(-1) / 3).clamp(min=1e-3)
        self._u_iso = torch.where(tensors, size, self._u_iso)
        self._u_mean = self._u_iso.clone()
        self._tls: TLSGroups | None = None
        if len(self.tls_rows):
            least = B_LOW / EIGHT_PI_SQ
            self._tls = TLSGroups(self._sites[self.tls_rows], u_cart[self.tls_rows], tls, least)
            self._u_iso[self.tls_rows] = self._tls.residual
        values, vectors = torch.linalg.eigh(u_cart[self.aniso_rows])
        positive = vectors @ torch.diag_embed(values.clamp(min=LEAST_ANISOTROPIC_B / EIGHT_PI_SQ)) @ vectors.mT
        self._cholesky = torch.linalg.cholesky(positive) if len(positive) else positive

    def _bound(self) -> None:
        """Isotropic displacement parameters, one for each group, between their bounds."""
        n = torch.bincount(self._group, minlength=len(self._groups))
        u = self._u_iso.new_zeros(len(n)).index_add(0, self._group, self._u_iso[self.iso_rows]) / n.clamp(min=1)
        low = min(B_LOW / EIGHT_PI_SQ, 0.5 * float(u.min())) if len(u) else 0.0
        self.u_low = max(low, 1e-4)
        self.u_high = max(B_HIGH / EIGHT_PI_SQ, 2 * float(u.max())) if len(u) else 1.0
        fraction = ((u - self.u_low) / (self.u_high - self.u_low)).clamp(1e-4, 1 - 1e-4)
        self._logit = torch.logit(fraction)
        self._slope = fraction * (1 - fraction) * (self.u_high - self.u_low)

    def vector(self) -> torch.Tensor:
        """(n,) zeros that ask for a gradient."""
        return torch.zeros(self.n, dtype=torch.float64, device=self.atoms.device, requires_grad=True)

    def precondition(
        self,
        curvature: Curvature,
        of_restraints: tuple[torch.Tensor | None, ...] = (None, None),
    ) -> float:
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
        atoms = self.atoms
        u = self._u_mean
        of_sites, of_u = curvature(atoms, self.free, u)
        # An atom that does not scatter has the least curvature of one that does; a target without any, 1.
        of_sites, of_u = _at_least_a_little(of_sites), _at_least_a_little(of_u)
        three = of_sites[:, None].expand(-1, 3)
        if of_restraints[0] is not None and self._bodies is None:
            three = three + of_restraints[0].to(three)[self.free]
        of_ln_u = of_u.new_zeros(len(u)) if of_restraints[1] is None else of_restraints[1].to(of_u)[self.free]
        of_tensors = of_u + of_ln_u / u.square().clamp(min=1e-8)
        of_iso = of_u.new_zeros(len(self._groups)).index_add(0, self._group, of_tensors[self.iso_rows])
        parts = [self._of_sites(three)] * self.sites
        if self.adp:
            of_aniso = of_tensors[self.aniso_rows] / 5 * 4 * u[self.aniso_rows]
            parts += [of_iso * self._slope.square(), of_aniso.repeat_interleave(6)]
            parts += [] if self._tls is None else [self._tls.curvature(of_u[self.tls_rows])]
        if self._occupancies.n:
            of_q = torch.zeros(atoms.n_atoms, dtype=of_u.dtype, device=of_u.device)
            of_q[self.free] = _at_least_a_little(curvature.occupancies(atoms, self.free, u))
            parts.append(self._occupancies.curvature(of_q))
        all_parts = torch.cat(parts)
        unit = float((of_sites if self.sites else all_parts).median())
        self.scale = (all_parts.clamp(min=_LEAST_CURVATURE * unit) / unit).rsqrt()
        return unit

    def _of_sites(self, three: torch.Tensor) -> torch.Tensor:
        if self._bodies is None:
            return three.reshape(-1)
        each = three.new_zeros(self.atoms.n_atoms)
        each[self.free] = three[:, 0]
        return self._bodies.curvature(each)

    def longest(self, direction: torch.Tensor, shift: float = 0.4, change: float = 1.0) -> float:
        """The largest multiple of a direction (n,) that moves no atom by more than ``shift`` Å along an axis, and no logarithm of
        the size of a displacement parameter or an occupancy by more than ``change``."""
        parts = (direction * self.scale).abs().split(self.sizes)
        limits = [
            limit / float(part.max())
            for part, limit in zip(parts, (shift, change, None, None, change))
            if limit is not None and len(part) and float(part.max()) > 0
        ]
        return min([1.0, *limits])

    def tls_groups(self, vector: torch.Tensor) -> list[dict[str, Any]]:
        """Motion of each TLS group for a vector (n,), as :meth:`.tls.TLSGroups.tensors_by_group` has it; none where none is refined."""
        if self._tls is None or not self.adp:
            return []
        return self._tls.tensors_by_group((vector * self.scale).split(self.sizes)[3].detach())

    def damping(self, vector: torch.Tensor, strength: float) -> tuple[float, torch.Tensor]:
        """(penalty, its gradient (n,)) of shifts: springs of equal strength in Å for all sites."""
        weight = torch.full_like(self.scale, strength)
        n = self.sizes[0]
        weight[:n] *= self.scale[:n].square()
        gradient = weight * vector.detach()
        return 0.5 * float(gradient @ vector.detach()), gradient

    def __call__(self, vector: torch.Tensor) -> Atoms:
        """The atoms for a vector (n,), with its gradient."""
        atoms = self.atoms
        shift, logit, lower, motion, occupancy = (vector * self.scale).split(self.sizes)
        changes: dict[str, torch.Tensor] = {}
        if self.sites:
            start = atoms.sites_cart.detach().to(torch.float64)
            if self._bodies is None:
                moved = self._sites + shift.reshape(-1, 3)
                sites = start + (moved - self._sites)[self.parent]
            else:
                sites = self._bodies(shift)
            changes["sites_cart"] = self._on_special_positions(sites).to(atoms.dtype)
        if self.adp:
            changes |= self._displacements(logit, lower, motion)
        if self._occupancies.n:
            changes["occupancies"] = self._occupancies(occupancy).to(atoms.dtype)
        moved_atoms: Atoms = atoms.replace(**changes)
        return moved_atoms

    def _displacements(self, logit: torch.Tensor, lower: torch.Tensor, motion: torch.Tensor) -> dict[str, torch.Tensor]:
        atoms = self.atoms
        ratio = torch.ones(len(self.free), dtype=torch.float64, device=atoms.device)
        u_iso, tensors = self._u_iso, []
        if len(self.iso_rows):
            u = (self.u_low + (self.u_high - self.u_low) * torch.sigmoid(self._logit + logit))[self._group]
            u_iso = u_iso.index_put((self.iso_rows,), u)
            ratio = ratio.index_put((self.iso_rows,), u / self._u_iso[self.iso_rows].clamp(min=self.u_low))
        if len(self.aniso_rows):
            full = torch.zeros(len(self.aniso_rows), 9, dtype=torch.float64, device=atoms.device)
            places = [3 * i + j for i, j in _LOWER]
            full = full.index_copy(1, torch.tensor(places, device=atoms.device), lower.reshape(-1, 6))
            cholesky = self._cholesky + full.reshape(-1, 3, 3)
            tensors.append((self.aniso_rows, cholesky @ cholesky.mT))
        if self._tls is not None:
            unit = torch.eye(3, dtype=torch.float64, device=atoms.device)
            tensors.append((self.tls_rows, self._tls.tensors(motion) + u_iso[self.tls_rows][:, None, None] * unit))
        for rows, u_cart in tensors:
            size = u_cart.diagonal(dim1=-2, dim2=-1).sum(-1) / 3
            ratio = ratio.index_put((rows,), size / self._u_mean[rows])
        before = atoms.u_iso.detach().to(torch.float64)
        riding = (before * ratio[self.parent]).index_put((self.free,), u_iso)
        changes = {"u_iso": torch.where(atoms.use_u_iso, riding, before).to(atoms.dtype)}
        if atoms.use_u_aniso.any():
            all_u = atoms.u_star.detach().to(torch.float64) * ratio[self.parent][:, None]
            for rows, u_cart in tensors:
                new = self._f @ u_cart @ self._f.T
                new = torch.stack([new[:, i, j] for i, j in symmetric.PAIRS], -1)
                all_u = all_u.index_put((self.free[rows],), new)
            for row, (_, _, average) in self._special.items():
                all_u = all_u.index_put((torch.tensor(row, device=atoms.device),), average @ all_u[row])
            changes["u_star"] = all_u.to(atoms.dtype)
        return changes

    def _on_special_positions(self, sites: torch.Tensor) -> torch.Tensor:
        if not self._special:
            return sites
        rows = torch.tensor(list(self._special), device=sites.device)
        rotation = torch.stack([r for r, _, _ in self._special.values()])
        translation = torch.stack([t for _, t, _ in self._special.values()])
        frac = (rotation @ (sites[rows] @ self._f.T)[:, :, None])[:, :, 0] + translation
        return sites.index_put((rows,), frac @ self._o.T)


def _special_positions(atoms: Atoms) -> dict[int, tuple[torch.Tensor, ...]]:
    """{row: (rotation (3, 3), translation (3,), averaging of U* (6, 6))} of atoms on special positions."""
    if not bool((atoms.site_weights < 1).any()):
        return {}
    structure = atoms.to_cctbx() if atoms._structure is None else atoms._structure
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


def _at_least_a_little(curvature: torch.Tensor) -> torch.Tensor:
    present = curvature[(curvature > 0) & curvature.isfinite()]
    if not len(present):
        return torch.ones_like(curvature)
    return curvature.nan_to_num(0.0).clamp(min=_LEAST_CURVATURE * float(present.median()))
