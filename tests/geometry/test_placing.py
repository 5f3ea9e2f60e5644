"""Hydrogens by a monomer library: added, and put back in place."""

import mmtbx_sfdiff  # noqa: F401  (first: it owns the order in which native libraries are loaded)
from mmtbx_sfdiff.geometry import GeometryRestraints
from mmtbx_sfdiff.geometry.placing import HydrogenPlacer, with_hydrogens

import gemmi
import numpy as np
import pytest

from tests.support.monomers import library_or_skip, shipped_structure


@pytest.fixture(scope="module")
def placed():
    library = library_or_skip()
    structure = shipped_structure()
    structure.remove_hydrogens()
    made, unknown = with_hydrogens(structure, library)
    return library, structure, made, unknown


def heavy(structure):
    return [cra.atom.pos.tolist() for cra in structure[0].all() if not cra.atom.is_hydrogen()]


def test_hydrogens_are_added_and_nothing_else_changes(placed):
    _, before, after, unknown = placed
    assert set(unknown) <= {"EOH"} and heavy(before) == heavy(after)
    hydrogens = [cra for cra in after[0].all() if cra.atom.is_hydrogen()]
    assert len(hydrogens) > 0.6 * len(heavy(before))
    assert not any(cra.residue.name == "HOH" for cra in hydrogens)
    for cra in hydrogens:
        rivals = [a for a in cra.residue if not a.is_hydrogen() and a.altloc in (cra.atom.altloc, "\0")]
        assert 0.8 < min(a.pos.dist(cra.atom.pos) for a in rivals) < 1.4
        assert cra.atom.occ > 0 and cra.atom.b_iso > 0


def test_hydrogens_are_where_the_library_has_them(placed):
    """Bonds to them deviate by nothing."""
    library, _, after, _ = placed
    geometry = GeometryRestraints.from_gemmi(after, library)
    sites = np.array([cra.atom.pos.tolist() for cra in after[0].all()])
    hydrogens = np.array([cra.atom.is_hydrogen() for cra in after[0].all()])
    rows = geometry.bond_rows.numpy()
    chosen = hydrogens[rows].any(1)
    lengths = np.linalg.norm(sites[rows[:, 0]] - sites[rows[:, 1]], axis=1)
    assert chosen.sum() > 100 and np.abs(lengths - geometry.bond_ideal.numpy())[chosen].max() < 0.02


def test_displaced_hydrogens_are_put_back_and_follow_their_parents(placed):
    library, _, after, _ = placed
    sites = np.array([cra.atom.pos.tolist() for cra in after[0].all()])
    hydrogens = np.array([cra.atom.is_hydrogen() for cra in after[0].all()])
    order = np.random.default_rng(1).permutation(len(sites))
    place = HydrogenPlacer(after, library, rows=order)
    mine = np.empty_like(sites)
    mine[order] = sites
    displaced = mine.copy()
    displaced[order[hydrogens]] += np.random.default_rng(0).normal(0, 0.3, (hydrogens.sum(), 3))
    again = place(displaced)
    np.testing.assert_allclose(again, mine, atol=2e-3)
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned = displaced.copy()
    turned[order[~hydrogens]] = mine[order[~hydrogens]] @ turn.T
    np.testing.assert_allclose(place(turned)[order], sites @ turn.T, atol=2e-3)


def test_a_residue_that_no_library_knows_keeps_what_it_has(placed):
    library, before, _, _ = placed
    structure = before.clone()
    residue = gemmi.Residue()
    residue.name, residue.seqid, residue.het_flag = "Q0Q", gemmi.SeqId(999, " "), "H"
    for name, element, x in (("C1", "C", 0.0), ("H1", "H", 1.09)):
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = name, gemmi.Element(element), gemmi.Position(80 + x, 80, 80)
        residue.add_atom(atom)
    structure[0][0].add_residue(residue)
    made, unknown = with_hydrogens(structure, library)
    assert "Q0Q" in unknown
    kept = [cra.atom.name for cra in made[0].all() if cra.residue.name == "Q0Q"]
    assert kept == ["C1", "H1"]
