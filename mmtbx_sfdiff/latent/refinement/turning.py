"""Side chains in other rotamers without a force field: the trials of :mod:`.side_chains` with a monomer library's restraints."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from ...atom_arrays import EIGHT_PI_SQ
from ...fmodel import FModel
from ...refinement.restraint import LibraryRestraint
from ..generator.units import KT_300
from .experiment import Experiment
from .problem import problem_of_structure, residue_numbers
from .side_chains import Rotor, SideChainSearch, rotors_of

_LONGEST_BOND, _LONGEST_DISULFIDE, _LONGEST_HYDROGEN = 2.0, 2.5, 1.3  # Å
_MOVED = 0.3  # Å, after which contacts are looked for anew


def structure_rotors(structure: Any, device: str | torch.device = "cpu") -> list[Rotor]:
    """The side chains of a gemmi.Structure that can turn, by its bonds' lengths; rows are its atoms."""
    atoms = list(structure[0].all())
    names = [cra.atom.name for cra in atoms]
    residues = residue_numbers(atoms)
    residue_names = list({number: cra.residue.name for number, cra in zip(residues, atoms)}.values())
    sites = torch.tensor([cra.atom.pos.tolist() for cra in atoms], dtype=torch.float64)
    hydrogen = [cra.atom.is_hydrogen() for cra in atoms]
    bonds = []
    rows: dict[int, list[int]] = {}
    for i, residue in enumerate(residues):
        rows.setdefault(residue, []).append(i)
    for mine in rows.values():
        for i, j in itertools.combinations(mine, 2):
            longest = _LONGEST_HYDROGEN if hydrogen[i] or hydrogen[j] else _LONGEST_BOND
            if float((sites[i] - sites[j]).norm()) < longest:
                bonds.append((i, j))
    sulfurs = [i for i, name in enumerate(names) if name == "SG"]
    bonds += [
        (i, j) for i, j in itertools.combinations(sulfurs, 2) if (sites[i] - sites[j]).norm() < _LONGEST_DISULFIDE
    ]
    return rotors_of(names, residues, residue_names, bonds, device)


class _Energy:
    """A library's geometry as an energy, kJ/mol, whose contacts follow the sites."""

    def __init__(self, geometry: Any) -> None:
        self.geometry = geometry
        self._seen: torch.Tensor | None = None

    def __call__(self, sites_cart: torch.Tensor) -> torch.Tensor:
        here = sites_cart.detach()
        if self._seen is None or float((here - self._seen).abs().max()) > _MOVED:
            self.geometry.update_contacts(here)
            self._seen = here.clone()
        energy: torch.Tensor = 0.5 * KT_300 * self.geometry(sites_cart)
        return energy


def turn_side_chains(
    fmodel: FModel, structure: Any, restraint: LibraryRestraint, report: Any = None
) -> tuple[FModel, list[dict[str, Any]]]:
    """Try every side chain in other rotamers, and take those that are better by the likelihood of the work set and the restraints.

    Parameters
    ----------
    fmodel : FModel
        Isotropic. It is not changed.
    structure : gemmi.Structure
        Of the same atoms in the same order; names and bonds are taken from it.
    restraint : LibraryRestraint
        With the weight that its geometry has.

    Returns
    -------
    FModel, list of dict
        The model with the side chains that were turned, all atoms refined for some steps; ``residue``, ``name``, ``gain``
        (nats) of each.
    """
    single = torch.float32
    fast = fmodel.with_(atoms=fmodel.atoms.to(single), reflections=fmodel.reflections.to(dtype=single))
    problem = problem_of_structure(structure, fast)
    experiment = Experiment(fast, "maximum_likelihood")
    search = SideChainSearch(
        problem,
        experiment,
        structure_rotors(structure, problem.sites_cart.device),
        _Energy(restraint.geometry),
        restraint.weight,
    )
    sites, b, moves = search.run(problem.sites_cart, problem.b_start, report=report)
    atoms = fmodel.atoms
    moved = atoms.replace(sites_cart=sites.to(atoms.dtype), u_iso=(b / EIGHT_PI_SQ).to(atoms.dtype))
    return fmodel.with_(atoms=moved), moves
