"""The scales against mmtbx's update_all_scales, on synthetic data and small real entries."""

import dataclasses

import torch
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.scaling import bulk, refit, update_all_scales

import mmtbx.f_model
import pytest
from cctbx.array_family import flex

from tests.support.scaling_data import manager, reflections_of, structure_factors_of, tensor


def assert_as_mmtbx(fmodel, scales, reflections, f_calc, f_mask, tolerance=1e-8):
    """R factors, rejected reflections and F_model itself."""
    kept = set(map(tuple, reflections.miller_indices[scales.selection].tolist()))
    assert kept == set(fmodel.f_obs().indices())
    assert scales.r_work == pytest.approx(fmodel.r_work(), abs=tolerance)
    assert scales.r_free == pytest.approx(fmodel.r_free(), abs=tolerance)
    ours = scales.f_model(f_calc, f_mask)[scales.selection]
    theirs = tensor(fmodel.f_model())
    assert (ours - theirs).abs().max() < 1e3 * tolerance * theirs.abs().mean()


@pytest.mark.parametrize(
    "symbol, n_outliers, flags",
    [
        ("P 21 21 21", 12, True),
        ("P 31 2 1", 0, True),
        ("C 1 2 1", 5, True),
        ("I 41 2 2", 8, True),
        ("P 1", 0, False),
        ("P 63", 10, False),
        ("F 2 3", 3, True),
    ],
)
@pytest.mark.parametrize("remove_outliers", [True, False])
def test_as_update_all_scales(symbol, n_outliers, flags, remove_outliers):
    fmodel = manager(symbol, n_outliers=n_outliers, flags=flags, seed=len(symbol))
    reflections, (f_calc, f_mask) = reflections_of(fmodel), structure_factors_of(fmodel)
    scales = update_all_scales(reflections, f_calc, f_mask, remove_outliers=remove_outliers)
    fmodel.update_all_scales(remove_outliers=remove_outliers)
    assert fmodel.r_work() < 0.3
    if remove_outliers and n_outliers:
        assert (~scales.selection).sum() >= n_outliers // 2
    assert_as_mmtbx(fmodel, scales, reflections, f_calc, f_mask)


@pytest.mark.parametrize("remove_outliers", [True, False])
def test_riding_hydrogens(remove_outliers):
    fmodel = manager("P 21 21 21", hydrogens=40, seed=3)
    structure = fmodel.xray_structure
    riding = structure.select(structure.hd_selection()).deep_copy_scatterers()
    f_hydrogen = fmodel.compute_f_calc(xray_structure=riding.set_occupancies(value=1).set_b_iso(value=0))
    u_iso = structure.select(~structure.hd_selection()).extract_u_iso_or_u_equiv()
    reflections, (f_calc, f_mask) = reflections_of(fmodel), structure_factors_of(fmodel)
    without = update_all_scales(reflections, f_calc, f_mask, remove_outliers=remove_outliers)
    scales = update_all_scales(
        reflections,
        f_calc,
        f_mask,
        f_hydrogen=tensor(f_hydrogen),
        b_mean=flex.mean(u_iso) * 8 * torch.pi**2,
        remove_outliers=remove_outliers,
    )
    fmodel.update_all_scales(remove_outliers=remove_outliers)
    assert scales.hydrogens == pytest.approx((fmodel.russ.k_h, fmodel.russ.b_h))
    assert scales.hydrogens[0] > 0 and scales.r_work < without.r_work
    assert_as_mmtbx(fmodel, scales, reflections, f_calc, f_mask)


@pytest.mark.parametrize("entry", ["1yjp", "1aie", "1bdw", "1dur", "5wkd", "2okz"])
@pytest.mark.parametrize("remove_outliers", [True, False])
def test_real_entries(pdb_dir, monkeypatch, entry, remove_outliers):
    monkeypatch.setenv("MMTBX_SFDIFF_PDB_DIR", str(pdb_dir))
    files = find_entry(entry, download=False)
    loaded = load_entry(files.model, files.data)
    fmodel = mmtbx.f_model.manager(
        f_obs=loaded.data.f_obs, r_free_flags=loaded.data.r_free_flags, xray_structure=loaded.model.xray_structure
    )
    reflections, (f_calc, f_mask) = reflections_of(fmodel), structure_factors_of(fmodel)
    scales = update_all_scales(reflections, f_calc, f_mask, remove_outliers=remove_outliers)
    fmodel.update_all_scales(remove_outliers=remove_outliers)
    kept = set(map(tuple, reflections.miller_indices[scales.selection].tolist()))
    assert kept == set(fmodel.f_obs().indices())
    # Ties that only rounding breaks may be broken otherwise: hence not closer.
    assert abs(scales.r_work - fmodel.r_work()) < 5e-4
    assert abs(scales.r_free - fmodel.r_free()) < 5e-4


