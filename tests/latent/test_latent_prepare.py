"""From a model to force-field atoms and back."""

import json
import sys

import torch
from mmtbx_sfdiff.files import read_model
from mmtbx_sfdiff.latent import PreparedModel, create_system, prepare_model
from mmtbx_sfdiff.latent.demo import alanine_dipeptide
from mmtbx_sfdiff.latent.generator.requirements import require

import iotbx.pdb
import numpy as np
import pytest

from tests.support.latent_systems import dipeptide, hierarchy_of, protein


def check_map(hierarchy, prepared):
    atoms = hierarchy.atoms()
    for ff, model in zip(prepared.heavy_index.tolist(), prepared.model_index.tolist()):
        assert atoms[model].name.strip() == prepared.names[ff]
        assert atoms[model].element.strip().capitalize() == prepared.elements[ff]
        np.testing.assert_array_equal(atoms[model].xyz, prepared.sites_cart[ff].numpy())


def test_alanine_dipeptide_is_complete():
    hierarchy, prepared = alanine_dipeptide(), dipeptide()
    assert prepared.n_ff == 22 and prepared.residue_names == ("ACE", "ALA", "NME")
    assert prepared.elements.count("H") == 12 and not prepared.dropped and not prepared.added
    assert len(prepared.heavy_index) == 10 == len(set(prepared.heavy_index.tolist()))
    check_map(hierarchy, prepared)
    assert [prepared.names[i] for i in prepared.backbone_index] == ["N", "CA", "C"]


def test_real_entry_every_atom_is_kept_or_listed():
    hierarchy, prepared = hierarchy_of("1aie"), protein()
    check_map(hierarchy, prepared)
    waters = [label for label, reason in prepared.dropped if "water" in reason]
    others = [label for label, reason in prepared.dropped if "conformation" in reason]
    assert len(waters) == 40 and len(others) + len(waters) == len(prepared.dropped)
    assert len(prepared.heavy_index) + len(waters) + len(others) == hierarchy.atoms_size()
    assert len(prepared.ca_index) == 31 and len(prepared.backbone_index) == 93
    assert all(prepared.names[i] == "CA" for i in prepared.ca_index)
    # the occupancies of the conformations kept are the higher ones
    atoms = hierarchy.atoms()
    assert min(atoms[i].occ for i in prepared.model_index.tolist()) >= 0.5


def test_modified_residue_disulfides_and_missing_atoms_of_a_real_entry():
    prepared = prepare_model(hierarchy_of("1dtx"))
    bridges = [(a, b) for a, b in prepared.topology.bonds() if a.name == b.name == "SG"]
    assert len(bridges) == 3 and prepared.residue_names[0] == "GLU"  # pyroglutamate
    assert ("A GLU 1 CB", "the model lacks it") in prepared.added
    check_map(hierarchy_of("1dtx"), prepared)


def test_place_in_hierarchy_not_i_seq():
    hierarchy = hierarchy_of("1aie")
    selected = hierarchy.select(hierarchy.atom_selection_cache().selection("not resseq 326:330"))
    assert selected.atoms()[0].i_seq != 0
    check_map(selected, prepare_model(selected))


def test_gap_cuts_the_chain_and_nothing_is_invented():
    hierarchy = hierarchy_of("1aie")
    selected = hierarchy.select(hierarchy.atom_selection_cache().selection("not resseq 340:342"))
    prepared = prepare_model(selected)
    assert prepared.topology.getNumChains() == 2 and len(prepared.residue_names) == 28
    assert not [1 for a, b in prepared.topology.bonds() if a.residue.chain is not b.residue.chain]
    assert create_system(prepared).getNumParticles() == prepared.n_ff


def modified(edit):
    hierarchy = alanine_dipeptide()  # atoms know their residues only while it lives
    lines = [atom.format_atom_record() for atom in hierarchy.atoms()]
    return iotbx.pdb.input(source_info=None, lines=edit(lines)).construct_hierarchy()


def test_selenomethionine_becomes_methionine_with_its_selenium_mapped():
    hierarchy = hierarchy_of("1aie").deep_copy()
    group = next(g for g in hierarchy.atom_groups() if g.resname == "MET")
    for atom in group.atoms():
        group.resname = "MSE"
        if atom.name.strip() == "SD":
            atom.name, atom.element = "SE  ", "SE"
    prepared = prepare_model(hierarchy)
    where = {m: f for f, m in zip(prepared.heavy_index.tolist(), prepared.model_index.tolist())}
    selenium = next(i for i, atom in enumerate(hierarchy.atoms()) if atom.element.strip() == "SE")
    assert prepared.names[where[selenium]] == "SD" and "MSE" not in prepared.residue_names


