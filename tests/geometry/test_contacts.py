"""Repulsion: radii, what is left out, symmetry copies, special positions."""

import torch
from mmtbx_sfdiff.geometry import GeometryRestraints

import gemmi
import numpy as np
import pytest

from tests.support.monomers import entry_structure, library_or_skip, shipped_structure


@pytest.fixture(scope="module")
def library():
    return library_or_skip()


def waters(places, cell=(20, 20, 20, 90, 90, 90), group="P 1", occupancy=1.0, names=("HOH", "O", "O")):
    """A structure of single atoms, each a residue."""
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*cell), group
    text = [f"CRYST1{cell[0]:9.3f}{cell[1]:9.3f}{cell[2]:9.3f}{cell[3]:7.2f}{cell[4]:7.2f}{cell[5]:7.2f} {group:<11}"]
    for i, (x, y, z) in enumerate(places):
        text.append(
            f"HETATM{i + 1:5d}  {names[1]:<3} {names[0]:>3} A{i + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}"
            f"{20:6.2f}          {names[2]:>2}"
        )
    return gemmi.read_pdb_string("\n".join(text) + "\nEND\n")


def energy(structure, library):
    geometry = GeometryRestraints.from_gemmi(structure, library)
    return float(geometry(torch.tensor(geometry.topology.atoms.sites_cart))), geometry


def test_two_waters_begin_to_repel_at_a_hydrogen_bonds_length(library):
    far, _ = energy(waters([(5, 5, 5), (5, 5, 8)]), library)
    value, geometry = energy(waters([(5, 5, 5), (5, 5, 7)]), library)
    d = float(geometry.repulsion_d[0])
    assert far == 0 and 2.3 < d < 3.0
    assert value == pytest.approx(((d - 2) / 0.2) ** 2, rel=1e-9)


@pytest.mark.parametrize(
    "group, place", [("P 1", (0.5, 10, 10)), ("P 1 21 1", (0.5, 1, 0.5)), ("P 2 2 2", (0.8, 0.9, 5))]
)
def test_a_symmetry_copy_repels_as_an_atom_in_the_model_would(library, group, place):
    """The energy of a crystal is that of its P 1 cell, divided by the copies in it."""
    second = (19.2, 10, 10) if group == "P 1" else (place[0] + 6, place[1] + 6, place[2])
    cell = (20, 4 if group == "P 1 21 1" else 20, 20, 90, 90, 90)
    structure = waters([place, second], cell, group)
    value, geometry = energy(structure, library)
    expanded = []
    for op in structure.find_spacegroup().operations():
        for x in [place, second]:
            frac = structure.cell.fractionalize(gemmi.Position(*x))
            moved = gemmi.Fractional(*op.apply_to_xyz(frac.tolist()))
            expanded.append(structure.cell.orthogonalize(moved.wrap_to_unit()).tolist())
    whole, _ = energy(waters(expanded, cell), library)
    copies = len(expanded) // 2
    assert value > 1 and value == pytest.approx(whole / copies, rel=1e-4)  # coordinates of a PDB file


def test_an_atom_on_a_special_position_does_not_repel_itself(library):
    value, _ = energy(waters([(0, 5, 0), (0, 5, 6)], group="P 1 2 1"), library)
    assert value == 0
    # A neighbour of it is one neighbour, met by both copies.
    value, geometry = energy(waters([(0, 5, 0), (0, 5, 2.2)], group="P 1 2 1"), library)
    d = float(geometry.repulsion_d[0])
    assert value == pytest.approx(((d - 2.2) / 0.2) ** 2, rel=1e-6)


def test_half_occupied_atoms_about_an_axis_are_alternatives(library):
    whole, _ = energy(waters([(0.6, 5, 0)], group="P 1 2 1"), library)
    half, _ = energy(waters([(0.6, 5, 0)], group="P 1 2 1", occupancy=0.5), library)
    assert whole > 1 and half == 0


