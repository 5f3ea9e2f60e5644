"""Refinement metadata: read back by gemmi from both formats; new flags by every door."""

import dataclasses

import torch
from mmtbx_sfdiff import Atoms, structure_factors
from mmtbx_sfdiff.files import load_entry
from mmtbx_sfdiff.files.demo import demo_entry
from mmtbx_sfdiff.files.deposition import REFINEMENT_CATEGORIES, add_to_cif, remark_3
from mmtbx_sfdiff.files.new_flags import new_flags
from mmtbx_sfdiff.files.refined_model import refined_model
from mmtbx_sfdiff.files.tls import groups_of_block, groups_of_pdb
from mmtbx_sfdiff.programs.refine_output import tls
from mmtbx_sfdiff.refinement import History
from mmtbx_sfdiff.refinement.groups import AtomLabels
from mmtbx_sfdiff.refinement.parameters import Parameters
from mmtbx_sfdiff.refinement.variables import Variables
from mmtbx_sfdiff.symmetry.frame import Frame

import gemmi
import numpy as np
import pytest
from scitbx.math import euler_angles_as_matrix

SHELL = {"n": 50, "n_work": 45, "n_free": 5, "completeness": 0.9, "r_all": 0.2, "r_work": 0.19, "r_free": 0.25}
RECORD = {
    "entry": "1abc",
    "program": "mmtbx_sfdiff",
    "version": "9.9",
    "target": "maximum likelihood",
    "d_max": 20.0,
    "d_min": 1.85,
    "n_reflections": 100,
    "n_work": 90,
    "n_free": 10,
    "completeness": 0.915,
    "r_all": 0.2,
    "r_work": 0.1987,
    "r_free": 0.2511,
    "b_mean": 21.5,
    "n_atoms": 300,
    "n_solvent_atoms": 12,
    "free_selection": "RANDOM",
    "solvent": "a mask",
    "restraints": "a monomer library",
    "restraint_types": [("bond", 300, 0.0101, "ANGSTROMS"), ("angle", 400, 1.5, "DEGREES")],
    "shells": [SHELL | {"d_max": 20.0, "d_min": 3.0}, SHELL | {"d_max": 3.0, "d_min": 1.85}],
    "twin": {"law": "-h,-k,l", "fraction": 0.31},
    "tls": [
        {
            "id": "1",
            "selection": "chain A and resseq 1:20",
            "chain": "A",
            "first": 1,
            "last": 20,
            "origin": (1.0, 2.0, 3.0),
            "T": np.diag([0.1, 0.2, 0.3]).tolist(),
            "L": np.diag([1.0, 2.0, 3.0]).tolist(),
            "S": [[0.01, 0.02, 0.03], [0.04, 0.05, 0.06], [0.07, 0.08, -0.06]],
        }
    ],
}


def test_mmcif_items_are_read_back_and_replace_those_of_an_earlier_refinement():
    block = gemmi.cif.read_string(
        "data_x\n_entry.id 1abc\n_refine.entry_id 1abc\n_refine.ls_R_factor_R_work 0.5\n_refine_analyze.entry_id 1abc\n"
        "loop_\n_software.name\n_software.classification\nXDS 'data reduction'\nREFMAC refinement\n"
    )[0]
    add_to_cif(block, RECORD)
    text = gemmi.cif.read_string(block.as_string())[0]  # what is written can be read
    structure = gemmi.make_structure_from_block(text)
    found = structure.meta.refinement[0]
    assert len(structure.meta.refinement) == 1
    assert (found.r_work, found.r_free, found.resolution_high) == pytest.approx((0.1987, 0.2511, 1.85))
    assert (found.reflection_count, found.work_set_count, found.rfree_set_count) == (100, 90, 10)
    assert text.find_value("_refine.B_iso_mean") == "21.50"
    shells = text.find("_refine_ls_shell.", ["d_res_high", "number_reflns_R_free", "R_factor_R_free"])
    assert [list(row) for row in shells] == [["1.85", "5", "0.2500"], ["3.00", "5", "0.2500"]]
    restraints = text.find("_refine_ls_restr.", ["type", "number", "dev_ideal"])
    assert [[gemmi.cif.as_string(x) for x in row] for row in restraints] == [
        ["f_bond_d", "300", "0.0101"],
        ["f_angle_d", "400", "1.5000"],
    ]
    (group,) = text.find("_pdbx_refine_tls.", ["id", "T[2][2]", "L[3][3]", "S[3][1]", "S[1][3]", "origin_y"])
    assert list(group) == ["1", "0.2000", "3.0000", "0.0700", "0.0300", "2.0000"]
    assert [(s.name, s.version) for s in structure.meta.software] == [("XDS", ""), ("mmtbx_sfdiff", "9.9")]
    assert list(text.find_loop("_pdbx_reflns_twin.fraction")) == ["0.690", "0.310"]
    assert text.find_value("_refine_analyze.entry_id") is None
    assert text.find_value("_reflns.number_obs") == "100"