def test_scales_are_for_the_order_given_and_every_reflection():
    fmodel = manager(n_outliers=6)
    reflections, (f_calc, f_mask) = reflections_of(fmodel), structure_factors_of(fmodel)
    shuffled = torch.randperm(len(reflections), generator=torch.Generator().manual_seed(1))
    one = update_all_scales(reflections, f_calc, f_mask)
    other = update_all_scales(reflections.select(shuffled), f_calc[shuffled], f_mask[shuffled])
    assert torch.equal(one.selection[shuffled], other.selection)
    torch.testing.assert_close(one.f_model(f_calc, f_mask)[shuffled], other.f_model(f_calc[shuffled], f_mask[shuffled]))
    rejected = torch.cat(list(one.outliers.values())).unique()
    assert torch.equal(rejected, (~one.selection).nonzero()[:, 0])
    assert (one.k_total > 0).all()


def test_dtype_follows_and_inputs_stay():
    fmodel = manager()
    reflections, (f_calc, f_mask) = reflections_of(fmodel).to(dtype=torch.float32), structure_factors_of(fmodel)
    f_calc, f_mask = f_calc.to(torch.complex64), f_mask.to(torch.complex64)
    before = f_calc.clone(), f_mask.clone(), reflections.f_obs.clone()
    scales = update_all_scales(reflections, f_calc, f_mask)
    assert scales.k_total.dtype == torch.float32
    assert scales.f_model(f_calc, f_mask).dtype == torch.complex64
    assert all(torch.equal(a, b) for a, b in zip(before, (f_calc, f_mask, reflections.f_obs)))
    fmodel.update_all_scales()
    assert abs(scales.r_work - fmodel.r_work()) < 5e-4


def test_threads_are_given_back():
    number = torch.get_num_threads()
    fmodel = manager(n_atoms=8)
    update_all_scales(reflections_of(fmodel), *structure_factors_of(fmodel))
    assert torch.get_num_threads() == number


def test_scaled_model_is_differentiable_and_takes_batches():
    fmodel = manager(n_atoms=8)
    reflections, (f_calc, f_mask) = reflections_of(fmodel), structure_factors_of(fmodel)
    scales = update_all_scales(reflections, f_calc, f_mask)
    batch = torch.stack([f_calc, 2 * f_calc]).requires_grad_(True)
    result = scales.f_model(batch, f_mask)
    assert result.shape == batch.shape
    result.real.sum().backward()
    torch.testing.assert_close(batch.grad.real, scales.k_total.expand(2, -1))


def test_refit_has_the_same_values_and_the_gradient_of_the_analytical_scales():
    fmodel = manager(seed=4)
    reflections, (f_calc, f_mask) = reflections_of(fmodel), structure_factors_of(fmodel)
    scales = update_all_scales(reflections, f_calc, f_mask)
    torch.testing.assert_close(refit(scales, reflections, f_calc, f_mask), scales.f_model(f_calc, f_mask))
    # An overall factor of F_calc is taken up by the overall scale: the residual does not change.
    factor = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    used = scales.selection & reflections.work

    def residual(k, **which):
        model = refit(scales, reflections, k * f_calc, k * f_mask, **which).abs()
        return ((reflections.f_obs / scales.f_obs_scale - model)[used] ** 2).sum()

    (fixed,) = torch.autograd.grad(residual(factor, overall=False, solvent=False), factor)
    (free,) = torch.autograd.grad(residual(factor), factor)
    assert abs(free) < 1e-9 * float((reflections.f_obs**2).sum()) and abs(fixed) > 0


