"""From a deposited or predicted model to what a force field can use, and the map back to the model's atoms.

Everything but protein is left out, one conformation of each residue is kept, modified residues become their
parent (MSE becomes MET), chains are cut where residues are missing (nothing is invented there), side-chain
atoms that the model lacks are added by PDBFixer, and hydrogens by OpenMM. Whatever was left out or added is
listed.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch

import numpy as np

from .prepared_model import BACKBONE, CAPS, PreparedModel
from .requirements import require

MAX_PEPTIDE_BOND = 2.0  # Å; a longer C-N distance is a gap in the chain
_KEPT_OF_MODIFIED = ("N", "CA", "C", "O", "OXT", "CB")


def prepare_model(
    hierarchy: Any, crystal_symmetry: Any = None, oligomer: Sequence[str] = (), ph: float = 7.0, seed: int = 0
) -> PreparedModel:
    """Strip, complete and protonate a model.

    Parameters
    ----------
    hierarchy : iotbx.pdb.hierarchy.root
        With one model; it is not changed.
    crystal_symmetry : cctbx.crystal.symmetry, optional
        Needed for `oligomer` only.
    oligomer : sequence of str
        Symmetry operators, for instance ``"-x,-y,z"``, whose copies of the model are added as further chains.
    ph : float
        For the hydrogens.
    seed : int
        For the first guess of hydrogens, and of atoms the model lacks.

    Returns
    -------
    PreparedModel

    Raises
    ------
    ImportError
        Without OpenMM or PDBFixer.
    ValueError
        Several models, no protein, an atom that is not the element its name says, or atoms the force field
        does not know.

    Examples
    --------
    >>> from mmtbx_sfdiff.latent.demo import alanine_dipeptide
    >>> model = prepare_model(alanine_dipeptide())
    >>> model.n_ff, len(model.heavy_index), model.dropped
    (22, 10, ())
    """
    app = require("openmm.app")
    if len(hierarchy.models()) != 1:
        raise ValueError(f"the hierarchy has {len(hierarchy.models())} models: give one of them.")
    segments, dropped = _select(hierarchy)
    if not segments:
        raise ValueError(
            "the model has no two joined protein residues with N, CA and C: nothing can be prepared from it."
        )
    moves = [(np.eye(3), np.zeros(3))] + _cartesian_operators(crystal_symmetry, oligomer)
    topology, sites, model_index = _to_topology(app, segments, moves)
    known = {key: i for i, key in enumerate(_keys(topology))}
    topology, completed = _complete(topology, sites, seed)
    with _seeded(seed):
        modeller = app.Modeller(topology, _quantity(completed))
        try:
            modeller.addHydrogens(_force_field(app), pH=ph, platform=_reference())
        except ValueError as error:
            raise ValueError(f"the force field does not know part of the model: {error}") from error
    topology = modeller.topology
    finished = np.array(modeller.positions.value_in_unit(require("openmm").unit.angstrom), dtype=np.float64)
    where, added = {}, []
    for atom, key in zip(topology.atoms(), _keys(topology)):
        if key in known:
            where[known[key]] = atom.index
            finished[atom.index] = sites[known[key]]  # a minimiser had a chance to move them
        elif atom.element.symbol != "H":
            added.append((_label(atom), "the model lacks it"))
    if len(where) != len(known):
        raise ValueError(f"{len(known) - len(where)} atoms of the model were lost while it was completed.")
    kept = range(len(model_index))  # the first copy's
    return PreparedModel(
        topology=topology,
        sites_cart=torch.from_numpy(finished),
        heavy_index=torch.tensor([where[i] for i in kept], dtype=torch.long),
        model_index=torch.tensor(model_index, dtype=torch.long),
        dropped=tuple(dropped),
        added=tuple(added),
        n_copies=len(moves),
    )


def _select(hierarchy: Any) -> Any:
    """Protein residues as unbroken segments of (chain id, number, insertion code, name, atoms), and what was left out."""
    from iotbx.pdb import common_residue_names_get_class
    from iotbx.pdb.amino_acid_codes import three_letter_given_one_letter

    substitutions = require("pdbfixer.pdbfixer").substitutions
    standard = set(three_letter_given_one_letter.values()) - {"UNK"}
    segments: list[Any] = []
    dropped: list[tuple[str, str]] = []
    hydrogens = 0
    place = {atom.memory_id(): i for i, atom in enumerate(hierarchy.atoms())}  # i_seq may be an older hierarchy's
    for chain in hierarchy.chains():
        previous = None
        for group in chain.residue_groups():
            chosen, others = _one_conformation(group)
            name = chosen[0].parent().resname.strip()
            label = f"{chain.id.strip()} {name} {group.resid().strip()}"
            parent = name if name in standard or name in CAPS else substitutions.get(name)
            if parent not in standard and parent not in CAPS:
                kind = common_residue_names_get_class(name).replace("common_", "").replace("_", " ")
                dropped.append((label, f"not protein ({kind})"))
                previous = None if kind not in ("water", "element") else previous
                continue
            names, atoms = set(), []
            for atom in chosen:
                atom_name, element = atom.name.strip(), atom.element.strip().upper()
                if element in ("H", "D"):
                    hydrogens += 1
                    continue
                if name == "MSE" and atom_name == "SE":
                    atom_name, element = "SD", "S"
                elif parent != name and atom_name not in _KEPT_OF_MODIFIED and name != "MSE":
                    dropped.append((f"{label} {atom_name}", f"{name} is taken as {parent}"))
                    continue
                if atom_name in names:
                    raise ValueError(f"{label} has two atoms {atom_name}.")
                names.add(atom_name)
                atoms.append((place[atom.memory_id()], atom_name, element, atom.xyz))
            dropped += [
                (f"{label} {atom.name.strip()}", f"conformation {atom.parent().altloc}")
                for atom in others
                if atom.element.strip().upper() not in ("H", "D")
            ]
            if parent not in CAPS and not names.issuperset(BACKBONE):
                lacks = ", ".join(sorted(set(BACKBONE) - names))
                dropped.append((label, f"lacks {lacks}"))
                previous = None
                continue
            xyz = {atom_name: np.array(place) for _, atom_name, _, place in atoms}
            joined = (
                previous is not None
                and "N" in xyz
                and "C" in previous
                and np.linalg.norm(xyz["N"] - previous["C"]) < MAX_PEPTIDE_BOND
            )
            residue = (chain.id, group.resseq.strip(), group.icode, parent, label, atoms)
            segments[-1].append(residue) if joined else segments.append([residue])
            previous = xyz
    dropped += [(segment[0][4], "bound to no other residue") for segment in segments if len(segment) == 1]
    segments = [segment for segment in segments if len(segment) > 1]  # force fields have no single residues
    if hydrogens:
        dropped.append((f"{hydrogens} hydrogen atoms", "placed anew"))
    return segments, _without_unknown(segments) + dropped


def _one_conformation(group: Any) -> Any:
    """Atoms of the conformation with the highest occupancy (the first of equals), and the others."""
    totals: dict[str, list[float]] = {}
    for atom in group.atoms():
        altloc = atom.parent().altloc.strip()
        if altloc:
            totals.setdefault(altloc, []).append(atom.occ)
    if not totals:
        names = group.unique_resnames()
        chosen = [atom for atom in group.atoms() if atom.parent().resname == names[0]]
        return chosen, [atom for atom in group.atoms() if atom.parent().resname != names[0]]
    best = max(totals, key=lambda altloc: round(sum(totals[altloc]) / len(totals[altloc]), 3))
    chosen, others, names = [], [], set()
    for wanted in (best, ""):  # an atom may be there twice, with and without a letter
        for atom in group.atoms():
            if atom.parent().altloc.strip() == wanted and atom.name not in names:
                names.add(atom.name)
                chosen.append(atom)
    single = {atom.memory_id() for atom in chosen}
    others = [atom for atom in group.atoms() if atom.memory_id() not in single]
    return chosen, others


def _without_unknown(segments: Any) -> Any:
    """Take atoms out that the residue's template does not have; check elements. -> what was dropped"""
    templates, dropped = _templates(), []
    for segment in segments:
        for place, (chain, number, code, name, label, atoms) in enumerate(segment):
            elements = templates[name]
            kept = []
            for atom in atoms:
                _, atom_name, element, _ = atom
                if atom_name not in elements:
                    dropped.append((f"{label} {atom_name}", f"{name} has no such atom"))
                    continue
                if element != elements[atom_name].upper():
                    raise ValueError(
                        f"{label} {atom_name} is {element or 'no element'} in the model, "
                        f"but {elements[atom_name]} in {name}: correct the model's element column."
                    )
                if atom_name == "OXT" and place != len(segment) - 1:
                    dropped.append((f"{label} OXT", "not at the end of its chain"))
                    continue
                kept.append(atom)
            segment[place] = (chain, number, code, name, label, kept)
    return dropped


