"""Targets, R factors, and alpha and beta, against mmtbx."""

import dataclasses
import re
import warnings

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.likelihood import targets
from mmtbx_sfdiff.likelihood.alpha_beta import estimate_alpha_beta

import pytest

from tests.support.scaling_data import manager, reflections_of, tensor

VARIANTS = {
    "ls_wunit_k1": ("unit", "k1"),
    "ls_wexp_k1": ("sigma", "k1"),
    "ls_wunit_kunit": ("unit", "unit"),
    "ls_wexp_kunit": ("sigma", "unit"),
}


@pytest.fixture(
    scope="module",
    params=[("P 21 21 21", 80, 1.6), ("P 31 2 1", 40, 2.0), ("C 1 2 1", 160, 1.6), ("P 1", 20, 2.5)],
    ids=lambda p: p[0],
)
def fmodel(request):
    symbol, n_atoms, d_min = request.param
    result = manager(symbol, n_atoms=n_atoms, d_min=d_min, seed=1)
    result.update_all_scales(remove_outliers=False)
    return result


def test_alpha_and_beta(fmodel):
    alpha, beta = fmodel.alpha_beta()
    ours = estimate_alpha_beta(reflections_of(fmodel), tensor(fmodel.f_model()))
    torch.testing.assert_close(ours.alpha, tensor(alpha), rtol=1e-10, atol=0)
    torch.testing.assert_close(ours.beta, tensor(beta), rtol=1e-10, atol=0)


def test_alpha_and_beta_without_flags():
    fmodel = manager(flags=False, n_atoms=20)
    alpha, beta = fmodel.alpha_beta()
    ours = estimate_alpha_beta(reflections_of(fmodel), tensor(fmodel.f_model()))
    torch.testing.assert_close(ours.alpha, tensor(alpha), rtol=1e-10, atol=0)
    torch.testing.assert_close(ours.beta, tensor(beta), rtol=1e-10, atol=0)


def compare(fmodel, name, target, f_model, rel=1e-10, of_gradient=1e-8):
    """Value and gradient of a target against mmtbx's of that name."""
    fmodel.set_target_name(name)
    reference = fmodel.target_functor()(compute_gradients=True)
    assert float(target.detach()) == pytest.approx(reference.target_work(), rel=rel)
    (gradient,) = torch.autograd.grad(target, f_model)
    work = ~torch.from_numpy(fmodel.r_free_flags().data().as_numpy_array())
    expected = tensor(reference.d_target_d_f_model_work())
    atol = 1e-15 if of_gradient < 1e-6 else of_gradient * float(expected.abs().max())
    torch.testing.assert_close(gradient[work], expected, rtol=of_gradient, atol=atol)
    assert not gradient[~work].any()