def test_without_flags_there_is_no_r_free_anywhere():
    without = RECORD | {
        "n_free": None,
        "r_free": None,
        "twin": None,
        "tls": [],
        "shells": [shell | {"n_free": None, "r_free": None} for shell in RECORD["shells"]],
    }
    block = gemmi.cif.Block("x")
    add_to_cif(block, without)
    assert block.find_value("_refine.ls_R_factor_R_free") == "?"
    assert block.find_value("_refine.pdbx_ls_cross_valid_method") == "NONE"
    assert not block.find_mmcif_category("_pdbx_refine_tls.") and "_refine." in REFINEMENT_CATEGORIES
    text = "\n".join(remark_3(without))
    assert "FREE R VALUE                     : NULL" in text and "None" not in text and "None" not in block.as_string()


def test_remark_3_is_read_back_and_80_columns_wide():
    lines = remark_3(RECORD)
    assert {len(line) for line in lines} == {80}
    found = gemmi.read_pdb_string("\n".join(lines) + "\n").meta.refinement[0]
    assert (found.r_work, found.r_free, found.resolution_high) == pytest.approx((0.1987, 0.2511, 1.85))
    assert (found.reflection_count, found.rfree_set_count) == (100, 10)
    (group,) = found.tls_groups
    assert np.allclose(np.array(group.S.tolist()), RECORD["tls"][0]["S"])
    text = "\n".join(lines)
    assert "OPERATOR: -H,-K,L" in text and "FRACTION: 0.310" in text and "TLS GROUP : 1" in text


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    files = demo_entry(tmp_path_factory.mktemp("demo"))
    return load_entry(files.model, files.data)


