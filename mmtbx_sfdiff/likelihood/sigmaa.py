"""sigmaA, the correlation of observed and calculated normalised amplitudes, as a function of resolution.

At 20 Chebyshev nodes in d*^3 sigmaA maximises the likelihood of the free reflections around, weighted by a
Gaussian kernel; a Chebyshev polynomial is then fitted to its logit.  With sigmaA = s:

    acentric  ln p(Eo|Ec) = ln[2 Eo / (1 - s^2)] - (Eo^2 + s^2 Ec^2) / (1 - s^2) + ln I0[2 s Eo Ec / (1 -
    s^2)] centric   ln p(Eo|Ec) = 1/2 ln[2 / pi(1 - s^2)] - (Eo^2 + s^2 Ec^2) / 2(1 - s^2) + ln cosh[s Eo Ec /
    (1 - s^2)]

References: Read (1986), Acta Cryst. A42, 140; Read (1999), Acta Cryst. D55, 1759;
``mmtbx.scaling.sigmaa_estimation``, ``mmtbx/scaling/outlier.h``.
"""

from __future__ import annotations

import math

import torch

import numpy as np

from ..numerics.lbfgs import path
from .bessel import i1_over_i0_and_log_i0
from .normalization import _reach, _to_unit, chebyshev, chebyshev_nodes, fit_chebyshev

_N_NODES = 20
_LOW, _HIGH = 0.01, 0.99
_SAME_NODE = 1e-5
_REACH = 7.0  # Kernel widths beyond which exp(-x^2/2) < 3e-11.


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
    low, high = low * 0.99, high * 1.01
    nodes = chebyshev_nodes(_N_NODES, low, high)
    likelihood = _Likelihood(e_obs[free], e_calc[free], centric[free], d_star_cubed[free], width, _distinct(nodes))
    at_nodes = likelihood.most_likely()
    logit = -np.log(1.0 / at_nodes - 1.0)
    coefficients = fit_chebyshev(nodes, logit, n_terms)
    return torch.sigmoid(chebyshev(coefficients, _to_unit(d_star_cubed, low, high)))


def kernel_width(n, n_free, low, high, reflections_per_kernel):
    """Width in d*^3 that holds about that many free reflections."""
    per_bin = reflections_per_kernel * (n / n_free if n_free else 1)
    per_bin = min(n, int(math.floor(per_bin + 0.5)))
    return (high - low) / max(1, n / max(1, per_bin))


def _distinct(nodes):
    """The nodes as the estimator sees them: one within 1e-5 of the last is taken for it."""
    current, result = -1.0, []
    for node in nodes.tolist():
        if abs(node - current) > _SAME_NODE:
            current = node
        result.append(current)
    return np.array(result)


class _Likelihood:
    """Weighted log-likelihoods of the free reflections around nodes, as functions of the sigmaA at each.

    A node's reflections are a row, padded with weight 0: all nodes are minimised together, each along its own
    path.
    """

    def __init__(self, e_obs, e_calc, centric, d_star_cubed, width, nodes):
        e_obs, e_calc = e_obs.clamp(min=1e-3), e_calc.clamp(min=1e-3)
        self.n = len(nodes)
        self.parts = []
        for is_centric, chosen in ((False, ~centric), (True, centric)):
            eo, ec, x = e_obs[chosen], e_calc[chosen], d_star_cubed[chosen]
            slices = _reach(x, nodes, width, _REACH)
            longest = max(part.stop - part.start for part in slices)
            if not longest:
                continue
            first = torch.tensor([part.start for part in slices], device=x.device)[:, None]
            count = torch.tensor([part.stop - part.start for part in slices], device=x.device)[:, None]
            column = torch.arange(longest, device=x.device)
            index = torch.where(column < count, first + column, 0)
            at = torch.as_tensor(nodes, device=x.device)[:, None]
            weight = torch.where(column < count, ((x[index] - at) / width).square().mul(-0.5).exp(), 0.0)
            sums = torch.stack(
                [weight.sum(1), *((weight * value[index]).sum(1) for value in (eo.square(), ec.square(), eo.log()))], 1
            )
            self.parts.append((is_centric, weight, (eo * ec)[index], sums.cpu().numpy()))

    def most_likely(self):
        """(n_nodes,) sigmaA, NumPy."""
        paths = [path([-1.0], max_iterations=100) for _ in range(self.n)]
        points = {i: next(p) for i, p in enumerate(paths)}
        result = np.zeros(self.n)
        parts, rows = self.parts, list(points)
        while points:
            active = list(points)
            if 2 * len(active) <= len(rows):
                parts = [(c, w[active], p[active], sums[active]) for c, w, p, sums in self.parts]
                rows = active
            x = np.array([float(points[i][0]) if i in points else -1.0 for i in rows])
            growth = np.exp(-x)
            s = _LOW + (_HIGH - _LOW) / (1.0 + growth)
            slope = (_HIGH - _LOW) * growth / (1.0 + growth) ** 2
            values, gradients = _sum(parts, s)
            for row, i in enumerate(rows):
                if i not in points:
                    continue
                try:
                    points[i] = paths[i].send((-float(values[row]), -gradients[row : row + 1] * slope[row]))
                except StopIteration as end:
                    last, lowest, failed = end.value
                    result[i] = (lowest if failed else last)[0]
                    del points[i]
        return _LOW + (_HIGH - _LOW) / (1.0 + np.exp(-result))


def _sum(parts, s):
    """(n_nodes,) log-likelihoods and their derivatives with respect to sigmaA, at s (n_nodes,); NumPy."""
    square = s * s
    r = 1.0 / (1.0 - square)
    values, gradients = np.zeros(len(s)), np.zeros(len(s))
    for is_centric, weight, product, (w, eo2, ec2, log_eo) in ((*part[:3], part[3].T) for part in parts):
        factor = torch.as_tensor(s * r * (1 if is_centric else 2), device=product.device)[:, None]
        x = product * factor
        if is_centric:
            log_term = torch.where(x > 40, x * 0.999921 - 0.65543, x.clamp(max=40).cosh().log())
            ratio = x.tanh()
        else:
            ratio, log_term = i1_over_i0_and_log_i0(x)
        spread = torch.linalg.vecdot(weight, log_term).cpu().numpy()
        slope = torch.linalg.vecdot(weight, ratio.mul_(product)).cpu().numpy()
        if is_centric:
            values += 0.5 * (w * (math.log(2 / math.pi) + np.log(r)) - (eo2 + square * ec2) * r) + spread
            gradients += s * r * w - s * (eo2 + ec2) * r * r + (1 + square) * r * r * slope
        else:
            values += w * (math.log(2) + np.log(r)) + log_eo - (eo2 + square * ec2) * r + spread
            gradients += 2 * s * r * w - 2 * s * (eo2 + ec2) * r * r + 2 * (1 + square) * r * r * slope
    return values, gradients
