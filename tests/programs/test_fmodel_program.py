"""``mmtbx_sfdiff.fmodel``, against mmtbx.programs.fmodel."""

import json

from mmtbx_sfdiff.command_line.fmodel import run
from mmtbx_sfdiff.files import load_entry, read_model

import mmtbx.programs.fmodel
import mmtbx.utils
import numpy as np
import pytest
from iotbx import mtz
from libtbx.utils import null_out


@pytest.fixture(scope="module")
def files_1yjp(pdb_dir):
    return [str(pdb_dir / "1yjp" / name) for name in ("1yjp.pdb.gz", "1yjp-sf.cif.gz")]


def arrays(path):
    return {array.info().labels[0]: array for array in mtz.object(str(path)).as_miller_arrays()}


def mmtbx_f_model(structure, f_obs=None, **changes):
    """F_model of phenix.fmodel by direct summation."""
    params = mmtbx.programs.fmodel.master_phil.extract()
    params.structure_factors_accuracy.algorithm = "direct"
    params.output.type = "complex"
    for name, value in changes.items():
        setattr(params if hasattr(params, name) else params.fmodel, name, value)
    result = mmtbx.utils.fmodel_from_xray_structure(
        xray_structure=structure.deep_copy_scatterers(), f_obs=f_obs, params=params, out=null_out()
    )
    return result.f_model


def difference(found, expected):
    """Relative L2 difference of two miller arrays that must have the same indices."""
    assert found.size() == expected.size()
    found, expected = found.common_sets(expected)
    assert found.size() == expected.size() and found.anomalous_flag() == expected.anomalous_flag()
    a, b = found.data().as_numpy_array(), expected.data().as_numpy_array()
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale": 2.0, "k_sol": 0.35, "b_sol": 46.0, "b_cart": [1.0, 2.0, -3.0, 0.0, 0.5, 0.0]},
        {"scattering_table": "it1992", "low_resolution": 10.0, "k_sol": 0.3, "b_sol": 30.0},
        {"scattering_table": "neutron"},
    ],
)
def test_without_data_as_phenix(changes, files_1yjp, tmp_path):
    model = read_model(files_1yjp[0])
    expected = mmtbx_f_model(model.xray_structure, high_resolution=2.0, **changes)
    words = [
        f"{name}={' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in changes.items()
    ]
    assert (
        run([files_1yjp[0], "high_resolution=2", "method=direct", "mask=binary", f"directory={tmp_path}", *words]) == 0
    )
    found = arrays(tmp_path / "1yjp_fmodel.mtz")
    assert set(found) == {"FMODEL"} and found["FMODEL"].info().labels == ["FMODEL", "PHIFMODEL"]
    # MTZ stores single precision.
    assert difference(found["FMODEL"], expected) < 1e-6


def test_given_scales_on_the_indices_of_data_as_phenix(files_1yjp, tmp_path):
    entry = load_entry(*files_1yjp)
    expected = mmtbx_f_model(entry.model.xray_structure, entry.data.f_obs, k_sol=0.4, b_sol=50.0, scale=0.5)
    assert (
        run(
            [
                *files_1yjp,
                "method=direct",
                "mask=binary",
                f"directory={tmp_path}",
                "scales=given",
                "k_sol=0.4",
                "b_sol=50",
                "fmodel.scale=0.5",
                "label=X",
                "components=True",
            ]
        )
        == 0
    )
    found = arrays(tmp_path / "1yjp_fmodel.mtz")
    assert difference(found["X"], expected) < 1e-6
    f, mask = (found[name].data().as_numpy_array() for name in ("FCALC", "FMASK"))
    total, k = (found[name].data().as_numpy_array() for name in ("KTOTAL", "KMASK"))
    np.testing.assert_allclose(total * (f + k * mask), found["X"].data().as_numpy_array(), rtol=1e-5, atol=1e-4)
    assert "2FOFCWT" not in found and found["FOBS"].size() == found["X"].size()


def test_scales_from_data(files_1yjp, tmp_path):
    """R factors of update_all_scales; flags carried over; maps that Coot opens."""
    assert run([*files_1yjp, "method=direct", "mask=binary", f"directory={tmp_path}", "prefix=x"]) == 0
    entry = load_entry(*files_1yjp)
    manager = mmtbx.f_model.manager(
        f_obs=entry.data.f_obs, r_free_flags=entry.data.r_free_flags, xray_structure=entry.model.xray_structure
    )
    manager.sfg_params.algorithm = "direct"
    manager.update_xray_structure(manager.xray_structure, update_f_calc=True)
    manager.update_all_scales(log=null_out())
    found = mtz.object(str(tmp_path / "x_fmodel.mtz"))
    labels = found.column_labels()
    for label in (
        "FMODEL",
        "PHIFMODEL",
        "FOBS",
        "SIGFOBS",
        "R-free-flags",
        "2FOFCWT",
        "PH2FOFCWT",
        "FOFCWT",
        "PHFOFCWT",
    ):
        assert label in labels
    found = arrays(tmp_path / "x_fmodel.mtz")
    flags, f_obs = found["R-free-flags"], found["FOBS"]
    assert flags.data().count(1) == entry.data.r_free_flags.data().count(True)
    assert difference(f_obs.customized_copy(sigmas=None), entry.data.f_obs.customized_copy(sigmas=None)) < 1e-6
    used, f_model = manager.f_obs().common_sets(found["FMODEL"])
    f, f_obs = abs(f_model).data().as_numpy_array(), f_obs.common_set(used).data().as_numpy_array()
    work = ~manager.r_free_flags().data().as_numpy_array()
    k = (f_obs[work] @ f[work]) / (f[work] @ f[work])
    r = np.abs(f_obs - k * f)[work].sum() / f_obs[work].sum()
    assert r == pytest.approx(manager.r_work(), abs=1e-5)
    # On the scale of the data themselves.
    assert (f_obs @ f) / (f @ f) == pytest.approx(1, abs=0.02)


