"""Normalised intensities: I / <I>, with <I> a smooth function of resolution.

<I> is averaged with a Gaussian kernel in d*^2 at 23 Chebyshev nodes, and a Chebyshev polynomial of 13 terms
is fitted to its logarithm.  The kernel is narrow, so each node sees a slice of the reflections, which come
sorted by d*^2.

Reference: ``mmtbx.scaling.absolute_scaling.kernel_normalisation`` (auto_kernel=True),
``scitbx.math.chebyshev_lsq_fit``.
"""

from __future__ import annotations

import torch

import numpy as np

from ..numerics.lbfgs import minimize

N_NODES = 23
N_TERMS = 13
_N_LOWEST = 50  # The kernel is as wide as the range of this many reflections of lowest resolution.
_REACH = 9.0  # Kernel widths beyond which exp(-x^2/2) < 3e-18.
_LEAST_WEIGHT = 1e-8
_LEAST_INTENSITY = 1e-16


class ResolutionKernel:
    """Averages over resolution for one set of reflections.

    Parameters
    ----------
    d_star_sq : torch.Tensor
        (n,) Å^-2, ascending.

    Raises
    ------
    ValueError
        Fewer than two reflections, or all of the same resolution.
    """

    def __init__(self, d_star_sq):
        n = len(d_star_sq)
        if n < 2:
            raise ValueError("At least two reflections are needed to normalise intensities.")
        self.d_star_sq = d_star_sq
        self.low, self.high = d_star_sq[[0, -1]].tolist()
        number = min(_N_LOWEST, n - 1)
        self.width = float(d_star_sq[number]) - self.low
        step = number
        while self.width == 0 and number < n / 2:
            number += step
            self.width = float(d_star_sq[min(number, n - 1)]) - self.low
        if self.width <= 0:
            raise ValueError("The reflections have too few different resolutions to normalise intensities.")
        self.nodes = chebyshev_nodes(N_NODES, self.low, self.high)
        self.slices = _reach(d_star_sq, self.nodes, self.width)
        self._weights = [self._weight(node, part) for node, part in zip(self.nodes, self.slices)]
        totals = torch.stack([w.sum() for w in self._weights]).tolist()
        for i, total in enumerate(totals):
            if total < 1e-6:
                # No data near this node: what little weight there is comes from afar.
                self.slices[i] = slice(0, n)
                self._weights[i] = self._weight(self.nodes[i], self.slices[i])
                totals[i] = float(self._weights[i].sum())
        self.totals = np.maximum(totals, _LEAST_WEIGHT)
        self._x = _to_unit(d_star_sq, self.low, self.high)

    def _weight(self, node, part):
        x = (self.d_star_sq[part] - node) / self.width
        return (x * x * -0.5).exp()

    def mean(self, intensities):
        """<I> at the resolution of every reflection; intensities (n,) already divided by epsilon.

        Raises
        ------
        ValueError
            When more than half of the nodes see no intensity.
        """
        sums = torch.stack([w @ intensities[part] for w, part in zip(self._weights, self.slices)])
        at_nodes = sums.cpu().numpy() / self.totals
        used = at_nodes > _LEAST_INTENSITY
        if used.sum() < N_NODES / 2:
            raise ValueError(
                "More than half of the resolution range has mean intensities below 1e-16: the resolution "
                "limit is too high, or the data contain zeros where nothing was measured."
            )
        coefficients = fit_chebyshev(self.nodes[used], np.log(at_nodes[used]), N_TERMS)
        return chebyshev(coefficients, self._x).exp()


def _reach(x, nodes, width, reach=_REACH):
    """Slices of sorted x that kernels at the nodes reach."""
    edges = torch.as_tensor(np.stack([nodes - reach * width, nodes + reach * width]), device=x.device)
    first, last = torch.searchsorted(x, edges).tolist()
    return [slice(a, b) for a, b in zip(first, last)]


def chebyshev_nodes(n, low, high):
    """Chebyshev nodes stretched so that the first and last are the limits, (n,) float64 NumPy."""
    x = -np.cos((2.0 * (np.arange(n) + 1.0) - 1.0) / n * np.pi / 2.0)
    x = x / ((x.max() - x.min()) / 2.0)
    nodes = 0.5 * (low + high) + 0.5 * (high - low) * x
    nodes[0], nodes[-1] = low, high
    return nodes


def fit_chebyshev(x, y, n_terms):
    """Coefficients of the Chebyshev polynomial over [min(x), max(x)], as cctbx's minimiser leaves them."""
    unit = _to_unit(x, x.min(), x.max())
    basis = np.cos(np.arange(n_terms)[:, None] * np.arccos(np.clip(unit, -1.0, 1.0)))
    basis[0] = 0.5

    def evaluate(coefficients):
        residual = y - coefficients @ basis
        return float(residual @ residual), -2.0 * (basis @ residual)

    start = np.zeros(n_terms)
    start[0] = 2.0 * y.mean()
    last, lowest, failed = minimize(evaluate, start)
    return lowest if failed else last


def chebyshev(coefficients, x):
    """The polynomial at x in [-1, 1], by Clenshaw's recurrence; coefficient 0 counts half."""
    d, dd = torch.zeros_like(x), torch.zeros_like(x)
    twice = 2 * x
    for c in coefficients[:0:-1].tolist():
        d, dd = torch.addcmul(c - dd, twice, d), d
    return torch.addcmul(0.5 * float(coefficients[0]) - dd, x, d)


def _to_unit(x, low, high):
    return (x - (low + high) * 0.5) / (0.5 * (high - low)) if high != low else x * 0
