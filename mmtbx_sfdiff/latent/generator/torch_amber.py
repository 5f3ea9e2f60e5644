"""The energy of an AMBER System in torch: batched, differentiable, on any device.

All numbers are read from the OpenMM System. The terms are those of the OpenMM user guide, "Standard Forces":
harmonic bonds and angles, periodic torsions, Lennard-Jones and Coulomb with exceptions, and the generalized
Born model OBC of Onufriev, Bashford and Case (2004) with the surface-area term of Schaefer, Bartels and
Karplus (1998).

On a CPU OpenMM itself is faster (:class:`~mmtbx_sfdiff.latent.generator.energy.OpenMMEnergy`); this is for batches on a
GPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ...geometry.terms import torsion
from .energy import OpenMMEnergy
from .requirements import require
from .units import NM_PER_ANGSTROM, md_value

# kJ nm/mol/e², from the SI's defining constants as OpenMM takes them
COULOMB = 1.602176634e-19**2 * 6.02214076e23 / (4 * math.pi * 8.8541878128e-12) * 1e6
_OFFSET = 0.009  # nm, of Born radii
_PROBE = 0.14  # nm
_LEAST_SQUARE = 1e-6  # nm²: nearer atoms count as if they were there, or single precision overflows
_ALPHA, _BETA, _GAMMA = 1.0, 0.8, 4.85  # OBC II
_IGNORED = ("CMMotionRemover",)
_RESTRAINT = "0.5*k*((x-x0)^2+(y-y0)^2+(z-z0)^2)"


def energy_on(
    system: Any, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float64, chunk: int | None = None
) -> Any:
    """The fastest energy of a System for tensors on a device: OpenMM's on a CPU, :class:`TorchAmber` elsewhere.

    Parameters
    ----------
    system : openmm.System
    device : str or torch.device
    dtype, chunk
        Of :class:`TorchAmber`.

    Returns
    -------
    callable
        Sites (..., n_ff, 3), Å, to kJ/mol.

    Examples
    --------
    >>> energy_on(system)(frames[:2]).shape
    torch.Size([2])
    """
    if torch.device(device).type == "cpu":
        return OpenMMEnergy(system)
    return TorchAmber(system, dtype, chunk).to(device)


class TorchAmber(nn.Module):
    """Potential energy of a System.

    Parameters
    ----------
    system : openmm.System
        Of :func:`~mmtbx_sfdiff.latent.generator.force_field.create_system`, with or without restraints.
    dtype : torch.dtype
    chunk : int, optional
        Conformers evaluated at once; memory grows with it and with the square of the number of atoms.

    Raises
    ------
    ValueError
        For forces or cutoffs that are not described here.

    Examples
    --------
    >>> from mmtbx_sfdiff.latent import OpenMMEnergy
    >>> amber = TorchAmber(system)
    >>> terms = amber.terms(frames[:2])
    >>> sorted(terms)
    ['angle', 'bond', 'nonbonded', 'solvent', 'torsion']
    >>> value = amber.forward(frames[:2])
    >>> bool(torch.allclose(value, sum(terms.values()))), bool(torch.allclose(value, OpenMMEnergy(system, "Reference")(frames[:2])))
    (True, True)
    """

    bond_index: torch.Tensor
    bond_value: torch.Tensor
    angle_index: torch.Tensor
    angle_value: torch.Tensor
    torsion_index: torch.Tensor
    torsion_value: torch.Tensor
    exception_index: torch.Tensor
    exception_value: torch.Tensor
    restraint_index: torch.Tensor
    restraint_value: torch.Tensor
    charge: torch.Tensor
    pair_index: torch.Tensor
    pair_value: torch.Tensor
    solvent_charge: torch.Tensor
    radius: torch.Tensor
    scaled: torch.Tensor

    def __init__(self, system: Any, dtype: torch.dtype = torch.float64, chunk: int | None = None) -> None:
        super().__init__()
        openmm = require("openmm")
        self.n_atoms = system.getNumParticles()
        self.chunk = chunk
        self.has_solvent = False
        readers = {
            "HarmonicBondForce": self._read_bonds,
            "HarmonicAngleForce": self._read_angles,
            "PeriodicTorsionForce": self._read_torsions,
            "NonbondedForce": self._read_nonbonded,
            "GBSAOBCForce": self._read_solvent,
            "CustomExternalForce": self._read_restraints,
        }
        self._columns: dict[str, bool] = {}
        seen = set()
        for force in system.getForces():
            kind = type(force).__name__
            if kind in _IGNORED:
                continue
            if kind not in readers or kind in seen:
                raise ValueError(f"the system has a force that TorchAmber does not know: {force.getName()} ({kind}).")
            seen.add(kind)
            readers[kind](openmm, force)
        if "NonbondedForce" not in seen:
            raise ValueError("the system has no NonbondedForce.")
        self.to(dtype)

    def _table(self, name: str, rows: list[Any], n_index: int) -> None:
        """Buffers `name`_index (n_index, n) and `name`_value (columns, n) of rows of indices and numbers."""
        width = len(rows[0]) if rows else n_index + 3
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, width)
        self.register_buffer(f"{name}_index", table[:, :n_index].T.long())
        self.register_buffer(f"{name}_value", table[:, n_index:].T.contiguous())
        self._columns[name] = True

    def _read_bonds(self, openmm: Any, force: Any) -> None:
        rows = []
        for n in range(force.getNumBonds()):
            i, j, length, k = force.getBondParameters(n)
            rows.append((i, j, md_value(length), md_value(k)))
        self._table("bond", rows, 2)

    def _read_angles(self, openmm: Any, force: Any) -> None:
        rows = []
        for n in range(force.getNumAngles()):
            i, j, k, angle, constant = force.getAngleParameters(n)
            rows.append((i, j, k, md_value(angle), md_value(constant)))
        self._table("angle", rows, 3)

    def _read_torsions(self, openmm: Any, force: Any) -> None:
        rows = []
        for n in range(force.getNumTorsions()):
            i, j, k, m, period, phase, constant = force.getTorsionParameters(n)
            constant = md_value(constant)
            if constant:
                rows.append((i, j, k, m, period, md_value(phase), constant))
        self._table("torsion", rows, 4)

    def _read_nonbonded(self, openmm: Any, force: Any) -> None:
        if force.getNonbondedMethod() != openmm.NonbondedForce.NoCutoff:
            raise ValueError("TorchAmber evaluates all pairs: the system must be made with NoCutoff.")
        atoms = [[md_value(value) for value in force.getParticleParameters(i)] for i in range(self.n_atoms)]
        charge, sigma, epsilon = torch.tensor(atoms, dtype=torch.float64).T
        pairs = torch.ones(self.n_atoms, self.n_atoms, dtype=torch.bool).triu(1)
        rows = []
        for n in range(force.getNumExceptions()):
            i, j, product, s, e = force.getExceptionParameters(n)
            pairs[min(i, j), max(i, j)] = False
            product, s, e = md_value(product), md_value(s), md_value(e)
            if product or e:
                rows.append((i, j, product, s, e))
        self._table("exception", rows, 2)
        self.register_buffer("charge", charge)
        i, j = torch.nonzero(pairs).T
        self.register_buffer("pair_index", torch.stack([i, j]))
        self.register_buffer(
            "pair_value",
            torch.stack([charge[i] * charge[j], 0.5 * (sigma[i] + sigma[j]), torch.sqrt(epsilon[i] * epsilon[j])]),
        )

    def _read_solvent(self, openmm: Any, force: Any) -> None:
        if force.getNonbondedMethod() != openmm.GBSAOBCForce.NoCutoff:
            raise ValueError("TorchAmber evaluates all pairs: the solvent must be made with NoCutoff.")
        rows = [[md_value(value) for value in force.getParticleParameters(i)] for i in range(self.n_atoms)]
        charge, radius, scale = torch.tensor(rows, dtype=torch.float64).T
        self.has_solvent = True
        self.register_buffer("solvent_charge", charge)
        self.register_buffer("radius", radius)
        self.register_buffer("scaled", scale * (radius - _OFFSET))
        self._dielectric = 1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric()
        self._surface = 4 * math.pi * md_value(force.getSurfaceAreaEnergy())

    def _read_restraints(self, openmm: Any, force: Any) -> None:
        if force.getEnergyFunction() != _RESTRAINT:
            raise ValueError(f"TorchAmber does not know the external energy {force.getEnergyFunction()}.")
        rows = []
        for n in range(force.getNumParticles()):
            atom, values = force.getParticleParameters(n)
            rows.append((atom, *values))
        self._table("restraint", rows, 1)

    def forward(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """Potential energy.

        Parameters
        ----------
        sites_cart : torch.Tensor
            (..., n_ff, 3), Å, on the module's device.

        Returns
        -------
        torch.Tensor
            (...), kJ/mol.

        Raises
        ------
        ValueError
            When the number of atoms does not fit.
        """
        if sites_cart.shape[-2:] != (self.n_atoms, 3):
            raise ValueError(f"sites_cart has shape {tuple(sites_cart.shape)}, the system {self.n_atoms} atoms.")
        x = NM_PER_ANGSTROM * sites_cart.reshape(-1, self.n_atoms, 3)
        parts = x.split(self.chunk or max(len(x), 1))
        return torch.cat([torch.stack(list(self._terms(part).values())).sum(0) for part in parts]).reshape(
            sites_cart.shape[:-2]
        )

    def terms(self, sites_cart: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same by kind of force, {name: (...)}, kJ/mol."""
        x = NM_PER_ANGSTROM * sites_cart.reshape(-1, self.n_atoms, 3)
        return {name: value.reshape(sites_cart.shape[:-2]) for name, value in self._terms(x).items()}

    def _terms(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {"nonbonded": self._nonbonded(x)}
        for name, function in (
            ("bond", self._bonds),
            ("angle", self._angles),
            ("torsion", self._torsions),
            ("restraint", self._restraints),
        ):
            if name in self._columns:
                found[name] = function(x)
        if self.has_solvent:
            found["solvent"] = self._solvent(x)
        return found

    def _bonds(self, x: torch.Tensor) -> torch.Tensor:
        i, j = self.bond_index
        length, k = self.bond_value
        energy: torch.Tensor = 0.5 * (k * ((x[:, i] - x[:, j]).norm(dim=-1) - length).square()).sum(-1)
        return energy

    def _angles(self, x: torch.Tensor) -> torch.Tensor:
        i, j, k = self.angle_index
        angle, constant = self.angle_value
        a, b = x[:, i] - x[:, j], x[:, k] - x[:, j]
        found = torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))
        energy: torch.Tensor = 0.5 * (constant * (found - angle).square()).sum(-1)
        return energy

    def _torsions(self, x: torch.Tensor) -> torch.Tensor:
        i, j, k, m = self.torsion_index
        period, phase, constant = self.torsion_value
        phi = torch.deg2rad(torsion(torch.stack([x[:, i], x[:, j], x[:, k], x[:, m]], -2)))
        energy: torch.Tensor = (constant * (1 + torch.cos(period * phi - phase))).sum(-1)
        return energy

    def _restraints(self, x: torch.Tensor) -> torch.Tensor:
        (i,) = self.restraint_index
        k, *centre = self.restraint_value
        energy: torch.Tensor = 0.5 * (k * (x[:, i] - torch.stack(centre, -1)).square().sum(-1)).sum(-1)
        return energy

    def _nonbonded(self, x: torch.Tensor) -> torch.Tensor:
        energy = x.new_zeros(len(x))
        for index, (charges, sigma, epsilon) in (
            (self.pair_index, self.pair_value),
            (self.exception_index, self.exception_value),
        ):
            i, j = index
            inverse = (x[:, i] - x[:, j]).square().sum(-1).clamp(min=_LEAST_SQUARE).rsqrt()
            six = (sigma * inverse) ** 6
            energy = energy + (4 * epsilon * (six * six - six) + COULOMB * charges * inverse).sum(-1)
        return energy

    def _solvent(self, x: torch.Tensor) -> torch.Tensor:
        square = (x[:, :, None] - x[:, None]).square().sum(-1)
        own = torch.eye(self.n_atoms, dtype=x.dtype, device=x.device)
        r = torch.sqrt(square + own)  # 1 on the diagonal, which counts for nothing
        offset = self.radius - _OFFSET  # of i, along rows
        mine, other = offset[:, None], self.scaled[None]
        low, high = torch.maximum(mine.expand_as(r), (r - other).abs()), r + other
        a, b = 1 / low, 1 / high
        inside = a - b + 0.25 * (r - other.square() / r) * (b * b - a * a) + 0.5 * torch.log(b / a) / r
        inside = inside + torch.where(mine < other - r, 2 * (1 / mine - a), torch.zeros_like(a))
        counted = (mine < high) & (own == 0)
        psi = 0.5 * torch.where(counted, inside, torch.zeros_like(inside)).sum(-1) * offset
        bent = torch.tanh(psi * (_ALPHA - psi * (_BETA - _GAMMA * psi)))
        born = 1 / (1 / offset - bent / self.radius)
        product = born[:, :, None] * born[:, None]
        distance = torch.sqrt(square + product * torch.exp(-square / (4 * product)))
        charges = self.solvent_charge[:, None] * self.solvent_charge[None]
        polar = -0.5 * COULOMB * self._dielectric * (charges / distance).sum((-1, -2))
        area = self._surface * ((self.radius + _PROBE).square() * (self.radius / born) ** 6).sum(-1)
        energy: torch.Tensor = polar + area
        return energy
