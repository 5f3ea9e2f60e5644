"""Models as people have them: what is filled in, what is turned, what is refused, in which words."""

import math

import mmtbx_sfdiff as sfdiff
from mmtbx_sfdiff.files import load_entry, read_model
from mmtbx_sfdiff.files.errors import Sorry
from mmtbx_sfdiff.files.model_cif import element_from_name

import gemmi
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.support import case_files as make


def f_of(model):
    return model.xray_structure.structure_factors(d_min=2.5, algorithm="direct").f_calc().data().as_numpy_array()


def read(tmp_path, text, name="x.cif", **options):
    path = tmp_path / name
    path.write_text(text)
    return read_model(path, **options)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return f_of(read(tmp_path_factory.mktemp("plain"), make.cif_text()))


def without(*names):
    return {name: texts for name, texts in make.cif_columns().items() if name not in names}


@pytest.mark.parametrize(
    "missing, said",
    [
        (("occupancy",), "_atom_site.occupancy is missing: 1 for all atoms"),
        (("type_symbol",), "whose element is taken from their names"),
        (("pdbx_PDB_model_num", "group_PDB", "pdbx_PDB_ins_code"), None),
        (("auth_asym_id", "auth_seq_id", "auth_comp_id", "auth_atom_id"), "auth_seq_id is missing: label_seq_id"),
        (("label_asym_id", "label_seq_id", "label_comp_id", "label_atom_id"), "label_seq_id is missing: auth_seq_id"),
        (("label_alt_id", "pdbx_formal_charge", "id"), None),
    ],
)
def test_items_that_have_a_default_are_filled_in_and_said(tmp_path, plain, missing, said):
    model = read(tmp_path, make.cif_text(without(*missing)))
    assert relative(f_of(model), plain) < 1e-12
    assert said is None or any(said in message for message in model.messages)


@pytest.mark.parametrize("item", ["B_iso_or_equiv", "Cartn_x", "Cartn_y", "Cartn_z"])
def test_items_without_a_default_are_named(tmp_path, item):
    with pytest.raises(Sorry, match=rf"x.cif lacks the item _atom_site.{item}"):
        read(tmp_path, make.cif_text(without(item)))


@pytest.mark.parametrize("item, said", [("Cartn_y", "has no coordinate"), ("B_iso_or_equiv", "has no B factor")])
@pytest.mark.parametrize("marker", ["?", "."])
def test_a_missing_value_names_its_atom(tmp_path, item, said, marker):
    columns = make.cif_columns()
    columns[item][7] = marker
    with pytest.raises(Sorry, match=f"atom A ALA 2 C {said}"):
        read(tmp_path, make.cif_text(columns))


def test_missing_occupancies_are_one(tmp_path, plain):
    columns = make.cif_columns()
    columns["occupancy"][3], columns["occupancy"][9] = ".", "?"
    model = read(tmp_path, make.cif_text(columns))
    assert relative(f_of(model), plain) < 1e-12 and "atoms without an occupancy, taken as 1: 2" in model.messages


def test_charges_and_uncertainties_in_the_text_are_read(tmp_path, plain):
    columns = make.cif_columns()
    columns["type_symbol"] = ["O1-" if text == "O" else text for text in columns["type_symbol"]]
    columns["Cartn_x"] = [f"{text}(3)" for text in columns["Cartn_x"]]
    structure = read(tmp_path, make.cif_text(columns)).xray_structure
    assert {s.scattering_type for s in structure.scatterers()} == {"C", "N", "O1-"}
    columns["type_symbol"] = make.cif_columns()["type_symbol"]
    assert relative(f_of(read(tmp_path, make.cif_text(columns))), plain) < 1e-12


@pytest.mark.parametrize(
    "symmetry",
    [
        "_space_group.name_H-M_alt 'P 21 21 21'\n",
        "_space_group.IT_number 19\n",
        "_symmetry.Int_Tables_number 19\n",
        "_space_group.name_Hall ' P 2ac 2ab'\n",
        "loop_\n_space_group_symop.operation_xyz\nx,y,z\n1/2-x,-y,1/2+z\n-x,1/2+y,1/2-z\n1/2+x,1/2-y,-z\n",
    ],
)
def test_a_space_group_by_any_name(tmp_path, plain, symmetry):
    model = read(tmp_path, make.cif_text(symmetry=make.SYMMETRY_ITEMS + symmetry))
    assert model.crystal_symmetry.space_group() == make.SYMMETRY.space_group()
    assert relative(f_of(model), plain) < 1e-12


