"""FModel: what a user holds."""

import dataclasses

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.files import find_entry

import mmtbx.f_model
import pytest
from iotbx import mtz
from libtbx.utils import Sorry

from tests.support.scaling_data import manager, tensor


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
    assert float(fmodel.r_work()) == pytest.approx(scaled.r_work(), abs=1e-7)
    assert float(fmodel.r_free()) == pytest.approx(scaled.r_free(), abs=1e-7)
    likelihood = fmodel.target("maximum_likelihood")
    assert float(likelihood) == pytest.approx(scaled.target_functor()(compute_gradients=False).target_work(), rel=1e-6)


def test_back_to_mmtbx(fmodel):
    manager = fmodel.to_cctbx()
    assert manager.r_work() == pytest.approx(float(fmodel.r_work()), abs=1e-10)
    assert manager.r_free() == pytest.approx(float(fmodel.r_free()), abs=1e-10)
    torch.testing.assert_close(tensor(manager.f_model()), fmodel.f_model()[fmodel.scales.selection])


@pytest.mark.parametrize("name", ["least_squares", "maximum_likelihood"])
def test_gradient_of_the_target(fmodel, name):
    sites = fmodel.atoms.sites_cart.clone().requires_grad_(True)
    f_mask = fmodel.f_mask()
    (gradient,) = torch.autograd.grad(fmodel.target(name, sites_cart=sites, f_mask=f_mask), sites)
    step = torch.zeros_like(sites)
    step[3, 1] = 1e-4
    with torch.no_grad():
        difference = (fmodel.target(name, sites + step, f_mask) - fmodel.target(name, sites - step, f_mask)) / 2e-4
    assert float(gradient[3, 1]) == pytest.approx(float(difference), rel=1e-4)


def test_batches_of_coordinates(fmodel):
    sites = fmodel.atoms.sites_cart
    batch = torch.stack([sites, sites + 0.1])
    f_mask = fmodel.f_mask()
    values = fmodel.target("least_squares", batch, f_mask)
    assert values.shape == (2,)
    torch.testing.assert_close(values[1], fmodel.target("least_squares", sites + 0.1, f_mask))


def test_batches_go_through_the_mask_too(reference):
    fmodel = FModel.from_cctbx(reference)
    fmodel.update_scales()
    sites = torch.stack([fmodel.atoms.sites_cart, fmodel.atoms.sites_cart + 0.1]).requires_grad_()
    values = fmodel.target("maximum_likelihood", sites)
    (gradient,) = torch.autograd.grad(values.sum(), sites)
    for one, value, its_gradient in zip(sites.detach(), values, gradient):
        one.requires_grad_()
        alone = fmodel.target("maximum_likelihood", one)
        torch.testing.assert_close(alone, value)
        torch.testing.assert_close(torch.autograd.grad(alone, one)[0], its_gradient)


@pytest.mark.parametrize("name", ["u_iso", "occupancies"])
def test_gradients_in_other_parameters(reference, name):
    fmodel = FModel.from_cctbx(reference, method="direct", mask={"precision": "double"})
    fmodel.update_scales()
    atoms, start = fmodel.atoms, getattr(fmodel.atoms, name).clone()
    if name == "occupancies":
        start[3] = 0.06  # where it counts in the mask as well

    def value(x):
        fmodel.atoms = atoms.replace(**{name: x})
        return fmodel.target("least_squares")

    parameter = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(parameter), parameter)
    step = torch.zeros_like(start)
    step[3] = 1e-5
    with torch.no_grad():
        difference = float(value(start + step) - value(start - step)) / 2e-5
    assert float(gradient[3]) == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize("name", ["least_squares", "maximum_likelihood"])
def test_free_reflections_feed_no_gradient(reference, name):
    """With scales, alpha and beta as they are, the gradient is the same bit for bit whatever the free amplitudes are."""
    fmodel = FModel.from_cctbx(reference)
    fmodel.update_scales()
    alpha_beta = fmodel.alpha_beta()
    f_obs = torch.where(fmodel.reflections.work, fmodel.reflections.f_obs, 50.0)
    other = FModel(fmodel.atoms, dataclasses.replace(fmodel.reflections, f_obs=f_obs))
    other.scales, other._alpha_beta = fmodel.scales, alpha_beta
    assert (
        not torch.equal(other.reflections.f_obs, fmodel.reflections.f_obs) and other.r_free() > fmodel.r_free() + 0.01
    )
    gradients = []
    for one in (fmodel, other):
        sites = one.atoms.sites_cart.clone().requires_grad_()
        gradients += torch.autograd.grad(one.target(name, sites), sites)
    assert torch.equal(*gradients) and bool(gradients[0].abs().sum() > 0)


