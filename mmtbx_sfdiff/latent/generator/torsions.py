"""Sites as a function of torsions: a molecule whose bonds, angles and planes stay what they are.

With every bond that turns goes a rotation T_a about its axis in the *reference*, by the change of its torsion. The rotations of
the bonds between the root of an atom's chain and the atom, the one next to the root first, carry it to its place (the product of
exponentials of robotics: Brockett 1984):

    x_i = T_1 T_2 ... T_k  x_i(reference)

Products along all paths at once need as many rounds as the logarithm of the longest path (pointer jumping). At the end each chain
is superposed on its reference, and the derivative is that of the superposed sites.
"""

from __future__ import annotations

import torch
from torch import nn

from ...geometry.terms import torsion
from ...numerics.superposition import followed_rotation


class TorsionTree(nn.Module):
    """The torsions of molecules and what they move.

    Parameters
    ----------
    reference : torch.Tensor
        (n, 3) Å, float64.
    torsions : torch.Tensor
        (m, 4) int64: the atoms of each; it turns about the bond of the middle two, what is beyond the third.
    moved : torch.Tensor
        (m, n) bool: the atoms that each torsion moves.
    chain_index : torch.Tensor
        (n,) int64, from 0: the molecule of each atom.
    fitted : torch.Tensor
        (n,) bool: the atoms that superposition goes by, at least three of each molecule.

    Raises
    ------
    ValueError
        Torsions that move atoms of which neither set holds the other: no tree.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 1, 0], [0, 0, 0], [1.5, 0, 0], [1.5, 1, 0]], dtype=torch.float64)
    >>> moved = torch.tensor([[False, False, False, True]])
    >>> tree = TorsionTree(x, torch.tensor([[0, 1, 2, 3]]), moved, torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool))
    >>> sites = tree(torch.tensor([0.3], dtype=torch.float64))
    >>> round(float(tree.changes(sites)), 6)
    0.3
    """

    reference: torch.Tensor
    torsions: torch.Tensor
    moved: torch.Tensor
    chain_index: torch.Tensor
    fitted: torch.Tensor
    parent: torch.Tensor
    last: torch.Tensor

    def __init__(
        self,
        reference: torch.Tensor,
        torsions: torch.Tensor,
        moved: torch.Tensor,
        chain_index: torch.Tensor,
        fitted: torch.Tensor,
    ) -> None:
        super().__init__()
        reference = reference.detach().to(torch.float64)
        size = moved.sum(1)
        # The innermost torsion that moves an atom, or the third atom of another torsion, comes last on its path.
        n, m = len(reference), len(torsions)
        inside = torch.where(moved, size[:, None], n + 1)
        least, last = inside.min(0) if m else (torch.full((n,), n + 1), torch.zeros(n, dtype=torch.int64))
        self.register_buffer("reference", reference)
        self.register_buffer("torsions", torsions)
        self.register_buffer("moved", moved)
        self.register_buffer("chain_index", chain_index)
        self.register_buffer("fitted", fitted)
        # Row m is the identity, of what no torsion moves.
        self.register_buffer("last", torch.where(least <= n, last, m))
        self.register_buffer("parent", self._parents(moved, size))
        depth = int(moved.sum(0).max()) if m else 0
        self.rounds = max(1, depth).bit_length()

    @staticmethod
    def _parents(moved: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        """(m + 1,) the next torsion towards the root; m where there is none."""
        m = len(moved)
        common = moved.to(torch.float64) @ moved.to(torch.float64).T
        holds = (common == size[None, :]) & (size[:, None] > size[None, :])  # [a, b]: a moves all that b moves
        apart = (common == 0) | holds | holds.T | torch.eye(m, dtype=torch.bool, device=moved.device)
        if not bool(apart.all()):
            a, b = (~apart).nonzero()[0].tolist()
            raise ValueError(f"Torsions {a} and {b} move some atoms in common and others not: they form no tree.")
        outer = torch.where(holds, size[:, None], torch.iinfo(torch.int64).max)
        parents = torch.full((m + 1,), m, dtype=torch.int64, device=moved.device)
        if m:
            least, which = outer.min(0)
            parents[:m] = torch.where(least < torch.iinfo(torch.int64).max, which, m)
        return parents

    @property
    def n_torsions(self) -> int:
        """Number of torsions."""
        return len(self.torsions)

    def forward(self, changes: torch.Tensor) -> torch.Tensor:
        """Sites with changed torsions.

        Parameters
        ----------
        changes : torch.Tensor
            (..., m) radians.

        Returns
        -------
        torch.Tensor
            (..., n, 3) Å, each molecule superposed on the reference.
        """
        rotation, shift = self._movements(changes)
        parent = self.parent
        for _ in range(self.rounds):
            outer, outer_shift = rotation[..., parent, :, :], shift[..., parent, :]
            shift = (outer @ shift[..., None])[..., 0] + outer_shift
            rotation = outer @ rotation
            parent = parent[parent]
        moved = (rotation[..., self.last, :, :] @ self.reference[..., None])[..., 0] + shift[..., self.last, :]
        return self._superposed(moved)

    def _movements(self, changes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotations (..., m + 1, 3, 3) and shifts (..., m + 1, 3) about the axes of the reference."""
        b, c = (self.reference[self.torsions[:, i]] for i in (1, 2))
        axis = (c - b) / (c - b).norm(dim=-1, keepdim=True)
        x, y, z = axis.unbind(-1)
        zero = torch.zeros_like(x)
        cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
        identity = torch.eye(3, dtype=axis.dtype, device=axis.device)
        angle = changes.to(axis.dtype)[..., None, None]
        rotation = identity + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)
        shift = b - (rotation @ b[..., None])[..., 0]
        still = identity.expand(*rotation.shape[:-3], 1, 3, 3), torch.zeros_like(shift[..., :1, :])
        if not self.n_torsions:
            still = identity.expand(*changes.shape[:-1], 1, 3, 3), axis.new_zeros(*changes.shape[:-1], 1, 3)
        return torch.cat([rotation, still[0]], -3), torch.cat([shift, still[1]], -2)

    def _superposed(self, sites: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(sites)
        for chain in self.chain_index.unique().tolist():
            rows = (self.chain_index == chain).nonzero()[:, 0]
            fitted = rows[self.fitted[rows]]
            rotation, center, new_center = followed_rotation(sites[..., fitted, :], self.reference[fitted])
            mine = (sites[..., rows, :] - center[..., None, :]) @ rotation.mT + new_center[..., None, :]
            result = result.index_copy(-2, rows, mine)
        return result

    def changes(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """(..., m) radians, from -π to π: torsions of sites (..., n, 3) less those of the reference."""
        found = torch.deg2rad(torsion(sites_cart.to(torch.float64)[..., self.torsions, :]))
        difference = found - torch.deg2rad(torsion(self.reference[self.torsions]))
        return torch.atan2(difference.sin(), difference.cos())

    def jacobian(self) -> torch.Tensor:
        """(n, 3, m) Å per radian: the derivative of the superposed sites where nothing is changed."""
        b, c = (self.reference[self.torsions[:, i]] for i in (1, 2))
        axis = (c - b) / (c - b).norm(dim=-1, keepdim=True)
        arm = self.reference[:, None] - b[None]
        free = torch.linalg.cross(axis[None].expand_as(arm), arm) * self.moved.T[..., None]
        result = torch.empty_like(free)
        for chain in self.chain_index.unique().tolist():
            rows = (self.chain_index == chain).nonzero()[:, 0]
            chosen = self.fitted[rows]
            rigid = _rigid(self.reference[rows])
            pinned = rigid[chosen].flatten(0, 1)
            # Least squares over the fitted atoms takes out what a movement as a whole does.
            part = torch.linalg.lstsq(pinned, free[rows][chosen].movedim(1, 2).flatten(0, 1)).solution
            result[rows] = free[rows] - (rigid @ part).movedim(1, 2)
        return result.movedim(1, 2)


def _rigid(sites: torch.Tensor) -> torch.Tensor:
    """(n, 3, 6) infinitesimal shifts and turns about the center."""
    arm = sites - sites.mean(0)
    unit = torch.eye(3, dtype=sites.dtype, device=sites.device)
    turns = torch.linalg.cross(unit[None].expand(len(arm), 3, 3), arm[:, None].expand(len(arm), 3, 3))
    return torch.cat([unit[None].expand(len(arm), 3, 3), turns.mT / arm.norm(dim=-1).max().clamp(min=1.0)], -1)