def test_small_molecules_and_loops_without_rows_are_one_sentence(tmp_path):
    text = "data_nacl\n_cell_length_a 5.64\nloop_\n_atom_site_label\n_atom_site_fract_x\nNa1 0\n"
    with pytest.raises(Sorry, match="CIF of a small molecule .* _atom_site.Cartn_x"):
        read(tmp_path, text)
    empty = "data_x\n" + make.SYMMETRY_ITEMS + make.HM + "loop_\n_atom_site.id\n_atom_site.Cartn_x\n"
    with pytest.raises(Sorry, match="contains no atoms"):
        read(tmp_path, empty)
    model = read(tmp_path, make.cif_text(more="loop_\n_refine.ls_d_res_high\n_refine.ls_d_res_low\n"))
    assert model.xray_structure.scatterers().size() == len(make.atoms())


@given(st.sets(st.sampled_from(sorted(make.cif_columns())), max_size=6), st.randoms())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_columns_in_any_order_are_the_same_model_or_one_sentence(tmp_path, plain, missing, random):
    columns = list(without(*missing).items())
    random.shuffle(columns)
    try:
        model = read(tmp_path, make.cif_text(dict(columns)) if columns else "data_x\n")
    except Sorry as error:
        assert str(error).endswith(".") and "()" not in str(error) and "x.cif" in str(error)
        return
    assert relative(f_of(model), plain) < 1e-12


# displacement tensors

U = {3: (0.12, 0.20, 0.30, 0.01, 0.02, 0.03), 8: (0.31, 0.14, 0.22, -0.03, 0.05, 0.01)}
IJ = ("[1][1]", "[2][2]", "[3][3]", "[1][2]", "[1][3]", "[2][3]")


def tensors(prefix="U", factor=1.0, question=None):
    rows = {i: [f"{factor * x:.8f}" for x in u] for i, u in U.items()}
    if question is not None:
        rows[question] = ["?"] + ["0.1"] * 5
    columns = {"id": [str(i + 1) for i in rows]}
    for number, ij in enumerate(IJ):
        columns[f"{prefix}{ij}"] = [row[number] for row in rows.values()]
    return make.loop("_atom_site_anisotrop", columns)


def u_of(model):
    return {i: s.u_star for i, s in enumerate(model.xray_structure.scatterers()) if s.flags.use_u_aniso()}


def test_tensors_are_read_from_any_of_their_items(tmp_path):
    wanted = u_of(read(tmp_path, make.cif_text(more=tensors())))
    assert sorted(wanted) == [3, 8]
    columns = make.cif_columns()
    for number, ij in enumerate(IJ):
        columns[f"aniso_U{ij}"] = [str(U[i][number]) if i in U else "?" for i in range(len(columns["id"]))]
    for text in (
        make.cif_text(more=tensors("B", 8 * math.pi**2)),
        make.cif_text(more=tensors(question=11)),
        make.cif_text(columns),
    ):
        model = read(tmp_path, text)
        found = u_of(model)
        assert sorted(found) == [3, 8] and any("tensor" in message for message in model.messages)
        assert all(np.allclose(found[i], wanted[i], rtol=1e-6) for i in wanted)


def test_u_iso_stands_for_b(tmp_path, plain):
    columns = without("B_iso_or_equiv")
    columns["U_iso_or_equiv"] = [f"{float(b) / (8 * math.pi**2):.8f}" for b in make.cif_columns()["B_iso_or_equiv"]]
    model = read(tmp_path, make.cif_text(columns))
    assert relative(f_of(model), plain) < 1e-6 and "U_iso_or_equiv" in model.messages[0]


# frames


def rotation(seed):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return q * np.sign(np.linalg.det(q))


def turned_pdb(seed, shift):
    """The model in a frame of its own, with SCALE records."""
    turn = rotation(seed)
    rows = [(*row[:3], *(turn.T @ (np.array(row[3:6]) - shift)), *row[6:]) for row in make.atoms()]
    fractional = np.array(gemmi.UnitCell(*make.CELL).frac.mat.tolist())
    matrix, vector = fractional @ turn, fractional @ shift
    scale = "".join("SCALE%d    %10.6f%10.6f%10.6f     %10.5f\n" % (i + 1, *matrix[i], vector[i]) for i in range(3))
    return make.pdb_text(rows, scale=scale)