def test_state_goes_on_where_it_was(reference, tmp_path):
    fmodel = FModel.from_cctbx(reference, mask={"softness": 1.0})
    start = FModel.from_cctbx(reference)
    fmodel.replace(sites_cart=fmodel.atoms.sites_cart + 0.05)
    fmodel.update_scales()
    target = fmodel.target()
    torch.save(fmodel.state_dict(), tmp_path / "state.pt")
    assert start.load_state_dict(torch.load(tmp_path / "state.pt")).missing_keys == []
    assert torch.equal(start.target(), target) and start.r_factors() == fmodel.r_factors()
    other = FModel.from_cctbx(manager("P 1", n_atoms=8, d_min=3.0))
    with pytest.raises(ValueError, match="reflections"):
        other.load_state_dict(fmodel.state_dict())


def test_to_moves_everything_in_place_also_inside_a_parent(reference):
    fmodel = FModel.from_cctbx(reference, method="direct", mask={"method": "binary"}, refine=("sites_cart",))
    with torch.no_grad():
        fmodel.sites_cart += 0.01
    fmodel.update_scales()
    fmodel.alpha_beta()
    r_work, value, sites = float(fmodel.r_work().detach()), float(fmodel.target().detach()), fmodel.sites_cart.detach()
    parent = torch.nn.ModuleDict({"model": fmodel, "net": torch.nn.Linear(2, 2)})
    parameter = fmodel.sites_cart
    assert parent.float() is parent and fmodel.sites_cart is parameter and parameter.dtype == torch.float32
    found = fmodel.target()
    assert fmodel.atoms.dtype == fmodel.reflections.f_obs.dtype == fmodel.scales.k_total.dtype == torch.float32
    assert fmodel.f_model().dtype == torch.complex64 and found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(value, rel=1e-5)
    found.backward()
    assert parameter.grad.dtype == torch.float32 and float(parameter.grad.norm()) > 0
    assert parent.double() is parent and float(fmodel.r_work().detach()) == pytest.approx(r_work, abs=1e-6)
    assert fmodel.to("cpu", torch.float64) is fmodel and fmodel.to(dtype=torch.float64) is fmodel
    # What rounding took on the way to float32 is remembered.
    fractional = sites @ fmodel.atoms.crystal.fractionalization.T
    torch.testing.assert_close(fmodel.atoms.sites_frac.detach(), fractional, rtol=0, atol=1e-12)
    with pytest.raises(TypeError, match="float32 or float64"):
        parent.half()


