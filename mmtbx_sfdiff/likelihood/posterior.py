"""How unlikely an observed amplitude is, given the calculated one: twice the log-likelihood below the mode.

    acentric  ln p(Fo) = ln(2 Fo / b) - (Fo - a Fc)^2 / b + ln[exp(-x) I0(x)],       x = 2 a Fo Fc / b
    centric   ln p(Fo) = 1/2 ln(2 / pi b) - (Fo^2 + a^2 Fc^2) / 2b + ln cosh(x),     x = a Fo Fc / b

with a = sigmaA, b = 1 - sigmaA^2 and normalised amplitudes.  mmtbx finds the mode by a line search, and what
it finds is not always the mode; :func:`log_likelihood_gain` follows that search.  It is needed for few
reflections only, because :func:`candidates` tells all others apart without it.

Reference: ``likelihood_ratio_outlier_test`` in ``mmtbx/scaling/outlier.h``; Read (1999), Acta Cryst. D55,
1759.
"""

from __future__ import annotations

import math

import torch

from ..numerics.lbfgs import LineSearch, LineSearchFailed
from .bessel import i1_over_i0_scalar, scaled_i0, scaled_i1

_LEAST_ALPHA, _LEAST_BETA, _LEAST_F = 1e-3, 1e-5, 1e-13
# ln p at the mode exceeds ln p at the mean by at most 0.32 (centric, Fc = 0); approximations add less than
# the rest.
_MODE_ABOVE_MEAN = 1.0


def distribution(sigmaa):
    """alpha and beta of normalised amplitudes, with mmtbx's lower limits."""
    return sigmaa.clamp(min=_LEAST_ALPHA), (1.0 - sigmaa * sigmaa).clamp(min=_LEAST_BETA)


def candidates(e_obs, e_calc, centric, sigmaa, gain):
    """(n,) bool: reflections whose log-likelihood gain could reach ``gain``; a few more than do."""
    alpha, beta = distribution(sigmaa)
    model = alpha * e_calc
    result = _could_reach(_log_acentric, _mean_acentric, e_obs, model, beta, gain)
    chosen = centric.nonzero()[:, 0]
    result[chosen] = _could_reach(_log_centric, _mean_centric, e_obs[chosen], model[chosen], beta[chosen], gain)
    return result


def _could_reach(log_likelihood, mean, f_obs, model, beta, gain):
    at_mean = log_likelihood(mean(model, beta), model, beta)
    return 2.0 * (at_mean + _MODE_ABOVE_MEAN - log_likelihood(f_obs, model, beta)) > gain


def _log_acentric(f, model, beta):
    f = f.clamp(min=_LEAST_F)
    return (2 * f / beta * scaled_i0(2 * model * f / beta)).log() - (f - model).square() / beta


def _log_centric(f, model, beta):
    f = f.clamp(min=_LEAST_F)
    x = model * f / beta
    log_cosh = torch.where(x > 40, x * 0.999921 - 0.65543, x.clamp(max=40).cosh().log())
    return 0.5 * (2 / math.pi / beta).log() - (f * f + model * model) / (2 * beta) + log_cosh


def _mean_acentric(model, beta):
    square = model * model
    x = square / (2 * beta)
    return ((beta + square) * scaled_i0(x) + square * scaled_i1(x)) * 0.5 * (math.pi / beta).sqrt()


def _mean_centric(model, beta):
    t = model / (2 * beta).sqrt()
    return (-t * t).exp() * (2 * beta / math.pi).sqrt() + model * torch.erf(t)


def log_likelihood_gain(e_obs, e_calc, centric, alpha, beta):
    """Twice the difference of ln p between the mode, as mmtbx finds it, and the observation (floats)."""
    p = _Distribution(e_calc, centric, alpha, beta)
    return 2.0 * (p.log_likelihood(p.mode()) - p.log_likelihood(e_obs))


class _Distribution:
    """p(Fo | Fc) of one reflection, epsilon = 1."""

    def __init__(self, f_calc, centric, alpha, beta):
        self.f_calc, self.centric, self.alpha, self.beta = f_calc, centric, alpha, beta
        self.model = alpha * f_calc

    def log_likelihood(self, f):
        f = max(f, _LEAST_F)
        x = self.model * f / self.beta
        if self.centric:
            log_cosh = x * 0.999921 - 0.65543 if x > 40 else math.log(math.cosh(x))
            return (
                0.5 * math.log(2.0)
                - 0.5 * math.log(math.pi)
                - 0.5 * math.log(self.beta)
                - (f * f + self.model * self.model) / (2.0 * self.beta)
                + log_cosh
            )
        return (
            math.log(2.0)
            + math.log(f)
            - math.log(self.beta)
            - (f - self.model) ** 2 / self.beta
            + math.log(scaled_i0(2.0 * x))
        )

    def slope(self, f):
        f = max(f, _LEAST_F)
        x = self.model * f / self.beta
        if self.centric:
            return -f / self.beta + math.tanh(max(x, 1e-13)) * self.model / self.beta
        return 1.0 / f - 2.0 * f / self.beta + 2.0 * self.model / self.beta * i1_over_i0_scalar(2.0 * x)

    def curvature(self, f):
        f = max(f, _LEAST_F)
        x = self.model * f / self.beta
        if self.centric:
            return -1.0 / self.beta + (self.model / self.beta) ** 2 * (1.0 - math.tanh(x) ** 2)
        x *= 2.0
        m = i1_over_i0_scalar(x)
        x = max(x, 1e-13)
        # Fc to the first power, as the reference has it; the curvature only sets the first step.
        return (
            -1.0 / (f * f) - 2.0 / self.beta + self.f_calc * 4.0 * (self.alpha / self.beta) ** 2 * (1.0 - m / x - m * m)
        )

    def mean(self):
        square = self.model * self.model
        if self.centric:
            t = self.model / math.sqrt(2.0 * self.beta)
            return math.exp(-t * t) * math.sqrt(2.0 * self.beta / math.pi) + self.model * math.erf(t)
        x = square / (2.0 * self.beta)
        return ((self.beta + square) * scaled_i0(x) + square * scaled_i1(x)) * 0.5 * math.sqrt(math.pi / self.beta)

    def mode(self):
        mean = self.mean()
        deviation = math.sqrt(max(0.0, self.beta + self.model * self.model - mean * mean))
        least_step = deviation / 100.0
        f, count = mean, 0
        while True:
            start = f
            slope = self.slope(f)
            if abs(slope) <= 1e-5:
                break
            curvature = -self.curvature(f)
            step = least_step if curvature <= least_step else 1.0 / curvature
            f = self._search(f, slope, step)
            if abs(f - start) < 1e-9 or count > 500:
                break
            count += 1
        return max(f, 0.0)

    def _search(self, start, slope, step):
        """One line search uphill; f where it ended."""
        try:
            search = LineSearch(-self.log_likelihood(start), -slope * slope, step, curvature_tolerance=0.15)
        except LineSearchFailed:
            return start
        while True:
            f = start + search.step * slope
            try:
                # The reference hands its search slopes of the wrong sign from here on; so do we.
                if search.advance(-self.log_likelihood(f), self.slope(f) * slope):
                    return f
            except LineSearchFailed:
                return f