@pytest.mark.parametrize("seed, shift", [(1, (0, 0, 0)), (2, (3.0, -4.0, 5.0))])
def test_coordinates_in_a_frame_of_their_own_are_turned_and_turned_back(tmp_path, plain, seed, shift):
    text = turned_pdb(seed, np.array(shift, dtype=float))
    model = read(tmp_path, text, "m.pdb")
    assert "frame of their own" in model.messages[0]
    # SCALE has six decimals: 1e-6 x 36 Å / 1e-3 Å
    assert relative(f_of(model), plain) < 5e-3
    indices, f = make.amplitudes(tmp_path)
    data = make.write_mtz(tmp_path / "d.mtz", indices, {"F": ("F", f), "SIGF": ("Q", 0.05 * f + 0.1)})
    fmodel = sfdiff.FModel.from_files(tmp_path / "m.pdb", data)
    for name in ("out.pdb", "out.cif"):
        fmodel.write_model(tmp_path / name)
        was, now = gemmi.read_structure(str(tmp_path / "m.pdb")), gemmi.read_structure(str(tmp_path / name))
        pairs = zip((a.atom.pos.tolist() for a in was[0].all()), (a.atom.pos.tolist() for a in now[0].all()))
        assert max(np.abs(np.subtract(a, b)).max() for a, b in pairs) < 2e-3


def test_scale_records_of_another_cell_are_not_applied(tmp_path, plain):
    unit = "".join("SCALE%d    %10.6f%10.6f%10.6f        0.00000\n" % (i + 1, *row) for i, row in enumerate(np.eye(3)))
    assert relative(f_of(read(tmp_path, make.pdb_text(scale=unit), "m.pdb")), plain) < 1e-12
    wrong = unit.replace("1.000000", "0.050000")
    model = read(tmp_path, make.pdb_text(scale=wrong), "m.pdb")
    assert "do not belong to the unit cell" in model.messages[0] and relative(f_of(model), plain) < 1e-12


def test_tensors_turn_with_the_frame(tmp_path):
    turn = rotation(5)
    u = np.array([[0.3, 0.05, 0.02], [0.05, 0.2, -0.04], [0.02, -0.04, 0.4]])
    fractional = np.array(gemmi.UnitCell(*make.CELL).frac.mat.tolist())
    columns = make.cif_columns()
    xyz = np.array([[float(columns[f"Cartn_{x}"][i]) for x in "xyz"] for i in range(len(columns["id"]))])

    def text(sites, tensor, matrix):
        for k, axis in enumerate("xyz"):
            columns[f"Cartn_{axis}"] = [f"{x:.6f}" for x in sites[:, k]]
        rows = {"id": ["4"], "type_symbol": ["O"]}
        for ij, (i, j) in zip(IJ, ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))):
            rows[f"U{ij}"] = [f"{tensor[i, j]:.9f}"]
        items = "".join(
            f"_atom_sites.fract_transf_matrix[{i + 1}][{j + 1}] {matrix[i, j]:.9f}\n"
            for i in range(3)
            for j in range(3)
        ) + "".join(f"_atom_sites.fract_transf_vector[{i + 1}] 0\n" for i in range(3))
        return make.cif_text(columns, more=items + make.loop("_atom_site_anisotrop", rows))

    plain = read(tmp_path, text(xyz, u, fractional))
    turned = read(tmp_path, text(xyz @ turn, turn.T @ u @ turn, fractional @ turn))
    assert turned.frame is not None and plain.frame is None
    assert relative(f_of(turned), f_of(plain)) < 1e-5
    assert np.allclose(u_of(turned)[3], u_of(plain)[3], atol=1e-9)


# copies


OPERATOR = ((0.258819, -0.965926, 0.0, 22.0), (0.965926, 0.258819, 0.0, 2.0), (0.0, 0.0, 1.0, 3.5))
IDENTITY = ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0))


def mtrix(*operators):
    return "".join(
        "MTRIX%d %3d%10.6f%10.6f%10.6f     %10.5f\n" % (row + 1, serial, *operator[row])
        for serial, operator in enumerate(operators, 1)
        for row in range(3)
    )


def ncs_cif(*operators):
    columns = {"id": [str(i + 1) for i in range(len(operators))], "code": ["generate"] * len(operators)}
    for i in range(3):
        for j in range(3):
            columns[f"matrix[{i + 1}][{j + 1}]"] = [str(operator[i][j]) for operator in operators]
        columns[f"vector[{i + 1}]"] = [str(operator[i][3]) for operator in operators]
    return make.loop("_struct_ncs_oper", columns)