def _templates() -> Any:
    """{residue name: {atom name: element}} of PDBFixer's complete residues, as force fields name them."""
    templates = _blank_fixer().templates
    found = {}
    for name, template in templates.items():
        found[name] = {atom.name: atom.element.symbol for atom in template.topology.atoms()}
    for name in found:
        if name not in CAPS:
            found[name].setdefault("OXT", "O")
    return found


def _blank_fixer() -> Any:
    line = "ATOM      1  CA  GLY A   1       0.000   0.000   0.000  1.00  0.00           C  \nEND\n"
    return require("pdbfixer").PDBFixer(pdbfile=io.StringIO(line))


def _to_topology(app: Any, segments: Any, moves: Any) -> Any:
    """A topology of all copies, its sites, and the model's number of each of the first copy's atoms."""
    topology, places, model_index = app.Topology(), [], []
    for copy, (rotation, shift) in enumerate(moves):
        for segment in segments:
            chain = topology.addChain(segment[0][0])
            for _, number, code, name, _, atoms in segment:
                residue = topology.addResidue(name, chain, number, code)
                for i_seq, atom_name, element, xyz in atoms:
                    topology.addAtom(atom_name, app.Element.getBySymbol(element.capitalize()), residue)
                    places.append(rotation @ np.array(xyz) + shift)
                    if copy == 0:
                        model_index.append(i_seq)
    sites = np.array(places)
    topology.createStandardBonds()
    topology.createDisulfideBonds(_quantity(sites))
    return topology, sites, model_index


