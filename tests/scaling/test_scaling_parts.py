"""The pieces of the scaling, each against the cctbx function that it follows."""

import math
import random

import torch
from mmtbx_sfdiff.crystal import Crystal
from mmtbx_sfdiff.likelihood import posterior
from mmtbx_sfdiff.likelihood.bessel import i1_over_i0, i1_over_i0_and_log_i0, i1_over_i0_scalar, log_i0
from mmtbx_sfdiff.likelihood.normalization import ResolutionKernel
from mmtbx_sfdiff.likelihood.sigmaa import sigmaa
from mmtbx_sfdiff.numerics.lbfgs import minimize
from mmtbx_sfdiff.scaling import bulk
from mmtbx_sfdiff.scaling.anisotropic import AnisotropicScale, independent_tensors
from mmtbx_sfdiff.scaling.binning import log_binning
from mmtbx_sfdiff.scaling.isotropic import B_RANGE, search_b
from mmtbx_sfdiff.scaling.outliers import reject

import mmtbx.bulk_solvent
import numpy as np
import pytest
import scitbx.lbfgs
from cctbx import crystal, miller, sgtbx
from cctbx.array_family import flex
from mmtbx import scaling as mmtbx_scaling
from mmtbx.scaling import absolute_scaling, sigmaa_estimation
from scitbx.math import bessel_i1_over_i0

from tests.support.scaling_data import manager, reflections_of, tensor

GROUPS = range(1, 231)


def rosenbrock(x):
    a, b = x[:-1], x[1:]
    gradient = np.zeros_like(x)
    gradient[:-1] = -400 * a * (b - a * a) - 2 * (1 - a)
    gradient[1:] += 200 * (b - a * a)
    return float((100 * (b - a * a) ** 2 + (1 - a) ** 2).sum()), gradient


def wavy(x):
    value = (x**4).sum() - 3 * (x**2).sum() + 0.3 * x.sum() + np.sin(3 * x).sum()
    return float(value), 4 * x**3 - 6 * x + 0.3 + 3 * np.cos(3 * x)


class Evaluator:
    def __init__(self, function, x):
        self.function, self.x = function, flex.double(x)

    def compute_functional_and_gradients(self):
        value, gradient = self.function(self.x.as_numpy_array())
        return value, flex.double(np.ascontiguousarray(gradient))


@pytest.mark.parametrize("function", [rosenbrock, wavy])
@pytest.mark.parametrize("n", [2, 6, 13])
def test_minimizer_takes_scitbx_steps(function, n):
    ignore = scitbx.lbfgs.exception_handling_parameters(
        ignore_line_search_failed_maxfev=True,
        ignore_line_search_failed_step_at_lower_bound=True,
        ignore_line_search_failed_step_at_upper_bound=True,
    )
    rng = np.random.default_rng(n)
    for _ in range(5):
        start = 2 * rng.normal(size=n)
        reference = Evaluator(function, start)
        run = scitbx.lbfgs.run(reference, exception_handling_params=ignore)
        last, lowest, failed = minimize(function, start)
        assert failed == bool(run.error)
        np.testing.assert_allclose(lowest if failed else last, reference.x.as_numpy_array(), rtol=1e-12, atol=1e-12)


def test_epsilons_and_centric_flags_in_every_space_group():
    for number in GROUPS:
        group = sgtbx.space_group_info(number)
        symmetry = crystal.symmetry(unit_cell=group.any_compatible_unit_cell(3000), space_group_info=group)
        miller_set = miller.build_set(symmetry, anomalous_flag=False, d_min=2.5)
        ours = Crystal.from_cctbx(symmetry)
        indices = torch.tensor(list(miller_set.indices()))
        assert torch.equal(ours.epsilons(indices), torch.tensor(list(miller_set.epsilons().data()))), number
        assert torch.equal(ours.centric_flags(indices), torch.tensor(list(miller_set.centric_flags().data()))), number


def test_resolution_has_the_digits_of_cctbx():
    for number in (1, 5, 19, 96, 154, 169, 197):
        group = sgtbx.space_group_info(number)
        symmetry = crystal.symmetry(unit_cell=group.any_compatible_unit_cell(5000), space_group_info=group)
        miller_set = miller.build_set(symmetry, anomalous_flag=False, d_min=2.0)
        ours = Crystal.from_cctbx(miller_set)
        indices = torch.tensor(list(miller_set.indices()))
        d_star_sq = ours.d_star_sq(indices).numpy()
        np.testing.assert_array_equal(d_star_sq, miller_set.d_star_sq().data().as_numpy_array())
        np.testing.assert_array_equal(1 / np.sqrt(d_star_sq), miller_set.d_spacings().data().as_numpy_array())


def test_tensor_constraints_in_every_space_group():
    for number in GROUPS:
        group = sgtbx.space_group_info(number)
        symmetry = crystal.symmetry(unit_cell=group.any_compatible_unit_cell(1000), space_group_info=group)
        basis, independent = independent_tensors(Crystal.from_cctbx(symmetry).rotations)
        reference = group.group().adp_constraints()
        assert list(reference.independent_indices) == independent
        np.testing.assert_array_equal(np.array(reference.gradient_sum_matrix()).reshape(-1, 6), basis)