def test_ncs_operators_without_an_identity_make_copies_all_the_same(tmp_path):
    n = len(make.atoms())
    with_it = read(tmp_path, make.pdb_text(header=mtrix(IDENTITY, OPERATOR)), "m.pdb")
    lacking = read(tmp_path, make.pdb_text(header=mtrix(OPERATOR)), "m.pdb")
    cif = read(tmp_path, make.cif_text(more=ncs_cif(OPERATOR)))
    assert [m.xray_structure.scatterers().size() for m in (with_it, lacking, cif)] == [2 * n] * 3
    assert relative(f_of(lacking), f_of(with_it)) < 1e-12 and relative(f_of(cif), f_of(with_it)) < 1e-12
    assert "lack the identity" in lacking.messages[0] + cif.messages[0] and not with_it.messages
    structure = gemmi.read_pdb_string(make.pdb_text(header=mtrix(OPERATOR)))
    structure.expand_ncs(gemmi.HowToNameCopiedChain.Dup)
    assert structure[0].count_atom_sites() == 2 * n


# headers


@pytest.mark.parametrize(
    "method, table, said",
    [
        ("ELECTRON CRYSTALLOGRAPHY", "n_gaussian", "electron diffraction"),
        ("ELECTRON CRYSTALLOGRAPHY", "electron", None),
        ("NEUTRON DIFFRACTION", "n_gaussian", "neutron diffraction"),
        ("NEUTRON DIFFRACTION", "neutron", None),
        ("X-RAY DIFFRACTION", "n_gaussian", None),
        ("X-RAY DIFFRACTION", "electron", "X-ray diffraction"),
        ("ELECTRON MICROSCOPY", "n_gaussian", "electron microscopy"),
        ("X-RAY DIFFRACTION; NEUTRON DIFFRACTION", "neutron", None),
    ],
)
def test_the_radiation_of_the_header_is_compared_with_the_table(tmp_path, method, table, said):
    models = [read(tmp_path, make.pdb_text(header=f"EXPDTA    {method}\n"), "m.pdb", scattering_table=table)]
    if ";" not in method:
        models.append(read(tmp_path, make.cif_text(more=f"_exptl.method '{method}'\n"), scattering_table=table))
    for model in models:
        assert any(said in message for message in model.messages) if said else not model.messages


def test_electrons_see_deuterium_as_hydrogen_and_neutrons_do_not(tmp_path):
    def text(element):
        return make.pdb_text().replace(
            "END", f"ATOM    900  D1  ALA A   1      12.000  12.000   6.000  1.00 20.00           {element}  \nEND"
        )

    d = read(tmp_path, text("D"), "m.pdb", scattering_table="electron")
    assert relative(f_of(d), f_of(read(tmp_path, text("H"), "m.pdb", scattering_table="electron"))) < 1e-12
    neutron = read(tmp_path, text("D"), "m.pdb", scattering_table="neutron")
    assert relative(f_of(d.with_scattering("neutron", 2.5)), f_of(neutron)) < 1e-12
    assert relative(f_of(read(tmp_path, text("H"), "m.pdb", scattering_table="neutron")), f_of(neutron)) > 1e-3


def test_residual_b_factors_are_said(tmp_path):
    remark = "REMARK   3   ATOM RECORD CONTAINS {} B FACTORS{}\n"
    residual = read(tmp_path, make.pdb_text(header=remark.format("RESIDUAL", " ONLY")), "m.pdb")
    whole = read(tmp_path, make.pdb_text(header=remark.format("SUM OF TLS AND RESIDUAL", "")), "m.pdb")
    cif = read(tmp_path, make.cif_text(more="_refine.pdbx_TLS_residual_ADP_flag 'LIKELY RESIDUAL'\n"))
    assert "residual of a TLS refinement" in residual.messages[0] + cif.messages[0] and not whole.messages


@pytest.mark.parametrize(
    "name, residue, element",
    [
        ("CA", "ALA", "C"),
        ("CA", "CA", "CA"),
        ("ZN", "ZN", "ZN"),
        ("FE", "HEM", "FE"),
        ("SE", "MSE", "SE"),
        ("HG2", "GLU", "H"),
    ]
    + [
        ("O5'", "DA", "O"),
        ("1HB", "ALA", "H"),
        ("CL", "CL", "CL"),
        ("CL1", "LIG", "CL"),
        ("P", "DA", "P"),
        ("C1", "LIG", "C"),
    ],
)
def test_elements_follow_from_names(name, residue, element):
    assert element_from_name(name, residue) == element