def _cartesian_operators(crystal_symmetry: Any, operators: Any) -> Any:
    if not operators:
        return []
    if crystal_symmetry is None or crystal_symmetry.unit_cell() is None:
        raise ValueError("symmetry copies need a crystal_symmetry with a unit cell.")
    from cctbx import sgtbx

    cell = crystal_symmetry.unit_cell()
    orth = np.array(cell.orthogonalization_matrix()).reshape(3, 3)
    frac = np.array(cell.fractionalization_matrix()).reshape(3, 3)
    moves: list[Any] = []
    for operator in operators:
        try:
            op = sgtbx.rt_mx(operator)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{operator!r} is not a symmetry operator such as '-x,-y,z'.") from error
        if not crystal_symmetry.space_group().contains(op):
            raise ValueError(f"{operator} is not a symmetry operator of {crystal_symmetry.space_group_info()}.")
        rotation = np.array(op.r().as_double()).reshape(3, 3)
        move = orth @ rotation @ frac, orth @ np.array(op.t().as_double())
        if any(np.allclose(move[0], other[0]) and np.allclose(move[1], other[1]) for other in moves) or (
            np.allclose(move[0], np.eye(3)) and np.allclose(move[1], 0)
        ):
            raise ValueError(f"{operator} gives a copy that is there already.")
        moves.append(move)
    return moves


def _complete(topology: Any, sites: np.ndarray, seed: int) -> Any:
    """Atoms that residues lack, added by PDBFixer; no residue is added. -> topology, sites"""
    fixer = _blank_fixer()
    fixer.topology, fixer.positions = topology, _quantity(sites)
    fixer.missingResidues = {}
    fixer.findMissingAtoms()
    with _seeded(seed):
        fixer.addMissingAtoms(seed=seed)
    unit = require("openmm").unit
    return fixer.topology, np.array(fixer.positions.value_in_unit(unit.angstrom), dtype=np.float64).reshape(-1, 3)


def _force_field(app: Any) -> Any:
    return app.ForceField("amber14/protein.ff14SB.xml")


def _reference() -> Any:
    return require("openmm").Platform.getPlatformByName("Reference")


def _quantity(sites: np.ndarray) -> Any:
    unit = require("openmm").unit
    vectors = [require("openmm").Vec3(*map(float, site)) for site in np.asarray(sites)]
    return unit.Quantity(vectors, unit.angstrom).in_units_of(unit.nanometer)


@contextmanager
def _seeded(seed: int) -> Any:
    """Python's own random numbers, which OpenMM's Modeller draws from, from a seed; the caller's state comes back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _keys(topology: Any) -> Any:
    return [(atom.residue.chain.index, atom.residue.index, atom.name) for atom in topology.atoms()]


def _label(atom: Any) -> str:
    residue = atom.residue
    return f"{residue.chain.id.strip()} {residue.name} {residue.id}{residue.insertionCode.strip()} {atom.name}"
