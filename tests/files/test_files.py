"""Reading models and data: what is taken, what is refused, and in which words."""

import gzip
import os

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files import load_entry, read_data, read_model

import iotbx.pdb
import numpy as np
import pytest
from cctbx import crystal, sgtbx
from cctbx.array_family import flex
from iotbx import reflection_file_reader
from libtbx.test_utils import approx_equal
from libtbx.utils import Sorry

from tests.support.entries import manifest_rows

CRYST1 = "CRYST1   20.000   25.000   30.000  90.00  95.00  90.00 P 1 21 1      2\n"
HEADER = "HEADER    TEST                                    01-JAN-20   9ABC              \n"


def atom(i=1, x="   1.000", occupancy="  1.00", b=" 20.00", element=" C", name=" CA "):
    return (
        f"ATOM  {i:5d} {name} ALA A{i:4d}    {x:>8}{2.0 * i:8.3f}{3.0 + i:8.3f}{occupancy:>6}{b:>6}"
        f"          {element:>2}  \n"
    )


ATOMS = "".join(atom(i, x=f"{1.7 * i % 19:8.3f}", b=f"{10 + i:6.2f}") for i in range(1, 12))


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.pdb"
    path.write_text(HEADER + CRYST1 + ATOMS + "END\n")
    return path


@pytest.fixture
def amplitudes(model_file):
    """Exact amplitudes of the little model, with sigmas, to 2 Å."""
    structure = read_model(model_file).xray_structure
    f = abs(structure.structure_factors(d_min=2.0, anomalous_flag=False, algorithm="direct").f_calc())
    f = f.customized_copy(sigmas=0.05 * f.data() + 0.1)
    return f.set_observation_type_xray_amplitude()


def flags_for(array, every=10, value=1):
    data = flex.int(value if i % every == 0 else 0 for i in range(array.size()))
    return array.customized_copy(data=data, sigmas=None).set_observation_type(None)


def write_mtz(path, *columns, title="test"):
    """Write (array, label) pairs."""
    dataset = columns[0][0].as_mtz_dataset(column_root_label=columns[0][1], title=title)
    for array, label in columns[1:]:
        dataset.add_miller_array(array, column_root_label=label)
    dataset.mtz_object().write(str(path))
    return path


def write_cif(path, array, entry="9abc", status=None, symmetry=True):
    """Write a structure-factor file as the wwPDB lays them out."""
    lines = [f"data_r{entry}sf", f"_entry.id {entry}"]
    if symmetry:
        names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
        lines += [f"_cell.{name} {value}" for name, value in zip(names, array.unit_cell().parameters())]
        lines += [f"_symmetry.space_group_name_H-M '{array.space_group_info()}'"]
    lines += [
        "loop_",
        *(f"_refln.{name}" for name in ("index_h", "index_k", "index_l", "F_meas_au", "F_meas_sigma_au", "status")),
    ]
    for i, (h, f, s) in enumerate(zip(array.indices(), array.data(), array.sigmas())):
        mark = status(i) if status else "o"
        lines.append(f"{h[0]} {h[1]} {h[2]} {f:.5f} {s:.5f} {mark}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def data_file(tmp_path, amplitudes):
    return write_mtz(tmp_path / "data.mtz", (amplitudes, "FP"), (flags_for(amplitudes), "FREE"))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int64, torch.tensor])
def test_limits_are_numbers_of_any_package(model_file, data_file, kind):
    """The oracle is the number of Python; cctbx's own signatures take no other."""
    assert read_model(model_file, d_min=kind(3)).xray_structure.scatterers().size() > 0
    for limit in ("d_min", "d_max"):
        ours = sfdiff.FModel.from_files(model_file, data_file, read={limit: kind(3)})
        assert len(ours.reflections) == len(
            sfdiff.FModel.from_files(model_file, data_file, read={limit: 3.0}).reflections
        )


def refused(match, function, *args, **kwargs):
    """The function must stop with one sentence; returns it."""
    with pytest.raises(Sorry, match=match) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 600
    return message


# good input


def test_model_and_data(model_file, data_file, amplitudes):
    entry = load_entry(model_file, data_file)
    assert entry.name == entry.entry_id == "9abc"
    assert entry.model.xray_structure.scatterers().size() == 11
    data = entry.data
    assert data.f_obs.indices().all_eq(amplitudes.indices())
    assert approx_equal(data.f_obs.data(), amplitudes.data(), eps=1e-3)
    assert approx_equal(data.f_obs.sigmas(), amplitudes.sigmas(), eps=1e-3)
    assert (data.labels, data.r_free_labels, data.test_flag_value) == ("FP,SIGFP", "FREE", 1)
    assert data.kind == "amplitudes"
    assert list(data.r_free_flags.data()) == [i % 10 == 0 for i in range(amplitudes.size())]
    assert not data.simulated and entry.messages == ()


