"""Translation, libration and screw motion of groups of atoms, beside a residual isotropic displacement of each.

    U_i = M_i C M_i^T + u_i 1,   M_i = [A_i | 1],   C = K K^T

A_i turns a rotation vector into the shift of atom i: A w = w x (x_i - origin). C is the covariance of a group's rotation and
translation, (L, S; S^T, T) in one positive matrix: with K lower triangular U_i is positive for any variables.

Reference: Schomaker & Trueblood (1968), Acta Cryst. B24, 63; Winn et al. (2001), Acta Cryst. D57, 122.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..numerics.symmetric import PAIRS

_LOWER = [(i, j) for i in range(6) for j in range(i + 1)]
_LEAST_LIBRATION = 1e-5  # rad^2: 0.2 degrees, for a derivative
_LEAST_TRANSLATION = 1e-3  # Å^2
_QUANTILE = 0.05
_TRACE_WEIGHT = 1e-4
_DEGREE = math.pi / 180


class TLSGroups:
    """Displacement tensors of grouped atoms as a function of 21 variables a group.

    Parameters
    ----------
    sites_cart : torch.Tensor
        (n, 3) Å of the grouped atoms.
    u_cart : torch.Tensor
        (n, 3, 3) Å^2, their present tensors: the start is fitted to them.
    groups : torch.Tensor
        (n,) int64.
    least : float
        Å^2, of the residual displacements.

    Attributes
    ----------
    n : int
    residual : torch.Tensor
        (n_atoms,) Å^2, what is left of the mean displacement at the start.
    """

    def __init__(self, sites_cart: torch.Tensor, u_cart: torch.Tensor, groups: torch.Tensor, least: float) -> None:
        x = sites_cart.detach().to(torch.float64)
        u = u_cart.detach().to(torch.float64)
        self.groups = groups
        self.n_groups = int(groups.max()) + 1 if len(groups) else 0
        self.n = 21 * self.n_groups
        count = torch.bincount(groups, minlength=self.n_groups).clamp(min=1)[:, None]
        self.origins = x.new_zeros(self.n_groups, 3).index_add(0, groups, x) / count
        self._m = motions(x - self.origins[groups])
        self._k = (
            torch.stack([self._fitted(u, groups == g, least) for g in range(self.n_groups)])
            if self.n_groups
            else x.new_zeros(0, 6, 6)
        )
        moved = self.tensors(torch.zeros(self.n, dtype=torch.float64, device=x.device))
        mean = (u - moved).diagonal(dim1=-2, dim2=-1).mean(-1)
        self.residual = mean.clamp(min=least)

    def _fitted(self, u: torch.Tensor, chosen: torch.Tensor, least: float) -> torch.Tensor:
        """K of the positive C that gives nearly the anisotropy of the tensors, and of their size what all have."""
        m, u = self._m[chosen], u[chosen]
        columns = []
        for i, j in _LOWER:
            c = torch.zeros(6, 6, dtype=torch.float64, device=u.device)
            c[i, j] = c[j, i] = 1.0
            columns.append(_weighted(m @ c @ m.mT))
        design, wanted = torch.stack(columns, -1), _weighted(u)
        found = (
            torch.linalg.lstsq(design.reshape(-1, 21), wanted.reshape(-1, 1), driver="gelsd").solution[:, 0]
            if u.device.type == "cpu"
            else torch.linalg.pinv(design.reshape(-1, 21)) @ wanted.reshape(-1)
        )
        c = torch.zeros(6, 6, dtype=torch.float64, device=u.device)
        for (i, j), value in zip(_LOWER, found.tolist(), strict=True):
            c[i, j] = c[j, i] = value
        # The sizes of T and of the residuals are one another's: T takes what leaves nearly all residuals at least the least.
        left = (u - m @ c @ m.mT).diagonal(dim1=-2, dim2=-1).mean(-1)
        c[3:, 3:] += (float(left.quantile(_QUANTILE)) - least) * torch.eye(3, dtype=c.dtype, device=c.device)
        root: torch.Tensor = torch.linalg.cholesky(_positive(_with_best_trace(c)))
        return root

    def tensors(self, vector: torch.Tensor) -> torch.Tensor:
        """(n_atoms, 3, 3) Å^2, without the residual displacements."""
        k = self._k + self._lower(vector)
        motion = self._m @ k[self.groups]
        result: torch.Tensor = motion @ motion.mT
        return result

    def covariances(self, vector: torch.Tensor) -> torch.Tensor:
        """(n_groups, 6, 6): L (rad^2), S and T (Å^2) of each group, about its origin."""
        k = self._k + self._lower(vector)
        return k @ k.mT

    def tensors_by_group(self, vector: torch.Tensor) -> list[dict[str, Any]]:
        """[{group, origin, T, L, S}] in the units of a deposition: Å, Å^2, degrees^2, Å degrees; S without a trace, which moves no atom."""
        unit = torch.eye(3, dtype=torch.float64, device=vector.device)
        result = []
        for group, c in enumerate(self.covariances(vector)):
            s = c[:3, 3:] - c[:3, 3:].diagonal().mean() * unit
            tensors = {"T": c[3:, 3:], "L": c[:3, :3] / _DEGREE**2, "S": s / _DEGREE}
            origin = self.origins[group].tolist()
            result.append(
                {"group": group, "origin": origin} | {name: value.tolist() for name, value in tensors.items()}
            )
        return result

    def _lower(self, vector: torch.Tensor) -> torch.Tensor:
        full = torch.zeros(self.n_groups, 36, dtype=torch.float64, device=vector.device)
        places = torch.tensor([6 * i + j for i, j in _LOWER], device=vector.device)
        return full.index_copy(1, places, vector.reshape(-1, 21)).reshape(-1, 6, 6)

    def curvature(self, of_u: torch.Tensor) -> torch.Tensor:
        """(n,) expected second derivatives, from those in each atom's isotropic displacement (n_atoms,), Å^-4."""
        result = []
        motion = self._m @ self._k[self.groups]
        for i, j in _LOWER:
            # d U / d K_ij = m_i (M K)_j^T + its transpose
            half = self._m[:, :, i, None] * motion[:, None, :, j]
            change = (half + half.mT).square().sum((-1, -2))
            result.append(of_u.new_zeros(self.n_groups).index_add(0, self.groups, of_u / 5 * change))
        return torch.stack(result, -1).reshape(-1) if self.n_groups else of_u.new_zeros(0)


