"""Likelihoods of intensities and posterior moments, against numerical integrals."""

import math

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.likelihood.distributions import figure_of_merit, log_likelihood
from mmtbx_sfdiff.likelihood.intensities import (
    Intensities,
    effective,
    log_likelihood_of_intensities,
    posterior_moments,
)

import numpy as np
import pytest
from scipy import integrate, special


def cases(n=60):
    """(centric, I, sigma, m, v), from weak to strong, precise to noisy, likely to impossible."""
    rng = np.random.default_rng(0)
    for k in range(n):
        sigma = 10 ** rng.uniform(-2.5, 1.5)
        intensity = rng.exponential() * 3 ** rng.normal() + sigma * rng.normal()
        yield bool(k % 2), intensity, sigma, rng.exponential(), 10 ** rng.uniform(-3, 0.3)


def log_p(f, m, v, centric):
    if centric:
        return (
            0.5 * math.log(2 / (math.pi * v)) - (f - m) ** 2 / (2 * v) + np.logaddexp(0, -2 * f * m / v) - math.log(2)
        )
    return np.log(2 * f / v) - (f - m) ** 2 / v + np.log(special.i0e(2 * f * m / v))


def integral(log_density, high, powers=(0,)):
    """ln of the integral over [0, high] of exp(log_density), and means of powers, by adaptive quadrature."""
    grid = np.linspace(1e-9, high, 50001)
    logs = log_density(grid)
    top, peak, step = logs.max(), grid[logs.argmax()], grid[1]
    inside = grid[logs > logs.max() - 45]
    limits = max(1e-12, inside[0] - step), inside[-1] + step
    values = [
        integrate.quad(
            lambda f: f**j * math.exp(log_density(f) - top), *limits, points=[peak], epsabs=0, epsrel=1e-12, limit=300
        )[0]
        for j in powers
    ]
    return math.log(values[0]) + top, [value / values[0] for value in values[1:]]


def double(*values):
    return [torch.tensor([v], dtype=torch.float64) for v in values]


def test_likelihood_of_an_intensity_is_the_integral():
    for centric, intensity, sigma, m, v in cases():
        found = log_likelihood_of_intensities(*double(intensity, sigma, m, v), torch.tensor([centric]))

        def density(f, i=intensity, s=sigma, m=m, v=v, c=centric):
            return -0.5 * ((f * f - i) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi)) + log_p(f, m, v, c)

        high = max(m + 9.5 * math.sqrt(v), math.sqrt(max(intensity, 0) + 9.5 * sigma))
        assert float(found) == pytest.approx(integral(density, high)[0], rel=1e-8, abs=1e-8)


def test_posterior_moments_are_the_integrals():
    for centric, intensity, sigma, *_ in cases():
        found = posterior_moments(*double(intensity, sigma), torch.tensor([centric]))

        def density(e, i=intensity, s=sigma, c=centric):
            return (-e * e / 2 if c else np.log(e) - e * e) - 0.5 * ((e * e - i) / s) ** 2

        high = min(math.sqrt(max(intensity, 0) + 9.5 * sigma) + 0.5, 14)
        assert [float(x) for x in found] == pytest.approx(integral(density, high, (0, 1, 2, 4))[1], rel=1e-8)


def test_distributions_of_amplitudes_integrate_to_one_and_have_the_merit_as_mean_cosine():
    for centric, _, _, m, v in cases(20):
        high = m + 9.5 * math.sqrt(v)

        def density(f, m=m, v=v, c=centric):
            values = log_likelihood(torch.as_tensor(f, dtype=torch.float64), *double(m, v), torch.tensor([c]))
            return values.numpy() if np.ndim(f) else float(values)

        assert integral(density, high)[0] == pytest.approx(0, abs=1e-8)
        f = m + 0.3 * math.sqrt(v)
        merit = float(figure_of_merit(*double(f, m, v), torch.tensor([centric])))
        x = 2 * f * m / v
        if centric:
            expected = math.tanh(x / 2)
        else:
            up = integrate.quad(lambda t: math.cos(t) * math.exp(x * (math.cos(t) - 1)), 0, math.pi, epsabs=0)[0]
            expected = up / integrate.quad(lambda t: math.exp(x * (math.cos(t) - 1)), 0, math.pi, epsabs=0)[0]
        assert merit == pytest.approx(expected, rel=1e-8)


def test_gradients_of_the_likelihood_of_intensities():
    i, s, m, v = (torch.tensor(x, dtype=torch.float64) for x in zip(*[c[1:] for c in cases(12) if c[4] > 0.02]))
    centric = torch.arange(len(i)) % 2 == 0
    batch = torch.stack([m, 0.7 * m]).requires_grad_()
    function = lambda m: log_likelihood_of_intensities(i, s, m, v, centric)  # noqa: E731
    assert torch.autograd.gradcheck(function, (batch,), rtol=1e-5, atol=1e-7)
    assert torch.autograd.gradgradcheck(function, (batch,), rtol=1e-4, atol=1e-5)


def test_effective_amplitudes_have_the_moments_they_are_made_for():
    i, s = (torch.tensor([c[k] for c in cases()], dtype=torch.float64) for k in (1, 2))
    centric = torch.arange(len(i)) % 2 == 1
    e, d = effective(i, s, centric)
    _, mean_square, mean_fourth = posterior_moments(i, s, centric)
    v, nu = 1 - d**2, (d * e) ** 2
    torch.testing.assert_close(v + nu, mean_square, rtol=1e-10, atol=0)
    spread = torch.where(centric, 2.0, 1.0) * (v**2 + 2 * v * nu)
    torch.testing.assert_close(spread, mean_fourth - mean_square**2, rtol=1e-8, atol=1e-10)
    assert bool((d > 0).all()) and bool((d <= 1).all())
    # Without error the amplitude itself, and without information nothing is known.
    one = torch.ones(2, dtype=torch.float64)
    flags = torch.tensor([False, True])
    e, d = effective(2.25 * one, 1e-5 * one, flags)
    torch.testing.assert_close((e, d), (1.5 * one, one), rtol=1e-6, atol=0)
    assert float(effective(one, 1e4 * one, flags)[1].max()) < 0.02


@pytest.mark.cctbx
def test_bad_intensities_are_named():
    crystal = sfdiff.Crystal.from_cctbx(
        __import__("cctbx.crystal").crystal.symmetry((30, 40, 50, 90, 90, 90), "P 21 21 21")
    )
    h = torch.tensor([[1, 2, 3], [2, 1, 5]])
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"Reflection \(2, 1, 5\).*standard deviation 0"):
        Intensities(crystal, h, one, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="one value for each of the 2"):
        Intensities(crystal, h, one[:1], one)