def test_form_factors_are_those_for_the_resolution_of_the_data(model_file, data_file):
    entry = load_entry(model_file, data_file)
    loaded = entry.model.xray_structure.scattering_type_registry()
    direct = read_model(model_file, d_min=entry.data.f_obs.d_min()).xray_structure.scattering_type_registry()
    exact = read_model(model_file, d_min=0.4).xray_structure.scattering_type_registry()
    assert loaded.last_table() == direct.last_table() == "n_gaussian"
    terms = [registry.gaussian("C").n_terms() for registry in (loaded, direct, exact)]
    assert terms[0] == terms[1] < terms[2]


@pytest.mark.parametrize("table", ["n_gaussian", "it1992", "wk1995", "electron", "neutron"])
def test_scattering_tables(model_file, data_file, table):
    entry = load_entry(model_file, data_file, scattering_table=table)
    f0 = entry.model.xray_structure.scattering_type_registry().gaussian("C").at_d_star_sq(0)
    low, high = {"electron": (2.0, 3.0), "neutron": (6.6, 6.7)}.get(table, (5.9, 6.1))
    assert low < f0 < high
    changed = entry.model.with_scattering("it1992", 2.0)
    assert changed.scattering_table == "it1992" and changed.xray_structure is not entry.model.xray_structure
    assert entry.model.xray_structure.scattering_type_registry().gaussian("C").at_d_star_sq(0) == f0


def test_compressed_files_are_the_same(tmp_path, model_file, data_file):
    plain = load_entry(model_file, data_file)
    packed = {}
    for path in (model_file, data_file):
        packed[path] = tmp_path / (path.name + ".gz")
        packed[path].write_bytes(gzip.compress(path.read_bytes()))
    again = load_entry(packed[model_file], packed[data_file])
    assert approx_equal(again.data.f_obs.data(), plain.data.f_obs.data())
    assert approx_equal(again.model.xray_structure.sites_cart(), plain.model.xray_structure.sites_cart())


def test_cif_model_and_data(tmp_path, model_file, amplitudes):
    cif = tmp_path / "model.cif"
    text = read_model(model_file).manager.model_as_mmcif()
    cif.write_text(text.replace("data_default", "data_9ABC\n_entry.id 9ABC"))
    sf = write_cif(tmp_path / "r9abcsf.ent", amplitudes, status=lambda i: "f" if i % 20 == 0 else "o")
    entry = load_entry(cif, sf)
    assert entry.entry_id == entry.data.entry_id == entry.model.entry_id == "9abc"
    assert entry.data.r_free_flags.data().count(True) == (amplitudes.size() + 19) // 20
    assert approx_equal(entry.data.f_obs.data(), amplitudes.data(), eps=1e-3)


def test_data_without_symmetry_take_the_models(tmp_path, model_file, amplitudes):
    path = write_cif(tmp_path / "x-sf.cif", amplitudes, symmetry=False)
    entry = load_entry(model_file, path)
    assert entry.data.f_obs.is_similar_symmetry(entry.model.crystal_symmetry)
    assert any("no unit cell and space group" in message for message in entry.messages)
    refused("no unit cell", read_data, path)


def test_missing_flags_are_said_and_not_invented(tmp_path, amplitudes):
    data = read_data(write_cif(tmp_path / "x-sf.cif", amplitudes))
    assert data.r_free_flags is None and data.test_flag_value is None
    assert any("no R-free flags" in message for message in data.messages)


def test_intensities_become_amplitudes(tmp_path, data_file, amplitudes):
    intensities = amplitudes.f_as_f_sq()
    path = write_mtz(tmp_path / "i.mtz", (intensities, "I"))
    data = read_data(path)
    assert data.kind == "intensities (French-Wilson)" and data.labels == "I,SIGI"
    assert data.f_obs.is_xray_amplitude_array()
    assert data.f_obs.common_set(amplitudes).correlation(amplitudes).coefficient() > 0.99


def test_both_kinds_present(tmp_path, amplitudes):
    path = write_mtz(tmp_path / "both.mtz", (amplitudes.f_as_f_sq(), "I"), (amplitudes, "FP"))
    default, other = read_data(path), read_data(path, prefer="intensities")
    assert (default.labels, default.kind) == ("FP,SIGFP", "amplitudes")
    assert other.labels == "I,SIGI"
    assert any("took FP,SIGFP; also present: I,SIGI" in message for message in default.messages)
    assert read_data(path, labels="I").labels == read_data(path, labels=["I", "SIGI"]).labels == "I,SIGI"