def test_chosen_fields_are_parameters_and_train(reference):
    fmodel = FModel.from_cctbx(reference, method="direct", mask={"method": "binary"}, refine=("sites_cart", "u_iso"))
    assert [name for name, _ in fmodel.named_parameters()] == ["sites_cart", "u_iso"]
    with torch.no_grad():
        shift = torch.randn(fmodel.sites_cart.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        fmodel.sites_cart += 0.1 * shift
    fmodel.update_scales()
    optimizer = torch.optim.Adam(fmodel.parameters(), lr=0.005)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = fmodel.target("maximum_likelihood")
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < values[0] - 0.05
    assert torch.equal(fmodel.atoms.u_iso, fmodel.u_iso) and fmodel.atoms.sites_cart is fmodel.sites_cart
    with pytest.raises(ValueError, match="choose from sites_cart"):
        FModel(fmodel.atoms, fmodel.reflections, refine=("sites",))


def test_training_resumes_from_a_checkpoint_bit_for_bit(reference, tmp_path):
    def start():
        model = FModel.from_cctbx(reference, method="direct", mask={"method": "binary"}, refine=("sites_cart",))
        return model, torch.optim.Adam(model.parameters(), lr=0.01)

    def step(model, optimizer):
        optimizer.zero_grad()
        model.target("maximum_likelihood").backward()
        optimizer.step()

    model, optimizer = start()
    model.update_scales()
    for _ in range(2):
        step(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    for _ in range(2):
        step(model, optimizer)
    again, other = start()
    checkpoint = torch.load(tmp_path / "checkpoint.pt")
    again.load_state_dict(checkpoint["model"])
    other.load_state_dict(checkpoint["optimizer"])
    for _ in range(2):
        step(again, other)
    assert torch.equal(again.sites_cart, model.sites_cart) and again.r_factors() == model.r_factors()


def test_with_is_the_same_but_for_what_is_given(reference, fmodel):
    other = fmodel.with_(mask={"grid_step": 0.5}, refine="u_iso")
    assert other.atoms.sites_cart is fmodel.atoms.sites_cart and other.reflections.f_obs is fmodel.reflections.f_obs
    assert (other.method, other.mask_options, other.refine) == ("direct", {"grid_step": 0.5}, ("u_iso",))
    assert other.scales is None and fmodel.scales is not None
    few = fmodel.with_(reflections=fmodel.reflections.select(fmodel.selection), source="files")
    assert len(few.reflections) == int(fmodel.selection.sum()) and few.source == "files" and fmodel.source is None
    with pytest.raises(TypeError, match="no option colour"):
        fmodel.with_(colour="red")


def test_parameters_take_values_and_refuse_graphs(reference):
    fmodel = FModel.from_cctbx(reference, refine=("sites_cart",))
    parameter, moved = fmodel.sites_cart, fmodel.atoms.sites_cart.detach() + 0.1
    fmodel.replace(sites_cart=moved)
    assert fmodel.sites_cart is parameter and torch.equal(parameter.detach(), moved)
    with pytest.raises(ValueError, match="is a parameter of this FModel"):
        fmodel.replace(sites_cart=parameter * 2)
    with pytest.raises(ValueError, match="use with_"):
        fmodel.replace(sites_cart=torch.stack([moved, moved]))


def test_r_factors_are_on_the_graph(fmodel):
    sites = (fmodel.atoms.sites_cart + 0.05).requires_grad_()
    f_mask = fmodel.f_mask()
    for r in (fmodel.r_work, fmodel.r_free):
        value = r(f_model=fmodel.f_model(sites, f_mask))
        (gradient,) = torch.autograd.grad(value, sites)
        step = torch.zeros_like(sites)
        step[3, 1] = 1e-6
        with torch.no_grad():
            pair = [r(f_model=fmodel.f_model(sites + s, f_mask)) for s in (step, -step)]
        assert float(gradient[3, 1]) == pytest.approx(float(pair[0] - pair[1]) / 2e-6, rel=1e-4)


def test_without_free_flags_there_is_no_r_free():
    fmodel = FModel.from_cctbx(manager("P 21 21 21", n_atoms=16, d_min=2.5, flags=False), mask={"method": "binary"})
    fmodel = fmodel.with_(reflections=dataclasses.replace(fmodel.reflections, r_free_flags=None))
    fmodel.update_scales()
    with pytest.raises(ValueError, match="no R-free"):
        fmodel.r_free()
    assert fmodel.r_factors()[1] is None and fmodel.r_factors()[0] > 0


def test_half_precision_outside_and_double_inside(fmodel):
    sites = fmodel.atoms.sites_cart.to(torch.bfloat16).requires_grad_()
    f_mask = fmodel.f_mask()
    value = fmodel.target("least_squares", sites, f_mask)
    exact = fmodel.atoms.sites_cart.to(torch.bfloat16).double().requires_grad_()
    expected = fmodel.target("least_squares", exact, f_mask)
    assert torch.equal(value, expected)
    (found,) = torch.autograd.grad(value, sites)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, torch.autograd.grad(expected, exact)[0].to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(reference, dtype):
    fmodel = FModel.from_cctbx(reference, dtype=torch.float32, method="direct", mask={"method": "binary"})
    results = []
    for enabled in (False, True):
        sites = fmodel.atoms.sites_cart.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            fmodel.update_scales()
            value = fmodel.target("maximum_likelihood", sites)
            values = (value, fmodel.r_work(), fmodel.f_model())
        results.append((*values, torch.autograd.grad(value, sites)[0]))
    for a, b in zip(*results):
        assert torch.equal(a.detach(), b.detach())


def test_map_coefficients(fmodel, tmp_path):
    fmodel.write_map_coefficients(tmp_path / "maps.mtz")
    arrays = {a.info().labels[0]: a for a in mtz.object(str(tmp_path / "maps.mtz")).as_miller_arrays()}
    assert {"F-obs-filtered", "R-free-flags", "F-model", "2FOFCWT", "FOFCWT"} <= set(arrays)
    expected = fmodel.to_cctbx().electron_density_map().map_coefficients(map_type="mFo-DFc", fill_missing=False)
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
    assert float(fmodel.r_work()) == pytest.approx(scales.r_work, abs=1e-6) and 0.15 < scales.r_work < 0.2
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


def test_the_law_of_a_manager_of_twinned_data_is_taken():
    reference = manager("P 3", n_atoms=8, d_min=3.0)
    twinned = mmtbx.f_model.manager(
        f_obs=reference.f_obs(),
        r_free_flags=reference.r_free_flags(),
        xray_structure=reference.xray_structure,
        twin_law="h,-h-k,-l",
    )
    assert FModel.from_cctbx(twinned).twin_law == "h,-h-k,-l"


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
