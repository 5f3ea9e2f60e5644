"""Hydrogens ride on their own parent: never on an atom of another residue, conformer or model."""

from mmtbx_sfdiff.geometry import GeometryRestraints, parents_of_hydrogens

import numpy as np
import pytest

from tests.support.monomers import entry_structure, library_or_skip


def test_the_nearest_atom_of_the_own_residue_conformer_and_model():
    # A hydroxyl in two conformers, crossed: each hydrogen is nearer to the other conformer's oxygen.
    sites = np.array(
        [[0, 0, 0], [1.4, 0, 0], [1.4, 0.5, 0], [2.0, 0.5, 0.6], [2.0, 0.0, 0.6], [1.7, 0.3, 0.5], [0, 0, 1.0]]
    )
    hydrogens = np.array([False, False, False, True, True, False, True])
    altlocs = ["", "A", "B", "A", "B", "", ""]
    residues = [1, 1, 1, 1, 1, 2, 1]
    parents = parents_of_hydrogens(sites, hydrogens, residues, altlocs, [0] * 7)
    assert parents.tolist() == [0, 1, 2, 1, 2, 5, 0]
    # The same place in another model.
    parents = parents_of_hydrogens(
        np.tile(sites, (2, 1)), np.tile(hydrogens, 2), residues * 2, altlocs * 2, [0] * 7 + [1] * 7
    )
    assert parents.tolist() == [0, 1, 2, 1, 2, 5, 0, 7, 8, 9, 8, 9, 12, 7]


def test_a_hydrogen_by_itself_rides_on_itself():
    parents = parents_of_hydrogens(np.zeros((2, 3)), np.array([True, False]), [1, 2], ["", ""], [0, 0])
    assert parents.tolist() == [0, 1]


def test_a_bond_of_the_topology_decides():
    sites = np.array([[0, 0, 0], [1.0, 0, 0], [1.8, 0, 0]])
    bonds = np.array([[2, 1]])
    hydrogens = np.array([False, True, False])
    assert parents_of_hydrogens(sites, hydrogens, [1] * 3, [""] * 3, [0] * 3, bonds).tolist() == [0, 2, 2]
    assert parents_of_hydrogens(sites, hydrogens, [1] * 3, [""] * 3, [0] * 3)[1] == 2


@pytest.mark.parametrize("name", ["5gge", "1byz", "3v3x"])
def test_labels_alone_give_the_parents_of_the_topology(name, pdb_dir):
    """On entries with hydrogens, of conformers too: the nearest atom, within these limits, is the bonded one."""
    structure, _ = entry_structure(pdb_dir, name)
    geometry = GeometryRestraints.from_gemmi(structure, library_or_skip())
    atoms = geometry.topology.atoms
    hydrogens = np.isin(atoms.elements, ["H", "D"])
    arguments = (atoms.sites_cart, hydrogens, atoms.residues, atoms.altlocs, atoms.models)
    by_bond = parents_of_hydrogens(*arguments, bonds=geometry.bond_rows.numpy())
    by_label = parents_of_hydrogens(*arguments)
    assert hydrogens.sum() > 100 and (by_bond == by_label).mean() > 0.999
    for parents in (by_bond, by_label):
        assert not hydrogens[parents[hydrogens]].any()
        assert (atoms.residues[parents] == atoms.residues).all()
