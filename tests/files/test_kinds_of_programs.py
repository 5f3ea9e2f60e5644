"""Files as other programs write them, and as people change them: what is odd is read right, said, or refused in one sentence."""

import io
import tarfile
import zipfile

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files import read_model
from mmtbx_sfdiff.files.content import Content
from mmtbx_sfdiff.files.errors import Sorry
from mmtbx_sfdiff.files.model_text import read_structure, structure_messages
from mmtbx_sfdiff.files.observations import read_observations
from mmtbx_sfdiff.files.symmetry import Symmetry
from mmtbx_sfdiff.programs import compare
from mmtbx_sfdiff.programs.runner import main

import gemmi
import numpy as np
import pytest

from tests.support import case_files as make

MODEL = Symmetry(make.CELL, make.GROUP.operations())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(n, 3) indices, (n,) amplitudes, sigmas and flags."""
    indices, f = make.amplitudes(tmp_path_factory.mktemp("data"), d_min=3.5)
    return indices, f, 0.05 * f + 0.1, make.some_flags(len(f))


def mtz(path, data, **columns):
    return read_observations(make.write_mtz(path / "x.mtz", data[0], columns), MODEL, strict=False)


def same(o, data):
    truth = {tuple(h): x for h, x in zip(data[0].tolist(), data[1])}
    np.testing.assert_allclose(o.f_obs, [truth[tuple(h)] for h in o.indices.tolist()], rtol=1e-5)
    assert o.read == len(o.f_obs) + sum(o.left_out.values())


# data


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, None])
def test_zeros_in_the_place_of_most_values_are_no_measurements(tmp_path, data, sigma):
    _, f, s, _ = data
    gap = np.arange(len(f)) % 5 < 3
    columns = {"FP": ("F", np.where(gap, 0, f))}
    if sigma is not None:
        columns["SIGFP"] = ("Q", np.where(gap, sigma, s))
    o = mtz(tmp_path, data, **columns)
    same(o, data)
    assert sum(o.left_out.values()) == gap.sum() and (o.sigmas is None) == (sigma is None)
    in_memory = sfdiff.Reflections.from_gemmi(gemmi.read_mtz_file(str(tmp_path / "x.mtz")))
    assert len(in_memory) == len(o.f_obs)


def test_intensities_of_zero_with_a_negative_sigma_are_no_measurements(tmp_path, data):
    _, f, s, _ = data
    gap = np.arange(len(f)) % 5 < 3
    o = mtz(tmp_path, data, I=("J", np.where(gap, 0, f**2)), SIGI=("Q", np.where(gap, -1, 2 * f * s)))
    assert o.kind == "intensities (French-Wilson)" and o.left_out == {"no usable sigma": int(gap.sum())}


def test_a_few_zeros_without_a_sigma_are_said(tmp_path, data):
    f = np.where(np.arange(len(data[1])) % 40 == 3, 0, data[1])
    o = mtz(tmp_path, data, FP=("F", f))
    assert len(o.f_obs) == len(f)
    assert f"values of exactly 0, without a sigma, taken as measured: {(f == 0).sum()}" in " ".join(o.messages)


@pytest.mark.parametrize("label", ["FA", "FBEST", "FMAP", "FH", "FAN", "DF"])
def test_amplitudes_of_a_part_or_a_map_are_not_the_data(tmp_path, data, label):
    _, f, s, _ = data
    columns = {label: ("F", 0.3 * f[::-1]), f"SIG{label}": ("Q", s), "F": ("F", f), "SIGF": ("Q", s)}
    o = mtz(tmp_path, data, **columns)
    same(o, data)
    assert o.labels == "F,SIGF"


@pytest.mark.parametrize("kind", list("IRBFJQW"))
def test_flags_of_any_mtz_type_are_flags_and_no_observations(tmp_path, data, kind):
    _, f, _, flags = data
    o = mtz(tmp_path, data, FreeR_flag=(kind, flags), I=("J", f**2))
    assert o.labels == "I" and o.free_labels == "FreeR_flag" and o.free.sum() == flags.sum()


@pytest.mark.parametrize("label", ["TestSet", "testset", "cross-validation", "TEST_FLAG"])
def test_names_of_flags(tmp_path, data, label):
    _, f, s, flags = data
    o = mtz(tmp_path, data, F=("F", f), SIGF=("Q", s), **{label: ("I", flags)})
    assert o.free_labels == label and o.free.sum() == flags.sum()


@pytest.mark.parametrize("work", ["?", ".", "obs", "observed", "WORK"])
def test_words_for_reflections_that_are_not_free(tmp_path, data, work):
    indices, f, s, flags = data
    text = make.sf_block(
        indices, {"F_meas_au": f, "F_meas_sigma_au": s, "status": ["f" if flag else work for flag in flags]}
    )
    (tmp_path / "x.cif").write_text(text)
    o = read_observations(tmp_path / "x.cif", MODEL)
    same(o, data)
    assert len(o.f_obs) == len(f) and o.free.sum() == flags.sum()


def test_indices_in_memory_may_be_written_with_a_point(data):
    indices, f, s, _ = data
    block = gemmi.as_refln_blocks(gemmi.cif.read_string(make.sf_block(indices.astype(float), {"F_meas_au": f})))[0]
    assert len(sfdiff.Reflections.from_gemmi(block)) == len(f)
    half = gemmi.as_refln_blocks(gemmi.cif.read_string(make.sf_block(indices + 0.5, {"F_meas_au": f})))[0]
    with pytest.raises(ValueError, match="no whole numbers"):
        sfdiff.Reflections.from_gemmi(half)


def test_a_last_line_that_is_not_ended_is_said(tmp_path, data):
    text = make.sf_block(data[0], {"F_meas_sigma_au": data[2], "F_meas_au": data[1]}).removesuffix("#\n")
    for content, said in (
        (text, False),
        (text[:-3], True),
        (text + "#END", False),
        (text.replace("\n", "\r\n"), False),
        (text + 500 * " ", False),
        (text[:-3] + 500 * " ", True),
    ):
        (tmp_path / "x.cif").write_bytes(content.encode())
        messages = read_observations(tmp_path / "x.cif", MODEL).messages
        assert any("last line of the file is not ended" in message for message in messages) == said
    assert Content(tmp_path / "x.pdb", b"END\n" + bytes(500), "pdb").end == []


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_are_named(tmp_path, kind):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.pdb", make.pdb_text())
    else:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("x.pdb"))
    (tmp_path / "x.mtz").write_bytes(file.getvalue())
    with pytest.raises(Sorry, match=f"is a {kind} archive: unpack it"):
        read_observations(tmp_path / "x.mtz", MODEL)


def test_two_files_of_one_kind_are_named_by_what_they_hold(tmp_path, data, capsys):
    first = make.write_mtz(tmp_path / "model.pdb", data[0], {"FP": ("F", data[1])})
    second = make.write_mtz(tmp_path / "data.mtz", data[0], {"FP": ("F", data[1])})
    assert main(compare.Program, [str(first), str(second)]) == 1
    assert "model.pdb and " in (out := capsys.readouterr().err) and "both hold reflections" in out


# models


def by_both(path, text, suffix=".pdb"):
    """(atoms of cctbx's reader, what was said), after the two readers were found to agree."""
    path = path / f"x{suffix}"
    path.write_text(text)
    model = read_model(path)
    structure, said = read_structure(path)
    ours, theirs = sfdiff.Atoms.from_cctbx(model.xray_structure), sfdiff.Atoms.from_gemmi(structure)
    indices = ours.crystal.build_miller_indices(d_min=4.0)
    f = [sfdiff.structure_factors(a, a.crystal, indices, method="direct").abs() for a in (ours, theirs)]
    torch.testing.assert_close(*f, rtol=1e-9, atol=1e-9)
    assert {*said, *structure_messages(structure)} == set(model.messages)
    return ours, " ".join(model.messages)


def changed(change):
    """The model with ``change(number, record)``, one or several records, for each atom."""
    lines, number = [], 0
    for line in make.pdb_text().splitlines():
        if line.startswith("ATOM"):
            found = change(number, line)
            lines += [found] if isinstance(found, str) else found
            number += 1
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def anisou(line, scale, b_iso=None):
    u = int(1e4 * scale * float(line[60:66] if b_iso is None else b_iso) / (8 * np.pi**2))
    return f"ANISOU{line[6:27]} {u:7d}{u:7d}{u:7d}{0:7d}{0:7d}{0:7d}{line[70:]}"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda i, line: f"{line[:54]}100.00{line[60:]}", "atoms with an occupancy above 1: 43"),
        (
            lambda i, line: [f"{line[:16]}{c}{line[17:]}" for c in "AB"] if i < 5 else line,
            "whose conformations have occupancies that add up to more than 1: 5",
        ),
        (
            lambda i, line: [line, f"{line[:21]}B{line[22:]}"],
            "atoms that occur twice, in the same place; both scatter: 43",
        ),
        (
            lambda i, line: f"{line[:76]}CA" if line[12:16].strip() == "CA" else line,
            "not that of their name: 8, the first is CA ALA A 1 (CA)",
        ),
        (
            lambda i, line: [line, anisou(line, 79)],
            "whose tensor is not that of their B factor, by more than a factor of 2: 43",
        ),
    ],
)
def test_what_is_odd_among_atoms_is_said_by_both_readers(tmp_path, change, said):
    assert said in by_both(tmp_path, changed(change))[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda i, line: [line, anisou(line, 1.2)],
        lambda i, line: [f"{line[:16]}{c}{line[17:54]}{o:6.2f}{line[60:]}" for c, o in (("A", 0.7), ("B", 0.3))],
        lambda i, line: [f"{line[:16]}{c}{line[17:54]}{0.51:6.2f}{line[60:]}" for c in "AB"],
        lambda i, line: f"{line[:22]}   5{line[26:]}" if "HOH" in line else line,  # waters of one number
        lambda i, line: (
            [line, f"{line[:12]} D  {line[16:30]}{float(line[30:38]) + 1:8.3f}{line[38:76]} H"]
            if line[12:16] == "N  "
            else line
        ),
    ],
)
def test_what_is_usual_among_atoms_is_not_said(tmp_path, change):
    assert by_both(tmp_path, changed(change))[1] == ""


