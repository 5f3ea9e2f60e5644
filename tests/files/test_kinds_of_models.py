"""Model files of further kinds, made small: each is read to the same F by cctbx and by gemmi, or refused in one sentence."""

import re

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files import read_model
from mmtbx_sfdiff.files.errors import Sorry
from mmtbx_sfdiff.files.model_text import read_structure, structure_messages

import pytest

from tests.support import case_files as make

SCALE = "".join(
    f"SCALE{i + 1}    "
    + "".join(f"{(1 / make.CELL[i] if i == j else 0):10.6f}" for j in range(3))
    + "        0.00000\n"
    for i in range(3)
)


def amplitudes(atoms):
    crystal = sfdiff.Crystal(make.CELL, "P 21 21 21")
    indices = crystal.build_miller_indices(d_min=4.0)
    return sfdiff.structure_factors(atoms, atoms.crystal, indices, method="direct").abs()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "x.pdb"
    path.write_text(make.pdb_text())
    return amplitudes(sfdiff.Atoms.from_cctbx(read_model(path).xray_structure))


def by_both(path, text):
    """(amplitudes, what was said), after the two readers were found to agree."""
    path.write_text(text)
    model = read_model(path)
    structure, said = read_structure(path)
    ours = amplitudes(sfdiff.Atoms.from_cctbx(model.xray_structure))
    theirs = amplitudes(sfdiff.Atoms.from_gemmi(structure))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert set(said) <= set(model.messages)
    return ours, list(model.messages)


def atom_records(change):
    lines = make.pdb_text().splitlines()
    count = iter(range(10**6))
    return "\n".join(change(next(count), line) if line.startswith("ATOM") else line for line in lines) + "\n"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda i, line: f"{line[:76]}{line[77]} ", None),  # elements on the left
        (lambda i, line: line[:76] + line[76:].lower(), None),
        (lambda i, line: f"{line[:72]}1ABC{7 + i:4d}", "columns 73-80 hold the code 1ABC"),
        (lambda i, line: f"{line[:54]}      {line[60:]}" if i % 5 == 0 else line, "without an occupancy, taken as 1"),
        (lambda i, line: f"{line}\nEND" if i == 20 else line, "after an END record"),
        (lambda i, line: f"{line[:11]} {line[12:22]}{int(line[22:26]) - 9:4d}{line[26:]}", None),  # negative numbers
        (lambda i, line: f"{line[:6]}*****{line[11:]}", None),
        (lambda i, line: f"{line}\nTER", None),
        (lambda i, line: f"{line}\nSIGATM{line[6:30]}   0.010   0.010   0.010  0.00  0.10{line[66:]}", None),
    ],
)
def test_records_that_mean_the_same(tmp_path, reference, change, said):
    f, messages = by_both(tmp_path / "x.pdb", atom_records(change))
    torch.testing.assert_close(f, reference)
    assert said is None or any(said in message for message in messages)


@pytest.mark.parametrize("keep", [54, 60])
def test_an_atom_without_b_factor_is_named(tmp_path, keep):
    path = tmp_path / "x.pdb"
    path.write_text(atom_records(lambda i, line: line[:keep] if i == 7 else line))
    for reader in (read_model, read_structure):
        with pytest.raises(Sorry, match=r"atom .*ALA A +2 has no B factor \(columns 61-66 are blank\)"):
            reader(path)


@pytest.mark.parametrize("value, said", [("1.000000", None), ("0.000000", None), ("********", "do not belong")])
def test_scale_records_that_say_nothing(tmp_path, reference, value, said):
    f, messages = by_both(tmp_path / "x.pdb", make.pdb_text(scale=re.sub(r"0\.0[23]\d{4}", value, SCALE)))
    torch.testing.assert_close(f, reference)
    del messages, said  # what is said of it differs between readers


