"""Hydrogens where a monomer library says they are: added to a structure, and put in place again as its atoms move.

gemmi places them (bond lengths of electron clouds, as X-rays see them). Waters get none; nor do residues that the library does not know.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import gemmi
import numpy as np

from .chain_links import joined
from .library import MonomerLibrary
from .topology import with_current_names


def with_hydrogens(
    structure: gemmi.Structure, library: MonomerLibrary, ligands: Sequence[str | os.PathLike[str]] = ()
) -> tuple[gemmi.Structure, tuple[str, ...]]:
    """A copy with all hydrogens that the library knows, in the place of those that are there.

    Parameters
    ----------
    structure : gemmi.Structure
        It is not changed.
    library : MonomerLibrary
    ligands : sequence of path
        CIF files of further monomers.

    Returns
    -------
    structure : gemmi.Structure
    unknown : tuple of str
        Residues that the library does not know, which keep the hydrogens that they have.

    Raises
    ------
    ValueError
        A library or ligand file that cannot be read.
    """
    names = {residue.name for model in structure for chain in model for residue in chain}
    monomers, unknown = library.read(names, ligands)
    copy = structure.clone()
    copy.setup_entities()
    with_current_names(copy, monomers)
    for number, model in enumerate(copy):
        with joined(model):
            gemmi.prepare_topology(copy, monomers, number, gemmi.HydrogenChange.ReAddKnown, False, io.StringIO(), False)
    waters = {"HOH", "DOD", "WAT"}
    for model in copy:
        for chain in model:
            for residue in chain:
                if residue.name in waters:
                    for atom in [a for a in residue if a.is_hydrogen()]:
                        residue.remove_atom(atom.name, atom.altloc, atom.element)
    copy.assign_serial_numbers()
    return copy, tuple(name for name in unknown if name not in waters)


class HydrogenPlacer:
    """Puts hydrogens back to where their parents' present places want them.

    A hydrogen that rides keeps its vector from its parent; as the parent's own neighbors move, that is no longer the direction of the bond.

    Parameters
    ----------
    structure : gemmi.Structure
        With hydrogens, from :func:`with_hydrogens`.
    library, ligands
        Of :func:`with_hydrogens`.
    rows : numpy.ndarray, optional
        (n,) int64, the caller's row of each atom of the structure.
    """

    def __init__(
        self,
        structure: gemmi.Structure,
        library: MonomerLibrary,
        ligands: Sequence[str | os.PathLike[str]] = (),
        rows: np.ndarray | None = None,
    ) -> None:
        self._structure, self._library, self._ligands = structure.clone(), library, tuple(ligands)
        atoms = [cra for model in self._structure for cra in model.all()]
        self._rows = np.arange(len(atoms)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._keys = [_keys(model) for model in self._structure]

    def __call__(self, sites_cart: np.ndarray) -> np.ndarray:
        """Sites (n_atoms, 3) Å with hydrogens in place; others, and hydrogens that are not found again, as they are."""
        sites = np.array(sites_cart, dtype=float)
        atoms = [cra.atom for model in self._structure for cra in model.all()]
        for row, atom in zip(self._rows.tolist(), atoms, strict=True):
            atom.pos = gemmi.Position(*sites[row])
        placed, _ = with_hydrogens(self._structure, self._library, self._ligands)
        first = 0
        for keys, model in zip(self._keys, placed, strict=True):
            there = {key: cra.atom for key, cra in zip(_keys(model), model.all(), strict=True)}
            for offset, key in enumerate(keys):
                found = there.get(key)
                if found is not None and found.is_hydrogen():
                    sites[self._rows[first + offset]] = found.pos.tolist()
            first += len(keys)
        return sites


def _keys(model: gemmi.Model) -> list[tuple[str, str, str, str, str]]:
    return [(c.chain.name, str(c.residue.seqid), c.residue.name, c.atom.name, c.atom.altloc) for c in model.all()]