def test_conformers_do_not_see_one_another_but_the_rest_does(library):
    structure = waters([(5, 5, 5), (5, 5, 6.5), (5, 5, 8.2)])
    atoms = [a for c in structure[0] for r in c for a in r]
    before, _ = energy(structure, library)
    atoms[0].altloc, atoms[1].altloc = "A", "B"
    after, geometry = energy(structure, library)
    d = float(geometry.repulsion_d[0])
    expected = ((d - 1.5) / 0.2) ** 2
    assert before - after == pytest.approx(expected, rel=1e-9) and after > 1


def test_bonded_atoms_up_to_four_in_a_row_and_planes_do_not_repel(library):
    structure = shipped_structure()
    structure.remove_hydrogens()
    geometry = GeometryRestraints.from_gemmi(structure, library)
    inside = {
        tuple(sorted(p)) for p, i in zip(geometry.repulsion_rows.tolist(), geometry.repulsion_image.tolist()) if not i
    }
    graph = {}
    for a, b in geometry.bond_rows.tolist():
        graph.setdefault(a, set()).add(b)
        graph.setdefault(b, set()).add(a)
    for a in graph:
        near = {a}
        for _ in range(3):
            near |= set().union(*(graph[b] for b in near))
        assert not {tuple(sorted((a, b))) for b in near} & inside
    for plane in geometry.plane_rows.tolist():
        assert not {tuple(sorted((a, b))) for a in plane for b in plane} & inside


@pytest.mark.parametrize("name", ["1cbs", "5c11", "5gge"])
def test_pairs_are_those_of_gemmis_neighbor_search(name, pdb_dir, library):
    """Every near pair, symmetry copies included, against gemmi.ContactSearch (P 21 21 21, I 4 3 2, I 4 2 2)."""
    structure, _ = entry_structure(pdb_dir, name)
    geometry = GeometryRestraints.from_gemmi(structure, library)
    sites = torch.tensor(geometry.topology.atoms.sites_cart)
    reach = 3.2
    search = gemmi.NeighborSearch(structure[0], structure.cell, 5).populate(include_h=True)
    contacts = gemmi.ContactSearch(reach)
    contacts.twice = True
    contacts.ignore = gemmi.ContactSearch.Ignore.Nothing
    contacts.special_pos_cutoff_sq = 0.25
    row = {a.serial: i for i, a in enumerate(a for c in structure[0] for r in c for a in r)}
    expected = sorted(
        (row[c.partner1.atom.serial], row[c.partner2.atom.serial], round(c.dist, 3))
        for c in contacts.find_contacts(search)
        if c.image_idx != 0
    )
    moved = torch.einsum(
        "nij,nj->ni", geometry.repulsion_rotation, sites[geometry.repulsion_rows[-len(geometry.repulsion_shift) :, 1]]
    )
    d = (moved + geometry.repulsion_shift - sites[geometry.repulsion_rows[geometry.repulsion_image, 0]]).norm(dim=1)
    rows = geometry.repulsion_rows[geometry.repulsion_image].tolist()
    found = {(i, j, round(x, 3)) for (i, j), x in zip(rows, d.tolist()) if x < reach}
    alt, occ = geometry.topology.atoms.altlocs, geometry.topology.atoms.occupancies
    seen = [
        (i, j, x) for i, j, x in expected if ("" in (alt[i], alt[j]) or alt[i] == alt[j]) and max(occ[i], occ[j]) > 0.5
    ]
    near = {(i, j) for i, j, _ in found}
    missing = [(i, j, x) for i, j, x in seen if (i, j) not in near and i != j]
    assert len(seen) > 10 and not missing
    assert all(
        np.isclose([x for a, b, x in seen if (a, b) == (i, j)], y, atol=2e-3).any()
        or (i, j) not in {(a, b) for a, b, _ in seen}
        for i, j, y in found
    )
