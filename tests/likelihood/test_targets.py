"""Targets, R factors, and alpha and beta, against mmtbx."""

import dataclasses

import torch
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


def compare(fmodel, name, target, f_model):
    """Value and gradient of a target against mmtbx's of that name."""
    fmodel.set_target_name(name)
    reference = fmodel.target_functor()(compute_gradients=True)
    assert float(target.detach()) == pytest.approx(reference.target_work(), rel=1e-10)
    (gradient,) = torch.autograd.grad(target, f_model)
    work = ~torch.from_numpy(fmodel.r_free_flags().data().as_numpy_array())
    torch.testing.assert_close(gradient[work], tensor(reference.d_target_d_f_model_work()), rtol=1e-8, atol=1e-15)
    assert not gradient[~work].any()


def test_maximum_likelihood(fmodel):
    reflections, f_model = reflections_of(fmodel), tensor(fmodel.f_model()).requires_grad_(True)
    compare(
        fmodel,
        "ml",
        targets.maximum_likelihood(reflections, f_model, estimate_alpha_beta(reflections, f_model)),
        f_model,
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
    # cctbx's I1/I0 is the derivative of its ln I0 to 1e-6 only.
    assert torch.autograd.gradcheck(function, (parts,), rtol=1e-4, atol=1e-6)


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