def test_first_of_equal_arrays_is_taken_and_said(tmp_path, amplitudes):
    path = write_mtz(
        tmp_path / "two.mtz",
        (amplitudes, "F1"),
        (amplitudes, "F2"),
        (flags_for(amplitudes), "FREE"),
        (flags_for(amplitudes, every=9), "FREE2"),
    )
    data = read_data(path)
    assert (data.labels, data.r_free_labels) == ("F1,SIGF1", "FREE")
    assert "observations: took F1,SIGF1; also present: F2,SIGF2" in data.messages
    said = "R-free flags: took FREE; equally suitable: FREE2 (391 reflections are marked otherwise)"
    assert said in data.messages
    chosen = read_data(path, labels="F2,SIGF2", r_free_labels="FREE2")
    assert (chosen.labels, chosen.r_free_labels) == ("F2,SIGF2", "FREE2")
    assert read_data(path, r_free_labels="none").r_free_flags is None


def test_columns_that_are_not_observations_are_left_aside(tmp_path, amplitudes):
    merit = amplitudes.customized_copy(data=flex.double(amplitudes.size(), 0.9), sigmas=None)
    merit.set_observation_type_xray_amplitude()
    path = write_mtz(
        tmp_path / "x.mtz",
        (merit, "FOM"),
        (merit, "FC"),
        (amplitudes.customized_copy(sigmas=None).set_observation_type(amplitudes), "F"),
    )
    assert read_data(path).labels == "F"


def test_resolution_limits(data_file):
    data = read_data(data_file, d_min=3.0, d_max=8.0)
    d = data.f_obs.d_spacings().data()
    assert 3.0 <= flex.min(d) < 3.1 and 7.0 < flex.max(d) <= 8.0
    assert data.r_free_flags.indices().all_eq(data.f_obs.indices())


def test_anomalous_data_are_merged_unless_asked_for(tmp_path, model_file):
    structure = read_model(model_file).xray_structure
    f = abs(structure.structure_factors(d_min=3.0, anomalous_flag=True, algorithm="direct").f_calc())
    f = f.customized_copy(sigmas=flex.double(f.size(), 1.0)).set_observation_type_xray_amplitude()
    path = write_mtz(tmp_path / "anom.mtz", (f, "F"))
    assert not read_data(path).f_obs.anomalous_flag()
    both = read_data(path, anomalous=True).f_obs
    assert both.anomalous_flag() and both.size() == f.size() > read_data(path).f_obs.size()


def test_useless_reflections_are_left_out_and_counted(tmp_path, amplitudes):
    data, sigmas = amplitudes.data().deep_copy(), amplitudes.sigmas().deep_copy()
    data[0], sigmas[0] = 0.0, 0.0
    data[1] = -5.0
    sigmas[2] = 0.0
    spoilt = amplitudes.customized_copy(data=data, sigmas=sigmas).set_observation_type(amplitudes)
    read = read_data(write_mtz(tmp_path / "x.mtz", (spoilt, "F")))
    assert read.f_obs.size() == amplitudes.size() - 3
    assert flex.min(read.f_obs.sigmas()) > 0
    assert "left out: negative amplitude: 1, no usable sigma: 2" in read.messages
    assert read.reflections == {
        "read": amplitudes.size(),
        "used": amplitudes.size() - 3,
        "free": None,
        "left_out": {"negative amplitude": 1, "no usable sigma": 2},
    }


def test_values_that_are_no_numbers_are_left_out(tmp_path, amplitudes):
    path = write_cif(tmp_path / "x-sf.cif", amplitudes)
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith(" o"))
    for i, value in enumerate(("nan", "inf", "?")):
        fields = lines[first + i].split()
        lines[first + i] = " ".join(fields[:3] + [value] + fields[4:])
    path.write_text("\n".join(lines) + "\n")
    f_obs = read_data(path).f_obs
    assert f_obs.size() == amplitudes.size() - 3
    assert 0 <= flex.min(f_obs.data()) and flex.max(f_obs.data()) < 1e6


def test_systematic_absences_are_left_out(tmp_path, model_file, amplitudes):
    with_absences = amplitudes.customized_copy(
        crystal_symmetry=crystal.symmetry(amplitudes.unit_cell(), "P 1 2 1")
    ).complete_set(d_min=2.0)
    f = with_absences.array(
        data=10 + flex.random_double(with_absences.size()), sigmas=flex.double(with_absences.size(), 1.0)
    )
    f.set_observation_type_xray_amplitude()
    data = load_entry(model_file, write_mtz(tmp_path / "x.mtz", (f, "F"))).data
    assert data.f_obs.size() == amplitudes.complete_set(d_min=2.0).size() < f.size()
    assert data.f_obs.sys_absent_flags().data().count(True) == 0
    assert any("screw axes" in message for message in data.messages)