def test_tensors_that_hold_nothing_leave_their_atoms_isotropic(tmp_path):
    text = changed(lambda i, line: [line, anisou(line, 1 if i % 2 else 0)])
    atoms, said = by_both(tmp_path, text)
    assert int(atoms.use_u_aniso.sum()) == 21 and "blank or zero, taken as isotropic: 22" in said
    columns = make.cif_columns()
    tensor = {f"U[{a}][{b}]": ["0.0000"] * 4 for a, b in ("11", "22", "33", "12", "13", "23")}
    more = make.loop("_atom_site_anisotrop", {"id": columns["id"][:4], **tensor})
    atoms, said = by_both(tmp_path, make.cif_text(more=more), ".cif")
    assert int(atoms.use_u_aniso.sum()) == 0 and "tensor is zero, taken as isotropic: 4" in said


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record[:28] + "*" * 42,
        lambda record: record[:28] + "  0.013" * 6,
        lambda record: f"{record[:12]} XX {record[16:]}",
    ],
)
def test_anisou_records_that_are_none_are_refused_by_both_readers(tmp_path, change):
    (tmp_path / "x.pdb").write_text(changed(lambda i, line: [line, change(anisou(line, 1))] if i == 3 else line))
    for read in (read_model, read_structure):
        with pytest.raises(Sorry, match="remove the ANISOU records"):
            read(tmp_path / "x.pdb")


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda line: f"{line[:60]}******{line[66:]}", "no number but '[*]{6}' in columns 61-66"),
        (lambda line: f"{line[:76]}**", "unknown element '[*][*]'"),
    ],
)
def test_records_that_one_reader_would_guess_are_refused_by_both(tmp_path, change, said):
    (tmp_path / "x.pdb").write_text(changed(lambda i, line: change(line) if i == 3 else line))
    for read in (read_model, read_structure):
        with pytest.raises(Sorry, match=said):
            read(tmp_path / "x.pdb")