def test_maximum_likelihood(fmodel):
    reflections, f_model = reflections_of(fmodel), tensor(fmodel.f_model()).requires_grad_(True)
    compare(
        fmodel,
        "ml",
        targets.maximum_likelihood(reflections, f_model, estimate_alpha_beta(reflections, f_model)),
        f_model,
        # mmtbx's polynomials for I0 and I1/I0 are good to 2e-7; the exact functions have tests of their own.
        rel=1e-6,
        of_gradient=5e-6,
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_least_squares_of_mmtbx(fmodel, name):
    weights, scale = VARIANTS[name]
    f_model = tensor(fmodel.f_model()).requires_grad_(True)
    target = targets.normalized_least_squares(reflections_of(fmodel), f_model, weights=weights, scale=scale)
    compare(fmodel, name, target, f_model)


def test_r_factors(fmodel):
    reflections, f_model = reflections_of(fmodel), tensor(fmodel.f_model())
    r_work, r_free = targets.r_factors(reflections, torch.stack([f_model, 3 * f_model]))
    assert r_work.tolist() == pytest.approx([fmodel.r_work()] * 2, rel=1e-12)
    assert r_free.tolist() == pytest.approx([fmodel.r_free()] * 2, rel=1e-12)


def test_equation_9():
    fmodel = manager(n_atoms=8)
    reflections, f_model = reflections_of(fmodel), tensor(fmodel.f_calc())
    chosen = torch.rand(len(reflections), generator=torch.Generator().manual_seed(0)) < 0.7
    used = chosen & reflections.work
    expected = (((reflections.f_obs / 2 - f_model.abs()) / (reflections.sigmas / 2)) ** 2)[used].sum()
    torch.testing.assert_close(targets.least_squares(reflections, f_model, selection=chosen, f_obs_scale=2.0), expected)
    with pytest.raises(ValueError, match="standard deviations"):
        targets.least_squares(dataclasses.replace(reflections, sigmas=None), f_model)
    with pytest.raises(ValueError, match="weights must be"):
        targets.normalized_least_squares(reflections, f_model, weights="none")


@pytest.mark.parametrize("target", ["least_squares", "normalized_least_squares", "maximum_likelihood"])
def test_gradients(target):
    fmodel = manager(n_atoms=8, d_min=6.0, scale=1.0)
    reflections, f_model = reflections_of(fmodel), tensor(fmodel.f_calc())
    extra = (estimate_alpha_beta(reflections, f_model),) if target == "maximum_likelihood" else ()

    def function(parts):
        return getattr(targets, target)(reflections, torch.view_as_complex(parts), *extra)

    parts = torch.view_as_real(torch.stack([f_model, 0.8 * f_model])).contiguous().requires_grad_(True)
    assert torch.autograd.gradcheck(function, (parts,), rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradgradcheck(function, (parts,), rtol=1e-5, atol=1e-6)


def test_reflections_left_out_have_no_part():
    fmodel = manager(n_atoms=20, d_min=3.0)
    reflections, f_model = reflections_of(fmodel), tensor(fmodel.f_calc())
    chosen = torch.arange(len(reflections)) % 3 > 0
    part = reflections.select(chosen)
    whole = estimate_alpha_beta(reflections, f_model, selection=chosen)
    alone = estimate_alpha_beta(part, f_model[chosen])
    torch.testing.assert_close(whole.alpha[chosen], alone.alpha)
    assert not whole.alpha[~chosen].any()
    torch.testing.assert_close(
        targets.maximum_likelihood(reflections, f_model, whole, selection=chosen),
        targets.maximum_likelihood(part, f_model[chosen], alone),
    )
    assert [float(r) for r in targets.r_factors(reflections, f_model, selection=chosen)] == pytest.approx(
        [float(r) for r in targets.r_factors(part, f_model[chosen])]
    )


def test_bare_calls_take_what_the_fmodel_takes_or_warn():
    reference = manager(n_atoms=24, d_min=2.5, n_outliers=4)
    fmodel = FModel.from_cctbx(reference, method="direct", mask={"method": "binary"})
    fmodel.update_scales()
    f_model, bare = fmodel.f_model(), reflections_of(reference)
    assert fmodel.scales.f_obs_scale > 2 and not bool(fmodel.selection.all())
    for name, extra in (("least_squares", ()), ("maximum_likelihood", (fmodel.alpha_beta(),))):
        function = getattr(targets, name)
        expected = fmodel.target(name)
        assert torch.equal(function(fmodel, f_model, *extra), expected)
        assert torch.equal(function(fmodel.reflections, f_model, *extra), expected)
        assert torch.equal(function(bare, f_model, *extra, **fmodel.in_use()), expected)
        with pytest.warns(UserWarning, match="f_obs_scale was not given"):
            function(bare, f_model, *extra)
    # What does not depend on the scale does not ask for it.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for weights in ("unit", "sigma"):
            found = targets.normalized_least_squares(bare, f_model, weights, selection=fmodel.selection)
            torch.testing.assert_close(found, targets.normalized_least_squares(fmodel, f_model, weights))
        targets.least_squares(bare, f_model * fmodel.scales.f_obs_scale)
    # Other reflections than the FModel's, and those of an FModel without scales, know of no selection.
    part = fmodel.reflections.select(torch.arange(10))
    assert targets.r_factors(part, f_model[:10])[0].shape == () and fmodel.with_().reflections._in_use is None


def test_the_least_squares_scale_is_no_constant_of_the_second_derivative():
    """The target does not depend on the scale of F_model, so along F_model itself every derivative is zero."""
    fmodel = manager(n_atoms=8, d_min=6.0)
    reflections, f_model = reflections_of(fmodel), tensor(fmodel.f_calc())
    k = torch.ones((), dtype=torch.float64, requires_grad=True)
    value = targets.normalized_least_squares(reflections, k * f_model)
    (first,) = torch.autograd.grad(value, k, create_graph=True)
    (second,) = torch.autograd.grad(first, k)
    assert abs(float(first.detach())) < 1e-13 and abs(float(second)) < 1e-12


def test_zeros_give_numbers():
    reflections = reflections_of(manager(n_atoms=8, d_min=6.0))
    zeros = torch.zeros(len(reflections), dtype=torch.complex128, requires_grad=True)
    ones = torch.ones(len(reflections), dtype=torch.complex128)
    noise = 1 + 0.2 * torch.randn(len(ones), generator=torch.Generator().manual_seed(0))
    alpha_beta = estimate_alpha_beta(reflections, ones * reflections.f_obs * noise)
    values = [
        targets.normalized_least_squares(reflections, zeros),
        targets.maximum_likelihood(reflections, zeros, alpha_beta, f_obs_scale=1.0),
        *targets.r_factors(reflections, zeros),
    ]
    assert [float(v.detach()) for v in (values[0], *values[2:])] == [1.0, 1.0, 1.0]
    for value in values:
        (first,) = torch.autograd.grad(value, zeros, create_graph=True)
        assert bool(torch.isfinite(torch.view_as_real(first)).all())
    nothing = dataclasses.replace(reflections, f_obs=torch.zeros_like(reflections.f_obs))
    assert [float(r) for r in targets.r_factors(nothing, ones)] == [1e9, 1e9]
    # A sigma of zero leaves its reflection out, here as in equation 9.
    sigmas = reflections.sigmas.clone()
    sigmas[:3] = 0
    assert torch.isfinite(
        targets.normalized_least_squares(dataclasses.replace(reflections, sigmas=sigmas), ones, "sigma")
    )


@pytest.mark.parametrize("name", ["least_squares", "intensity_least_squares", "normalized_least_squares", "r_factors"])
def test_numbers_that_are_none_are_refused_by_reflection_and_model(name):
    reflections = reflections_of(manager(n_atoms=8, d_min=6.0))
    good = (reflections.f_obs + 0j).expand(2, -1)
    target = getattr(targets, name)
    for number in (complex("nan"), complex("inf")):
        bad = good.clone()
        bad[1, 5] = number
        where = re.escape(
            f"f_model of reflection 5 {tuple(reflections.miller_indices[5].tolist())} in model 1 of the batch is"
        )
        with pytest.raises(ValueError, match=where):
            target(reflections, bad)
    for size in (1e-30, 1e30, 1e160):
        with pytest.raises(ValueError, match="none to compute with"):
            target(reflections, good * size)
    with pytest.raises(ValueError, match="one value for each of the"):
        target(reflections, good[:, :-1])
    with pytest.raises(TypeError, match="complex, or amplitudes"):
        target(reflections, good.real.to(torch.int64))
    # Of other precision than the data.
    single = dataclasses.replace(reflections, f_obs=reflections.f_obs.float(), sigmas=reflections.sigmas.float())
    mixed, expected = target(single, 1.01 * good[0]), target(reflections, 1.01 * good[0])
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-6, check_dtype=False)
    # Where nobody can look, NaN is NaN.
    bad = good.clone()
    bad[1, 5] = complex("nan")
    found = torch.func.vmap(lambda f: target(reflections, f))(bad)
    for value in found if isinstance(found, tuple) else (found,):
        assert value.isnan().tolist() == [False, True] or name == "r_factors"


def test_batches_go_through_vmap_and_func_grad():
    reflections = dataclasses.replace(reflections_of(manager(n_atoms=8, d_min=6.0, scale=1.0)), r_free_flags=None)
    f = torch.stack([reflections.f_obs * k for k in (0.95, 1.0, 1.05)]).to(torch.complex128)
    for function in (targets.least_squares, targets.normalized_least_squares, lambda *a: targets.r_factors(*a)[0]):
        torch.testing.assert_close(torch.func.vmap(lambda x: function(reflections, x))(f), function(reflections, f))
    gradient = torch.func.grad(lambda x: targets.least_squares(reflections, x.to(torch.complex128)))(f[0].real)
    assert gradient.shape == f[0].shape