def mtrix(number, rows, given=" "):
    return "".join(
        f"MTRIX{i} {number:3d}" + "".join(f"{x:10.6f}" for x in row[:3]) + f"     {row[3]:10.5f}    {given}\n"
        for i, row in enumerate(rows, 1)
    )


HALF_TURN = [(-1, 0, 0, 10), (0, -1, 0, 10), (0, 0, 1, 5)]


@pytest.mark.parametrize(
    "records, said",
    [
        (mtrix(1, [(-1, 0, 0, 1), (0, 1, 0, 2), (0, 0, 1, 3)]), "no proper rotations"),
        ("".join(mtrix(1, HALF_TURN).splitlines(True)[:2]), "incomplete"),
    ],
)
def test_operators_that_are_none_are_not_applied(tmp_path, reference, records, said):
    f, messages = by_both(tmp_path / "x.pdb", make.pdb_text(scale=records))
    torch.testing.assert_close(f, reference)
    assert any(said in message for message in messages) and not any("lack the identity" in m for m in messages)


def test_a_good_operator_beside_an_incomplete_one_is_applied(tmp_path, reference):
    text = make.pdb_text(scale=mtrix(1, HALF_TURN) + "".join(mtrix(2, HALF_TURN).splitlines(True)[:1]))
    f, messages = by_both(tmp_path / "x.pdb", text)
    assert (f - reference).norm() > 0.1 * reference.norm()
    assert any("lack the identity" in m for m in messages) and any("incomplete" in m for m in messages)


def test_names_of_mmcif_items_in_upper_case(tmp_path, reference):
    text = re.sub(r"_(atom_site|cell|symmetry)\.\S+", lambda found: found.group(0).upper(), make.cif_text())
    torch.testing.assert_close(by_both(tmp_path / "x.cif", text)[0], reference)


def test_atoms_of_a_second_block_are_named(tmp_path, reference):
    text = make.cif_text() + make.cif_text().replace("data_self", "data_other")
    f, messages = by_both(tmp_path / "x.cif", text)
    torch.testing.assert_close(f, reference)
    assert "atoms of the block self only; not read: other" in messages


def test_elements_in_lower_case_and_charges_with_their_sign_behind(tmp_path):
    columns = make.cif_columns()
    water = [name == "HOH" for name in columns["label_comp_id"]]
    written = {}
    for sign in ("2", "2+", "+2"):
        columns["type_symbol"] = ["zn" if w else s.lower() for w, s in zip(water, make.cif_columns()["type_symbol"])]
        columns["pdbx_formal_charge"] = [sign if w else "?" for w in water]
        written[sign] = by_both(tmp_path / "x.cif", make.cif_text(columns))[0]
    torch.testing.assert_close(written["2+"], written["2"])
    torch.testing.assert_close(written["+2"], written["2"])


def test_tensors_given_by_their_lower_half(tmp_path):
    ids = make.cif_columns()["id"][::4]
    six = {
        "U[1][1]": "0.20",
        "U[2][2]": "0.25",
        "U[3][3]": "0.30",
        "U[1][2]": "0.01",
        "U[1][3]": "-0.01",
        "U[2][3]": "0.02",
    }
    loop = make.loop("_atom_site_anisotrop", {"id": ids, **{name: [x] * len(ids) for name, x in six.items()}})
    upper = by_both(tmp_path / "a.cif", make.cif_text(more=loop))[0]
    lower = loop.replace("U[1][2]", "U[2][1]").replace("U[1][3]", "U[3][1]").replace("U[2][3]", "U[3][2]")
    torch.testing.assert_close(by_both(tmp_path / "b.cif", make.cif_text(more=lower))[0], upper)


@pytest.mark.parametrize("kind", ["neutron", "electron"])
def test_radiation_that_only_the_beam_says(tmp_path, kind):
    text = make.cif_text(more=f"_diffrn_radiation.diffrn_id 1\n_diffrn_radiation.pdbx_scattering_type {kind}\n")
    assert any(f"header says {kind} diffraction" in message for message in by_both(tmp_path / "x.cif", text)[1])