@pytest.mark.parametrize("d_min, n", [(2.0, 40), (1.2, 80), (4.0, 40), (9.0, 40)])
def test_log_binning(d_min, n):
    fmodel = manager("P 21 21 21", n_atoms=n, d_min=d_min)
    d_star_sq = tensor(fmodel.f_obs().d_star_sq())
    offsets = log_binning(d_star_sq.sort().values)
    reference = [chosen.count(True) for chosen in fmodel.f_obs().log_binning()]
    assert np.diff(offsets).tolist() == reference


def test_bessel_functions():
    values = np.concatenate([np.linspace(1e-6, 10, 400), np.linspace(10, 800, 50)])
    x = torch.tensor(values)
    expected = torch.tensor(np.array(bessel_i1_over_i0(flex.double(values))))
    ratio, logarithm = i1_over_i0_and_log_i0(x[None])
    torch.testing.assert_close(ratio[0], expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(i1_over_i0(-x), -expected, rtol=1e-13, atol=0)
    assert [i1_over_i0_scalar(v) for v in values] == pytest.approx(expected.tolist(), rel=1e-13)
    torch.testing.assert_close(logarithm[0], log_i0(x), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(log_i0(x), torch.special.i0e(x).log() + x, rtol=1e-6, atol=1e-7)


def test_anisotropic_fits():
    for symbol in ("P 1", "C 1 2 1", "P 21 21 21", "P 31 2 1", "I 4 3 2"):
        fmodel = manager(symbol, n_atoms=20)
        f_obs, amplitudes = fmodel.f_obs(), flex.abs(fmodel.f_calc().data())
        reflections = reflections_of(fmodel)
        fits = AnisotropicScale(reflections.crystal, reflections.miller_indices, len(reflections))
        values = torch.from_numpy(amplitudes.as_numpy_array())
        arguments = dict(f_model_abs=amplitudes, f_obs=f_obs.data(), miller_indices=f_obs.indices())
        polynomial = mmtbx.bulk_solvent.aniso_u_scaler(unit_cell=f_obs.unit_cell(), **arguments)
        np.testing.assert_allclose(
            fits.fit_polynomial(reflections.f_obs, values), np.array(polynomial.a), rtol=1e-8, atol=1e-8
        )
        constraints = f_obs.space_group().adp_constraints()
        exponential = mmtbx.bulk_solvent.aniso_u_scaler(
            adp_constraint_matrix=constraints.gradient_sum_matrix(), **arguments
        )
        u_star = constraints.all_params(tuple(exponential.u_star_independent))
        np.testing.assert_allclose(fits.fit_exponential(reflections.f_obs, values), u_star, rtol=1e-9, atol=1e-12)


def test_isotropic_grid():
    fmodel = manager(d_min=1.2, n_atoms=20)
    reflections = reflections_of(fmodel)
    amplitudes = tensor(fmodel.f_calc()).abs()
    ss = reflections.crystal.d_star_sq(reflections.miller_indices) / 4
    for b in (-60, -3, 0, 17, 81):
        model = amplitudes * torch.exp(b * ss)
        reference = mmtbx.bulk_solvent.f_kb_scaled(
            f1=fmodel.f_obs().data(),
            f2=flex.double(model.numpy()),
            b_range=flex.double(B_RANGE),
            ss=flex.double(ss.numpy()),
        )
        assert search_b(reflections.f_obs, model, ss) == pytest.approx((reference.k(), reference.b()), rel=1e-12)


def test_k_mask_of_a_bin():
    fmodel = manager(d_min=3.5)
    reflections = reflections_of(fmodel)
    f_calc, f_mask = tensor(fmodel.f_calc()), tensor(fmodel.f_masks()[0])
    work = reflections.work
    parts = [x[work] for x in (f_calc.abs() ** 2, 2 * (f_calc * f_mask.conj()).real, f_mask.abs() ** 2)]
    trials = bulk.mask_range(0, 1010, 10)
    f_obs = reflections.f_obs / 3
    data = flex.double(f_obs.numpy()), fmodel.f_calc().data(), fmodel.f_masks()[0].data()
    selection = flex.bool(work.numpy())
    reference = mmtbx.bulk_solvent.k_mask_and_k_overall_grid_search(*data, flex.double(trials), selection)
    without = mmtbx.bulk_solvent.r_factor(data[0], data[1])
    assert bulk.search(f_obs[work], *parts, trials, without) == pytest.approx(reference, rel=1e-12)
    assert reference[0] > 0.1
    analytical = mmtbx.bulk_solvent.overall_and_bulk_solvent_scale_coefficients_analytical(*data, selection)
    u, v, w, i = parts[0], parts[1] / 2, parts[2], f_obs[work] ** 2
    sums = [float(x.sum()) for x in (u * i, 2 * v * i, w * i, i * i, u * v, 2 * v * v + u * w, 3 * v * w, w * w, v * i)]
    assert bulk.analytical_roots(sums) == pytest.approx(list(analytical.x), rel=1e-9)


def test_cubic_equation():
    from scitbx.math import cubic_equation_real

    rng = random.Random(1)
    cases = [(0, 0, 0), (-3, 3, -1), (0, -1, 0), (1, 1, 1), (-6, 11, -6)]
    cases += [tuple(rng.uniform(-3, 3) for _ in range(3)) for _ in range(200)]
    for p, q, r in cases:
        expected = [x for x in cubic_equation_real(1, p, q, r).x if x is not None]
        assert bulk.cubic_roots(p, q, r) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def sorted_by_resolution(fmodel):
    reflections = reflections_of(fmodel)
    indices = reflections.miller_indices
    d_star_sq = reflections.crystal.d_star_sq(indices)
    order = d_star_sq.argsort()
    epsilons = reflections.crystal.epsilons(indices).to(torch.float64)
    centric = reflections.crystal.centric_flags(indices)
    return order, [x[order] for x in (reflections.f_obs, epsilons, centric, reflections.r_free_flags, d_star_sq)]


@pytest.mark.parametrize("symbol", ["P 21 21 21", "P 3 1 2", "P 1"])
def test_normalised_amplitudes_and_sigmaa(symbol):
    fmodel = manager(symbol, n_atoms=60)
    fmodel.update_all_scales(remove_outliers=False)
    order, (f_obs, epsilons, centric, free, d_star_sq) = sorted_by_resolution(fmodel)
    kernel = ResolutionKernel(d_star_sq)
    reference = absolute_scaling.kernel_normalisation(fmodel.f_obs().f_as_f_sq(), auto_kernel=True)
    mean = kernel.mean(f_obs**2 / epsilons)
    expected = torch.from_numpy(reference.normalizer_for_miller_array.as_numpy_array())[order]
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=0)
    estimator = sigmaa_estimation.sigmaa_estimator(
        miller_obs=fmodel.f_obs(),
        miller_calc=fmodel.f_model(),
        r_free_flags=fmodel.r_free_flags(),
        kernel_width_free_reflections=200,
        n_sampling_points=20,
        n_chebyshev_terms=13,
    )
    model = tensor(fmodel.f_model()).abs()[order]
    e_obs = (f_obs**2 / epsilons / mean).sqrt()
    e_calc = (model**2 / epsilons / kernel.mean(model**2 / epsilons)).sqrt()
    torch.testing.assert_close(
        sigmaa(e_obs, e_calc, centric, free, d_star_sq**1.5),
        tensor(estimator.sigmaa())[order],
        rtol=1e-7,
        atol=1e-9,
    )


def test_log_likelihood_gain_and_its_screen():
    rng = np.random.default_rng(0)
    n = 4000
    s = rng.uniform(0.02, 0.995, n)
    e_calc = np.abs(rng.normal(0.9, 0.5, n)) + 1e-3
    e_obs = np.abs(s * e_calc + rng.normal(0, 1, n) * np.sqrt(1 - s * s))
    e_obs[::7] *= 4
    e_obs[::31] = 1e-9
    centric = rng.random(n) < 0.3
    reference = np.array(
        mmtbx_scaling.likelihood_ratio_outlier_test(
            f_obs=flex.double(e_obs),
            sigma_obs=None,
            f_calc=flex.double(e_calc),
            epsilon=flex.double(n, 1.0),
            centric=flex.bool(centric),
            alpha=flex.double(s),
            beta=flex.double(1 - s * s),
        ).standardized_likelihood()
    )
    columns = [torch.tensor(x) for x in (e_obs, e_calc, centric, s)]
    alpha, beta = posterior.distribution(columns[3])
    gains = [
        posterior.log_likelihood_gain(*row)
        for row in zip(e_obs.tolist(), e_calc.tolist(), centric.tolist(), alpha.tolist(), beta.tolist())
    ]
    np.testing.assert_allclose(gains, reference, rtol=1e-8, atol=1e-8)
    for level in (15.0, 25.0):
        screened = posterior.candidates(*columns, level).numpy()
        assert screened[reference > level].all()
        assert screened.mean() < 1.2 * (reference > level - 4).mean() + 0.01


@pytest.mark.parametrize("with_model", [False, True])
def test_rejected_reflections(with_model):
    fmodel = manager("P 21 21 21", n_atoms=60, n_outliers=25)
    order, columns = sorted_by_resolution(fmodel)
    model = tensor(fmodel.f_model()).abs()[order]
    kept, reasons = reject(*columns, f_model=model if with_model else None)
    indices = fmodel.f_obs().indices()
    for _ in range(5):
        fmodel.remove_outliers(use_model=with_model)
    assert {indices[i] for i in order[kept].tolist()} == set(fmodel.f_obs().indices())
    assert sum(map(len, reasons.values())) >= int((~kept).sum()) > 5
    assert ("model" in reasons) == with_model


def test_fine_trials_surround_the_start():
    for x in (0.0, 0.03, 0.4, 1.3):
        trials = bulk.fine_trials(x)
        assert trials[0] == x and min(trials) >= 0
        assert max(trials[1:]) == pytest.approx(min(x, 1) + 0.05, abs=0.011)
        assert math.isclose(trials[2] - trials[1], 0.01)
