"""Data files of further kinds, made small: old depositions, unmerged MTZ files, X-PLOR, XDS, SHELX."""

import mmtbx_sfdiff as sfdiff
from mmtbx_sfdiff.files.errors import Sorry
from mmtbx_sfdiff.files.observations import read_observations
from mmtbx_sfdiff.files.symmetry import Symmetry

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


def read(path, text=None, **options):
    if text is not None:
        path.write_text(text)
    return read_observations(path, MODEL, **options)


def plain(data, **more):
    indices, f, s, _ = data
    return make.sf_block(indices, {"F_meas_au": f, "F_meas_sigma_au": s, **more})


def same(o, data, atol=1e-5):
    truth = {tuple(h): x for h, x in zip(data[0].tolist(), data[1])}
    np.testing.assert_allclose(o.f_obs, [truth[tuple(h)] for h in o.indices.tolist()], rtol=atol)
    return len(o.f_obs) == len(data[1])


@pytest.mark.parametrize("code", ["crystal_id", "scale_group_code", "wavelength_id"])
def test_crystals_that_share_no_reflection_are_one_data_set(tmp_path, data, code):
    codes = [str(1 + i % 3) for i in range(len(data[1]))]
    o = read(tmp_path / "x.cif", plain(data, **{code: codes}))
    assert same(o, data) and any(m.startswith(f"{code}: parts of one data set") for m in o.messages)


def test_wavelengths_that_share_reflections_stay_apart(tmp_path, data):
    indices, f, s, _ = data
    n = len(f)
    columns = {"wavelength_id": ["1"] * n + ["2"] * n, "F_meas_au": [*f, *(1.1 * f)], "F_meas_sigma_au": [*s, *s]}
    o = read(tmp_path / "x.cif", make.sf_block(np.concatenate([indices, indices]), columns))
    assert same(o, data) and "wavelength_id=1" in o.labels


def test_a_cell_in_a_block_of_its_own_is_read(tmp_path, data):
    head, body = plain(data).split("loop_", 1)
    for a, refused in (("28.0", False), ("41.0", True)):
        text = head.replace("28.0", a) + "data_two\nloop_" + body
        if refused:
            with pytest.raises(Sorry, match="41 31 36"):
                read(tmp_path / "x.cif", text)
        else:
            o = read(tmp_path / "x.cif", text)
            assert same(o, data) and o.stated.cell == make.CELL


def test_names_of_items_in_upper_case(tmp_path, data):
    letters = ["f" if flag else "o" for flag in data[3]]
    lines = plain(data, status=letters).splitlines(True)
    text = "".join(line.upper() if line.startswith("_") else line for line in lines)
    o = read(tmp_path / "x.cif", text)
    assert same(o, data) and o.free.sum() == data[3].sum()
    block = gemmi.as_refln_blocks(gemmi.cif.read_string(plain(data, status=letters)))[0]
    assert sfdiff.Reflections.from_gemmi(block).r_free_flags.sum() == data[3].sum()


def test_words_among_numbers_are_missing_values_in_every_door(tmp_path, data):
    indices, f, s, _ = data
    texts = [("NA", "n/a", "******")[i % 3] if i % 9 == 2 else f"{x:.6g}" for i, x in enumerate(f)]
    text = make.sf_block(indices, {"F_meas_au": texts, "F_meas_sigma_au": s})
    o = read(tmp_path / "x.cif", text)
    block = gemmi.as_refln_blocks(gemmi.cif.read_string(text))[0]
    in_memory = sfdiff.Reflections.from_gemmi(block)
    n = sum(t.startswith(("N", "n", "*")) for t in texts)
    assert o.left_out == in_memory.left_out == {"no value": n} and len(in_memory) == len(o.f_obs)


def test_the_dataset_of_the_files_own_cell_is_taken_in_memory(tmp_path, data):
    indices, f, s, _ = data
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = make.GROUP
    mtz.set_cell_for_all(gemmi.UnitCell(*make.CELL))
    for name, a in (("derivative", 29.5), ("native", 28.0)):
        mtz.add_dataset(name).cell = gemmi.UnitCell(a, *make.CELL[1:])
        mtz.add_column(f"F_{name}", "F")
        mtz.add_column(f"SIGF_{name}", "Q")
    mtz.set_data(np.column_stack([indices, 2 * f, s, f, s]).astype(np.float32))
    found = sfdiff.Reflections.from_gemmi(mtz)
    np.testing.assert_allclose(found.f_obs.numpy(), f, rtol=1e-6)


def unmerged(path, data, flag=False, fraction=None):
    indices, f, s, _ = data
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = make.GROUP
    mtz.set_cell_for_all(gemmi.UnitCell(*make.CELL))
    mtz.add_dataset("scan")
    labels = [("M/ISYM", "Y"), ("BATCH", "B"), ("I", "J"), ("SIGI", "Q")]
    labels += [("FRACTIONCALC", "R")] * (fraction is not None) + [("FLAG", "I")] * flag
    for label, kind in labels:
        mtz.add_column(label, kind)
    rows = []
    for i, (h, x, e) in enumerate(zip(indices, f**2, 2 * f * s)):
        for k in (0, 1):
            bad, part = flag and k == 1 and i % 5 == 0, fraction is not None and i % 4 == 0
            row = [*h, 257 if part else 1, 1 + k, x * (50 if bad else 1) * (fraction if part else 1), e]
            rows.append(row + [fraction if part else 1.0] * (fraction is not None) + [float(bad)] * flag)
    mtz.set_data(np.array(rows, dtype=np.float32))
    mtz.write_to_file(str(path))
    return path