def test_an_unknown_element_is_named_by_both_readers(tmp_path):
    path = tmp_path / "x.pdb"
    path.write_text(atom_records(lambda i, line: f"{line[:76]} X  " if i == 7 else line))
    for reader in (read_model, read_structure):
        with pytest.raises(Sorry, match=r"x\.pdb: atom C ALA A 2 is of"):
            reader(path)


def ncs(rows, spelled=lambda tag: tag):
    tags = ["id", "code", *(f"matrix[{i}][{j}]" for i in "123" for j in "123"), *(f"vector[{i}]" for i in "123")]
    return (
        "loop_\n" + "".join(f"{spelled('_struct_ncs_oper.')}{spelled(tag)}\n" for tag in tags) + "\n".join(rows) + "\n"
    )


TURN, GIVEN = "2 generate -1 0 0 0 -1 0 0 0 1 10 10 5", "1 given 1 0 0 0 1 0 0 0 1 0 0 0"


@pytest.mark.parametrize("spelled", [str, str.upper, str.capitalize])
def test_an_operator_without_identity_in_any_spelling(tmp_path, spelled):
    f, messages = by_both(tmp_path / "a.cif", make.cif_text(more=ncs([TURN], spelled)))
    assert any("lack the identity" in message for message in messages)
    torch.testing.assert_close(by_both(tmp_path / "b.cif", make.cif_text(more=ncs([GIVEN, TURN])))[0], f)


@pytest.mark.parametrize(
    "row, said",
    [
        ("2 generate -1 0 0 0 1 0 0 0 1 10 10 5", "no proper rotations were not applied: 1"),
        ("2 generate ? ? ? ? ? ? ? ? ? ? ? ?", "incomplete were not applied: 1"),
    ],
)
def test_operators_of_mmcif_that_are_none_are_not_applied(tmp_path, reference, row, said):
    f, messages = by_both(tmp_path / "x.cif", make.cif_text(more=ncs([GIVEN, row])))
    torch.testing.assert_close(f, reference)
    assert any(said in message for message in messages)


def test_a_space_group_that_the_cell_cannot_have_is_refused_by_both_readers(tmp_path):
    path = tmp_path / "x.pdb"
    path.write_text(make.pdb_text().replace("P 21 21 21", "P 4       "))
    for reader in (read_model, read_structure):
        with pytest.raises(Sorry, match=r"x\.pdb has (an impossible unit cell or space group|no known space group)"):
            reader(path)


def test_records_in_lower_case(tmp_path, reference):
    text = make.pdb_text().replace("ATOM  ", "atom  ").replace("CRYST1", "cryst1")
    torch.testing.assert_close(by_both(tmp_path / "x.pdb", text)[0], reference)


def test_the_two_readers_say_the_same_of_the_atoms(tmp_path):
    def change(i, line):
        if i == 3:
            return f"{line[:54]}  0.00{line[60:]}"
        if i == 4:
            return f"{line[:54]} -0.50{line[60:]}"
        if i == 5:
            return f"{line}\nANISOU{line[6:28]}{-2000:7d}{2500:7d}{3000:7d}{0:7d}{0:7d}{0:7d}      {line[76:]}"
        return line

    lines = atom_records(change).splitlines()
    atoms = [line for line in lines if line.startswith(("ATOM", "ANISOU"))]
    text = "\n".join([lines[0], "MODEL        1", *atoms, "ENDMDL", "MODEL        2", *atoms, "ENDMDL", "END"]) + "\n"
    messages = by_both(tmp_path / "x.pdb", text)[1]
    said = structure_messages(read_structure(tmp_path / "x.pdb")[0])
    assert len(said) == 5 and set(said) <= set(messages)  # the fifth: the tensor is not that of the B factor
