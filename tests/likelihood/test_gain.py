"""E values, sigmaA and the log-likelihood gain."""

import dataclasses
import math

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import targets
from mmtbx_sfdiff.likelihood import Intensities, alpha_beta_of_sigma_a
from mmtbx_sfdiff.likelihood.gain import calculated_scale, friedel_weights
from mmtbx_sfdiff.reflections import resolution_shells

import numpy as np
import pytest
from mmtbx.scaling import sigmaa_estimation
from scipy import special

from tests.support.scaling_data import manager, reflections_of, tensor


@pytest.fixture(scope="module", params=["P 31 2 1", "C 1 2 1"])
def scaled(request):
    result = manager(request.param, n_atoms=60, d_min=2.0, seed=2)
    result.update_all_scales(remove_outliers=False)
    return result


def as_intensities(data):
    return Intensities(
        data.crystal, data.miller_indices, data.f_obs**2, 2 * data.f_obs * data.sigmas, data.r_free_flags
    )


def test_mean_square_e_is_one_in_shells(scaled):
    data = reflections_of(scaled)
    found = sfdiff.e_values(data)
    for _, _, rows in resolution_shells(data.d_spacings):
        assert float(found.e[rows].square().mean()) == pytest.approx(1, abs=1e-10)
    assert torch.equal(found.centric, data.crystal.centric_flags(data.miller_indices))
    expected = (data.f_obs.square() / found.epsilon / found.mean_intensity).sqrt()
    torch.testing.assert_close(found.e, expected)
    torch.testing.assert_close(found.sigma, found.e * data.sigmas / data.f_obs)


@pytest.mark.parametrize("symbol", ["P 31 2 1", "P 21 21 21", "P 1"])
def test_e_values_do_not_know_of_scale_or_anisotropy(symbol):
    data = reflections_of(manager(symbol, n_atoms=24, d_min=2.5))
    crystal = data.crystal
    rotations = crystal.orthogonalization @ crystal.rotations.to(torch.float64) @ crystal.fractionalization
    tensor = torch.tensor([[9.0, 3, -2], [3, -4, 1], [-2, 1, 20]], dtype=torch.float64)
    b = (rotations @ tensor @ rotations.mT).mean(0)
    s = data.miller_indices.to(torch.float64) @ crystal.fractionalization
    factor = 7 * (-(s @ b * s).sum(-1) / 4).exp()
    assert float(factor.max() / factor.min()) > 1.5
    changed = dataclasses.replace(data, f_obs=data.f_obs * factor)
    torch.testing.assert_close(sfdiff.e_values(changed).e, sfdiff.e_values(data).e, rtol=1e-7, atol=0)


def test_epsilon_is_divided_out():
    data = reflections_of(manager("P 4", n_atoms=40, d_min=1.8))
    epsilon = data.crystal.epsilons(data.miller_indices)
    rng = torch.Generator().manual_seed(0)
    acentric = torch.distributions.Exponential(torch.tensor(1.0)).sample(epsilon.shape).double()
    data = dataclasses.replace(data, f_obs=(acentric * epsilon).sqrt())
    special_ones = epsilon > 1
    assert int(special_ones.sum()) > 5 and rng is not None
    found = sfdiff.e_values(data).e.square()
    assert float(found[special_ones].mean()) == pytest.approx(float(acentric[special_ones].mean()), rel=0.2)


def test_shells_of_nothing_are_named():
    data = reflections_of(manager("P 1", n_atoms=40, d_min=2.0))
    zeros = torch.where(data.d_spacings < 2.1, 0.0, data.f_obs)
    with pytest.raises(ValueError, match="mean intensity of the .* reflections between .* Å is 0"):
        sfdiff.e_values(dataclasses.replace(data, f_obs=zeros))
    bad = data.f_obs.clone()
    bad[7] = math.nan
    with pytest.raises(ValueError, match="of reflection .* is not finite"):
        sfdiff.e_values(dataclasses.replace(data, f_obs=bad))


def test_sigma_a_is_mmtbx_s(scaled):
    estimator = sigmaa_estimation.sigmaa_estimator(
        miller_obs=scaled.f_obs(),
        miller_calc=scaled.f_model(),
        r_free_flags=scaled.r_free_flags(),
        kernel_width_free_reflections=200,
        n_sampling_points=20,
        n_chebyshev_terms=13,
    )
    found = sfdiff.sigma_a(reflections_of(scaled), tensor(scaled.f_model()))
    torch.testing.assert_close(found, tensor(estimator.sigmaa()), rtol=1e-7, atol=1e-9)


def test_gain_is_the_sum_of_log_ratios(scaled):
    data, f_model = reflections_of(scaled), tensor(scaled.f_model())
    s = sfdiff.sigma_a(data, f_model)
    found = sfdiff.llg(data, f_model, s)
    observed = sfdiff.e_values(data)
    e = observed.e.numpy()
    m = (s * f_model.abs() / calculated_scale(data, f_model.abs())).numpy()
    v = 1 - s.numpy() ** 2
    acentric = np.log(special.i0e(2 * e * m / v)) - (e - m) ** 2 / v - np.log(v) + e**2
    centric = np.logaddexp(e * m / v, -e * m / v) - math.log(2) - (e**2 + m**2) / (2 * v) - 0.5 * np.log(v) + e**2 / 2
    work = data.work.numpy()
    expected = np.where(observed.centric.numpy(), centric, acentric)[work].sum()
    assert float(found) == pytest.approx(expected, rel=1e-10)
    assert float(sfdiff.llg(data, f_model)) == float(found) > 0
    assert float(sfdiff.llg(data, f_model, s, e_values=observed)) == float(found)
    # A model of noise gains nothing that matters, and no model nothing at all.
    assert float(sfdiff.llg(data, f_model, torch.zeros_like(s))) == 0
    shuffled = f_model[torch.randperm(len(f_model), generator=torch.Generator().manual_seed(0))]
    assert float(sfdiff.llg(data, shuffled, s)) < 0