@pytest.mark.parametrize(
    "symbol, other", [("P 1 21 1", "P 1 1 21"), ("C 1 2 1", "I 1 2 1"), ("C 1 2 1", "A 1 2 1"), ("R 3 :H", "R 3 :R")]
)
def test_data_in_another_setting_are_reindexed(tmp_path, symbol, other):
    """The amplitudes read must be those of the model in its own setting, whatever the setting in the file."""
    cell = {"P": (20, 25, 30, 90, 95, 90), "C": (40, 25, 30, 90, 105, 90), "R": (40, 40, 30, 90, 90, 120)}[symbol[0]]
    symmetry = crystal.symmetry(cell, symbol)
    structure = read_model_text(tmp_path, ATOMS, symmetry).xray_structure
    f = abs(structure.structure_factors(d_min=2.5, anomalous_flag=False, algorithm="direct").f_calc())
    f = f.customized_copy(sigmas=0.05 * f.data() + 0.1).set_observation_type_xray_amplitude()
    number = sgtbx.space_group_info(other).type()
    change = number.cb_op().inverse() * symmetry.change_of_basis_op_to_reference_setting()
    moved = f.change_basis(change).set_observation_type(f).map_to_asu()
    assert str(moved.space_group_info()) == str(sgtbx.space_group_info(other))
    flags = flags_for(moved)
    path = write_mtz(tmp_path / "x.mtz", (moved, "F"), (flags, "FREE"))
    data = load_entry(tmp_path / "m.pdb", path).data
    assert any("reindexed" in message for message in data.messages)
    assert data.f_obs.is_similar_symmetry(symmetry)
    mine, theirs = data.f_obs.common_sets(f)
    assert mine.size() == f.size() == data.r_free_flags.size()
    assert approx_equal(mine.data(), theirs.data(), eps=1e-2)


def read_model_text(folder, atoms, symmetry=None):
    path = folder / "m.pdb"
    record = iotbx.pdb.format_cryst1_record(symmetry) + "\n" if symmetry else CRYST1
    path.write_text(record + atoms + "END\n")
    return read_model(path)


def test_model_messages(tmp_path):
    anisou = "ANISOU    1  CA  ALA A   1     5000   5000  -2000      0      0      0       C  \n"
    atoms = atom() + anisou + atom(2, occupancy="  0.00") + atom(3, occupancy=" -0.50")
    model = read_model_text(tmp_path, atoms)
    assert model.messages == (
        "atoms whose displacement parameters are not positive definite: 1",
        "atoms with a negative occupancy: 1",
        "atoms with occupancy 0, which do not scatter: 1",
    )
    two = "MODEL        1\n" + ATOMS + "ENDMDL\nMODEL        2\n" + ATOMS + "ENDMDL\n"
    model = read_model_text(tmp_path, two)
    assert "2 models" in model.messages[0] and model.xray_structure.scatterers().size() == 22


def test_neutron_header_is_noticed(tmp_path):
    path = tmp_path / "m.pdb"
    path.write_text(HEADER + "EXPDTA    NEUTRON DIFFRACTION\n" + CRYST1 + ATOMS)
    assert any("neutron" in message for message in read_model(path).messages)
    assert read_model(path, scattering_table="neutron").messages == ()


def test_deposited_r_factors(tmp_path):
    path = tmp_path / "m.pdb"
    path.write_text(
        HEADER + "REMARK   2 RESOLUTION.    1.80 ANGSTROMS.\n"
        "REMARK   3   R VALUE            (WORKING SET) : 0.171\n"
        "REMARK   3   FREE R VALUE                     : NULL\n" + CRYST1 + ATOMS
    )
    model = read_model(path)
    assert (model.r_work, model.r_free) == (0.171, None)


def test_reading_is_quiet(model_file, data_file, capfd):
    load_entry(model_file, data_file)
    assert capfd.readouterr() == ("", "")


# bad files

READERS = pytest.mark.parametrize("read", [read_model, read_data])


@READERS
def test_file_that_is_not_there(read, tmp_path):
    assert "check its name" in refused("nothing.pdb does not exist", read, tmp_path / "nothing.pdb")


@READERS
def test_folder_given_as_file(read, tmp_path):
    refused("is a folder: give the name of the", read, tmp_path)