def test_a_word_for_an_element_is_refused_by_both_readers(tmp_path):
    columns = make.cif_columns()
    columns["type_symbol"][3] = "Carbon"
    (tmp_path / "x.cif").write_text(make.cif_text(columns))
    for read in (read_model, read_structure):
        with pytest.raises(Sorry, match="unknown element 'Carbon'"):
            read(tmp_path / "x.cif")


@pytest.mark.parametrize("first", ["1.000    1.000    1.000  90.00  90.00  90.00 P 1  ", None])
def test_of_several_cells_the_first_that_is_one_is_taken(tmp_path, first):
    other = make.CRYST1.replace("28.000", "30.000")
    cells = f"CRYST1    {first}\n{make.CRYST1}" if first else make.CRYST1 + other
    atoms, said = by_both(tmp_path, make.pdb_text(cryst1=cells))
    assert tuple(atoms.crystal.unit_cell) == make.CELL and "several CRYST1 records" in said


def test_an_operator_that_is_given_in_one_record_is_given(tmp_path):
    rows = (
        ("1", "1.000000  0.000000  0.000000"),
        ("2", "0.000000  1.000000  0.000000"),
        ("3", "0.000000  0.000000  1.000000"),
    )
    records = "".join(f"MTRIX{n}   1  {row}        0.00000    1\n" for n, row in rows)
    records += "".join(f"MTRIX{n}   2  {row}       14.00000{'    1' if n == '1' else ''}\n" for n, row in rows)
    atoms, _ = by_both(tmp_path, make.pdb_text(scale=records))
    assert atoms.n_atoms == 43
