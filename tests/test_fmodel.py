"""FModel: what a user holds."""
import mmtbx.f_model
import pytest
import torch
from iotbx import mtz
from libtbx.utils import Sorry
from scaling_data import manager, tensor

from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.files import find_entry


@pytest.fixture(scope="module")
def reference():
    """A manager that was scaled with exact F_calc, so that the two are the same."""
    result = manager("P 21 21 21", n_atoms=24, d_min=2.5, n_outliers=4, seed=6)
    result.sfg_params.algorithm = "direct"
    result.update_xray_structure(result.xray_structure, update_f_calc=True, update_f_mask=True)
    return result


@pytest.fixture(scope="module")
def fmodel(reference):
    result = FModel.from_cctbx(reference, method="direct", mask={"method": "binary"})
    result.update_scales()
    return result


def test_as_mmtbx(reference, fmodel):
    scaled = reference.deep_copy()
    scaled.sfg_params.algorithm = "direct"
    scaled.update_all_scales()
    assert fmodel.r_work() == pytest.approx(scaled.r_work(), abs=1e-7)
    assert fmodel.r_free() == pytest.approx(scaled.r_free(), abs=1e-7)
    likelihood = fmodel.target("maximum_likelihood")
    assert float(likelihood) == pytest.approx(
        scaled.target_functor()(compute_gradients=False).target_work(), rel=1e-6
    )


def test_back_to_mmtbx(fmodel):
    manager = fmodel.to_cctbx()
    assert manager.r_work() == pytest.approx(fmodel.r_work(), abs=1e-10)
    assert manager.r_free() == pytest.approx(fmodel.r_free(), abs=1e-10)
    torch.testing.assert_close(tensor(manager.f_model()), fmodel.f_model()[fmodel.scales.selection])


@pytest.mark.parametrize("name", ["least_squares", "maximum_likelihood"])
def test_gradient_of_the_target(fmodel, name):
    sites = fmodel.atoms.sites_cart.clone().requires_grad_(True)
    f_mask = fmodel.f_mask()
    gradient, = torch.autograd.grad(fmodel.target(name, sites_cart=sites, f_mask=f_mask), sites)
    step = torch.zeros_like(sites)
    step[3, 1] = 1e-4
    with torch.no_grad():
        difference = (
            fmodel.target(name, sites + step, f_mask) - fmodel.target(name, sites - step, f_mask)
        ) / 2e-4
    assert float(gradient[3, 1]) == pytest.approx(float(difference), rel=1e-4)


def test_batches_of_coordinates(fmodel):
    sites = fmodel.atoms.sites_cart
    batch = torch.stack([sites, sites + 0.1])
    f_mask = fmodel.f_mask()
    values = fmodel.target("least_squares", batch, f_mask)
    assert values.shape == (2,)
    torch.testing.assert_close(values[1], fmodel.target("least_squares", sites + 0.1, f_mask))


def test_map_coefficients(fmodel, tmp_path):
    fmodel.write_map_coefficients(tmp_path / "maps.mtz")
    arrays = {a.info().labels[0]: a for a in mtz.object(str(tmp_path / "maps.mtz")).as_miller_arrays()}
    assert {"F-obs-filtered", "R-free-flags", "F-model", "2FOFCWT", "FOFCWT"} <= set(arrays)
    expected = (
        fmodel.to_cctbx().electron_density_map().map_coefficients(map_type="mFo-DFc", fill_missing=False)
    )
    found, expected = arrays["FOFCWT"].common_sets(expected)
    assert found.size() == expected.size() == int(fmodel.scales.selection.sum())
    assert (tensor(found) - tensor(expected)).abs().max() < 1e-5 * tensor(expected).abs().max()
    assert [p.name for p in tmp_path.iterdir()] == ["maps.mtz"]
    with pytest.raises(Sorry, match="no folder"):
        fmodel.write_map_coefficients(tmp_path / "nowhere" / "maps.mtz")


def test_from_files(pdb_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("MMTBX_SFDIFF_PDB_DIR", str(pdb_dir))
    files = find_entry("1yjp", download=False)
    fmodel = FModel.from_files(files.model, files.data, mask={"method": "binary"})
    with pytest.raises(RuntimeError, match="update_scales"):
        fmodel.r_work()
    scales = fmodel.update_scales()
    assert fmodel.r_work() == pytest.approx(scales.r_work, abs=1e-6) and 0.15 < scales.r_work < 0.2
    shift = torch.tensor([0.5, 0, 0], dtype=torch.float64)
    fmodel.replace(sites_cart=fmodel.atoms.sites_cart + shift)
    assert fmodel.r_work() > scales.r_work
    for name in ("moved.pdb", "moved.cif"):
        fmodel.write_model(tmp_path / name)
        moved = FModel.from_files(tmp_path / name, files.data, mask={"method": "binary"})
        torch.testing.assert_close(moved.atoms.sites_cart, fmodel.atoms.sites_cart, rtol=0, atol=2e-3)


def test_riding_hydrogens_are_found():
    reference = manager("P 21 21 21", n_atoms=24, hydrogens=16, d_min=2.5, seed=3)
    fmodel = FModel.from_cctbx(reference, method="direct", mask={"method": "binary"})
    assert fmodel.update_scales().hydrogens[0] > 0
    assert fmodel.update_scales(model="exponential").hydrogens is None


def test_twinned_data_are_refused():
    reference = manager("P 3", n_atoms=8, d_min=3.0)
    twinned = mmtbx.f_model.manager(f_obs=reference.f_obs(), r_free_flags=reference.r_free_flags(),
                                    xray_structure=reference.xray_structure, twin_law="h,-h-k,-l")
    with pytest.raises(ValueError, match="twin"):
        FModel.from_cctbx(twinned)


def test_errors(fmodel):
    with pytest.raises(ValueError, match="Unknown target"):
        fmodel.target("r1")
    with pytest.raises(Sorry, match="from_files"):
        fmodel.write_model("model.pdb")
    other = manager("P 1", n_atoms=8, d_min=3.0)
    with pytest.raises(ValueError, match="belong"):
        FModel(fmodel.atoms, FModel.from_cctbx(other).reflections)


@pytest.mark.gpu
def test_gpu_gives_the_same_model(reference):
    """The differentiable mask, the FFT, scales, targets and gradients on a GPU, against the CPU."""
    results = []
    for device in ("cpu", "cuda"):
        fmodel = FModel.from_cctbx(reference, device=device, method="fft", accuracy=1e-6)
        fmodel.update_scales()
        leaves = {name: getattr(fmodel.atoms, name).clone().requires_grad_(True) for name in ("sites_cart", "u_iso")}
        fmodel.replace(**leaves)
        gradients = torch.autograd.grad(fmodel.target(), list(leaves.values()))
        assert all(gradient.device.type == device for gradient in gradients)
        results.append((*fmodel.r_factors(), *(gradient.cpu() for gradient in gradients)))
    (work, free, *expected), (work_there, free_there, *found) = results
    assert work_there == pytest.approx(work, abs=5e-4) and free_there == pytest.approx(free, abs=5e-4)
    for a, b in zip(found, expected):
        assert float((a - b).norm()) < 0.02 * float(b.norm())
