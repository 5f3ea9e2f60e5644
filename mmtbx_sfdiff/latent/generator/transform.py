"""Cartesian coordinates to features and back: backbone in the reference's frame, everything else by bond,
angle and torsion.

*Backbone.* With X the atoms N, CA and C of a structure superposed on the reference R (both centred), the
condition of the best superposition, Σ r × x = 0, is linear in X. Superposed structures therefore are exactly
the points R + B y, where the columns of B are orthonormal and orthogonal to R's infinitesimal translations
and rotations: the 3 m - 6 numbers y describe the shape without loss. The volume element over orientations is
d³ᵐx = dT dΩ \\|det(Uᵀ [e × x])\\| dy, U being the basis of those rotations.

*Other atoms.* Each is placed by (r, θ, φ) relative to three atoms placed before (natural extension reference
frame), whole levels of atoms at once; d³x = r² sin θ dr dθ dφ. A second atom on a centre takes its torsion
from the first ("sibling"), so that chirality is one number with a narrow distribution. Bonds whose length is
constrained are no features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ...numerics.superposition import best_rotation
from .prepared_model import PreparedModel
from .units import NM_PER_ANGSTROM, md_value
from .z_matrix import build_z_matrix

CARTESIAN, BOND, ANGLE, TORSION = range(4)


class MixedTransform(nn.Module):
    """Sites of all atoms to features and back.

    Features are, in this order, the 3 m - 6 of the backbone (Å), free bonds (Å), angles and torsions
    (radians, from -π to π about :attr:`torsion_offset`); :attr:`kinds` says which is which.

    Parameters
    ----------
    reference : torch.Tensor
        (n_ff, 3), Å.
    cart_index : torch.Tensor
        (m,) long: atoms in Cartesian coordinates; at least three, not on a line.
    z_matrix : torch.Tensor
        (k, 4) long: atom, its parent, and the references of its angle and torsion; every other atom once.
    frozen_bond : torch.Tensor, optional
        (k,), Å: the length of a bond that is no feature, NaN where it is one.
    torsion_offset : torch.Tensor, optional
        (k,), radians: opposite to where the circle is cut.

    Raises
    ------
    ValueError
        When the z-matrix does not describe the other atoms, or the Cartesian ones lie on a line.

    Examples
    --------
    >>> transform = MixedTransform.from_prepared(model, system, frames=frames)
    >>> transform.n_atoms, transform.n_features, transform.kinds.bincount().tolist()
    (22, 48, [3, 7, 19, 19])
    >>> features, log_det = transform.to_features(superpose(frames, transform.reference, transform.cart_index)[0])
    >>> sites, back = transform.to_sites(features)
    >>> bool(torch.allclose(log_det, -back))
    True
    >>> covariance = torch.cov(features[:, :3].T)
    >>> transform.localise(covariance, length=20.0).shape
    torch.Size([3, 3])
    >>> again = MixedTransform.from_state(transform.config(), transform.state_dict())
    >>> bool(torch.equal(again.to_sites(features)[0], sites))
    True
    """

    reference: torch.Tensor
    cart_index: torch.Tensor
    z_matrix: torch.Tensor
    frozen_bond: torch.Tensor
    torsion_offset: torch.Tensor
    _order: torch.Tensor
    _position: torch.Tensor
    _local: torch.Tensor
    _free: torch.Tensor
    _basis: torch.Tensor
    _turn_basis: torch.Tensor
    _centre: torch.Tensor

    def __init__(
        self,
        reference: torch.Tensor,
        cart_index: torch.Tensor,
        z_matrix: torch.Tensor,
        frozen_bond: torch.Tensor | None = None,
        torsion_offset: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        reference = torch.as_tensor(reference).detach().clone()
        n, k = len(reference), len(z_matrix)
        frozen_bond = torch.full((k,), math.nan, dtype=reference.dtype) if frozen_bond is None else frozen_bond
        torsion_offset = torch.zeros(k, dtype=reference.dtype) if torsion_offset is None else torsion_offset
        described = sorted(cart_index.tolist() + z_matrix[:, 0].tolist())
        if described != list(range(n)):
            raise ValueError("cart_index and z_matrix must name each atom once.")
        if len(cart_index) < 3:
            raise ValueError("at least three atoms must be Cartesian.")
        self.register_buffer("reference", reference)
        self.register_buffer("cart_index", cart_index.clone())
        self.register_buffer("z_matrix", z_matrix.clone())
        self.register_buffer("frozen_bond", frozen_bond.to(reference))
        self.register_buffer("torsion_offset", torsion_offset.to(reference))
        self._plan_levels()
        self._frame()

    def _plan_levels(self) -> None:
        level = {int(atom): 0 for atom in self.cart_index}
        rows, waiting = [], list(range(len(self.z_matrix)))
        table = self.z_matrix.tolist()
        while waiting:
            ready = [row for row in waiting if all(atom in level for atom in table[row][1:])]
            if not ready:
                raise ValueError("the z_matrix refers to atoms that it never places.")
            rows.append(ready)
            done = set(ready)
            waiting = [row for row in waiting if row not in done]
            level.update((table[row][0], len(rows)) for row in ready)
        order = torch.tensor([row for level_rows in rows for row in level_rows], dtype=torch.long)
        self._level_sizes = tuple(len(level_rows) for level_rows in rows)
        placed = torch.cat([self.cart_index, self.z_matrix[order, 0]])
        position = torch.empty(len(self.reference), dtype=torch.long)
        position[placed] = torch.arange(len(placed))
        free = torch.isnan(self.frozen_bond)
        self.register_buffer("_order", order, persistent=False)
        self.register_buffer("_position", position, persistent=False)
        self.register_buffer("_local", position[self.z_matrix[order, 1:]], persistent=False)
        self.register_buffer("_free", torch.nonzero(free)[:, 0], persistent=False)

    def _frame(self) -> None:
        r = self.reference[self.cart_index].double()
        centre = r.mean(0)
        r = r - centre
        turns = _turns(r).flatten(1).T  # (3m, 3)
        shifts = torch.eye(3, dtype=r.dtype, device=r.device).repeat(len(r), 1) / math.sqrt(len(r))
        u, s, _ = torch.linalg.svd(torch.cat([shifts, turns / turns.norm(dim=0).max()], 1), full_matrices=True)
        if s[-1] < 1e-4 * s[0]:
            raise ValueError("the Cartesian atoms lie on a line: their orientation is not defined.")
        turn_basis = torch.linalg.qr(turns)[0]
        self.register_buffer("_basis", u[:, 6:].to(self.reference), persistent=False)
        self.register_buffer("_turn_basis", turn_basis.to(self.reference), persistent=False)
        self.register_buffer("_centre", centre.to(self.reference), persistent=False)

    @classmethod
    def from_prepared(
        cls,
        prepared: PreparedModel,
        system: Any = None,
        frames: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
    ) -> MixedTransform:
        """The transform of a prepared model.

        Parameters
        ----------
        prepared : PreparedModel
        system : openmm.System, optional
            Its constrained bonds are frozen.
        frames : torch.Tensor, optional
            (n, n_ff, 3), Å: torsions are cut where these leave the widest gap; otherwise opposite to the
            reference's.
        reference : torch.Tensor, optional
            (n_ff, 3), Å; by default the sites of `prepared`.

        Returns
        -------
        MixedTransform
        """
        reference = prepared.sites_cart if reference is None else torch.as_tensor(reference)
        bonds = [(a.index, b.index) for a, b in prepared.topology.bonds()]
        residues = prepared.residue_index.tolist()
        cart = prepared.backbone_index
        z_matrix = build_z_matrix(cart.tolist(), bonds, prepared.elements, residues)
        frozen = torch.full((len(z_matrix),), math.nan, dtype=reference.dtype)
        if system is not None:
            lengths = {}
            for i in range(system.getNumConstraints()):
                a, b, length = system.getConstraintParameters(i)
                lengths[frozenset((a, b))] = md_value(length) / NM_PER_ANGSTROM
            for row, (atom, parent, _, _) in enumerate(z_matrix.tolist()):
                frozen[row] = lengths.get(frozenset((atom, parent)), math.nan)
        made = cls(reference, cart, z_matrix, frozen)
        sample = reference[None] if frames is None else torch.as_tensor(frames)
        return cls(reference, cart, z_matrix, frozen, _widest_gap(made._internal(sample.to(reference))[2]))

    @property
    def n_atoms(self) -> int:
        """Number of force-field atoms."""
        return len(self.reference)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self._basis.shape[1] + len(self._free) + 2 * len(self.z_matrix)

    @property
    def kinds(self) -> torch.Tensor:
        """(n_features,) long: 0 Cartesian, 1 bond, 2 angle, 3 torsion."""
        k = len(self.z_matrix)
        counts = torch.tensor([self._basis.shape[1], len(self._free), k, k])
        return torch.repeat_interleave(torch.arange(4), counts)

    def localise(self, covariance: torch.Tensor, length: float = 20.0) -> torch.Tensor:
        """Damp the covariance of the backbone's features between atoms that are far apart.

        The covariance of sites is multiplied by exp(-d²/(2 length²)), d the distance in the reference: what few
        frames say of distant atoms is mostly chance, while bonds and angles, between near ones, stay as stiff as
        they are. (Ensemble Kalman filters do the same: Houtekamer and Mitchell 2001.) The result has full rank.

        Parameters
        ----------
        covariance : torch.Tensor
            (3 m - 6, 3 m - 6), Å².
        length : float
            Å.

        Returns
        -------
        torch.Tensor
            Of the same shape, positive where the argument is.
        """
        if not length > 0:
            raise ValueError(f"length must be positive, not {length}.")
        sites = self.reference[self.cart_index]
        damping = torch.exp(-0.5 * (torch.cdist(sites, sites) / length).square())
        damping = damping.repeat_interleave(3, 0).repeat_interleave(3, 1)
        return self._basis.T @ (damping * (self._basis @ covariance @ self._basis.T)) @ self._basis

    def to_features(self, sites_cart: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of structures superposed on the reference (see :func:`superpose`).

        Parameters
        ----------
        sites_cart : torch.Tensor
            (..., n_ff, 3), Å.

        Returns
        -------
        x : torch.Tensor
            (..., n_features).
        log_det : torch.Tensor
            (...), the logarithm of the volume of features for each volume of shapes, with frozen bonds at
            their length.
        """
        if sites_cart.shape[-2:] != (self.n_atoms, 3):
            raise ValueError(f"sites_cart has shape {tuple(sites_cart.shape)}, the transform {self.n_atoms} atoms.")
        cart = sites_cart[..., self.cart_index, :] - self._centre
        moved = cart - (self.reference[self.cart_index] - self._centre)
        r, theta, phi = self._internal(sites_cart)
        x = torch.cat(
            [moved.flatten(-2) @ self._basis, r[..., self._free], theta, _wrap(phi - self.torsion_offset)], -1
        )
        r = torch.where(torch.isnan(self.frozen_bond), r, self.frozen_bond)
        return x, -self._log_volume(cart, r, theta)

    def to_sites(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sites from features.

        Parameters
        ----------
        x : torch.Tensor
            (..., n_features).

        Returns
        -------
        sites_cart : torch.Tensor
            (..., n_ff, 3), Å, superposed on the reference.
        log_det : torch.Tensor
            (...), minus that of :meth:`to_features`.
        """
        if x.shape[-1] != self.n_features:
            raise ValueError(f"x has {x.shape[-1]} features, the transform {self.n_features}.")
        k, n_free = len(self.z_matrix), len(self._free)
        y, bonds, theta, phi = torch.split(x, [self._basis.shape[1], n_free, k, k], -1)
        cart = self.reference[self.cart_index] - self._centre + (y @ self._basis.T).unflatten(-1, (-1, 3))
        r = self.frozen_bond.expand(*x.shape[:-1], k).index_copy(-1, self._free, bonds)
        local = torch.stack(
            [
                -r * torch.cos(theta),
                r * torch.sin(theta) * torch.cos(phi + self.torsion_offset),
                r * torch.sin(theta) * torch.sin(phi + self.torsion_offset),
            ],
            -1,
        )[..., self._order, :]
        placed = cart + self._centre
        first = 0
        for size in self._level_sizes:
            rows = slice(first, first + size)
            p, g, t = (placed[..., self._local[rows, column], :] for column in range(3))
            axis = _unit(p - g)
            normal = _unit(torch.linalg.cross(g - t, axis))
            across = torch.linalg.cross(normal, axis)
            a, b, c = local[..., rows, :].unbind(-1)
            new = p + a[..., None] * axis + b[..., None] * across + c[..., None] * normal
            placed = torch.cat([placed, new], -2)
            first += size
        return placed[..., self._position, :], self._log_volume(cart, r, theta)

    def _internal(self, sites_cart: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a, p, g, t = (sites_cart[..., self.z_matrix[:, column], :] for column in range(4))
        bond, axis, far = a - p, p - g, g - t
        r = bond.norm(dim=-1)
        theta = torch.atan2(torch.linalg.cross(bond, axis).norm(dim=-1), -(bond * axis).sum(-1))
        normal = torch.linalg.cross(far, axis)
        across = torch.linalg.cross(normal, axis) / axis.norm(dim=-1, keepdim=True)
        return r, theta, torch.atan2((bond * normal).sum(-1), (bond * across).sum(-1))

    def _log_volume(self, cart: torch.Tensor, r: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        turned = _turns(cart)  # (..., 3, m, 3)
        inner = turned.flatten(-2) @ self._turn_basis  # (..., 3, 3)
        orientation = torch.linalg.slogdet(inner)[1]
        volume: torch.Tensor = orientation + (2 * torch.log(r) + torch.log(torch.sin(theta).abs())).sum(-1)
        return volume

    def config(self) -> dict[str, Any]:
        """What :meth:`from_config` needs beside the tensors."""
        return {"n_ff": self.n_atoms, "n_cart": len(self.cart_index), "n_z": len(self.z_matrix)}

    @classmethod
    def from_state(cls, config: dict[str, Any], state: dict[str, Any]) -> MixedTransform:
        """A transform from the tensors of its ``state_dict``."""
        made = cls(*(state[name] for name in ("reference", "cart_index", "z_matrix", "frozen_bond", "torsion_offset")))
        if made.config() != config:
            raise ValueError("the tensors of the transform do not fit its description.")
        return made


def superpose(
    sites_cart: torch.Tensor, reference: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sites moved so that some atoms lie best on those of a reference (Kabsch).

    Parameters
    ----------
    sites_cart : torch.Tensor
        (..., n, 3), Å.
    reference : torch.Tensor
        (n, 3), Å.
    index : torch.Tensor
        (m,) long: the atoms that count, all alike.

    Returns
    -------
    sites_cart : torch.Tensor
        (..., n, 3), Å; the gradient takes the rotation and the shift as constants.
    rotation : torch.Tensor
        (..., 3, 3), applied from the right.

    Examples
    --------
    >>> moved, rotation = superpose(frames + 5.0, model.sites_cart, model.backbone_index)
    >>> moved.shape, bool((moved[:, model.backbone_index].mean(1) - model.sites_cart[model.backbone_index].mean(0)).abs().max() < 1e-9)
    (torch.Size([80, 22, 3]), True)
    """
    rotation, centre, target_centre = best_rotation(sites_cart[..., index, :], reference[index])
    rotation = rotation.mT
    shift = (target_centre - (centre[..., None, :] @ rotation)[..., 0, :])[..., None, :]
    return sites_cart @ rotation.to(sites_cart) + shift.to(sites_cart), rotation.to(sites_cart)


def _turns(x: torch.Tensor) -> torch.Tensor:
    """e × x for the three axes e: (..., m, 3) -> (..., 3, m, 3)"""
    zero = torch.zeros_like(x[..., 0])
    a, b, c = x.unbind(-1)
    return torch.stack(
        [torch.stack([zero, -c, b], -1), torch.stack([c, zero, -a], -1), torch.stack([-b, a, zero], -1)], -3
    )


def _unit(x: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit


def _wrap(angle: torch.Tensor) -> torch.Tensor:
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))


def _widest_gap(phi: torch.Tensor) -> torch.Tensor:
    """The angle opposite to the middle of the widest gap between samples: (n, k) -> (k,)"""
    ordered = torch.sort(phi.reshape(-1, phi.shape[-1]), 0)[0]
    gaps = torch.cat([ordered[1:], ordered[:1] + 2 * math.pi]) - ordered
    widest = gaps.argmax(0, keepdim=True)
    middle = torch.gather(ordered, 0, widest)[0] + torch.gather(gaps, 0, widest)[0] / 2
    return _wrap(middle + math.pi)