@READERS
@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b"")])
def test_empty_file(read, tmp_path, content):
    (tmp_path / "x.cif").write_bytes(content)
    refused("x.cif is empty: download or copy it again", read, tmp_path / "x.cif")


@READERS
@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>", b"\n<html><body>404", gzip.compress(b"<HTML>no")])
def test_web_page(read, tmp_path, content):
    (tmp_path / "x.mtz").write_bytes(content)
    refused("x.mtz is a web page", read, tmp_path / "x.mtz")


@READERS
def test_binary_garbage(read, tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(range(256)) * 50)
    refused("x.bin is a binary file of another kind: give a", read, tmp_path / "x.bin")


@READERS
def test_text_of_another_kind(read, tmp_path):
    (tmp_path / "x.txt").write_text("Dear reader,\nthis is a letter.\n" * 20)
    refused("x.txt is n(ot|either)", read, tmp_path / "x.txt")


@READERS
def test_gzip_cut_short(read, tmp_path):
    (tmp_path / "x.cif.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:2000])
    refused("x.cif.gz is cut short or damaged", read, tmp_path / "x.cif.gz")


def test_gzip_with_a_wrong_checksum(tmp_path, model_file):
    body = bytearray(gzip.compress(model_file.read_bytes()))
    body[-5] ^= 1
    (tmp_path / "x.pdb.gz").write_bytes(body)
    refused("cut short or damaged", read_model, tmp_path / "x.pdb.gz")


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_mtz_cut_short(tmp_path, data_file, part, capfd):
    content = data_file.read_bytes()
    (tmp_path / "cut.mtz").write_bytes(content[: int(part * len(content))])
    refused("cut.mtz is cut short or damaged", read_data, tmp_path / "cut.mtz")
    assert capfd.readouterr() == ("", "")


def test_cif_cut_short(tmp_path, amplitudes):
    path = write_cif(tmp_path / "x-sf.cif", amplitudes)
    text = path.read_text()
    path.write_text(text[: len(text) // 2].rsplit(" ", 2)[0])
    refused("x-sf.cif is not a readable CIF file", read_data, path)


@READERS
def test_unreadable_file(read, tmp_path):
    path = tmp_path / "x.cif"
    path.write_text("data_x\n")
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything; nobody may not
        refused("Cannot read the (model|data) file .*x.cif", read, path)
    finally:
        os.seteuid(user)


def test_nothing_in_a_file_is_executed(tmp_path):
    """cctbx would unpickle an unknown binary reflection file; a pickle can run any command."""
    import pickle

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    for protocol in (0, 2, 4):
        (tmp_path / "x.hkl").write_bytes(pickle.dumps([Trap()], protocol=protocol))
        refused("x.hkl is", read_data, tmp_path / "x.hkl")
        (tmp_path / "x.hkl.gz").write_bytes(gzip.compress(pickle.dumps([Trap()], protocol=protocol)))
        refused("x.hkl.gz is", read_data, tmp_path / "x.hkl.gz")
    assert not (tmp_path / "executed").exists()


# bad models


@pytest.mark.parametrize(
    "atoms, said",
    [
        ("", "contains no atoms"),
        (atom(x="     nan"), "not a readable model .*not a floating-point number"),
        (atom(x="   1.0x0"), "no number but .1.0x0. in columns 31-38"),
        (atom(x="9999.999"), r"A *1.* has the impossible coordinates \(10000, 2, 4\)"),
        (atom(b=" -5.00"), "has the impossible B factor -5"),
        (atom(b="   nan"), "not a readable model"),
        (atom(occupancy="  0.00") + atom(2, occupancy="  0.00"), "all atoms have occupancy 0"),
        (atom() + atom(2, element="QQ", name="QQ  "), "is of the unknown element 'QQ'"),
        (atom() + atom(2, element=" X", name=" X  "), "is of the unknown element 'X'"),
    ],
    ids=["none", "nan", "letters", "9999", "negative-B", "nan-B", "no-occupancy", "element", "element-X"],
)
def test_bad_atoms(tmp_path, atoms, said):
    message = refused(said, read_model_text, tmp_path, atoms)
    assert "m.pdb" in message


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("Cartn_x", "nan", "impossible coordinates"),
        ("Cartn_x", "1e9", "impossible coordinates"),
        ("Cartn_y", "-inf", "impossible coordinates"),
        ("Cartn_z", "?", "has no coordinate"),
        ("Cartn_x", "__import__('os')", "not a readable CIF file"),
        ("B_iso_or_equiv", "12000", "impossible B factor 12000"),
        ("B_iso_or_equiv", "-0.5", "impossible B factor -0.5"),
        ("occupancy", "nan", "impossible occupancy nan"),
        ("type_symbol", "Qq", "unknown element 'Qq'"),
    ],
)
def test_bad_values_in_mmcif(tmp_path, model_file, field, value, said):
    text = read_model(model_file).manager.model_as_mmcif()
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.split()[:2] == ["ATOM", "1"])
    fields = [line.split(".")[1].strip() for line in lines if line.strip().startswith("_atom_site.")]
    words = lines[first].split()
    words[fields.index(field)] = value
    lines[first] = "  ".join(words)
    (tmp_path / "x.cif").write_text("\n".join(lines) + "\n")
    assert "x.cif" in refused(said, read_model, tmp_path / "x.cif")


