"""The OpenMM System: ff14SB with Onufriev, Bashford and Case's generalized Born solvent (OBC II), and
restraints.

OpenMM's ``implicit/obc2.xml`` describes the solvent as a ``CustomGBForce``, which is several times slower on
CPUs than the native ``GBSAOBCForce``; this module fills the native force with the same parameters.
"""

from __future__ import annotations

from typing import Any

import torch

import numpy as np

from .prepared_model import PreparedModel
from .requirements import require

CONSTRAINTS = (None, "h-bonds")


def create_system(
    prepared: PreparedModel,
    constraints: str | None = "h-bonds",
    hydrogen_mass: float | None = 4.0,
    implicit_solvent: bool = True,
    electrostatics: bool = True,
) -> Any:
    """The force field of a prepared model.

    Parameters
    ----------
    prepared : PreparedModel
    constraints : {"h-bonds", None}
        Whether bonds to hydrogen have a fixed length, which allows time steps of 4 fs with heavy hydrogens.
    hydrogen_mass : float or None
        Mass of a hydrogen, Da, taken from the atom it is bound to; None leaves masses alone.
    implicit_solvent : bool
        Without it, the energy is that of the molecule in vacuum.
    electrostatics : bool
        Without it (and without solvent) what is left holds bonds, angles, torsions and contacts, as the restraints of
        a refinement do, at a twentieth of the time.

    Returns
    -------
    openmm.System

    Raises
    ------
    ValueError
        For a choice of constraints that is not known, or a residue the force field does not have.

    Examples
    --------
    >>> create_system(model).getNumParticles(), create_system(model).getNumConstraints()
    (22, 12)
    """
    if constraints not in CONSTRAINTS:
        raise ValueError(f"constraints must be 'h-bonds' or None, not {constraints!r}.")
    openmm, app = require("openmm"), require("openmm.app")
    mass = None if hydrogen_mass is None else hydrogen_mass * openmm.unit.dalton
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(
        prepared.topology,
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds if constraints else None,
        hydrogenMass=mass,
        removeCMMotion=False,
    )
    if not electrostatics:
        _remove_charges(openmm, system)
    elif implicit_solvent:
        from openmm.app.internal.customgbforces import GBSAOBC2Force

        charges = _charges(openmm, system)
        force = openmm.GBSAOBCForce()
        for charge, (radius, scale) in zip(charges, GBSAOBC2Force.getStandardParameters(prepared.topology)):
            force.addParticle(charge, float(radius), float(scale))
        force.setNonbondedMethod(openmm.GBSAOBCForce.NoCutoff)
        force.setName("GBSAOBCForce")
        system.addForce(force)
    return system


def _remove_charges(openmm: Any, system: Any) -> None:
    (force,) = (f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    for i in range(force.getNumParticles()):
        force.setParticleParameters(i, 0.0, *force.getParticleParameters(i)[1:])
    for i in range(force.getNumExceptions()):
        first, second, _, *others = force.getExceptionParameters(i)
        force.setExceptionParameters(i, first, second, 0.0, *others)


def _charges(openmm: Any, system: Any) -> Any:
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            return [force.getParticleParameters(i)[0] for i in range(force.getNumParticles())]
    raise ValueError("the system has no NonbondedForce.")


def add_position_restraints(system: Any, sites_cart: torch.Tensor, index: Any, k: Any) -> Any:
    """Hold atoms near sites by 0.5 k \\|x - x0\\|², in place.

    Parameters
    ----------
    system : openmm.System
        Gets one more force.
    sites_cart : torch.Tensor or numpy.ndarray
        (n_ff, 3), Å: where the atoms are held.
    index : sequence of int
        The atoms, for instance ``prepared.ca_index``.
    k : float or sequence of float
        One for all or one for each of `index`, kJ/mol/Å².

    Returns
    -------
    openmm.System
        The same.

    Raises
    ------
    ValueError
        For a negative or non-finite k, or shapes that do not fit.

    Examples
    --------
    >>> held = add_position_restraints(create_system(model), model.sites_cart, model.ca_index, 0.5)
    >>> held.getForces()[-1].getName()
    'PositionRestraints'
    """
    openmm = require("openmm")
    index = np.asarray(index, dtype=np.int64)
    constants = np.broadcast_to(np.asarray(k, dtype=np.float64), index.shape)
    sites = np.asarray(torch.as_tensor(sites_cart), dtype=np.float64)
    if sites.shape != (system.getNumParticles(), 3):
        raise ValueError(f"sites_cart has shape {sites.shape}, the system {system.getNumParticles()} atoms.")
    if not np.isfinite(constants).all() or (constants < 0).any():
        raise ValueError("force constants of restraints must be finite and not negative.")
    if len(index) and (index.min() < 0 or index.max() >= len(sites)):
        raise ValueError("a restrained atom is not in the system.")
    force = openmm.CustomExternalForce("0.5*k*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("k", "x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    for atom, constant in zip(index, constants):
        if constant > 0:
            force.addParticle(int(atom), [100 * constant, *(0.1 * sites[atom])])
    force.setName("PositionRestraints")
    system.addForce(force)
    return system


def plddt_force_constants(plddt: Any, k_max: float = 0.5) -> np.ndarray:
    """Force constants for restraints from AlphaFold's confidence: none below a pLDDT of 50, then rising with
    its square.

    Parameters
    ----------
    plddt : array-like
        0 to 100.
    k_max : float
        Where pLDDT is 100, kJ/mol/Å².

    Returns
    -------
    numpy.ndarray

    Raises
    ------
    ValueError
        For values that are no pLDDT.

    Examples
    --------
    >>> plddt_force_constants([40, 75, 100], k_max=0.4).tolist()
    [0.0, 0.1, 0.4]
    """
    plddt = np.asarray(plddt, dtype=np.float64)
    if not np.isfinite(plddt).all() or plddt.min(initial=0) < 0 or plddt.max(initial=0) > 100:
        raise ValueError("a pLDDT is between 0 and 100: are these B factors of a refined model?")
    constants: np.ndarray = k_max * np.clip((plddt - 50) / 50, 0, 1) ** 2
    return constants
