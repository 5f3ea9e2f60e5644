"""Geometry restraints: their terms against gemmi's own evaluation, derivatives against differences, torch's habits."""

import io
import math

import torch
from mmtbx_sfdiff.geometry import GeometryRestraints, MonomerLibrary, find_library
from mmtbx_sfdiff.geometry.topology import TORSIONS, with_current_names

import gemmi
import numpy as np
import pytest

from tests.support.monomers import entry_structure, library_or_skip, shipped_structure

ENTRIES = ["1dtx", "1ehz", "1exr", "3nm9", "5gge"]  # disulfides; tRNA; conformers and metals; DNA; hydrogens


@pytest.fixture(scope="module")
def library():
    return library_or_skip()


@pytest.fixture(scope="module")
def shipped(library):
    structure = shipped_structure()
    return structure, GeometryRestraints.from_gemmi(structure, library)


def shaken(geometry, rms=0.1, seed=0):
    shift = torch.randn(geometry.n_atoms, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.tensor(geometry.topology.atoms.sites_cart) + rms / math.sqrt(3) * shift


def by_gemmi(structure, library, sites):
    """Deviations of each kind as gemmi evaluates its own topology at those sites, esds as documented."""
    copy = structure.clone()
    copy.setup_entities()
    monomers, _ = library.read({r.name for m in copy for c in m for r in c})
    with_current_names(copy, monomers)
    top = gemmi.prepare_topology(copy, monomers, 0, gemmi.HydrogenChange.NoChange, False, io.StringIO(), False)
    metal = [any(a.element.is_metal for a in t.atoms) for t in top.bonds]
    start = [t.calculate() for t in top.bonds]
    for site, atom in zip(sites.tolist(), (a for c in copy[0] for r in c for a in r)):
        atom.pos = gemmi.Position(*site)
    bonds = [t.calculate_z() for t, m, d in zip(top.bonds, metal, start) if not m and not math.isnan(d)]
    angles = [t.calculate_z() for t in top.angles if t.restr.esd > 0]
    torsions = [t.calculate_z() for t in top.torsions if t.restr.esd > 0 and t.restr.label.lower().startswith(TORSIONS)]
    chirals = [(t, top.ideal_chiral_abs_volume(t)) for t in top.chirs]
    chirals = [t.calculate_z(v, 0.2) for t, v in chirals if v > 0]
    planes = 0.0
    for t in top.planes:
        if t.restr.esd > 0 and len(t.atoms) > 3:
            best = gemmi.find_best_plane(t.atoms)
            planes += sum((gemmi.get_distance_from_plane(a.pos, best) / t.restr.esd) ** 2 for a in t.atoms)
    return {"bond": bonds, "angle": angles, "torsion": torsions, "chirality": chirals}, planes


def same_as_gemmi(structure, library, geometry, sites):
    expected, planes = by_gemmi(structure, library, sites)
    for name, values in expected.items():
        found = geometry.deviations(sites, name).abs()
        if name == "bond":
            metals = [gemmi.Element(e).is_metal for e in geometry.topology.atoms.elements]
            plain = ~torch.tensor(metals)[torch.cat([geometry.bond_rows, geometry.symmetry_bond_rows])].any(1)
            plain[len(geometry.bond_rows) :] = False
            # Atoms that a monomer lacks are tied after all bonds of gemmi's.
            found = found[plain][: len(values)]
        assert len(found) == len(values), name
        np.testing.assert_allclose(found.numpy(), np.abs(values), rtol=1e-8, atol=1e-8, err_msg=name)
    assert float(geometry.terms(sites)["plane"]) == pytest.approx(planes, rel=1e-8)


def test_each_term_is_gemmis_evaluation(shipped, library):
    structure, geometry = shipped
    same_as_gemmi(structure, library, geometry, shaken(geometry))


@pytest.mark.parametrize("name", ENTRIES)
def test_each_term_is_gemmis_evaluation_on_entries(name, pdb_dir, library):
    structure, _ = entry_structure(pdb_dir, name)
    geometry = GeometryRestraints.from_gemmi(structure, library)
    same_as_gemmi(structure, library, geometry, shaken(geometry))


def test_the_energy_is_the_sum_of_its_terms_and_rms_its_deviations(shipped):
    _, geometry = shipped
    sites = shaken(geometry)
    assert float(geometry(sites)) == pytest.approx(sum(float(v) for v in geometry.terms(sites).values()), rel=1e-12)
    rows, ideal = geometry.bond_rows, geometry.bond_ideal
    lengths = (sites[rows[:, 0]] - sites[rows[:, 1]]).norm(dim=1)
    assert geometry.rms(sites)["bond"] == pytest.approx(float((lengths - ideal).square().mean().sqrt()), rel=1e-9)
    worst = geometry.worst(sites, "angle", 3)
    assert worst[0][0] == pytest.approx(float(geometry.deviations(sites, "angle").abs().max()), rel=1e-9) or (
        abs(worst[0][0]) == pytest.approx(float(geometry.deviations(sites, "angle").abs().max()), rel=1e-9)
    )


@pytest.mark.parametrize("term", ["bond", "angle", "torsion", "chirality", "plane", "repulsion"])
def test_gradients_are_differences(shipped, term):
    _, geometry = shipped
    sites = shaken(geometry, 0.2)
    geometry.update_contacts(sites)
    direction = torch.randn(sites.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    x = sites.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(geometry.terms(x)[term], x)
    step = 1e-4
    points = [float(geometry.terms(sites + k * step * direction)[term]) for k in (-2, -1, 1, 2)]
    difference = (points[0] - 8 * points[1] + 8 * points[2] - points[3]) / (12 * step)
    scale = float((gradient.abs() * direction.abs()).sum())
    assert abs(float((gradient * direction).sum()) - difference) < 1e-7 * scale


def test_second_derivatives():
    """One peptide with a ring, gradgradcheck over all its atoms."""
    geometry, sites = peptide(library_or_skip())
    torch.manual_seed(0)
    x = (sites + 0.05 * torch.randn(sites.shape, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(geometry, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(geometry, x, fast_mode=True, atol=1e-4, rtol=1e-4)


def peptide(library):
    structure = shipped_structure()
    copy = gemmi.Structure()
    copy.cell, copy.spacegroup_hm = structure.cell, structure.spacegroup_hm
    model = gemmi.Model(1) if isinstance(getattr(structure[0], "num", None), int) else gemmi.Model("1")
    chain = gemmi.Chain("A")
    residues = [r for r in structure[0][0] if r.name != "HOH"]
    ring = next(i for i, r in enumerate(residues) if r.name in ("TYR", "PHE", "HIS", "TRP"))
    for residue in residues[max(0, ring - 1) : ring + 2]:
        chain.add_residue(residue)
    model.add_chain(chain)
    copy.add_model(model)
    geometry = GeometryRestraints.from_gemmi(copy, library)
    assert len(geometry.plane_rows) > 2 and len(geometry.torsion_rows) > 2
    return geometry, torch.tensor(geometry.topology.atoms.sites_cart)


def test_a_batch_is_its_members(shipped):
    _, geometry = shipped
    batch = torch.stack([shaken(geometry, seed=s) for s in range(4)]).reshape(2, 2, -1, 3)
    geometry.update_contacts(batch)
    alone = torch.stack([geometry(sites) for sites in batch.reshape(4, -1, 3)])
    torch.testing.assert_close(geometry(batch).reshape(4), alone, rtol=1e-12, atol=0)
    mapped = torch.func.vmap(geometry)(batch.reshape(4, -1, 3))
    torch.testing.assert_close(mapped, alone, rtol=1e-12, atol=0)


def test_contacts_of_a_batch_are_those_of_any_member(shipped):
    _, geometry = shipped
    models = [shaken(geometry, 0.5, seed=s) for s in range(3)]
    separate = []
    for sites in models:
        geometry.update_contacts(sites)
        separate.append(float(geometry.terms(sites)["repulsion"]))
    geometry.update_contacts(torch.stack(models))
    np.testing.assert_allclose(geometry.terms(torch.stack(models))["repulsion"].numpy(), separate, rtol=1e-12)


def test_module_habits_of_torch(shipped, library):
    structure, geometry = shipped
    sites = shaken(geometry)
    value = float(geometry(sites))
    single = GeometryRestraints.from_gemmi(structure, library).to(torch.float32)
    assert single.bond_ideal.dtype == torch.float32 and single.bond_rows.dtype == torch.int64
    assert float(single(sites.float())) == pytest.approx(value, rel=1e-4)
    single.update_contacts(sites.float())
    assert single.repulsion_d.dtype == torch.float32
    assert float(single.double()(sites)) == pytest.approx(value, rel=1e-5)
    other = GeometryRestraints.from_gemmi(structure, library)
    other.load_state_dict(geometry.state_dict())
    other.update_contacts(sites), geometry.update_contacts(sites)
    assert float(other(sites)) == float(geometry(sites))
    assert float(other.to("meta")(sites.to("meta")).is_meta)


def test_rows_of_another_order(shipped, library):
    structure, geometry = shipped
    order = torch.randperm(geometry.n_atoms, generator=torch.Generator().manual_seed(1)).numpy()
    turned = GeometryRestraints.from_gemmi(structure, library, rows=order)
    sites = shaken(geometry)
    there = torch.empty_like(sites)
    there[torch.from_numpy(order)] = sites
    turned.update_contacts(there)
    geometry.update_contacts(sites)
    assert float(turned(there)) == pytest.approx(float(geometry(sites)), rel=1e-12)


def test_the_structure_is_not_changed(library):
    structure = shipped_structure()
    before = structure.make_pdb_string()
    GeometryRestraints.from_gemmi(structure, library)
    assert structure.make_pdb_string() == before


def test_expected_curvature_is_the_diagonal_of_the_normal_matrix():
    geometry, sites = peptide(library_or_skip())
    x = sites.clone().requires_grad_()
    rows = torch.cat([geometry.deviations(x, n) for n in ("bond", "angle", "torsion", "chirality", "repulsion")])
    jacobian = torch.stack([torch.autograd.grad(z, x, retain_graph=True)[0] for z in rows])
    without_planes = 2 * jacobian.square().sum(0)
    found = geometry.curvature(sites)
    geometry.plane_esd *= 1e6
    torch.testing.assert_close(geometry.curvature(sites), without_planes, rtol=1e-6, atol=1e-6)
    assert bool((found >= without_planes - 1e-6).all())


# Residues and libraries


def test_an_unknown_residue_is_named_and_held(library):
    structure = shipped_structure()
    chain = structure[0][0]
    number = next(i for i, r in enumerate(chain) if r.name == "LEU")
    chain[number].name = "Z_Q"
    n = len(chain[number])
    geometry = GeometryRestraints.from_gemmi(structure, library)
    assert "Z_Q" in geometry.unknown and any("Z_Q" in m and "CIF" in m for m in geometry.messages)
    rows = [i for i, name in enumerate(geometry.topology.atoms.residue_names) if name == "Z_Q"]
    inside = torch.isin(geometry.bond_rows, torch.tensor(rows)).all(1)
    assert len(rows) == n and int(inside.sum()) >= n - 1
    sites = torch.tensor(geometry.topology.atoms.sites_cart)
    assert (
        float(geometry.deviations(sites, "bond")[: len(inside)][inside].abs().max()) < 0.05
    )  # gemmi rounds to 0.001 Å


def test_an_atom_that_its_monomer_lacks_is_tied(library):
    structure = shipped_structure()
    structure.remove_hydrogens()  # named as before 2007
    residue = next(r for r in structure[0][0] if r.name == "LEU")
    atom = residue["CD1"][0].clone()
    atom.name = "XX1"
    atom.pos = atom.pos + gemmi.Position(1.0, 0.9, 0.5)
    residue.add_atom(atom)
    geometry = GeometryRestraints.from_gemmi(structure, library)
    row = list(geometry.topology.atoms.names).index("XX1")
    assert int((geometry.bond_rows == row).any(1).sum()) >= 2
    assert any("LEU XX1" in message for message in geometry.messages)


def test_a_ligand_file_comes_first(library, tmp_path):
    structure = shipped_structure()
    residue = next(r for r in structure[0][0] if r.name == "ALA" or r.name == "LEU")
    path = _path(library, residue.name)
    text = path.read_text()
    ligand = tmp_path / "ligand.cif"
    ligand.write_text(text.replace(residue.name, "LG1"))
    residue.name = "LG1"
    geometry = GeometryRestraints.from_gemmi(structure, library, ligands=[ligand])
    assert "LG1" not in geometry.unknown and not any("LG1" in message for message in geometry.messages)
    (tmp_path / "none.cif").write_text("data_x\n_cell.length_a 3\n")
    with pytest.raises(ValueError, match=r"none\.cif holds no monomer"):
        GeometryRestraints.from_gemmi(structure, library, ligands=[tmp_path / "none.cif"])
    with pytest.raises(ValueError, match="cannot be read"):
        GeometryRestraints.from_gemmi(structure, library, ligands=[tmp_path / "missing.cif"])


def _path(library, name):
    return library.path / name[0].lower() / f"{name}.cif"


def test_without_a_library_one_sentence_says_how_to_get_one(monkeypatch, tmp_path):
    import importlib.metadata

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    for name in ("CLIBD_MON", "MMTBX_CCP4_MONOMER_LIB"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r'pip install "mmtbx_sfdiff\[refine\]"'):
        GeometryRestraints.from_gemmi(shipped_structure())
    monkeypatch.setenv("CLIBD_MON", str(tmp_path))
    with pytest.raises(ValueError, match="CLIBD_MON"):
        find_library()
    with pytest.raises(ValueError, match="mon_lib_list"):
        find_library(tmp_path / "nowhere")


def test_the_library_named_comes_before_the_environments(library, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIBD_MON", str(tmp_path))
    assert find_library(library.path) == MonomerLibrary(library.path, "named")
    monkeypatch.setenv("CLIBD_MON", str(library.path))
    assert find_library() == MonomerLibrary(library.path, "CLIBD_MON")


def test_wrong_shapes_and_empty_structures_are_refused(shipped, library):
    _, geometry = shipped
    with pytest.raises(ValueError, match="sites_cart must have the shape"):
        geometry(torch.zeros(3, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="no atoms"):
        GeometryRestraints.from_gemmi(gemmi.Structure(), library)
    with pytest.raises(ValueError, match="each once"):
        GeometryRestraints.from_gemmi(shipped_structure(), library, rows=np.zeros(geometry.n_atoms, dtype=int))


def test_sites_of_lower_precision_are_converted_and_get_their_gradient(shipped):
    _, geometry = shipped
    sites = shaken(geometry).float().requires_grad_()
    energy = geometry(sites)
    energy.backward()
    assert energy.dtype == torch.float64 and sites.grad.dtype == torch.float32
    assert float(energy.detach()) == pytest.approx(float(geometry(sites.detach().double())), rel=1e-12)