def test_refit_follows_the_analytical_k_mask():
    fmodel = manager(seed=5)
    reflections, (f_calc, f_mask) = reflections_of(fmodel), structure_factors_of(fmodel)
    scales = update_all_scales(reflections, f_calc, f_mask)
    chosen = scales.bin_index == 1
    fitted = chosen & scales.selection & reflections.work
    factor = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    model = refit(scales, reflections, f_calc, factor * f_mask, overall=False)
    (response,) = torch.autograd.grad(model.real[chosen].sum(), factor)
    (alone,) = torch.autograd.grad(scales.f_model(f_calc, factor * f_mask).real[chosen].sum(), factor)

    def root(k):
        fc, fm = scales.k_total[fitted] * f_calc[fitted], k * scales.k_total[fitted] * f_mask[fitted]
        u, v, w, i = (
            fc.abs() ** 2,
            (fc * fm.conj()).real,
            fm.abs() ** 2,
            (reflections.f_obs[fitted] / scales.f_obs_scale) ** 2,
        )
        columns = (u * i, 2 * v * i, w * i, i * i, u * v, 2 * v * v + u * w, 3 * v * w, w * w, v * i)
        return max(bulk.analytical_roots([float(x.sum()) for x in columns]))

    assert root(1.0) > 0.1
    slope = (root(1 + 1e-5) - root(1 - 1e-5)) / 2e-5
    expected = alone + slope * (scales.k_total * f_mask.real)[chosen].sum()
    torch.testing.assert_close(response, expected, rtol=1e-6, atol=0)


def test_exponential_model_finds_what_was_put_in():
    fmodel = manager("P 21 21 21", n_atoms=60, seed=2)
    reflections, (f_calc, f_mask) = reflections_of(fmodel), structure_factors_of(fmodel)
    ss = reflections.crystal.d_star_sq(reflections.miller_indices) / 4
    truth = 2.5 * (f_calc + 0.38 * torch.exp(-52 * ss) * f_mask).abs()
    reflections = dataclasses.replace(reflections, f_obs=truth)
    scales = update_all_scales(reflections, f_calc, f_mask, model="exponential", remove_outliers=False)
    found = scales.exponential
    assert found["k_sol"] == pytest.approx(0.38, abs=0.002) and found["b_sol"] == pytest.approx(52, abs=0.5)
    assert found["k_total"] * scales.f_obs_scale == pytest.approx(2.5, abs=0.002)
    assert scales.r_work < 1e-3
    assert max(map(abs, found["b_cart"])) < 0.02


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(twin_law="-h,-k,l"), "twin"),
        (dict(model="polynomial"), "model must be"),
        (dict(f_hydrogen=torch.ones(3, dtype=torch.complex128), b_mean=20.0), "f_hydrogen must be complex"),
    ],
)
def test_errors(change, message):
    fmodel = manager(n_atoms=8)
    with pytest.raises(ValueError, match=message):
        update_all_scales(reflections_of(fmodel), *structure_factors_of(fmodel), **change)


def test_unusable_structure_factors():
    fmodel = manager(n_atoms=8)
    reflections, (f_calc, f_mask) = reflections_of(fmodel), structure_factors_of(fmodel)
    with pytest.raises(ValueError, match="batch"):
        update_all_scales(reflections, f_calc[None], f_mask)
    with pytest.raises(ValueError, match="zero"):
        update_all_scales(reflections, 0 * f_calc, f_mask)
    with pytest.raises(ValueError, match="not finite"):
        update_all_scales(reflections, f_calc / 0, f_mask)
    with pytest.raises(ValueError, match="b_mean"):
        update_all_scales(reflections, f_calc, f_mask, f_hydrogen=f_calc)
    with pytest.raises(ValueError, match="work set"):
        everything = torch.ones_like(reflections.work)
        update_all_scales(dataclasses.replace(reflections, r_free_flags=everything), f_calc, f_mask)
    with pytest.raises(ValueError, match="f_obs contains"):
        update_all_scales(dataclasses.replace(reflections, f_obs=reflections.f_obs / 0), f_calc, f_mask)


@pytest.mark.parametrize("change", ["no solvent", "zeros", "few"])
def test_unusual_data(change):
    fmodel = manager(n_atoms=20, n_outliers=3)
    f_obs, flags, f_calc, f_mask = fmodel.f_obs(), fmodel.r_free_flags(), fmodel.f_calc(), fmodel.f_masks()[0]
    if change == "no solvent":
        f_mask = f_mask.customized_copy(data=0 * f_mask.data())
    elif change == "zeros":
        data = f_obs.data().deep_copy()
        data.set_selected(flex.size_t(range(0, data.size(), 10)), 0)
        f_obs = f_obs.customized_copy(data=data)
    else:
        f_obs, flags, f_calc, f_mask = (a.select(flex.size_t(range(120))) for a in (f_obs, flags, f_calc, f_mask))
    fmodel = mmtbx.f_model.manager(f_obs=f_obs, r_free_flags=flags, f_calc=f_calc, f_mask=[f_mask])
    reflections, structure_factors = reflections_of(fmodel), structure_factors_of(fmodel)
    scales = update_all_scales(reflections, *structure_factors)
    fmodel.update_all_scales()
    assert_as_mmtbx(fmodel, scales, reflections, *structure_factors)
