"""What restraints are on: distances, angles, torsions, chiral volumes and deviations from planes.

Every function takes gathered sites (..., n, k, 3), Å, and returns (..., n); all are differentiable twice where the
quantity itself is, and give finite derivatives where it is not (atoms on one another, or three on a line).

The oracle is gemmi (``Topo.Bond.calculate`` and the like), to rounding.
"""

from __future__ import annotations

import torch

_TINY = 1e-24


def length(v: torch.Tensor) -> torch.Tensor:
    """Norm of the last dimension; its derivative at 0 is 0."""
    return (v * v).sum(-1).clamp(min=_TINY).sqrt()


def distance(x: torch.Tensor) -> torch.Tensor:
    """Å, of sites (..., n, 2, 3)."""
    return length(x[..., 1, :] - x[..., 0, :])


def angle(x: torch.Tensor) -> torch.Tensor:
    """Degrees, at the middle one of sites (..., n, 3, 3)."""
    u, v = x[..., 0, :] - x[..., 1, :], x[..., 2, :] - x[..., 1, :]
    return torch.rad2deg(torch.atan2(length(torch.linalg.cross(u, v)), (u * v).sum(-1)))


def torsion(x: torch.Tensor) -> torch.Tensor:
    """Degrees in (-180, 180], of sites (..., n, 4, 3)."""
    a, b, c = (x[..., i + 1, :] - x[..., i, :] for i in range(3))
    m, n = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
    y, z = length(b) * (a * n).sum(-1), (m * n).sum(-1)
    # Three atoms on a line have no torsion, and atan2(0, 0) no derivative.
    return torch.rad2deg(torch.atan2(y, torch.where((y == 0) & (z == 0), torch.ones_like(z), z)))


def volume(x: torch.Tensor) -> torch.Tensor:
    """Å^3: signed chiral volume of a center and its three neighbors (..., n, 4, 3)."""
    a, b, c = (x[..., i, :] - x[..., 0, :] for i in (1, 2, 3))
    signed: torch.Tensor = (a * torch.linalg.cross(b, c)).sum(-1)
    return signed


def out_of_plane(x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Å^2: sum of the squared distances of atoms from their best plane.

    Parameters
    ----------
    x : torch.Tensor
        (..., n, k, 3).
    present : torch.Tensor
        (n, k) of 1 and 0, for planes of fewer than k atoms.

    Returns
    -------
    torch.Tensor
        (..., n): the smallest eigenvalue of the atoms' scatter matrix, which is that sum.
    """
    w = present[..., None]
    center = (w * x).sum(-2, keepdim=True) / w.sum(-2, keepdim=True)
    d = w * (x - center)
    smallest: torch.Tensor = torch.linalg.eigvalsh(d.mT @ d)[..., 0]
    return smallest


def normals(x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """(..., n, 3) unit normals of those planes, without a gradient."""
    w = present[..., None]
    x = x.detach()
    d = w * (x - (w * x).sum(-2, keepdim=True) / w.sum(-2, keepdim=True))
    normal: torch.Tensor = torch.linalg.eigh(d.mT @ d)[1][..., 0]
    return normal


def wrapped(difference: torch.Tensor, period: torch.Tensor) -> torch.Tensor:
    """A difference of angles, brought next to 0 by whole periods."""
    return difference - period * torch.round((difference / period).detach())