def test_residue_without_backbone_and_unknown_atoms_are_listed():
    hierarchy = hierarchy_of("1aie").deep_copy()
    groups = list(hierarchy.atom_groups())
    ca = next(a for a in groups[-42].atoms() if a.name.strip() == "CA")
    label = f"A {groups[-42].resname} {groups[-42].parent().resid().strip()}"
    groups[-42].remove_atom(ca)  # last but one: the last has no neighbour then
    odd = groups[0].atoms()[-1]
    odd.name, odd.element = " XX1", " C"
    prepared = prepare_model(hierarchy)
    assert (label, "lacks CA") in prepared.dropped
    assert any(reason == "bound to no other residue" for _, reason in prepared.dropped)
    assert any("XX1" in name and "no such atom" in reason for name, reason in prepared.dropped)


def test_hydrogens_do_not_depend_on_chance():
    again = prepare_model(alanine_dipeptide())
    assert torch.equal(again.sites_cart, dipeptide().sites_cart)


def test_oligomer():
    model = read_model(_path("1aie"))
    hierarchy, symmetry = model.manager.get_hierarchy(), model.crystal_symmetry
    hierarchy = hierarchy.select(hierarchy.atom_selection_cache().selection("resseq 326:332"))
    single, pair = prepare_model(hierarchy), prepare_model(hierarchy, symmetry, oligomer=["-x,-y,z"])
    assert pair.n_copies == 2 and pair.n_ff == 2 * single.n_ff
    one = pair.first_copy()
    assert one.n_copies == 1 and one.names == single.names and torch.equal(one.heavy_index, single.heavy_index)
    flip = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    heavy = pair.heavy_index
    torch.testing.assert_close(pair.sites_cart[heavy + one.n_ff], flip * pair.sites_cart[heavy], rtol=0, atol=1e-9)
    for operators, message in (
        (["x,y,z"], "there already"),
        (["-x,y,z+1/2"], "not a symmetry operator of"),
        (["nonsense"], "not a symmetry operator such as"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_model(hierarchy, symmetry, oligomer=operators)
    with pytest.raises(ValueError, match="need a crystal_symmetry"):
        prepare_model(hierarchy, oligomer=["-x,-y,z"])


def _path(entry):
    hierarchy_of(entry)  # skips without entries
    from tests.support.entries import pdb_folder

    return next((pdb_folder() / entry).glob(f"{entry}.*.gz"))


def test_save_and_load(tmp_path):
    dipeptide().save(tmp_path)
    loaded = PreparedModel.load(tmp_path)
    for name in ("sites_cart", "heavy_index", "model_index", "residue_index", "chain_index"):
        assert torch.equal(getattr(loaded, name), getattr(dipeptide(), name))
    assert loaded.names == dipeptide().names and loaded.elements == dipeptide().elements
    assert [(a.index, b.index) for a, b in loaded.topology.bonds()] == [
        (a.index, b.index) for a, b in dipeptide().topology.bonds()
    ]
    assert "ALA" in (tmp_path / "prepared.pdb").read_text()
    description = json.loads((tmp_path / "prepared.json").read_text())
    (tmp_path / "prepared.json").write_text(json.dumps(dict(description, format=99)))
    with pytest.raises(ValueError, match="another version"):
        PreparedModel.load(tmp_path)
    with pytest.raises(ValueError, match="no prepared model"):
        PreparedModel.load(tmp_path / "elsewhere")


def test_wrong_models_are_refused():
    with pytest.raises(ValueError, match="no two joined protein residues"):
        prepare_model(modified(lambda lines: [line.replace("ALA", "SO4") for line in lines]))
    with pytest.raises(ValueError, match="CB is N in the model, but C in ALA"):
        prepare_model(modified(lambda lines: [line[:76] + " N" if " CB " in line else line for line in lines]))
    two = alanine_dipeptide()
    two.append_model(two.models()[0].detached_copy())
    with pytest.raises(ValueError, match="2 models"):
        prepare_model(two)


def test_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pdbfixer", None)
    with pytest.raises(ImportError, match=r'pip install "mmtbx_sfdiff\[latent\]"'):
        require("pdbfixer")
