"""Rotamers tried with a monomer library's restraints, without a force field: 1yjp with a side chain that was turned away."""

import math

import torch
from mmtbx_sfdiff import Atoms, Crystal, FModel
from mmtbx_sfdiff.latent.refinement.finish import finish, library_restraint
from mmtbx_sfdiff.latent.refinement.turning import structure_rotors, turn_side_chains

import gemmi
import pytest

from tests.support.monomers import library_or_skip
from tests.support.peptide import peptide


@pytest.fixture(scope="module")
def subject(pdb_dir):
    library_or_skip()
    files = [str(pdb_dir / "1yjp" / name) for name in ("1yjp.pdb.gz", "1yjp-sf.cif.gz")]
    structure = gemmi.read_structure(files[0])
    structure.setup_entities()
    structure.remove_ligands_and_waters()
    structure.remove_hydrogens()
    data = FModel.from_files(*files).reflections
    data = data.select(data.d_spacings >= 2.0)
    atoms = Atoms.from_gemmi(structure, d_min=2.0, crystal=Crystal.from_gemmi(structure))
    return structure, FModel(atoms, data, mask={"method": "probe_shrink"}), library_restraint(structure, 2.0)


def turned_away(fmodel, rotor):
    x = fmodel.atoms.sites_cart.detach()
    wrong = rotor.sites(x, (rotor.angles(x) + torch.tensor([2.1, 0.6], dtype=torch.float64))[None])[0]
    return fmodel.with_(atoms=fmodel.atoms.replace(sites_cart=wrong))


def test_rotors_are_found_by_names_and_distances(subject):
    found = structure_rotors(subject[0])
    assert [rotor.name for rotor in found] == ["ASN", "ASN", "GLN", "GLN", "ASN", "TYR"]
    names = [cra.atom.name for cra in subject[0][0].all()]
    assert {names[i] for i in found[-1].turned[0].tolist()} == {"CG", "CD1", "CD2", "CE1", "CE2", "CZ", "OH"}
    # They are where the atoms of a refinement are.
    elsewhere = structure_rotors(subject[0], "meta")[-1]
    assert {t.device.type for t in (elsewhere.torsions, elsewhere.grid, *elsewhere.turned)} == {"meta"}
    # Two sulfurs that are bonded do not turn.
    structure = peptide(("ALA", "CYS", "ALA", "ALA", "CYS", "ALA"))
    assert [rotor.name for rotor in structure_rotors(structure)] == ["CYS", "CYS"]
    sulfurs = [cra.atom for cra in structure[0].all() if cra.atom.name == "SG"]
    sulfurs[1].pos = gemmi.Position(sulfurs[0].pos.x + 2.04, sulfurs[0].pos.y, sulfurs[0].pos.z)
    assert structure_rotors(structure) == []


@pytest.mark.slow
def test_a_side_chain_in_a_wrong_rotamer_is_turned_and_one_that_is_right_stays(subject):
    structure, fmodel, restraint = subject
    tyrosine = structure_rotors(structure)[-1]
    truth = tyrosine.angles(fmodel.atoms.sites_cart.detach())
    found, moves = turn_side_chains(turned_away(fmodel, tyrosine), structure, restraint)
    assert 6 in [move["residue"] for move in moves] and all(move["gain"] > 0 for move in moves)
    assert tyrosine.turn(tyrosine.angles(found.atoms.sites_cart.detach()) - truth) < math.radians(40)
    assert 6 not in [move["residue"] for move in turn_side_chains(found, structure, restraint)[1]]


@pytest.mark.slow
def test_the_end_of_a_refinement_turns_them_if_it_is_given_the_structure(subject):
    structure, fmodel, restraint = subject
    tyrosine = structure_rotors(structure)[-1]
    truth = tyrosine.angles(fmodel.atoms.sites_cart.detach())
    found, history = finish(turned_away(fmodel, tyrosine), restraint, [None, None], 1, structure=structure)
    assert "side_chains" not in history.cycles[1]
    assert "TYR" in [move["name"] for move in history.cycles[0]["side_chains"]]
    assert tyrosine.turn(tyrosine.angles(found.atoms.sites_cart.detach()) - truth) < math.radians(40)
    with pytest.raises(ValueError, match="take both from the same file"):
        turn_side_chains(fmodel, peptide(), restraint)
