"""sigmaA, the correlation of observed and calculated normalised amplitudes, as a function of resolution.

At 20 Chebyshev nodes in d*^3 sigmaA maximises the likelihood of the free reflections around, weighted by a Gaussian
kernel; a Chebyshev polynomial is then fitted to its logit.  With sigmaA = s:

    acentric  ln p(Eo|Ec) = ln[2 Eo / (1 - s^2)] - (Eo^2 + s^2 Ec^2) / (1 - s^2) + ln I0[2 s Eo Ec / (1 - s^2)]
    centric   ln p(Eo|Ec) = 1/2 ln[2 / pi(1 - s^2)] - (Eo^2 + s^2 Ec^2) / 2(1 - s^2) + ln cosh[s Eo Ec / (1 - s^2)]

References: Read (1986), Acta Cryst. A42, 140; Read (1999), Acta Cryst. D55, 1759;
``mmtbx.scaling.sigmaa_estimation``, ``mmtbx/scaling/outlier.h``.
"""
from __future__ import annotations

import math

import numpy as np
import torch

from .bessel import i1_over_i0_and_log_i0
from .lbfgs import minimize
from .normalisation import _reach, _to_unit, chebyshev, chebyshev_nodes, fit_chebyshev

_N_NODES = 20
_LOW, _HIGH = 0.01, 0.99
_SAME_NODE = 1e-5


def sigmaa(e_obs, e_calc, centric, free, d_star_cubed, reflections_per_kernel=200, n_terms=13):
    """sigmaA of every reflection.

    Parameters
    ----------
    e_obs, e_calc : torch.Tensor
        (n,) normalised amplitudes.
    centric, free : torch.Tensor
        (n,) bool; at least one free reflection.
    d_star_cubed : torch.Tensor
        (n,) Å^-3, ascending.
    reflections_per_kernel : int
        Free reflections that a kernel's width is meant to hold.
    n_terms : int
        Of the polynomial.

    Returns
    -------
    torch.Tensor
        (n,)
    """
    low, high = d_star_cubed[[0, -1]].tolist()
    width = kernel_width(len(free), int(free.sum()), low, high, reflections_per_kernel)
    likelihood = _Likelihood(e_obs[free], e_calc[free], centric[free], d_star_cubed[free], width)
    low, high = low * 0.99, high * 1.01
    nodes = chebyshev_nodes(_N_NODES, low, high)
    at_nodes = np.array([likelihood.most_likely(node) for node in likelihood.distinct(nodes)])
    logit = -np.log(1.0 / at_nodes - 1.0)
    coefficients = fit_chebyshev(nodes, logit, n_terms)
    return torch.sigmoid(chebyshev(coefficients, _to_unit(d_star_cubed, low, high)))


def kernel_width(n, n_free, low, high, reflections_per_kernel):
    """Width in d*^3 that holds about that many free reflections."""
    per_bin = reflections_per_kernel * (n / n_free if n_free else 1)
    per_bin = min(n, int(math.floor(per_bin + 0.5)))
    return (high - low) / max(1, n / max(1, per_bin))


class _Likelihood:
    """The weighted log-likelihood of the free reflections as a function of sigmaA."""

    def __init__(self, e_obs, e_calc, centric, d_star_cubed, width):
        e_obs, e_calc = e_obs.clamp(min=1e-3), e_calc.clamp(min=1e-3)
        # Acentric and centric reflections apart, each still sorted by resolution.
        self.parts = [(centric_part, e_obs[chosen], e_calc[chosen], d_star_cubed[chosen])
                      for centric_part, chosen in ((False, ~centric), (True, centric))]
        self.width = width

    @staticmethod
    def distinct(nodes):
        """The nodes as the estimator sees them: one within 1e-5 of the last is taken for it."""
        current = -1.0
        for node in nodes:
            if abs(node - current) > _SAME_NODE:
                current = float(node)
            yield current

    def most_likely(self, node):
        """sigmaA at a node of d*^3 (float)."""
        terms = []
        for centric, e_obs, e_calc, x in self.parts:
            part = _reach(x, np.array([node]), self.width)[0]
            eo, ec = e_obs[part], e_calc[part]
            weight = ((x[part] - node) / self.width).square().mul(-0.5).exp()
            sums = torch.stack([weight.sum(), weight @ eo.square(), weight @ ec.square(), weight @ eo.log()]).tolist()
            terms.append((centric, weight, eo * ec, sums))

        def evaluate(x):
            growth = math.exp(-x[0])
            s = _LOW + (_HIGH - _LOW) / (1.0 + growth)
            slope = (_HIGH - _LOW) * growth / (1.0 + growth) ** 2
            value, gradient = _sum(terms, s)
            return -value, np.array([-gradient * slope])

        last, lowest, failed = minimize(evaluate, [-1.0], max_iterations=100)
        x = float((lowest if failed else last)[0])
        return _LOW + (_HIGH - _LOW) / (1.0 + math.exp(-x))


def _sum(terms, s):
    """Log-likelihood and its derivative with respect to sigmaA = s."""
    square = s * s
    r = 1.0 / (1.0 - square)
    value = gradient = 0.0
    for centric, weight, product, (w, eo2, ec2, log_eo) in terms:
        if not len(weight):
            continue
        if centric:
            x = product * (s * r)
            log_cosh = torch.where(x > 40, x * 0.999921 - 0.65543, x.clamp(max=40).cosh().log())
            spread, slope = torch.stack([weight @ log_cosh, (weight * product) @ x.tanh()]).tolist()
            value += 0.5 * (w * (math.log(2 / math.pi) + math.log(r)) - (eo2 + square * ec2) * r) + spread
            gradient += s * r * w - s * (eo2 + ec2) * r * r + (1 + square) * r * r * slope
        else:
            ratio, log_i0 = i1_over_i0_and_log_i0(product * (2 * s * r))
            spread, slope = torch.stack([weight @ log_i0, (weight * product) @ ratio]).tolist()
            value += w * (math.log(2) + math.log(r)) + log_eo - (eo2 + square * ec2) * r + spread
            gradient += 2 * s * r * w - 2 * s * (eo2 + ec2) * r * r + 2 * (1 + square) * r * r * slope
    return value, gradient
