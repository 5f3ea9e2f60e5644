"""What holds a model to what is known of it: geometry and similar displacement parameters, with their weights.

    -ln posterior = -ln likelihood + w E_geometry / 2 + w_B E_B / 2

The weight of the geometry follows a target for the root mean square deviation of bonds that depends on the resolution: R-free
is nearly flat in w, bonds are not. The free set has no say in it. :func:`bond_target` and :func:`adp_weight` were chosen on 16 of the
entries of ``validation/studies/refinement_peers.py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..numerics.symmetric import full

LEAST_WEIGHT, GREATEST_WEIGHT = 0.02, 5.0
# Root mean square deviations of bonds go as the weight to the power of -0.7.
_POWER = 1 / 0.7
_LARGEST_CHANGE = 2.0
_FIRST_CHANGE = 1.4  # bonds of a first macro-cycle are on their way


def bond_target(d_min: float) -> float:
    """Root mean square deviation of bonds (Å) that a refinement at a resolution (Å) should have."""
    return min(0.008, max(0.0045, 0.008 - 0.0025 * (d_min - 1.8)))


def first_weight(d_min: float) -> float:
    """Weight of the geometry that a refinement at a resolution (Å) begins with."""
    return min(0.25, max(0.1, 0.2 * math.exp(0.7 * (2.0 - d_min))))


def adp_weight(d_min: float) -> float:
    """Weight of the similarity of displacement parameters at a resolution (Å)."""
    return min(0.6, max(0.15, 0.15 * math.exp(d_min - 1.8)))


class Restraint:
    """A term of a refinement, in nats; this one is a function of sites.

    Parameters
    ----------
    function : callable
        Sites (n_atoms, 3) Å -> nats; it may have ``update(sites_cart)``, called as each macro-cycle begins.
    """

    def __init__(self, function: Any) -> None:
        self.function = function

    def energy(self, atoms: Any, sites: bool = True, adp: bool = True) -> torch.Tensor:
        """Nats, a scalar with a gradient.

        Parameters
        ----------
        atoms : Atoms
        sites, adp : bool
            Which parameters are refined: terms of others are left out.
        """
        energy: torch.Tensor = self.function(atoms.sites_cart)
        return energy

    def update(self, atoms: Any) -> None:
        """A macro-cycle begins with these atoms."""
        if hasattr(self.function, "update"):
            self.function.update(atoms.sites_cart)

    def curvature(self, atoms: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Expected second derivatives in sites (n, 3), Å^-2, and in ln U (n,); None for none."""
        return None, None

    def close(self, atoms: Any) -> dict[str, Any]:
        """A macro-cycle ended with these atoms: what there is to record of it."""
        return {}

    def resume(self, cycles: list[dict[str, Any]]) -> None:
        """Go on after macro-cycles that were recorded."""


class LibraryRestraint(Restraint):
    """Geometry, and similarity of displacement parameters.

    Parameters
    ----------
    geometry : GeometryRestraints or CctbxRestraints
    displacements : DisplacementRestraints, optional
    weight : float, optional
        Of the geometry; None: it follows ``target``.
    adp_weight : float
    target : float
        Root mean square deviation of bonds, Å.
    first : float
        What a weight that follows begins with.
    """

    def __init__(
        self,
        geometry: Any,
        displacements: Any = None,
        weight: float | None = None,
        adp_weight: float = 0.3,
        target: float = 0.008,
        first: float = 0.2,
    ) -> None:
        super().__init__(geometry)
        self.geometry, self.displacements = geometry, displacements
        self.follows, self._closed = weight is None, 0
        self.weight, self.adp_weight, self.target = first if weight is None else weight, adp_weight, target

    def energy(self, atoms: Any, sites: bool = True, adp: bool = True) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64, device=atoms.device)
        if sites:
            total = total + 0.5 * self.weight * self.geometry(atoms.sites_cart.to(torch.float64))
        if adp and self.displacements is not None:
            total = total + 0.5 * self.adp_weight * self.displacements(*displacement_arguments(atoms))
        return total

    def update(self, atoms: Any) -> None:
        self.geometry.update_contacts(atoms.sites_cart)

    def curvature(self, atoms: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        of_sites = 0.5 * self.weight * self.geometry.curvature(atoms.sites_cart.detach().to(torch.float64))
        if self.displacements is None:
            return of_sites, None
        return of_sites, 0.5 * self.adp_weight * self.displacements.curvature(atoms.n_atoms)

    def close(self, atoms: Any) -> dict[str, Any]:
        sites = atoms.sites_cart.detach().to(torch.float64)
        rms = self.geometry.rms(sites)
        record = {"weight": self.weight, "bond_rms": rms["bond"], "angle_rms": rms["angle"]}
        # A bond that cannot be met must not drive the weight up, nor riding hydrogens down; mmtbx's restraints do not tell.
        bond = self.geometry.usual_bond_rms(sites) if hasattr(self.geometry, "usual_bond_rms") else rms["bond"]
        if self.follows and bond > 0:
            change = (bond / self.target) ** _POWER
            largest = _LARGEST_CHANGE if self._closed else _FIRST_CHANGE
            change = min(largest, max(1 / largest, change))
            self.weight = min(GREATEST_WEIGHT, max(LEAST_WEIGHT, self.weight * change))
        self._closed += 1
        return record | {"next_weight": self.weight}

    def resume(self, cycles: list[dict[str, Any]]) -> None:
        self._closed = len(cycles)
        if cycles and "next_weight" in cycles[-1]:
            self.weight = cycles[-1]["next_weight"]


def displacement_arguments(atoms: Any) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(u_iso, u_cart or None, anisotropic or None) of atoms, as restraints on displacement parameters take them."""
    aniso = atoms.use_u_aniso
    u_iso = atoms.u_iso.to(torch.float64)
    if not bool(aniso.any()):
        return u_iso, None, None
    o = atoms.crystal.orthogonalization.to(atoms.device)
    u = full(atoms.u_star.to(torch.float64))
    return u_iso, o @ u @ o.T, aniso