def test_text_under_the_name_of_an_mtz_is_said(tmp_path):
    (tmp_path / "m.pdb").write_text(make.pdb_text())
    (tmp_path / "notes.mtz").write_text("notes on the crystal\nfrozen in oil\n")
    with pytest.raises(Sorry, match="notes.mtz is no MTZ file"):
        load_entry(tmp_path / "m.pdb", tmp_path / "notes.mtz")


@pytest.mark.parametrize(
    "name", ["auth_atom_id", "label_alt_id", "type_symbol", "pdbx_PDB_model_num", "pdbx_PDB_ins_code"]
)
def test_names_that_no_library_holds_are_refused_by_the_atom(name, tmp_path):
    columns = make.cif_columns()
    columns[name][11] = "x" * 90
    path = tmp_path / "long.cif"
    path.write_text(make.cif_text(columns))
    with pytest.raises(Sorry, match=rf"atom number 12 has an impossible _atom_site.{name} of 90 characters"):
        read_model(path)


def test_a_last_record_cut_within_its_numbers_is_refused(tmp_path):
    text = make.pdb_text()
    end = text.index("\n", text.index("ATOM     23"))
    path = tmp_path / "cut.pdb"
    path.write_text(text[: end - 18])  # within B: 1 for 11.24 would be read
    with pytest.raises(Sorry, match=r"is cut short \(its last record ends in column 6[0-5]\)"):
        read_model(path)
    path.write_text(text[:end])  # whole, but for the end of the line
    assert read_model(path).xray_structure.scatterers().size() == 23


@pytest.mark.parametrize("seed", range(4))
def test_atoms_of_residues_that_take_turns_keep_their_own_numbers(tmp_path, seed):
    """Two residues in one place, whose rows are mixed: cctbx's hierarchies of the file and of its PDB records differ in order."""
    columns = make.cif_columns()
    rng = np.random.default_rng(seed)
    for i in rng.choice(40, 7, replace=False):
        columns["label_comp_id"][i] = columns["auth_comp_id"][i] = "SER"
    text = make.cif_text(columns)
    structure = gemmi.make_structure_from_block(gemmi.cif.read_string(text)[0])
    reference = sfdiff.Atoms.from_gemmi(structure)
    model = read(tmp_path, text)
    found = sfdiff.Atoms.from_cctbx(model.xray_structure)
    indices = reference.crystal.build_miller_indices(d_min=2.5)
    a, b = (sfdiff.structure_factors(x, x.crystal, indices, method="direct") for x in (found, reference))
    assert len(found.u_iso) == len(reference.u_iso)
    assert float((a.abs() - b.abs()).norm() / b.norm()) < 1e-10


@pytest.mark.parametrize("item", ["length_a", "length_b", "length_c"])
def test_a_cell_that_lacks_a_length_is_no_cell(tmp_path, item):
    symmetry = "".join(f"{line}\n" for line in make.SYMMETRY_ITEMS.splitlines() if item not in line) + make.HM
    with pytest.raises(Sorry, match="has no unit cell"):
        read(tmp_path, make.cif_text(symmetry=symmetry))


@pytest.mark.parametrize("item", ["angle_alpha", "angle_beta", "angle_gamma"])
def test_an_angle_that_is_missing_is_ninety_degrees_in_its_own_place(tmp_path, item):
    """90 is the dictionary's default."""
    cell = dict(
        zip(
            ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), (28, 31, 36, 95, 100, 105)
        )
    )
    text = "".join(f"_cell.{name} {value}\n" for name, value in cell.items() if name != item)
    model = read(tmp_path, make.cif_text(symmetry=text + "_symmetry.space_group_name_H-M 'P 1'\n"))
    assert model.crystal_symmetry.unit_cell().parameters() == pytest.approx(tuple({**cell, item: 90}.values()))
    assert f"_cell.{item} is missing: 90 degrees were taken" in model.messages


def test_an_atom_with_an_empty_name_is_one_sentence(tmp_path):
    columns = make.cif_columns()
    columns["label_atom_id"][3] = columns["auth_atom_id"][3] = "''"
    with pytest.raises(Sorry, match="atom number 4 has an empty _atom_site.auth_atom_id"):
        read(tmp_path, make.cif_text(columns))
