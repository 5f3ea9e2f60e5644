"""Where a model is in the crystal: one rigid-body movement for each chain.

    x' = R(w) (R0 (x - c) + c0 - p) + p + t

The base movement (R0, c0 - c) is found by superposition and stays; the rotation vector w and the shift t,
about the chain's placed centroid p, are what is refined. Rodrigues' formula gives R(w).
"""

from __future__ import annotations

from typing import Any

import torch

from ...numerics.superposition import best_rotation


def rotation_matrices(vectors: torch.Tensor) -> torch.Tensor:
    """Rotations (..., 3, 3) by rotation vectors (..., 3), radians; differentiable at zero too."""
    square = vectors.square().sum(-1)[..., None, None]
    small = square < 1e-8
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    sine = torch.where(small, 1 - square / 6, angle.sin() / angle)
    cosine = torch.where(small, 0.5 - square / 24, (1 - angle.cos()) / angle.square())
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vectors.shape[:-1], 3, 3)
    identity = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return identity + sine * cross + cosine * (cross @ cross)


class Placement(torch.nn.Module):
    """A rigid-body movement for each chain.

    Parameters
    ----------
    chain_index : torch.Tensor
        (n,) int64, the chain of each atom, from 0.
    dtype : torch.dtype

    Attributes
    ----------
    rotations, shifts : torch.nn.Parameter
        (n_chains, 3), radians and Å; zero after :meth:`superpose`.
    """

    chain_index: torch.Tensor
    base: torch.Tensor
    centres: torch.Tensor
    placed: torch.Tensor

    def __init__(self, chain_index: torch.Tensor, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        chain_index = torch.as_tensor(chain_index, dtype=torch.int64)
        names, index = torch.unique(chain_index, return_inverse=True)
        n = len(names)
        options: Any = {"dtype": dtype, "device": chain_index.device}
        self.register_buffer("chain_index", index)
        self.rotations = torch.nn.Parameter(torch.zeros(n, 3, **options))
        self.shifts = torch.nn.Parameter(torch.zeros(n, 3, **options))
        self.register_buffer("base", torch.eye(3, **options).repeat(n, 1, 1))
        self.register_buffer("centres", torch.zeros(n, 3, **options))
        self.register_buffer("placed", torch.zeros(n, 3, **options))

    def superpose(self, sites_cart: torch.Tensor, target: torch.Tensor) -> Placement:
        """Set the base movement of every chain so that these sites (n, 3) come closest to the target (n, 3).

        A chain of one or two atoms is only shifted. The refined part is set to zero.
        """
        with torch.no_grad():
            for chain in range(len(self.shifts)):
                rows = self.chain_index == chain
                mobile, fixed = sites_cart[rows], target[rows]
                if int(rows.sum()) >= 3:
                    rotation, centre, placed = best_rotation(mobile, fixed)
                    self.base[chain] = rotation
                else:
                    centre, placed = mobile.mean(0), fixed.mean(0)
                    self.base[chain] = torch.eye(3)
                self.centres[chain], self.placed[chain] = centre, placed
            self.rotations.zero_()
            self.shifts.zero_()
        return self

    def forward(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """Moved sites (..., n, 3), Å, in the dtype of the sites."""
        rotation = rotation_matrices(self.rotations) @ self.base
        chain = self.chain_index
        moved = sites_cart.to(rotation.dtype) - self.centres[chain]
        moved = (rotation[chain] @ moved[..., None])[..., 0]
        return (moved + (self.placed + self.shifts)[chain]).to(sites_cart.dtype)