def test_simulated_data(files_1yjp, tmp_path):
    """Amplitudes with sigmas, errors and new free flags can be read as data."""
    words = [
        "high_resolution=2",
        "type=amplitudes",
        "label=FOBS",
        "add_sigmas=True",
        "r_free_flags_fraction=0.1",
        "add_random_error_to_amplitudes_percent=5",
        "k_sol=0.35",
        "b_sol=50",
        f"directory={tmp_path}",
    ]
    assert run([files_1yjp[0], *words, "prefix=a"]) == 0
    assert run([files_1yjp[0], *words[:1], *words[6:], "prefix=b"]) == 0
    noisy, exact = arrays(tmp_path / "a_fmodel.mtz"), arrays(tmp_path / "b_fmodel.mtz")["FMODEL"]
    ratio = noisy["FOBS"].data().as_numpy_array() / np.abs(exact.data().as_numpy_array())
    assert set(np.round(ratio, 4)) == {0.95, 1.05}
    assert set(noisy["FOBS"].sigmas()) == {1.0}
    assert 0.05 < noisy["R-free-flags"].data().count(1) / exact.size() < 0.15
    entry = load_entry(files_1yjp[0], tmp_path / "a_fmodel.mtz")
    assert entry.data.r_free_flags.data().count(True) == noisy["R-free-flags"].data().count(1)


def test_wavelength_and_intensities(files_1yjp, tmp_path):
    assert (
        run(
            [
                files_1yjp[0],
                "high_resolution=2.5",
                "wavelength=1.5",
                "type=intensities",
                "label=I",
                f"directory={tmp_path}",
            ]
        )
        == 0
    )
    (found,) = mtz.object(str(tmp_path / "1yjp_fmodel.mtz")).as_miller_arrays()
    assert found.anomalous_flag() and found.is_xray_intensity_array()
    differences = found.anomalous_differences().data().as_numpy_array()
    assert 0 < np.abs(differences).max() < 0.2 * found.data().as_numpy_array().max()


def test_exponential_scales_and_json(files_1yjp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run([*files_1yjp, "scales=exponential", "maps=False", "--json", "--quiet"]) == 0
    (name,) = (path for path in tmp_path.iterdir() if path.suffix == ".json")
    result = json.loads(name.read_text())
    assert result["scales"] == "exponential" and 0.1 < result["r_work"] < 0.25
    assert result["exponential"]["k_sol"] >= 0 and len(result["shells"]) >= 4


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{model}"], "give high_resolution"),
        (["{data}"], "model file is missing"),
        (["{model}", "high_resolution=-1"], "high_resolution=-1"),
        (["{model}", "high_resolution=30", "low_resolution=40"], "no reflection"),
        (["{model}", "high_resolution=3", "low_resolution=2"], "No reflection is between"),
        (["{model}", "high_resolution=3", "scales=mmtbx"], "needs data"),
        (["{model}", "high_resolution=3", "add_sigmas=True"], "output.type"),
        (["{model}", "high_resolution=3", "label=a/b"], "output.label"),
        (["{model}", "high_resolution=3", "b_cart=1 2"], "b_cart"),
        (["{model}", "high_resolution=3", "b_cart=0 0 0 5 0 0"], "does not have the symmetry"),
        (["{model}", "high_resolution=3", "wavelength=1", "scattering_table=neutron"], "wavelength"),
        (["{model}", "{data}", "r_free_flags_fraction=0.1"], "free flags already"),
        (["{model}", "{data}", "labels=XX"], "XX"),
        (["{model}", "high_resolution=3", "device=tpu"], "device=tpu"),
        (["nosuch.pdb", "high_resolution=3"], "nosuch.pdb"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, files_1yjp, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, data = files_1yjp
    assert run([word.format(model=model, data=data) for word in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Sorry: ") and words in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_files_are_kept_unless_told_otherwise(files_1yjp, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1yjp_fmodel.mtz").write_text("kept")
    assert run([files_1yjp[0], "high_resolution=3"]) == 1
    assert "overwrite=True" in capsys.readouterr().err
    assert (tmp_path / "1yjp_fmodel.mtz").read_text() == "kept"
    assert run([files_1yjp[0], "high_resolution=3", "overwrite=True"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["1yjp_fmodel.mtz"]
    assert arrays(tmp_path / "1yjp_fmodel.mtz")["FMODEL"].d_min() > 3


def test_every_parameter_has_help_and_a_caption():
    from mmtbx_sfdiff.programs.fmodel import Program

    import iotbx.phil

    for definition in iotbx.phil.parse(Program.master_phil_str).all_definitions():
        assert definition.object.help and definition.object.short_caption, definition.path