@pytest.mark.parametrize(
    "record, said",
    [
        ("", "has no unit cell"),
        ("CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n", "has no unit cell"),
        (CRYST1.replace("P 1 21 1", "X 9 9 9 "), "has no known space group"),
        (CRYST1.replace("P 1 21 1", "P 4 3 2 "), "impossible unit cell or space group"),
        (CRYST1.replace("20.000", " 0.000"), "impossible unit cell|has no unit cell|not a readable model"),
    ],
    ids=["none", "dummy", "unknown-group", "incompatible", "zero"],
)
def test_bad_symmetry(tmp_path, record, said):
    path = tmp_path / "m.pdb"
    path.write_text(record + ATOMS)
    assert "m.pdb" in refused(said, read_model, path)


def test_symmetry_may_be_given(tmp_path):
    path = tmp_path / "m.pdb"
    path.write_text(ATOMS)
    symmetry = crystal.symmetry((20, 25, 30, 90, 95, 90), "P 1 21 1")
    assert read_model(path, crystal_symmetry=symmetry).crystal_symmetry.is_similar_symmetry(symmetry)


def test_unknown_table(model_file):
    refused("'xray' is not a scattering table: choose among", read_model, model_file, scattering_table="xray")


def test_files_in_the_wrong_order(model_file, data_file):
    refused("holds reflections, not atoms", read_model, data_file)
    refused("holds atoms, not reflections", read_data, model_file)


def test_cif_files_in_the_wrong_order(tmp_path, model_file, amplitudes):
    sf = write_cif(tmp_path / "x-sf.cif", amplitudes)
    refused("holds reflections, not atoms", read_model, sf)
    cif = tmp_path / "x.cif"
    cif.write_text(read_model(model_file).manager.model_as_mmcif())
    refused("holds atoms", read_data, cif)


# bad data


def test_no_observations(tmp_path, amplitudes):
    coefficients = amplitudes.customized_copy(data=flex.polar(amplitudes.data(), 0.5), sigmas=None)
    path = write_mtz(tmp_path / "map.mtz", (coefficients, "2FOFCWT"))
    refused("map.mtz contains no observed amplitudes or intensities .it contains 2FOFCWT", read_data, path)
    refused("are neither amplitudes nor intensities", read_data, path, labels="2FOFCWT,PHI2FOFCWT")


def test_unknown_labels(data_file):
    refused("no array labelled NONE for the data: choose among FP,SIGFP; FREE", read_data, data_file, labels="NONE")
    refused("no array labelled NIX for the R-free flags", read_data, data_file, r_free_labels="NIX")


@pytest.mark.parametrize("every, said", [(1, "are all 1"), (10**9, "are all 0"), (2, r"have the values")])
def test_unusable_flags(tmp_path, amplitudes, every, said):
    flags = flags_for(amplitudes, every=every)
    if every == 10**9:
        flags.data()[0] = 0
    path = write_mtz(tmp_path / "x.mtz", (amplitudes, "F"), (flags, "FREE"))
    refused(f"R-free flags FREE in .*x.mtz {said}.*cannot be a test set", read_data, path)
    assert read_data(path, r_free_labels="none").r_free_flags is None


def test_more_than_half_free(tmp_path, data_file):
    refused("mark 90% of the reflections with 0", read_data, data_file, test_flag_value=0)


def test_limit_beyond_the_data(data_file):
    message = refused("end at 2.00 Å, short of the limit of 1.5 Å", read_data, data_file, d_min=1.5)
    assert "data.mtz" in message
    refused("impossible: give a positive number", read_data, data_file, d_min=-1.0)


def test_limits_that_leave_nothing(data_file):
    refused("no reflections between 2.5 and 3", read_data, data_file, d_min=3.0, d_max=2.5)


def test_different_cells(tmp_path, data_file):
    (tmp_path / "other.pdb").write_text(CRYST1.replace("20.000", "21.000") + ATOMS)
    message = refused("differs from the model's", load_entry, tmp_path / "other.pdb", data_file)
    assert "20 25 30" in message and "21 25 30" in message and "data.mtz" in message


