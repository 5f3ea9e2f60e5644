"""What a monomer library says of a structure: gemmi's topology as arrays of rows, ideal values and esds.

Links, alternative conformations and modifications (termini, deprotonation, ...) are gemmi's. A residue that the
library does not know has its present geometry for its ideal one, which gemmi derives; an atom that its residue's
monomer does not have is tied to its neighbors in the same way. Both are named in ``messages``.

Residues that follow one another in a chain's sequence are linked up to 3.5 Å apart (:mod:`.chain_links`).

Torsions: side chains, omega, disulfides, and sp2 and sp3 torsions of ligands. Phi, psi and the backbone of nucleic
acids are what the data decide; sugar puckers are listed for both kinds at once; torsions of an esd of 0 are flat
rings, which planes restrain.

Bonds of metals, which gemmi makes of a file's links, have an esd of 0.1 Å here (0.02 there): coordination varies. Those
further than 0.5 Å from their length, as of water in a second shell, are left to the data.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import gemmi
import numpy as np
from scipy.spatial import cKDTree

from .chain_links import joined
from .library import MonomerLibrary

TORSIONS = ("omega", "chi", "ss", "sp2", "sp3", "hh")
_CHIRALITY_ESD = 0.2  # Å^3
_HELD_BOND, _HELD_ANGLE = 0.02, 0.04  # Å, esds of atoms tied to their present neighbors, 1-2 and 1-3
_COORDINATION, _COORDINATED = 0.1, 0.5  # Å: esd of metals' bonds, whose lengths vary, and how far off still counts
_SLACK = 0.45  # Å beyond two covalent radii at which atoms count as bonded
_SIGN = {gemmi.ChiralityType.Positive: 1.0, gemmi.ChiralityType.Negative: -1.0, gemmi.ChiralityType.Both: 0.0}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Restraints of one kind.

    Attributes
    ----------
    rows : numpy.ndarray
        (n, k) int64, of the atoms of each.
    values, esds : numpy.ndarray
        (n,) Å, degrees or Å^3.
    extra : numpy.ndarray
        (n,): a torsion's period in degrees; a chiral center's sign, 0 where both hands will do; whether a bond leaves
        the asymmetric unit; how many of a plane's rows count.
    """

    rows: np.ndarray
    values: np.ndarray
    esds: np.ndarray
    extra: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclasses.dataclass(frozen=True)
class AtomTable:
    """What the restraints need to know of each atom, in the order of the structure.

    Attributes
    ----------
    names, altlocs, elements, residue_names, energy_types : numpy.ndarray
        (n,) str.
    residues, models : numpy.ndarray
        (n,) int64, numbers of the residue and of the model that an atom is in.
    sites_cart : numpy.ndarray
        (n, 3) Å.
    occupancies : numpy.ndarray
        (n,)
    """

    names: np.ndarray
    altlocs: np.ndarray
    elements: np.ndarray
    residue_names: np.ndarray
    energy_types: np.ndarray
    residues: np.ndarray
    models: np.ndarray
    sites_cart: np.ndarray
    occupancies: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Topology:
    """All restraints of a structure, and what there is to say about them."""

    atoms: AtomTable
    bonds: Rows
    angles: Rows
    torsions: Rows
    chirals: Rows
    planes: Rows
    unknown: tuple[str, ...]
    messages: tuple[str, ...]