def motions(arms: torch.Tensor) -> torch.Tensor:
    """(n, 3, 6) from a rotation vector and a translation to the shifts of atoms at (n, 3) from the origin."""
    x, y, z = arms.unbind(-1)
    o = torch.zeros_like(x)
    turn = torch.stack([o, z, -y, -z, o, x, y, -x, o], -1).reshape(-1, 3, 3)
    return torch.cat([turn, torch.eye(3, dtype=arms.dtype, device=arms.device).expand(len(arms), 3, 3)], -1)


def _weighted(u: torch.Tensor) -> torch.Tensor:
    """(..., 6): anisotropy with full weight, size with little."""
    mean = u.diagonal(dim1=-2, dim2=-1).mean(-1)
    parts = [u[..., i, j] - (mean if i == j else 0) for i, j in PAIRS]
    return torch.stack([*parts, _TRACE_WEIGHT * mean], -1)


def _with_best_trace(c: torch.Tensor) -> torch.Tensor:
    """With the trace of S, which moves no atom, that makes C the most positive."""
    libration, translation = (c[k : k + 3, k : k + 3].diagonal().mean().clamp(min=0) for k in (0, 3))
    step = torch.zeros_like(c)
    step[:3, 3:] = step[3:, :3] = torch.eye(3, dtype=c.dtype, device=c.device)
    scale = torch.cat([libration.expand(3), translation.expand(3)]).clamp(min=_LEAST_LIBRATION).sqrt()
    tries = [c + t * float((libration * translation).sqrt()) * step for t in torch.linspace(-1, 1, 81).tolist()]
    least = [float(torch.linalg.eigvalsh(x / scale[:, None] / scale)[0]) for x in tries]
    best: torch.Tensor = tries[max(range(len(tries)), key=least.__getitem__)]
    return best


def _positive(c: torch.Tensor) -> torch.Tensor:
    """The nearest C of which L and T are at least a little."""
    scale = torch.tensor([_LEAST_LIBRATION] * 3 + [_LEAST_TRANSLATION] * 3, dtype=c.dtype, device=c.device).sqrt()
    values, vectors = torch.linalg.eigh(c / scale[:, None] / scale)
    positive: torch.Tensor = (vectors * values.clamp(min=1.0)) @ vectors.mT * scale[:, None] * scale
    return positive
