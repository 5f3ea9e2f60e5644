"""Rigid bodies: a rotation about its center and a translation for each group of atoms."""

from __future__ import annotations

import torch


class RigidBodies:
    """Sites as a function of six variables a body: a rotation vector times the body's radius, Å, and a translation, Å.

    Parameters
    ----------
    sites_cart : torch.Tensor
        (n_atoms, 3) Å, where the vector is zero.
    groups : torch.Tensor
        (n_atoms,) int64 number of the body of each atom; -1: it does not move.

    Attributes
    ----------
    n : int
    """

    def __init__(self, sites_cart: torch.Tensor, groups: torch.Tensor) -> None:
        self._sites = sites_cart.detach().to(torch.float64)
        self.rows = (groups >= 0).nonzero()[:, 0]
        self.body = groups[self.rows]
        self.n_bodies = int(self.body.max()) + 1 if len(self.rows) else 0
        self.n = 6 * self.n_bodies
        x = self._sites[self.rows]
        count = torch.zeros(self.n_bodies, dtype=torch.float64, device=x.device)
        count = count.index_add(0, self.body, torch.ones_like(x[:, 0])).clamp(min=1)
        center = x.new_zeros(self.n_bodies, 3).index_add(0, self.body, x) / count[:, None]
        self.centers = center
        self._arms = x - center[self.body]
        square = count.new_zeros(self.n_bodies).index_add(0, self.body, self._arms.square().sum(-1))
        self.radii = (square / count).sqrt().clamp(min=1.0)

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        """(n_atoms, 3) Å."""
        part = vector.reshape(self.n_bodies, 2, 3)
        w = part[:, 0] / self.radii[:, None]
        zero = torch.zeros_like(w[:, 0])
        skew = torch.stack([zero, -w[:, 2], w[:, 1], w[:, 2], zero, -w[:, 0], -w[:, 1], w[:, 0], zero], -1)
        rotations = torch.linalg.matrix_exp(skew.reshape(-1, 3, 3))
        there = (rotations[self.body] @ self._arms[:, :, None])[:, :, 0] + (self.centers + part[:, 1])[self.body]
        return self._sites.index_put((self.rows,), there)

    def curvature(self, of_sites: torch.Tensor) -> torch.Tensor:
        """(n,) expected second derivatives, from those of each atom along an axis (n_atoms,), Å^-2."""
        each = of_sites[self.rows].to(torch.float64)[:, None]
        perpendicular = self._arms.square().sum(-1, keepdim=True) - self._arms.square()
        result = each.new_zeros(self.n_bodies, 2, 3)
        rotation = each * perpendicular / self.radii[self.body, None].square()
        return result.index_add(0, self.body, torch.stack([rotation, each.expand(-1, 3)], 1)).reshape(-1)
