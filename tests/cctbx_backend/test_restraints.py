"""mmtbx's restraints as a term of torch, and its proxies against ours."""

import os

import mmtbx_sfdiff  # noqa: F401  (first: it owns the order in which native libraries are loaded)
import torch
from mmtbx_sfdiff.cctbx_backend.restraints import interpret
from mmtbx_sfdiff.geometry import GeometryRestraints

import iotbx.pdb
import mmtbx.model
import numpy as np
import pytest
from cctbx.array_family import flex
from libtbx.utils import null_out

from tests.support.monomers import entry_structure, library_or_skip, shipped_structure


def manager_of(text):
    source = iotbx.pdb.input(source_info=None, lines=flex.split_lines(text))
    return mmtbx.model.manager(model_input=source, log=null_out())


@pytest.fixture(scope="module")
def library():
    return library_or_skip()


@pytest.fixture
def with_library(library, monkeypatch):
    monkeypatch.setenv("MMTBX_CCP4_MONOMER_LIB", str(library.path))
    return library


def small():
    structure = shipped_structure()
    structure.remove_hydrogens()
    structure.remove_ligands_and_waters()
    return structure


def sites_of(structure):
    return torch.tensor([a.pos.tolist() for m in structure for c in m for r in c for a in r], dtype=torch.float64)


