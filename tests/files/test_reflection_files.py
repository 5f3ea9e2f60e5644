"""Reflection files as people have them: every row used or counted, in any layout."""

import mmtbx_sfdiff as sfdiff
from mmtbx_sfdiff.files import read_data
from mmtbx_sfdiff.files.errors import Sorry
from mmtbx_sfdiff.files.french_wilson import french_wilson
from mmtbx_sfdiff.files.merging import group_rows, mean_of_equivalents, to_asu
from mmtbx_sfdiff.files.observations import read_observations
from mmtbx_sfdiff.files.symmetry import Symmetry

import gemmi
import hypothesis.strategies as st
import numpy as np
import pytest
from cctbx import crystal, miller, sgtbx
from cctbx import french_wilson as cctbx_french_wilson
from cctbx.array_family import flex
from hypothesis import HealthCheck, given, settings
from libtbx.utils import null_out

from tests.support import case_files as make

MODEL = Symmetry(make.CELL, make.GROUP.operations())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(n, 3) indices, (n,) amplitudes, (n,) sigmas."""
    indices, f = make.amplitudes(tmp_path_factory.mktemp("data"))
    return indices, f, 0.05 * f + 0.1


def letters(n, free=12, x=None):
    return ["x" if x and i % x == 1 else "f" if i % free == 0 else "o" for i in range(n)]


def meas(f, sigma, **more):
    return {"F_meas_au": f, "F_meas_sigma_au": sigma, **more}


def read_cif(tmp_path, *blocks, **options):
    path = tmp_path / "x-sf.cif"
    path.write_text("".join(blocks))
    return read_observations(path, MODEL, **options)


def whole(observations):
    summary = observations.summary
    return summary["read"] == summary["used"] + sum(summary["left_out"].values())


# blocks, rows, flags


def test_the_block_of_the_models_cell_is_taken(tmp_path, data):
    indices, f, s = data
    other = make.sf_block(indices, meas(2 * f, s, status=letters(len(f), 7)), "r9xyzAsf", (29.5, *make.CELL[1:]))
    native = make.sf_block(indices, meas(f, s, status=letters(len(f))))
    for blocks in ((other, native), (native, other)):
        o = read_cif(tmp_path, *blocks)
        assert np.allclose(np.sort(o.f_obs), np.sort(f), rtol=1e-5) and o.free.sum() == (len(f) + 11) // 12
        assert any("not the model's cell" in message for message in o.messages)


def test_flags_of_another_block_only_where_they_cover_the_data(tmp_path, data):
    indices, f, s = data
    plain = make.sf_block(indices, meas(f, s))
    every = make.sf_block(indices, meas(f, s, status=letters(len(f))), "r9xyzAsf")
    part = make.sf_block(indices[:300], meas(f[:300], s[:300], status=letters(300)), "r9xyzAsf")
    assert read_cif(tmp_path, plain, every).free.sum() == (len(f) + 11) // 12
    o = read_cif(tmp_path, plain, part)
    assert o.free is None and len(o.f_obs) == len(f)


def test_rejected_rows_take_no_part_whatever_else_is_there(tmp_path, data):
    indices, f, s = data
    n = len(f)
    once = read_cif(tmp_path, make.sf_block(indices, meas(f, s, status=letters(n))))
    bad = indices[::5]
    rows = np.concatenate([indices, -bad])
    columns = meas(
        np.append(f, [9999.0] * len(bad)), np.append(s, [1.0] * len(bad)), status=letters(n) + ["x"] * len(bad)
    )
    o = read_cif(tmp_path, make.sf_block(rows, columns))
    assert np.array_equal(o.f_obs, once.f_obs) and np.array_equal(o.free, once.free) and whole(o)
    assert o.summary["left_out"] == {"status x (unreliable)": len(bad)}


def test_a_reflection_is_free_if_any_row_is(tmp_path, data):
    indices, f, s = data
    n = len(f)
    flags = np.concatenate([make.some_flags(n), np.zeros(n, int)])
    rows, columns = np.concatenate([indices, -indices]), meas(np.append(f, f), np.append(s, s), pdbx_r_free_flag=flags)
    o = read_cif(tmp_path, make.sf_block(rows, columns))
    assert o.free.sum() == make.some_flags(n).sum() and len(o.f_obs) == n and whole(o)
    assert any("unlike R-free flags, taken as free" in message for message in o.messages)


@pytest.mark.parametrize("marker", ["?", ".", "0", "nan"])
def test_a_missing_sigma_costs_its_own_reflection_only(tmp_path, data, marker):
    indices, f, s = data
    texts = [marker if i % 100 == 3 else f"{x:.4f}" for i, x in enumerate(s)]
    o = read_cif(tmp_path, make.sf_block(indices, meas(f, texts)))
    assert o.sigmas is not None and len(o.f_obs) == len(f) - texts.count(marker) and whole(o)
    none = read_cif(tmp_path, make.sf_block(indices, meas(f, [marker] * len(f))))
    assert none.sigmas is None and len(none.f_obs) == len(f)


def test_another_wavelength_in_the_loop_is_another_data_set(tmp_path, data):
    indices, f, s = data
    rows = np.concatenate([indices, indices])
    columns = {"wavelength_id": ["1"] * len(f) + ["2"] * len(f)} | meas(np.append(f, 3 * f), np.append(s, s))
    o = read_cif(tmp_path, make.sf_block(rows, columns))
    assert np.allclose(np.sort(o.f_obs), np.sort(f), rtol=1e-5)
    assert any("also present: r9xyzsf,wavelength_id=2" in message for message in o.messages)


@given(st.permutations(["block", "labels", "status", "flag", "extra"]), st.sampled_from(["?", "."]), st.randoms())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_blocks_columns_and_rows_is_the_same_data(tmp_path, data, order, marker, random):
    indices, f, s = data
    rows = list(range(len(f)))
    random.shuffle(rows)
    columns = {
        "labels": {"F_meas_au": f[rows], "F_meas_sigma_au": s[rows]},
        "status": {"status": [letters(len(f))[i] for i in rows]},
        "flag": {"pdbx_redundancy": np.array(rows) % 4 + 1},
        "extra": {"F_calc": 2 * f[rows], "phase_calc": [marker] * len(rows)},
    }
    own = make.sf_block(indices[rows], {k: v for name in order if name in columns for k, v in columns[name].items()})
    other = make.sf_block(indices, meas(2 * f, s), "r9xyzBsf", (25.0, 26.0, 27.0, 90, 90, 90))
    o = read_cif(tmp_path, *([own, other] if order.index("block") % 2 else [other, own]))
    back = np.lexsort(o.indices.T)
    assert np.array_equal(o.indices[back], indices[np.lexsort(indices.T)])
    assert np.allclose(o.f_obs[back], f[np.lexsort(indices.T)], rtol=1e-5) and o.free.sum() == (len(f) + 11) // 12


# MTZ


@pytest.mark.parametrize("layout", [{"index_names": "hkl"}, {"index_types": "RRR"}, {"index_first": False}])
def test_index_columns_of_any_name_type_and_place(tmp_path, data, layout):
    indices, f, s = data
    columns = {"F": ("F", f), "SIGF": ("Q", s), "FreeR_flag": ("I", 1 - make.some_flags(len(f)))}
    o = read_observations(make.write_mtz(tmp_path / "x.mtz", indices, columns, **layout), MODEL)
    assert np.array_equal(o.indices, indices) and np.allclose(o.f_obs, f, rtol=1e-6)
    assert o.free.sum() == make.some_flags(len(f)).sum() and o.test_value == 0


def test_an_mtz_without_index_columns_is_one_sentence(tmp_path, data):
    indices, f, s = data
    path = make.write_mtz(tmp_path / "x.mtz", indices, {"F": ("F", f)}, "abc", "RRR")
    with pytest.raises(Sorry, match="has no columns H, K and L"):
        read_observations(path, MODEL)


def test_columns_of_a_data_set_that_the_header_lacks_are_read(tmp_path, data):
    indices, f, s = data
    path = make.write_mtz(tmp_path / "x.mtz", indices, {"F": ("F", f), "SIGF": ("Q", s)})
    mtz = gemmi.read_mtz_file(str(path))
    for column in mtz.columns:
        column.dataset_id = 7
    mtz.write_to_file(str(path))
    assert np.allclose(read_observations(path, MODEL).f_obs, f, rtol=1e-6)
    assert np.allclose(sfdiff.Reflections.from_gemmi(gemmi.read_mtz_file(str(path))).f_obs.numpy(), f, rtol=1e-6)


def test_flags_of_a_separate_file(tmp_path, data):
    indices, f, s = data
    n = len(f)
    columns = {"F": ("F", f), "SIGF": ("Q", s)}
    path = make.write_mtz(tmp_path / "f.mtz", indices, columns)
    flags = make.write_mtz(tmp_path / "free.mtz", indices[::-1], {"FreeR_flag": ("I", np.arange(n)[::-1] % 20)})
    o = read_observations(path, MODEL, free_file=flags)
    assert np.array_equal(o.free, np.arange(n) % 20 == 0) and any("free.mtz" in message for message in o.messages)
    few = make.write_mtz(tmp_path / "few.mtz", indices[:200], {"FreeR_flag": ("I", np.arange(200) % 20)})
    with pytest.raises(Sorry, match="are there for 200 of the"):
        read_observations(path, MODEL, free_file=few)
    with pytest.raises(Sorry, match="contains no R-free flags"):
        read_observations(path, MODEL, free_file=path)


@pytest.mark.parametrize(
    "cell, said", [((41.5, 52.3, 60.8, 90, 90, 90), "differs from the model's"), (make.CELL, None)]
)
def test_the_cell_in_the_header_of_a_text_format_counts(tmp_path, data, cell, said):
    indices, f, s = data
    header = "    1\n -987\n" + "".join(f"{x:10.3f}" for x in cell) + " p212121\n"
    rows = "".join("%4d%4d%4d%8.1f%8.1f\n" % (*h, x, 0.1 * x + 1) for h, x in zip(indices, f**2 / 10))
    path = tmp_path / "x.sca"
    path.write_text(header + rows)
    if said:
        with pytest.raises(Sorry, match=said):
            read_observations(path, MODEL)
        return
    assert read_observations(path, MODEL).kind == "intensities (French-Wilson)"


def test_shelx_files_say_what_word_is_needed(tmp_path, data):
    indices, f, s = data
    rows = "".join(
        "%4d%4d%4d%8.2f%8.2f%4d\n" % (*h, x, 1, -1 if i % 15 == 0 else 1) for i, (h, x) in enumerate(zip(indices, f))
    )
    path = tmp_path / "x.hkl"
    path.write_text(rows)
    with pytest.raises(Sorry, match="add =hklf4 or =hklf3 to its name"):
        read_observations(path, MODEL)
    o = read_observations(f"{path}=hklf3", MODEL)
    assert o.kind == "amplitudes" and np.allclose(o.f_obs, f, atol=0.01) and o.free.sum() == (len(f) + 14) // 15
    assert read_observations(f"{path}=hklf4", MODEL).kind == "intensities (French-Wilson)"
    path.write_text(rows.replace(" 1.00   1\n", " 1.00   1\n").replace(rows[12:20], "  -12.00", 1))
    assert "taken as intensities (HKLF 4)" in read_observations(path, MODEL).messages[0]


def test_intensities_without_an_amplitude_are_counted_with_their_reason(tmp_path, data):
    indices, f, s = data
    i = f**2
    i[::10] = -5 * 10.0
    columns = {"I": ("J", i), "SIGI": ("Q", np.full(len(f), 10.0))}
    o = read_observations(make.write_mtz(tmp_path / "x.mtz", indices, columns), MODEL)
    assert o.summary["left_out"]["French-Wilson: I below -3.7 sigma"] == len(i[::10]) and whole(o)
    columns["I"] = ("J", -100.0 - np.arange(len(f)))
    with pytest.raises(Sorry, match=r"no intensity in I,SIGI that can become an amplitude \(French-Wilson"):
        read_observations(make.write_mtz(tmp_path / "x.mtz", indices, columns), MODEL)


# against cctbx


@pytest.mark.parametrize(
    "symbol, cell",
    [
        ("P 21 21 21", (28, 31, 36, 90, 90, 90)),
        ("C 1 2 1", (40, 50, 60, 90, 100, 90)),
        ("P 6 2 2", (30, 30, 40, 90, 90, 120)),
        ("P 2 3", (14, 14, 14, 90, 90, 90)),
    ],
)
def test_french_wilson_and_merging_are_cctbxs(symbol, cell):
    rng = np.random.default_rng(1)
    symmetry = crystal.symmetry(cell, symbol)
    own = Symmetry.from_cctbx(symmetry)
    ms = symmetry.build_miller_set(False, d_min=3.0)
    indices = np.array(list(ms.indices()))
    i, s = rng.exponential(100, len(indices)) + rng.normal(0, 40, len(indices)), 30 * (0.5 + rng.random(len(indices)))
    array = miller.array(ms, flex.double(i), flex.double(s)).set_observation_type_xray_intensity()
    theirs = cctbx_french_wilson.french_wilson_scale(array, log=null_out())
    centric = np.asarray(own.ops.centric_flag_array(indices.astype(np.int32)), dtype=bool)
    ours = french_wilson(i, s, own.d_star_sq(indices), centric)
    assert np.array_equal(indices[ours.rows], np.array(list(theirs.indices())))
    assert np.allclose(ours.f, theirs.data().as_numpy_array(), rtol=1e-13, atol=0)
    assert np.allclose(ours.sigmas, theirs.sigmas().as_numpy_array(), rtol=1e-13, atol=0)
    rows = np.concatenate([indices, indices[::2], -indices[::3]])
    x, sx = 100 * rng.random(len(rows)), 0.1 + rng.random(len(rows))
    unmerged = miller.set(symmetry, flex.miller_index([tuple(map(int, h)) for h in rows]), False)
    merged = unmerged.array(flex.double(x), flex.double(sx)).merge_equivalents().array()
    groups = group_rows(to_asu(rows, own)[0])
    mean, sigma = mean_of_equivalents(groups, x, sx)
    assert np.array_equal(groups.indices, np.array(list(merged.indices())))
    assert np.allclose(mean, merged.data().as_numpy_array(), rtol=1e-14, atol=0)
    assert np.allclose(sigma, merged.sigmas().as_numpy_array(), rtol=1e-14, atol=0)


def test_representatives_are_cctbxs_in_every_setting():
    indices = np.random.default_rng(0).integers(-6, 7, (60, 3))
    for group in gemmi.spacegroup_table():
        found = flex.miller_index([tuple(map(int, h)) for h in indices])
        miller.map_to_asu(sgtbx.space_group_info("Hall: " + group.hall).type(), False, found)
        ours, _ = to_asu(indices, Symmetry(make.CELL, group.operations()))
        assert np.array_equal(ours, np.array(list(found))), group.xhm()


def test_the_same_symmetry_in_another_setting_says_nothing_of_cells(tmp_path):
    """A body-centred cubic crystal in its primitive basis: the same cell once it is reindexed."""
    symmetry = crystal.symmetry((40, 40, 40, 90, 90, 90), "I 2 3")
    primitive = symmetry.primitive_setting()
    ms = primitive.build_miller_set(False, d_min=4.0)
    f = ms.array(
        10 + 90 * flex.random_double(ms.size()), flex.double(ms.size(), 1.0)
    ).set_observation_type_xray_amplitude()
    f.as_mtz_dataset(column_root_label="F").mtz_object().write(str(tmp_path / "p.mtz"))
    data = read_data(tmp_path / "p.mtz", symmetry)
    assert data.f_obs.size() == f.size() and any("reindexed" in message for message in data.messages)
    assert not any("0.1 %" in message for message in data.messages)
