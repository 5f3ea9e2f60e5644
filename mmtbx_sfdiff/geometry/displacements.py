"""Restraints on displacement parameters: atoms bonded to one another move alike.

Isotropic pairs:      E = sum ((ln U_i - ln U_j) / sigma)^2
with a tensor:        E = sum [tr(U_i^-1 U_j + U_j^-1 U_i) - 6] / (3 sigma^2)

the second being the symmetrised Kullback-Leibler divergence of the two atoms' distributions, which for nearly equal
isotropic U is the first. sigma is 0.2 for 1-2 neighbors, 0.3 for 1-3 neighbors and 0.5 for an atom that is bonded to none, such as a
water, and the nearest one that is.

Reference for the divergence: Murshudov et al. (2011), Acta Cryst. D67, 355.
"""

from __future__ import annotations

import torch

import numpy as np
from scipy.spatial import cKDTree

from .restraints import GeometryRestraints

SIGMA = {"bond": 0.2, "angle": 0.3, "contact": 0.5}
_NEAR = 4.0  # Å
_LEAST_U = 1e-6  # Å^2


class DisplacementRestraints(torch.nn.Module):
    """Similarity of the displacement parameters of 1-2 and 1-3 neighbors.

    Parameters
    ----------
    bonds : torch.Tensor
        (n, 2) int64 rows of 1-2 neighbors.
    ends : torch.Tensor
        (m, 2) int64 rows of 1-3 neighbors.
    sigma : dict
        Of ``bond``, ``angle`` and ``contact``.
    contacts : torch.Tensor, optional
        (k, 2) int64 rows of atoms that are bonded to none, and their nearest.

    Examples
    --------
    >>> import math
    >>> alike = DisplacementRestraints(torch.tensor([[0, 1]]), torch.tensor([[0, 2]]))
    >>> u_iso = torch.tensor([0.2, 0.2, 0.2 * math.exp(0.3)])          # the 1-3 neighbors are one sigma apart
    >>> round(float(alike(u_iso)), 4), round(float(alike.forward(u_iso)), 4), alike.curvature(3).tolist()
    (1.0, 1.0, [72.22222222222223, 50.0, 22.222222222222225])
    >>> DisplacementRestraints.from_geometry(sfdiff.GeometryRestraints.from_gemmi(structure)).rows.shape[1]
    2
    """

    rows: torch.Tensor
    inverse_sigma: torch.Tensor

    def __init__(
        self,
        bonds: torch.Tensor,
        ends: torch.Tensor,
        sigma: dict[str, float] | None = None,
        contacts: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        sigma = SIGMA | (sigma or {})
        contacts = bonds[:0] if contacts is None else contacts
        kinds = ((bonds, "bond"), (ends, "angle"), (contacts, "contact"))
        self.register_buffer("rows", torch.cat([rows for rows, _ in kinds]).to(torch.int64))
        inverse = [torch.full((len(p),), 1 / sigma[name], dtype=torch.float64, device="cpu") for p, name in kinds]
        self.register_buffer("inverse_sigma", torch.cat(inverse).to(bonds.device))

    @classmethod
    def from_geometry(
        cls, geometry: GeometryRestraints, sigma: dict[str, float] | None = None
    ) -> DisplacementRestraints:
        """Of the bonds and angles of a :class:`GeometryRestraints`, and its atoms that have none."""
        atoms, order = geometry.topology.atoms, geometry.order.cpu().numpy()
        bonded = np.zeros(len(atoms), dtype=bool)
        bonded[geometry.topology.bonds.rows.reshape(-1)] = True
        pairs = np.zeros((0, 2), dtype=np.int64)
        if bonded.any() and not bonded.all():
            alone, others = np.nonzero(~bonded)[0], np.nonzero(bonded)[0]
            d, nearest = cKDTree(atoms.sites_cart[others]).query(atoms.sites_cart[alone])
            pairs = np.column_stack([alone, others[nearest]])[d < _NEAR]
        contacts = torch.from_numpy(order[pairs]).to(geometry.bond_rows.device)
        return cls(geometry.bond_rows, geometry.angle_rows[:, [0, 2]], sigma, contacts)

    def forward(
        self, u_iso: torch.Tensor, u_cart: torch.Tensor | None = None, anisotropic: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sum of squared differences in units of sigma.

        Parameters
        ----------
        u_iso : torch.Tensor
            (..., n) Å^2.
        u_cart : torch.Tensor, optional
            (..., n, 3, 3) Å^2, used where ``anisotropic``.
        anisotropic : torch.Tensor, optional
            (n,) bool.

        Returns
        -------
        torch.Tensor
            (...,)
        """
        i, j = self.rows[:, 0], self.rows[:, 1]
        if u_cart is None or anisotropic is None or not bool(anisotropic.any()):
            ln_u = u_iso.clamp(min=_LEAST_U).log()
            z = (ln_u.index_select(-1, i) - ln_u.index_select(-1, j)) * self.inverse_sigma
            return z.square().sum(-1)
        mixed = anisotropic[i] | anisotropic[j]
        plain = ~mixed
        ln_u = torch.where(anisotropic, torch.ones_like(u_iso), u_iso).clamp(min=_LEAST_U).log()
        z = (ln_u.index_select(-1, i[plain]) - ln_u.index_select(-1, j[plain])) * self.inverse_sigma[plain]
        unit = torch.eye(3, dtype=u_iso.dtype, device=u_iso.device)
        tensors = torch.where(anisotropic[:, None, None], u_cart, u_iso.clamp(min=_LEAST_U)[..., None, None] * unit)
        a, b = tensors.index_select(-3, i[mixed]), tensors.index_select(-3, j[mixed])
        trace = (torch.linalg.inv(a) * b.mT).sum((-1, -2)) + (torch.linalg.inv(b) * a.mT).sum((-1, -2))
        divergence = (trace - 6) / 3 * self.inverse_sigma[mixed].square()
        total: torch.Tensor = z.square().sum(-1) + divergence.sum(-1)
        return total

    def curvature(self, n_atoms: int) -> torch.Tensor:
        """(n_atoms,): diagonal of the Gauss-Newton matrix of E in ln U."""
        twice = 2 * self.inverse_sigma.square()
        result = torch.zeros(n_atoms, dtype=twice.dtype, device=twice.device)
        return result.index_add(0, self.rows[:, 0], twice).index_add(0, self.rows[:, 1], twice)