def test_rows_flagged_as_bad_in_an_unmerged_file_take_no_part(tmp_path, data):
    o = read(unmerged(tmp_path / "x.mtz", data, flag=True))
    n = len(range(0, len(data[1]), 5))
    assert f"rows that the integration program flagged as bad, not read: {n}" in o.messages
    assert (
        np.corrcoef(o.f_obs, [dict(zip(map(tuple, data[0].tolist()), data[1]))[tuple(h)] for h in o.indices.tolist()])[
            0, 1
        ]
        > 0.999
    )


def test_partially_recorded_reflections_are_refused(tmp_path, data):
    with pytest.raises(Sorry, match="partially recorded reflections"):
        read(unmerged(tmp_path / "x.mtz", data, fraction=0.5))
    assert len(read(unmerged(tmp_path / "x.mtz", data, fraction=0.99)).f_obs) > 0


def test_xplor_files_without_declarations(tmp_path, data):
    text = f" NREF={len(data[1])}\n"
    for h, f, s, flag in zip(*data):
        text += f" INDE {h[0]:5d}{h[1]:5d}{h[2]:5d} FOBS= {f:10.3f} SIGMA= {s:8.3f} TEST= {flag}\n"
    o = read(tmp_path / "x.fobs", text)
    assert same(o, data, 1e-2) and (o.free_labels, o.test_value) == ("TEST", 1)
    assert o.free.sum() == data[3].sum()


def test_rows_that_xds_rejects_are_counted(tmp_path, data):
    items = ["H", "K", "L", "IOBS", "SIGMA(IOBS)", "XD", "YD", "ZD", "RLP", "PEAK", "CORR", "PSI"]
    text = "!FORMAT=XDS_ASCII    MERGE=FALSE    FRIEDEL'S_LAW=TRUE\n!SPACE_GROUP_NUMBER=   19\n"
    text += "!UNIT_CELL_CONSTANTS=    28.000    31.000    36.000  90.000  90.000  90.000\n"
    text += f"!NUMBER_OF_ITEMS_IN_EACH_DATA_RECORD={len(items)}\n"
    text += "".join(f"!ITEM_{name}={i}\n" for i, name in enumerate(items, 1)) + "!END_OF_HEADER\n"
    for i, (h, f) in enumerate(zip(data[0], data[1])):
        for k in (0, 1):
            bad = k == 1 and i % 3 == 0
            text += f"{h[0]:6d}{h[1]:6d}{h[2]:6d} {f * f * (50 if bad else 1):10.3E} {(-1 if bad else 1) * f:10.3E} 9 9 9 1 99 9 9\n"
    o = read(tmp_path / "XDS_ASCII.HKL", text + "!END_OF_DATA\n")
    n = len(range(0, len(data[1]), 3))
    assert f"rows that XDS rejects by a negative sigma, not read: {n}" in o.messages
    assert o.read == 2 * len(data[1]) - n


def shelx(data, batches):
    scale = 9000 / (data[1] ** 2).max()
    rows = zip(data[0], data[1] ** 2 * scale, data[1] * scale + 0.05, batches)
    return (
        "".join(f"{h[0]:4d}{h[1]:4d}{h[2]:4d}{i:8.2f}{s:8.2f}{b:4d}\n" for h, i, s, b in rows) + f"{0:4d}{0:4d}{0:4d}\n"
    )


def test_batch_numbers_of_shelx(tmp_path, data):
    path, n = tmp_path / "x.hkl", np.arange(len(data[1]))
    path.write_text(shelx(data, np.where(n % 3 == 0, -2, 1)))
    with pytest.raises(Sorry, match="HKLF 5"):
        read(f"{path}=hklf4")
    path.write_text(shelx(data, 1 + n % 2))
    assert any("batch numbers" in message for message in read(f"{path}=hklf4").messages)
    path.write_text(shelx(data, np.where(data[3] == 1, -1, 1)))
    o = read(f"{path}=hklf4")
    assert o.free.sum() == data[3].sum() and not any("batch" in message for message in o.messages)
    assert "Fobs" in read(f"{path}=hklf3").labels


@pytest.mark.parametrize("value", [np.array([3.0, 4.0]), "three", None.__class__])
def test_a_limit_that_is_no_number_is_refused_by_its_name(tmp_path, data, value):
    crystal = sfdiff.Crystal(make.CELL, "P 21 21 21")
    for call in (
        lambda: read(tmp_path / "x.cif", plain(data), d_min=value),
        lambda: crystal.build_miller_indices(value),
    ):
        with pytest.raises(TypeError, match="d_min must be one number"):
            call()


@pytest.mark.parametrize("value", [np.float16(4), np.array(4), np.uint8(4)])
def test_a_limit_of_another_package_is_a_number(tmp_path, data, value):
    assert len(read(tmp_path / "x.cif", plain(data), d_min=value).f_obs) == len(
        read(tmp_path / "x.cif", plain(data), d_min=4.0).f_obs
    )