def test_slightly_different_cells_take_the_models(tmp_path, data_file):
    (tmp_path / "other.pdb").write_text(CRYST1.replace("20.000", "20.100") + ATOMS)
    entry = load_entry(tmp_path / "other.pdb", data_file)
    assert entry.data.f_obs.unit_cell().parameters()[0] == 20.1
    assert any("differ by more than 0.1 %" in message for message in entry.messages)


def test_incompatible_space_groups(tmp_path, amplitudes, model_file):
    orthorhombic = crystal.symmetry((20, 25, 30, 90, 90, 90), "P 2 2 2")
    complete = orthorhombic.build_miller_set(anomalous_flag=False, d_min=3.0)
    f = complete.array(data=9 + flex.random_double(complete.size()), sigmas=flex.double(complete.size(), 1.0))
    path = write_mtz(tmp_path / "x.mtz", (f.set_observation_type_xray_amplitude(), "F"))
    (tmp_path / "m.pdb").write_text(CRYST1.replace("95.00", "90.00") + ATOMS)
    message = refused("space groups do not go together", load_entry, tmp_path / "m.pdb", path)
    assert "P 2 2 2" in message and "P 1 21 1" in message


def test_data_of_lower_symmetry_are_merged(tmp_path, model_file, amplitudes):
    p1 = amplitudes.expand_to_p1().set_observation_type(amplitudes)
    entry = load_entry(model_file, write_mtz(tmp_path / "x.mtz", (p1, "F")))
    assert entry.data.f_obs.size() == amplitudes.size()
    assert any("merged in the model's" in message for message in entry.messages)


def test_data_of_another_entry(tmp_path, model_file, amplitudes):
    path = write_cif(tmp_path / "x-sf.cif", amplitudes, entry="9xyz")
    message = refused("is entry 9abc, but .*x-sf.cif holds data of entry 9xyz", load_entry, model_file, path)
    assert "allow_other_entry" in message
    assert load_entry(model_file, path, allow_other_entry=True).entry_id == "9abc"


def test_unknown_preference(data_file):
    refused("prefer='F' is not a choice", read_data, data_file, prefer="F")


# the demonstration


def test_demonstration(tmp_path):
    from mmtbx_sfdiff.files.demo import demo_entry

    files = demo_entry(tmp_path / "new", d_min=2.5)
    entry = load_entry(files.model, files.data)
    assert entry.data.simulated and "SIMULATED" in entry.data.labels and "simulated" in files.data.name
    assert files.source.startswith("demo")
    share = entry.data.r_free_flags.data().count(True) / entry.data.f_obs.size()
    assert 0.04 < share < 0.06
    calculated = abs(
        entry.data.f_obs.structure_factors_from_scatterers(entry.model.xray_structure, algorithm="direct").f_calc()
    )
    assert 0.9 < calculated.correlation(entry.data.f_obs).coefficient() < 0.9999
    again = load_entry(*[(f.model, f.data) for f in [demo_entry(tmp_path / "b", d_min=2.5)]][0])
    assert approx_equal(again.data.f_obs.data(), entry.data.f_obs.data())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [files.data.name]


def test_demonstration_that_cannot_be_written(tmp_path):
    from mmtbx_sfdiff.files.demo import demo_entry

    (tmp_path / "taken").write_text("")
    refused("Cannot write .*choose another folder", demo_entry, tmp_path / "taken", d_min=4.0)


# real entries

# 18 of its reflections are systematic absences in P 1 21 1; the manifest counts them
ABSENCES = {"4ek1": 18}


def entry_parameters():
    rows = manifest_rows()
    if not rows:
        return [pytest.param(None, id="no-entries")]
    big = {row["entry"] for row in rows if int(row["n_refl"]) > 30000}
    return [pytest.param(row, id=row["entry"], marks=[pytest.mark.slow] if row["entry"] in big else []) for row in rows]