def topology(
    structure: gemmi.Structure,
    library: MonomerLibrary,
    ligands: Sequence[Any] = (),
    torsions: Sequence[str] = TORSIONS,
) -> Topology:
    """Restraints of every model of a structure.

    Parameters
    ----------
    structure : gemmi.Structure
        It is not changed.
    library : MonomerLibrary
    ligands : sequence of path
        CIF files of monomers, before those of the library.
    torsions : sequence of str
        What the labels of the torsions begin with.

    Raises
    ------
    ValueError
        No atoms; a library or ligand file that cannot be read.
    """
    names = {residue.name for model in structure for chain in model for residue in chain}
    if not names:
        raise ValueError("The structure has no atoms to restrain.")
    monomers, unknown = library.read(names, ligands)
    copy = structure.clone()
    copy.setup_entities()
    with_current_names(copy, monomers)
    parts = []
    stretched: list[str] = []
    offset = 0
    for index in range(len(copy)):
        with joined(copy[index]) as links:
            top = gemmi.prepare_topology(
                copy, monomers, index, gemmi.HydrogenChange.NoChange, False, io.StringIO(), False
            )
        stretched += links
        offset = _number(copy[index], structure[index], offset)
        # The topology points into the copy, whose serials are rows now: read it before the next model's.
        parts.append(_read(top, tuple(torsions)))
    atoms = _atom_table(structure, copy, monomers)
    bonds, angles, chosen, chirals, planes = (_join(kind) for kind in zip(*parts, strict=True))
    held, tied = _tied(atoms, bonds)
    bonds = _join([bonds, held])
    messages = []
    several = [
        name
        for name in unknown
        if int((atoms.residue_names == name).sum()) > len(set(atoms.residues[atoms.residue_names == name].tolist()))
    ]
    if several:
        messages.append(
            f"no monomer library knows {', '.join(several)}: held to the geometry that it starts with; give its "
            "restraints as a CIF file (ligands=...)"
        )
    if stretched:
        messages.append(
            f"{len(stretched)} links of a chain are stretched ({', '.join(stretched[:5])}{', ...' if len(stretched) > 5 else ''}): "
            "restrained as bonds, since the residues follow one another in the sequence"
        )
    if tied:
        messages.append(
            f"{len(tied)} atoms are not in their residues' monomers ({', '.join(tied[:5])}"
            f"{', ...' if len(tied) > 5 else ''}): tied to their neighbors as they are"
        )
    return Topology(atoms, bonds, angles, chosen, chirals, planes, tuple(unknown), tuple(messages))


def with_current_names(structure: gemmi.Structure, monomers: gemmi.MonLib) -> None:
    """Give atoms named as before 2007 the names that the library has; changes the structure."""
    try:
        monomers.update_old_atom_names(structure, io.StringIO())
    except TypeError:
        monomers.update_old_atom_names(structure)  # gemmi 0.6


def _number(copy: gemmi.Model, model: gemmi.Model, offset: int) -> int:
    """Make the serials of gemmi's copy the rows of the structure, whose atoms are matched one by one."""
    ours = [atom for chain in model for residue in chain for atom in residue]
    theirs = [atom for chain in copy for residue in chain for atom in residue]
    same = len(ours) == len(theirs) and all(
        a.pos.tolist() == b.pos.tolist() and a.altloc == b.altloc and a.element == b.element
        for a, b in zip(ours, theirs, strict=True)
    )
    if not same:
        raise ValueError("gemmi's topology has other atoms than the structure: report this structure.")
    for row, atom in enumerate(theirs):
        atom.serial = offset + row
    return offset + len(theirs)


def _read(top: gemmi.Topo, kinds: tuple[str, ...]) -> tuple[Rows, Rows, Rows, Rows, Rows]:
    def rows(items: list[Any], width: int) -> np.ndarray:
        return np.array([[a.serial for a in t.atoms] for t in items], dtype=np.int64).reshape(len(items), width)

    def numbers(values: Sequence[float]) -> np.ndarray:
        return np.array(values, dtype=float).reshape(-1)

    bonds = [t for t in top.bonds if t.restr.esd > 0]
    lengths = numbers([t.calculate() for t in bonds])  # nan of one to a symmetry copy
    metal = np.array([any(a.element.is_metal for a in t.atoms) for t in bonds], dtype=bool)
    ideal, esds = numbers([t.restr.value for t in bonds]), numbers([t.restr.esd for t in bonds])
    kept = ~(metal & (np.abs(lengths - ideal) > _COORDINATED))
    all_bonds = Rows(
        rows(bonds, 2)[kept],
        ideal[kept],
        np.where(metal, np.maximum(esds, _COORDINATION), esds)[kept],
        np.isnan(lengths)[kept].astype(float),
    )
    angles = [t for t in top.angles if t.restr.esd > 0]
    torsions = [t for t in top.torsions if t.restr.esd > 0 and t.restr.label.lower().startswith(kinds)]
    chirals: list[Any] = []
    volumes: list[float] = []
    for t in top.chirs:
        volume = top.ideal_chiral_abs_volume(t)
        if volume > 0:  # not a number where a bond or angle of it is unknown
            chirals.append(t)
            volumes.append(volume)
    planes = [t for t in top.planes if t.restr.esd > 0 and len(t.atoms) > 3]
    width = max((len(t.atoms) for t in planes), default=4)
    padded = [[a.serial for a in t.atoms] for t in planes]
    return (
        all_bonds,
        Rows(
            rows(angles, 3),
            numbers([t.restr.value for t in angles]),
            numbers([t.restr.esd for t in angles]),
            np.zeros(len(angles)),
        ),
        Rows(
            rows(torsions, 4),
            numbers([t.restr.value for t in torsions]),
            numbers([t.restr.esd for t in torsions]),
            numbers([360 / max(1, t.restr.period) for t in torsions]),
        ),  # that of omega is 0
        Rows(
            rows(chirals, 4),
            numbers(volumes),
            np.full(len(chirals), _CHIRALITY_ESD),
            numbers([_SIGN[t.restr.sign] for t in chirals]),
        ),
        Rows(
            np.array([p + p[:1] * (width - len(p)) for p in padded], dtype=np.int64).reshape(len(planes), width),
            np.zeros(len(planes)),
            numbers([t.restr.esd for t in planes]),
            numbers([len(p) for p in padded]),
        ),
    )


