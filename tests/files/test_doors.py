"""What one door reads right, or says, the others do, too: structures and tables in memory, SFcalculator's interface, packed files."""

import gzip
import shutil
import warnings

import mmtbx_sfdiff as sfdiff
from mmtbx_sfdiff.files import read_model
from mmtbx_sfdiff.files.content import read_content
from mmtbx_sfdiff.files.errors import Sorry
from mmtbx_sfdiff.files.model_text import read_structure
from mmtbx_sfdiff.interop.sfcalculator import PDBParser, SFcalculator

import gemmi
import numpy as np
import pytest

from tests.support import case_files

MTRIX = "".join(
    f"MTRIX{i}   1 {row[0]:9.6f} {row[1]:9.6f} {row[2]:9.6f}     {shift:10.5f}\n"
    for i, row, shift in ((1, (-1, 0, 0), 25.0), (2, (0, -1, 0), 26.0), (3, (0, 0, 1), 9.0))
)


def said_by(function, *arguments):
    """(result, text of all warnings)"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*arguments)
    return result, " ".join(str(warning.message) for warning in caught)


def test_copies_that_ncs_operators_make(tmp_path):
    path = tmp_path / "model.pdb"
    path.write_text(case_files.pdb_text(header=MTRIX))
    n = len(case_files.atoms())
    assert read_model(path).xray_structure.scatterers().size() == 2 * n
    assert len(said_by(PDBParser, str(path))[0].atom_pos) == 2 * n
    atoms, said = said_by(sfdiff.Atoms.from_gemmi, gemmi.read_structure(str(path)))
    assert atoms.n_atoms == n and "NCS operators make further copies" in said


@pytest.mark.parametrize(
    "header, table, word",
    [
        ("EXPDTA    ELECTRON CRYSTALLOGRAPHY\n", "n_gaussian", "electron diffraction"),
        ("EXPDTA    NEUTRON DIFFRACTION\n", "n_gaussian", "neutron diffraction"),
        ("EXPDTA    ELECTRON CRYSTALLOGRAPHY\n", "electron", ""),
        ("EXPDTA    X-RAY DIFFRACTION\n", "n_gaussian", ""),
        ("REMARK   3   ATOM RECORD CONTAINS RESIDUAL B FACTORS ONLY\n", "n_gaussian", "residual of a TLS refinement"),
    ],
)
def test_structures_say_what_their_header_says(header, table, word, tmp_path):
    path = tmp_path / "model.pdb"
    path.write_text(case_files.pdb_text(header=header))
    structure = gemmi.read_structure(str(path))
    _, said = said_by(lambda: sfdiff.Atoms.from_gemmi(structure, table=table))
    assert (word in said) if word else said == ""


def test_negative_b_is_said_or_refused(tmp_path):
    rows = case_files.atoms()
    rows[4] = (*rows[4][:7], -16.0)
    path = tmp_path / "model.pdb"
    path.write_text(case_files.pdb_text(rows))
    assert "atoms with a negative B factor: 1" in said_by(sfdiff.Atoms.from_gemmi, gemmi.read_structure(str(path)))[1]
    for door in (read_model, read_structure, lambda p: PDBParser(str(p))):
        with pytest.raises(Sorry, match=r"CB.*impossible B factor -16 Å²"):
            door(path)


@pytest.mark.parametrize(
    "symmetry",
    ["_space_group.name_H-M_alt 'P 21 21 21'\n", "_symmetry.Int_Tables_number 19\n", "_space_group.IT_number 19\n"],
)
def test_space_groups_under_other_items_without_cctbx(symmetry, tmp_path):
    path = tmp_path / "model.cif"
    path.write_text(case_files.cif_text(symmetry=case_files.SYMMETRY_ITEMS + symmetry))
    structure, _ = read_structure(path)
    assert structure.find_spacegroup().number == 19
    ours, theirs = sfdiff.Atoms.from_gemmi(structure), read_model(path).xray_structure
    assert ours.crystal.is_same_as(sfdiff.Crystal.from_cctbx(theirs))


def test_several_models_are_said_by_the_interface_that_takes_the_first(tmp_path):
    one = gemmi.read_pdb_string(case_files.pdb_text())
    other = one[0].clone()
    other.num = 2 if hasattr(other, "num") else None
    one.add_model(other)
    path = tmp_path / "models.pdb"
    one.write_pdb(str(path))
    parser, said = said_by(PDBParser, str(path))
    assert "holds 2 models: the first is taken" in said and len(parser.atom_pos) == len(case_files.atoms())


@pytest.fixture
def rejected(tmp_path):
    """A model, and data with rows of status x again behind the good ones; the amplitudes."""
    model = tmp_path / "model.pdb"
    model.write_text(case_files.pdb_text())
    indices, f = case_files.amplitudes(tmp_path, d_min=2.0)
    again = np.arange(0, len(f), 5)
    status = ["f" if flag else "o" for flag in case_files.some_flags(len(f))] + ["x"] * len(again)
    columns = {
        "F_meas_au": [*f, *([9999.0] * len(again))],
        "F_meas_sigma_au": [*(f / 20 + 1), *([1.0] * len(again))],
        "status": status,
    }
    data = tmp_path / "data-sf.cif"
    data.write_text(case_files.sf_block(np.concatenate([indices, indices[again]]), columns))
    return model, data, f


def test_rejected_rows_take_no_part_in_any_door(rejected):
    model, data, f = rejected
    block = gemmi.as_refln_blocks(gemmi.cif.read(str(data)))[0]
    assert len(sfdiff.Reflections.from_gemmi(block)) == len(f)
    sfc, said = said_by(lambda: SFcalculator(str(model), str(data), expcolumns=["FP", "SIGFP"], testset_value=0))
    assert len(sfc.HKL_array) == len(f) and float(sfc.Fo.max()) < 9000 and "status x" in said
    assert int(sfc.free_flag.sum()) == case_files.some_flags(len(f)).sum()


def test_mates_of_free_reflections_are_free_in_every_door(tmp_path):
    model = tmp_path / "model.pdb"
    model.write_text(case_files.pdb_text())
    indices, f = case_files.amplitudes(tmp_path, d_min=2.0)
    rng = np.random.default_rng(2)
    both = np.concatenate([indices, -indices])
    flags = np.where(rng.random(len(both)) < 0.05, 0, 1)
    columns = {"FP": ("F", np.tile(f, 2)), "SIGFP": ("Q", np.tile(f / 20 + 1, 2)), "FreeR_flag": ("I", flags)}
    group = gemmi.SpaceGroup("P 21 21 21").operations()
    acentric = ~np.asarray(group.centric_flag_array(both.astype(np.int32)), dtype=bool)
    acentric[: len(f)] = True  # centric mates are the same reflection
    path = case_files.write_mtz(
        tmp_path / "mates.mtz", both[acentric], {k: (t, v[acentric]) for k, (t, v) in columns.items()}
    )
    data = sfdiff.Reflections.from_gemmi(gemmi.read_mtz_file(str(path)))
    assert any("unlike R-free flags, taken as free" in message for message in data.messages)
    is_free = dict(zip(map(tuple, data.miller_indices.tolist()), data.r_free_flags.tolist()))
    pairs = [(one, is_free[mate]) for h, one in is_free.items() if (mate := tuple(-x for x in h)) in is_free]
    assert len(pairs) > 1000 and all(one == other for one, other in pairs)
    sfc, said = said_by(lambda: SFcalculator(str(model), str(path), testset_value=0))
    assert "unlike flags, taken as free" in said
    assert int(sfc.free_flag.sum()) == int(data.r_free_flags.sum())


@pytest.mark.parametrize("names, types", [("hkl", "HHH"), ("HKL", "RRR")])
def test_index_columns_of_other_names_and_types(names, types, tmp_path):
    indices, f = case_files.amplitudes(tmp_path)
    columns = {"F": ("F", f), "SIGF": ("Q", f / 20 + 1)}
    path = case_files.write_mtz(tmp_path / "data.mtz", indices, columns, index_names=names, index_types=types)
    assert len(sfdiff.Reflections.from_gemmi(gemmi.read_mtz_file(str(path)))) == len(f)


def compressed(data):
    """What Unix compress could have written: every byte a code of its own, codes getting wider as its table grows."""
    out, buffer, n_bits, width, entries, in_group = bytearray(b"\x1f\x9d\x90"), 0, 0, 9, 256, 0

    def flush():
        nonlocal buffer, n_bits, in_group
        while in_group % 8:  # codes are written in groups of eight
            n_bits += width
            in_group += 1
        while n_bits > 0:
            out.append(buffer & 255)
            buffer >>= 8
            n_bits -= 8
        buffer = n_bits = 0

    for byte in data:
        buffer |= byte << n_bits
        n_bits += width
        in_group += 1
        entries += 1
        while n_bits >= 8:
            out.append(buffer & 255)
            buffer >>= 8
            n_bits -= 8
        if entries >= 1 << width and width < 16:
            flush()
            width, in_group = width + 1, 0
    if n_bits:
        out.append(buffer & 255)
    return bytes(out)


@pytest.mark.skipif(shutil.which("gzip") is None, reason="needs the program gzip")
def test_files_of_compress_are_read_by_content(tmp_path):
    text = case_files.pdb_text().encode()
    path = tmp_path / "model.pdb"
    path.write_bytes(compressed(text))
    assert read_content(path, "model").raw == text
    assert read_model(path).xray_structure.scatterers().size() == len(case_files.atoms())
    path.write_bytes(b"\x1f\x9d\x90" + text)
    with pytest.raises(Sorry, match="no whole file of compress"):
        read_content(path, "model")


def test_without_gzip_the_sentence_names_it(tmp_path, monkeypatch):
    path = tmp_path / "model.pdb"
    path.write_bytes(compressed(b"ATOM"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Sorry, match="needs the program gzip"):
        read_content(path, "model")
    path.write_bytes(gzip.compress(b"ATOM\n"))  # which Python unpacks
    assert read_content(path, "model").raw == b"ATOM\n"


def test_files_say_what_they_say_with_cctbx_and_without(rejected):
    model, data, _ = rejected
    assert "status x (unreliable)" in said_by(sfdiff.FModel.from_files, model, data)[1]


def test_reflections_from_files_know_what_was_left_out(rejected):
    model, data, _ = rejected
    n = sum(" x\n" in f"{line}\n" for line in data.read_text().splitlines())
    with pytest.warns(UserWarning):
        reflections = sfdiff.FModel.from_files(model, data).reflections
    assert n > 0 and list(reflections.left_out.values()) == [n] and any("status x" in m for m in reflections.messages)


@pytest.mark.parametrize("free, word", [(0.003, "less than"), (0.07, None), (0.4, "more than")])
def test_the_interface_says_when_its_test_value_marks_no_usual_test_set(tmp_path, free, word):
    model = tmp_path / "model.pdb"
    model.write_text(case_files.pdb_text())
    indices, f = case_files.amplitudes(tmp_path, d_min=2.0)
    flags = np.where(np.arange(len(f)) < free * len(f), 0, 1)
    columns = {"FP": ("F", f), "SIGFP": ("Q", f / 20 + 1), "FreeR_flag": ("I", flags)}
    path = case_files.write_mtz(tmp_path / "x.mtz", indices, columns)
    sfc, said = said_by(lambda: SFcalculator(str(model), str(path)))
    assert int(sfc.free_flag.sum()) == (flags == 0).sum()
    assert f"{word} a test set usually has" in said if word else said == ""


def test_the_interface_says_what_is_odd_in_files(tmp_path):
    """One value everywhere; reflections given twice; a header of electron diffraction."""
    model = tmp_path / "model.pdb"
    model.write_text(case_files.pdb_text(header="EXPDTA    ELECTRON CRYSTALLOGRAPHY\n"))
    indices, f = case_files.amplitudes(tmp_path)
    flags = case_files.some_flags(len(f) + 7)
    columns = {
        "FP": ("F", np.full(len(f) + 7, 10.0)),
        "SIGFP": ("Q", np.ones(len(f) + 7)),
        "FreeR_flag": ("I", 1 - flags),
    }
    path = case_files.write_mtz(tmp_path / "x.mtz", np.concatenate([indices, indices[:7]]), columns)
    said = said_by(lambda: SFcalculator(str(model), str(path)))[1]
    assert "has one value everywhere" in said
    assert "7 rows of " in said and "reflections that it has already" in said
    assert said.count("electron diffraction") == 1