def turned_entry(entry):
    """Of a file with a frame of its own."""
    rotation = np.array(euler_angles_as_matrix((10, 20, 30), deg=True).as_numpy_array()).reshape(3, 3)
    frame = Frame(rotation, np.array([1.0, 2, 3]))
    return dataclasses.replace(entry, model=dataclasses.replace(entry.model, frame=frame))


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_refined_model_is_the_atoms_given(suffix, turned, demo, tmp_path):
    """Read again: the same atoms, to the digits of the format; also where the file has a frame of its own."""
    entry = turned_entry(demo) if turned else demo
    atoms = Atoms.from_cctbx(demo.model.xray_structure)
    moved = atoms.replace(sites_cart=atoms.sites_cart + 0.25, u_iso=atoms.u_iso + 0.01)
    path = tmp_path / f"m{suffix}"
    path.write_bytes(refined_model(entry, moved, suffix, RECORD))
    again = load_entry(path, demo.data.path, allow_other_entry=True)
    assert (again.model.frame is not None) == turned
    # cctbx orders a residue's hydrogens otherwise in one of the formats
    rows = [_order(one.model.manager.get_hierarchy()) for one in (again, entry)]
    read, moved = Atoms.from_cctbx(again.model.xray_structure).select(rows[0]), moved.select(rows[1])
    tolerance = 2e-3 if suffix == ".pdb" or turned else 1e-4
    torch.testing.assert_close(read.sites_cart, moved.sites_cart, rtol=0, atol=tolerance)
    torch.testing.assert_close(read.b_iso, moved.b_iso, rtol=0, atol=0.02)
    assert again.model.r_work == pytest.approx(RECORD["r_work"], abs=1e-4)
    if suffix == ".cif":  # the demo's chains have no name, which an mmCIF cannot say
        assert {chain.id for chain in again.model.manager.get_hierarchy().chains()} == {"A"}


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
@pytest.mark.parametrize("turned", [False, True])
def test_tls_groups_are_recorded_and_counted_once(suffix, turned, demo, tmp_path):
    """Our reader gets the same F from the file: it adds nothing. The tensors recorded are those of the atoms but for an isotropic part."""
    entry = turned_entry(demo) if turned else demo
    atoms = Atoms.from_cctbx(demo.model.xray_structure)
    labels = AtomLabels.from_hierarchy(demo.model.manager.get_hierarchy())
    groups = torch.from_numpy(np.where(atoms.hydrogens.numpy(), -1, labels.polymer_chains()))
    parameters = Parameters(tls=groups.numpy())
    variables = Variables(parameters.prepared(atoms), sites=False, parameters=parameters)
    vector = 0.05 * torch.randn(variables.n, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    refined = variables(vector)
    history = History(cycles=[{"tls": variables.tls_groups(vector)}, {}], steps=[])
    recorded = tls(history, demo)
    assert len(recorded) == int(groups.max()) + 1 >= 1 and recorded[0]["selection"].startswith(
        "chain ' ' and resseq 1:"
    )
    path = tmp_path / f"m{suffix}"
    path.write_bytes(refined_model(entry, refined, suffix, RECORD | {"tls": recorded}))

    again = load_entry(path, demo.data.path, allow_other_entry=True)
    assert not any("TLS" in message for message in again.model.messages)
    indices = demo.data.f_obs.indices().as_vec3_double().as_numpy_array().astype(np.int64)
    f, expected = (
        structure_factors(x, atoms.crystal, indices, method="direct")
        for x in (Atoms.from_cctbx(again.model.xray_structure), refined)
    )
    assert float((f - expected).abs().sum() / expected.abs().sum()) < 3e-3

    text = path.read_text()
    found = groups_of_pdb(text) if suffix == ".pdb" else groups_of_block(gemmi.cif.read_string(text)[0])
    structure = gemmi.read_structure(str(path))
    n = 0
    for chain in structure[0]:
        for residue in chain:
            mine = [g for g in found if g.holds(chain.name or " ", residue.seqid.num)]
            for atom in residue:
                if atom.is_hydrogen() or not mine:
                    continue
                left = np.array(atom.aniso.as_mat33().tolist()) - mine[0].u(np.array([atom.pos.tolist()]))[0]
                assert np.abs(left - np.eye(3) * np.trace(left) / 3).max() < 5e-4
                n += 1
    assert n == int((groups >= 0).sum())


def test_chains_whose_numbers_are_not_decimal_are_recorded_whole():
    labels = AtomLabels.from_columns(["CA"] * 4, [""] * 4, ["GLY"] * 4, list("AABB"), ["-2A", "7", "9999", "A000"])
    assert labels.spans(np.array([0, 0, 1, 1])) == {0: ("A", -2, 7), 1: ("B", None, None)}


def _order(hierarchy):
    names = [atom.id_str() for atom in hierarchy.atoms()]
    return torch.tensor(sorted(range(len(names)), key=names.__getitem__))


# New flags


@pytest.mark.parametrize("style, label, value", [("phenix", "R-free-flags", 1), ("ccp4", "FreeR_flag", 0)])
def test_new_flags_are_read_back_by_the_rules(style, label, value, demo, tmp_path):
    f_obs = demo.data.f_obs
    made = new_flags(f_obs, 0.05, seed=3, style=style)
    assert list(made.flags.indices()) == list(f_obs.indices())
    share = made.flags.data().count(True) / f_obs.size()
    assert 0.04 < share < 0.06 and (made.label, made.test_value) == (label, value)
    path = tmp_path / "free.mtz"
    path.write_bytes(made.content)
    again = load_entry(demo.model.path, demo.data.path, free_file=path)  # which value is found by convention
    assert list(again.data.r_free_flags.data()) == list(made.flags.data())
    same, other = new_flags(f_obs, 0.05, 3, style), new_flags(f_obs, 0.05, 4, style)
    assert list(same.flags.data()) == list(made.flags.data()) != list(other.flags.data())
    assert (gemmi.read_mtz_file(str(path)).nreflections) >= f_obs.size()


def test_twin_mates_are_free_together():
    """Of P 4 a lattice of P 4 2 2: h,k,l and k,h,-l have one flag."""
    from cctbx import crystal, miller

    symmetry = crystal.symmetry((50, 50, 70, 90, 90, 90), "P 4")
    f_obs = miller.build_set(symmetry, False, d_min=3).array(data=None)
    f_obs = f_obs.customized_copy(data=f_obs.d_spacings().data())
    flags = new_flags(f_obs, 0.1).flags
    mates = flags.change_basis("k,h,-l").map_to_asu()
    ours, theirs = flags.common_sets(mates)
    assert ours.size() > 0.9 * flags.size() and list(ours.data()) == list(theirs.data())


def test_a_test_set_of_nothing_is_refused():
    from cctbx import crystal, miller

    few = miller.build_set(crystal.symmetry((10, 10, 10, 90, 90, 90), "P1"), False, d_min=9)
    with pytest.raises(ValueError, match="fraction"):
        new_flags(few.array(data=few.d_spacings().data()), 0.05)