def test_value_and_gradient_are_energies_sites(with_library):
    structure = small()
    restraints = interpret(manager_of(structure.make_pdb_string()))
    sites = sites_of(structure) + 0.05 * torch.randn(
        restraints.n_atoms, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    flat = flex.vec3_double(flex.double(sites.numpy().ravel()))
    expected = restraints.geometry.energies_sites(sites_cart=flat, compute_gradients=True)
    x = torch.stack([sites, sites]).requires_grad_()
    energy = restraints(x)
    (gradient,) = torch.autograd.grad((energy * torch.tensor([1.0, 2.0])).sum(), x)
    reference = torch.from_numpy(expected.gradients.as_double().as_numpy_array()).reshape(-1, 3)
    assert energy.tolist() == pytest.approx([expected.target] * 2, rel=1e-10)
    torch.testing.assert_close(gradient[0], reference, rtol=1e-10, atol=1e-10 * float(reference.abs().max()))
    torch.testing.assert_close(gradient[1], 2 * reference, rtol=1e-10, atol=1e-10 * float(reference.abs().max()))
    rms = restraints.rms(sites)
    assert rms["bond"] == pytest.approx(expected.bond_deviations()[2], rel=1e-10)
    assert rms["angle"] == pytest.approx(expected.angle_deviations()[2], rel=1e-10)


def test_second_derivatives_are_refused(with_library):
    structure = small()
    restraints = interpret(manager_of(structure.make_pdb_string()))
    x = sites_of(structure).requires_grad_()
    (gradient,) = torch.autograd.grad(restraints(x), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.square().sum(), x)


def test_what_mmtbx_cannot_restrain_is_one_sentence(with_library):
    structure = small()
    structure[0][0][2].name = "Z_Q"
    with pytest.raises(ValueError, match="mmtbx cannot restrain this model") as caught:
        interpret(manager_of(structure.make_pdb_string()))
    assert "\n" not in str(caught.value)


def test_a_library_that_is_named_is_the_one_taken(library, monkeypatch, tmp_path):
    """Whatever the environment names, which is as it was afterwards."""
    structure = small()
    monkeypatch.setenv("MMTBX_CCP4_MONOMER_LIB", str(tmp_path))
    manager = manager_of(structure.make_pdb_string())
    restraints = interpret(manager, library=library.path)
    sites = torch.tensor(manager.get_sites_cart().as_double().as_numpy_array().reshape(-1, 3))
    assert 0 < restraints.rms(sites)["bond"] < 0.05
    assert os.environ["MMTBX_CCP4_MONOMER_LIB"] == str(tmp_path)
    with pytest.raises(ValueError, match="no monomer library"):
        interpret(manager, library=tmp_path)


def test_rows_are_those_of_the_model_whatever_the_order_of_its_atoms(with_library):
    """mmtbx sorts atoms for itself: a residue written backwards was held to the bonds of other atoms."""
    structure = small()
    residue = structure[0][0][2]
    atoms = [atom.clone() for atom in residue]
    for place, atom in enumerate(reversed(atoms)):
        residue[place].name, residue[place].element, residue[place].pos = atom.name, atom.element, atom.pos
    manager = manager_of(structure.make_pdb_string())
    sites = torch.tensor(manager.get_sites_cart().as_double().as_numpy_array().reshape(-1, 3))
    assert 0 < interpret(manager).rms(sites)["bond"] < 0.05


def test_the_file_of_a_monomer_is_read(with_library, tmp_path):
    structure = small()
    residue = structure[0][0][2]
    known = with_library.path / residue.name[0].lower() / f"{residue.name}.cif"
    (tmp_path / "ZQZ.cif").write_text(known.read_text().replace(residue.name, "ZQZ"))
    residue.name = "ZQZ"
    manager = manager_of(structure.make_pdb_string())
    restraints = interpret(manager, ligands=[tmp_path / "ZQZ.cif"])
    sites = torch.tensor(manager.get_sites_cart().as_double().as_numpy_array().reshape(-1, 3))
    assert 0 < restraints.rms(sites)["bond"] < 0.05
    (tmp_path / "no.cif").write_text("loop_ 1 2 _x")
    for name in ("no.cif", "absent.cif"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            interpret(manager_of(structure.make_pdb_string()), ligands=[tmp_path / name])


def proxies(restraints, kind, structure):
    geometry = restraints.geometry
    flat = flex.vec3_double(flex.double(sites_of(structure).numpy().ravel()))
    if kind == "bond":
        found, _ = geometry.get_all_bond_proxies(sites_cart=flat)
        return {tuple(sorted(p.i_seqs)): (p.distance_ideal, p.weight**-0.5) for p in found}
    return {
        (min(p.i_seqs[0], p.i_seqs[2]), p.i_seqs[1], max(p.i_seqs[0], p.i_seqs[2])): (p.angle_ideal, p.weight**-0.5)
        for p in geometry.angle_proxies
    }


def ours(geometry, kind):
    rows = getattr(geometry, f"{kind}_rows").tolist()
    ideal, esd = getattr(geometry, f"{kind}_ideal").tolist(), getattr(geometry, f"{kind}_esd").tolist()
    keys = [tuple(sorted(r)) if kind == "bond" else (min(r[0], r[2]), r[1], max(r[0], r[2])) for r in rows]
    return dict(zip(keys, zip(ideal, esd)))


# What differs, and why: the library describes free amino acids, and its peptide links modify them. gemmi applies the
# modifications on both sides of a link (C=O 1.229 Å, CA-C-O 120.6°); mmtbx, whose own library is of residues, leaves
# CA-C, C-O and CA-C-O as in the acid (1.251 Å, 117.1°).
_OF_THE_LINK = {frozenset(("CA", "C")), frozenset(("C", "O")), frozenset(("CA", "C", "O"))}


@pytest.mark.parametrize("kind", ["bond", "angle"])
@pytest.mark.parametrize("name", ["6nfs", "1g1j", "2nth"])
def test_proxies_of_mmtbx_are_these_restraints(name, kind, with_library, pdb_dir):
    structure = entry_structure(pdb_dir, name)[0]
    structure.remove_ligands_and_waters()
    structure.remove_hydrogens()
    structure.remove_alternative_conformations()
    parameters = mmtbx.model.manager.get_default_pdb_interpretation_params()
    parameters.pdb_interpretation.restraints_library.cdl = False
    restraints = interpret(manager_of(structure.make_pdb_string()), parameters)
    geometry = GeometryRestraints.from_gemmi(structure, with_library)
    theirs, here = proxies(restraints, kind, structure), ours(geometry, kind)
    names = geometry.topology.atoms.names
    of_one = [{names[i] for i in key} for key in set(theirs) ^ set(here)]
    assert not of_one
    common = set(theirs) & set(here)
    same = {key for key in common if np.allclose(theirs[key], here[key], rtol=1e-6, atol=1e-6)}
    assert len(common) > 400 and len(same) > 0.7 * len(common)
    assert {frozenset(names[i] for i in key) for key in common - same} <= _OF_THE_LINK