@pytest.mark.parametrize("row", entry_parameters())
def test_real_entry(pdb_dir, row, capfd):
    """Columns, flags, test value, resolution and counts are those that the manifest reports.

    Two differences are understood: the manifest leaves out intensities that are not positive, where French and
    Wilson's method gives them an amplitude, and counts flags before they are matched with the data.
    """
    entry = load_entry(pdb_dir / row["model_file"], pdb_dir / row["data_file"])
    model, data = entry.model, entry.data
    assert capfd.readouterr() == ("", "")
    assert entry.entry_id == row["entry"]
    assert model.xray_structure.scatterers().size() == int(row["n_atoms"])
    assert str(model.crystal_symmetry.space_group_info()) == row["space_group"]
    assert data.labels == row["labels"]
    assert data.kind == {"F": "amplitudes", "I": "intensities (French-Wilson)"}[row["data_kind"]]
    assert abs(data.f_obs.d_min() - float(row["d_min"])) < 0.001
    n = data.f_obs.size()
    if row["data_kind"] == "F":
        assert n == int(row["n_refl"]) - ABSENCES.get(row["entry"], 0)
    else:
        raw = observed_intensities(pdb_dir / row["data_file"], model.crystal_symmetry, row["labels"])
        assert (raw.data() > 0).count(True) == int(row["n_refl"]) <= n <= raw.size()
    assert not data.f_obs.anomalous_flag() and data.f_obs.is_unique_set_under_symmetry()
    assert flex.min(data.f_obs.data()) >= 0 and flex.min(data.f_obs.sigmas()) > 0
    check_flags(row, data)


def observed_intensities(path, symmetry, labels):
    content = path.read_bytes()
    if path.suffix == ".gz":
        import iotbx.cif

        arrays = iotbx.cif.reader(input_string=gzip.decompress(content).decode()).as_miller_arrays(
            crystal_symmetry=symmetry, force_symmetry=True
        )
    else:
        arrays = reflection_file_reader.any_reflection_file(str(path)).as_miller_arrays(
            crystal_symmetry=symmetry, force_symmetry=True
        )
    return next(array for array in arrays if array.info().label_string() == labels)


def check_flags(row, data):
    said = row["free_flags"]
    if said == "n":
        assert data.r_free_flags is None
        return
    column, counts = said[2:].split(" ")
    name, value = column.split("=")
    n_free, n_flags = (int(text) for text in counts.strip("()").split("/"))
    assert data.r_free_labels.split(",")[-1].split(".")[-1] == name.split(".")[-1]
    assert str(data.test_flag_value) == value
    flags = data.r_free_flags
    assert flags.indices().all_eq(data.f_obs.indices())
    free = flags.data().count(True)
    if row["entry"] == "1g1j":  # the file has flags for both Bijvoet mates; the data are merged
        assert abs(free / flags.size() - n_free / n_flags) < 0.01
    else:
        assert 0.8 * n_free - (n_flags - flags.size()) <= free <= n_free
        if n_flags == flags.size():
            assert free == n_free


@pytest.mark.parametrize(
    "entry, prefer",
    [
        ("1yjp", "amplitudes"),
        ("2okz", "intensities"),
        ("1bdw", "amplitudes"),
        ("5o5i", "amplitudes"),
        ("3wap", "intensities"),
    ],
)
def test_data_are_those_that_mmtbx_reads(pdb_dir, tmp_path, entry, prefer):
    """What ``mmtbx.model_vs_data`` extracts from the same columns in the model's symmetry.

    Amplitudes to the bit; French and Wilson's sums over shells to rounding.
    """
    from iotbx import extract_xtal_data, reflection_file_utils
    from libtbx.utils import null_out

    folder = pdb_dir / entry
    model, data = (next(folder.glob(name)) for name in (f"{entry}.pdb*", f"{entry}[.-][ms][tf]*"))
    ours = load_entry(model, data, prefer=prefer).data
    plain = tmp_path / data.name.replace(".gz", "")
    content = data.read_bytes()
    plain.write_bytes(gzip.decompress(content) if data.suffix == ".gz" else content)
    server = reflection_file_utils.reflection_file_server(
        crystal_symmetry=ours.f_obs.crystal_symmetry(),
        force_symmetry=True,
        err=null_out(),
        reflection_files=[reflection_file_reader.any_reflection_file(str(plain))],
    )
    params = extract_xtal_data.data_and_flags_master_params().extract()
    params.labels, params.r_free_flags.label = [ours.labels], ours.r_free_labels
    theirs = extract_xtal_data.run(reflection_file_server=server, parameters=params, keep_going=True)
    assert ours.f_obs.indices().all_eq(theirs.f_obs.indices())
    tolerance = 0 if ours.kind == "amplitudes" else 1e-13 * flex.max(theirs.f_obs.data())
    assert flex.max(flex.abs(ours.f_obs.data() - theirs.f_obs.data())) <= tolerance
    assert flex.max(flex.abs(ours.f_obs.sigmas() - theirs.f_obs.sigmas())) <= tolerance
    assert ours.r_free_flags.data().all_eq(theirs.r_free_flags.data())
    # cctbx turns a status column's o and f into 1 and 0
    assert {"f": 0}.get(ours.test_flag_value, ours.test_flag_value) == theirs.test_flag_value