def _join(parts: Sequence[Rows]) -> Rows:
    """One after the other; planes are padded to the same width by their first atom."""
    width = max(part.rows.shape[1] for part in parts)
    rows = [np.hstack([p.rows, np.repeat(p.rows[:, :1], width - p.rows.shape[1], axis=1)]) for p in parts]
    return Rows(
        np.concatenate(rows),
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("values", "esds", "extra")),
    )


def _atom_table(structure: gemmi.Structure, copy: gemmi.Structure, monomers: gemmi.MonLib) -> AtomTable:
    """Of the structure; energy types by the names of the copy, which are the library's."""
    types: dict[str, dict[str, str]] = {}
    columns: list[tuple[str, str, str, str, str, int, int, float]] = []
    sites = []
    residue_number = 0
    names = iter([a.name for m in copy for c in m for r in c for a in r])
    for model_number, model in enumerate(structure):
        for chain in model:
            for residue in chain:
                name = residue.name
                if name not in types:
                    found: Any = monomers.monomers[name].atoms if name in monomers.monomers else []
                    types[name] = {a.id: a.chem_type for a in found}
                for atom in residue:
                    columns.append(
                        (
                            atom.name,
                            atom.altloc.strip("\0 "),
                            atom.element.name,
                            name,
                            types[name].get(next(names), ""),
                            residue_number,
                            model_number,
                            atom.occ,
                        )
                    )
                    sites.append(atom.pos.tolist())
                residue_number += 1
    text = [np.array([c[i] for c in columns], dtype=object) for i in range(5)]
    atom_names, altloc, element, residue_name, kind = text
    numbers = [np.array([c[i] for c in columns]) for i in (5, 6, 7)]
    return AtomTable(
        atom_names, altloc, element, residue_name, kind, numbers[0], numbers[1], np.array(sites), numbers[2]
    )


def _tied(atoms: AtomTable, bonds: Rows) -> tuple[Rows, list[str]]:
    """Bonds, at their present lengths, of atoms without any whose residues have others; and their names."""
    n = len(atoms)
    bonded = np.zeros(n, dtype=bool)
    bonded[bonds.rows.reshape(-1)] = True
    pairs, names = [], []
    if n and not bonded.all():
        tree = cKDTree(atoms.sites_cart)
        partners: dict[int, set[int]] = {}
        for i, j in bonds.rows.tolist():
            partners.setdefault(i, set()).add(j)
            partners.setdefault(j, set()).add(i)
        counts = np.bincount(atoms.residues)
        for i in np.nonzero(~bonded & (counts[atoms.residues] > 1))[0].tolist():
            near = [
                j
                for j in tree.query_ball_point(atoms.sites_cart[i], 3.0)
                if j != i
                and atoms.residues[j] == atoms.residues[i]
                and ("" in (atoms.altlocs[i], atoms.altlocs[j]) or atoms.altlocs[i] == atoms.altlocs[j])
            ]
            distances = np.linalg.norm(atoms.sites_cart[near] - atoms.sites_cart[i], axis=1)
            radii = [gemmi.Element(e).covalent_r for e in atoms.elements[[i, *near]]]
            first = [j for j, d, r in zip(near, distances, radii[1:], strict=True) if d < radii[0] + r + _SLACK]
            if not first:
                continue  # an atom by itself, such as one of a shared site
            names.append(f"{atoms.residue_names[i]} {atoms.names[i]}")
            second = set().union(*(partners.get(j, set()) for j in first))
            for j, d in zip(near, distances, strict=True):
                if j in first or j in second:  # a bond, or an angle as a distance
                    pairs.append((i, j, d, _HELD_BOND if j in first else _HELD_ANGLE))
    table = np.array(pairs, dtype=float).reshape(-1, 4)
    rows = table[:, :2].astype(np.int64)
    return Rows(rows, table[:, 2], table[:, 3], np.zeros(len(rows))), names