def test_gain_of_batches_and_its_derivatives():
    data = reflections_of(manager("P 1", n_atoms=12, d_min=3.0))
    f = torch.polar(data.f_obs, torch.rand(len(data), generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    s = torch.full((len(data),), 0.8, dtype=torch.float64)
    batch = torch.stack([f, 0.5 * f.flip(0)])
    torch.testing.assert_close(sfdiff.llg(data, batch, s), torch.stack([sfdiff.llg(data, x, s) for x in batch]))
    torch.testing.assert_close(sfdiff.llg(data, batch), torch.stack([sfdiff.llg(data, x) for x in batch]))
    observed, scale = sfdiff.e_values(data), calculated_scale(data, f.abs())

    def function(x):
        # The normalisation is a constant of the derivative: with it held, these are the numbers that autograd gives.
        from mmtbx_sfdiff.likelihood.gain import _gain

        gain = _gain(observed.e, s * x.abs() / scale, 1 - s**2, observed.centric)
        return torch.where(data.work, gain, 0).sum()

    leaf = f.clone().requires_grad_()
    (found,) = torch.autograd.grad(sfdiff.llg(data, leaf, s), leaf)
    (expected,) = torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close(found, expected)
    parts = torch.view_as_real(f).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: function(torch.view_as_complex(p)), (parts,), rtol=1e-5)
    assert torch.autograd.gradgradcheck(lambda p: function(torch.view_as_complex(p)), (parts,), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"sigma_a must lie in \[0, 1\)"):
        sfdiff.llg(data, f, torch.ones_like(s))
    with pytest.raises(ValueError, match="one value for each of the"):
        sfdiff.llg(data, f[1:], s[1:])


def test_friedel_pairs_count_once():
    # Few enough for one shell in both, so that the normalisation is the same.
    data = reflections_of(manager("P 1", n_atoms=4, d_min=2.6))
    assert 20 < len(data) < 100
    f = torch.polar(data.f_obs, torch.linspace(0, 3, len(data), dtype=torch.float64)) * torch.linspace(
        0.8, 1.2, len(data)
    )
    s = torch.full((len(data),), 0.7, dtype=torch.float64)

    def both(x):
        return None if x is None else torch.cat([x, x])

    pairs = dataclasses.replace(
        data,
        miller_indices=torch.cat([data.miller_indices, -data.miller_indices]),
        f_obs=both(data.f_obs),
        sigmas=both(data.sigmas),
        r_free_flags=both(data.r_free_flags),
        anomalous=True,
    )
    assert friedel_weights(data).eq(1).all() and friedel_weights(pairs).eq(0.5).all()
    torch.testing.assert_close(sfdiff.llg(pairs, both(f), both(s)), sfdiff.llg(data, f, s))


def test_precise_intensities_say_what_amplitudes_say(scaled):
    data, f_model = reflections_of(scaled), tensor(scaled.f_model())
    precise = dataclasses.replace(as_intensities(data), sigmas=1e-4 * data.f_obs**2)
    observed, effective = sfdiff.e_values(data), sfdiff.e_values(precise)
    torch.testing.assert_close(effective.e, observed.e, rtol=1e-4, atol=1e-5)
    s = sfdiff.sigma_a(data, f_model)
    assert float(sfdiff.llg(precise, f_model, s)) == pytest.approx(float(sfdiff.llg(data, f_model, s)), rel=1e-4)
    alpha_beta = alpha_beta_of_sigma_a(data, f_model, s)
    found = targets.intensity_likelihood(precise, f_model, alpha_beta)
    jacobian = (2 * data.f_obs)[data.work].log().mean()  # p(I) dI = p(F) dF
    expected = targets.maximum_likelihood(data, f_model, alpha_beta, f_obs_scale=1.0) + jacobian
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_noise_lowers_the_gain_and_negative_intensities_are_welcome(scaled):
    data, f_model = reflections_of(scaled), tensor(scaled.f_model()).requires_grad_()
    clean = as_intensities(data)
    sigma = clean.i_obs.mean()
    noise = sigma * torch.randn(len(data), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = Intensities(
        clean.crystal, clean.miller_indices, clean.i_obs + noise, sigma.expand(len(data)), clean.r_free_flags
    )
    assert bool((noisy.i_obs < 0).any()) and float(sfdiff.e_values(noisy).d_obs.max()) < 1
    gains = [float(sfdiff.llg(x, f_model).detach()) for x in (clean, noisy)]
    assert 0 < gains[1] < 0.6 * gains[0]
    target = targets.intensity_likelihood(noisy, f_model, alpha_beta_of_sigma_a(noisy, f_model))
    (gradient,) = torch.autograd.grad(target, f_model)
    assert torch.isfinite(torch.view_as_real(gradient)).all() and not gradient[~data.work].any()
