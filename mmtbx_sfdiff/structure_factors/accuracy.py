"""How finely to sample and where to end Gaussians, so that structure factors by FFT have a requested error.

Every Gaussian term of an atom, exp(-e tau) with tau = s^2 / s_max^2, e = (b + B) s_max^2 / 4, is put on the
grid as exp(-(e - p) tau) and the transform is multiplied by q = exp(-p tau).  The number p, the sharpening,
is the usual "extra B" with its sign turned (p = -B_extra s_max^2 / 4).  Two errors remain, of which the mean
square over the reflections and over positions in the grid is, for an atom of weight w,

    alias:       w^2 < q^2 sum_G [ sum_k alpha_k exp(-(e_k - p) tau(s + G)) ]^2 >                            (1)
    truncation:  w^2 < q^2 sum_G [ sum_k alpha_k Phi(c_k, sqrt((e_k - p) tau(s + G))) ]^2 >, G = 0 included  (2)

over the reciprocal lattice of the grid, reflections weighted by :func:`multiplicities`, with Phi the
transform of the part of a Gaussian beyond the radius at which its exponent reaches c.  Errors of different
atoms add in the mean square, like the structure factors themselves.  The same averages with factors
tau(s + G) and tau(s + G)^2 are the errors of the gradients in positions and in B.  Each is relative to the
same average of the atoms' own contributions.  F is calculated with a setting of its own, in which its error
counts; gradients with another, in which the largest counts of those that are asked for.

The sharpening is then the largest p for which (1) takes its share of the request, and c of every term follows
from (2). Derived in docs/fft.rst.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch

import numpy as np

from ..kernels.cpu.histogram import mean_squares, sharpest
from ..plans.cache import Kept

# Tabulated exponents E = B s_max^2 / 4 of the atoms: E_i = E_FIRST + E_SCALE (E_GROWTH^i - 1).
E_FIRST, E_GROWTH, E_SCALE, N_E = -1.0, 1.12, 1.5, 46
# Ladder of sharpenings, from strong blurring upwards.
SHARPENINGS = np.arange(-14.0, 6.01, 0.25)
# Aim at this multiple of the requested error, and give aliasing this share of its square.  A row of the
# compiled kernels runs on to a multiple of eight points, beyond the cut: what they meet is a third to a half
# of what is counted here.
_AIM, _ALIAS_SHARE = 0.6, 0.35
_CUTS = np.arange(0.5, 30.01, 0.5)
_Y_STEP, _Y_MAX = 0.05, 20.0
_N_NODES, _N_ALIAS_BINS = 16, 120
# Reflections for which aliasing is averaged: those nearest to their images, and a sample of the others.
_N_NEAREST, _N_SAMPLES = 300, 640
_LEVELS = np.linspace(-22.0, 4.0, 53)
_WIDTHS = np.geomspace(0.02, 400.0, 40)


def exponent_bins(exponents):
    """Position of exponents E (numpy or torch) on the tabulated grid, as a fraction."""
    log = exponents.log if hasattr(exponents, "log") else None
    scaled = (exponents - E_FIRST) / E_SCALE + 1
    if log is None:
        return np.log(np.maximum(scaled, 1.0)) / math.log(E_GROWTH)
    return scaled.clamp(min=1.0).log() / math.log(E_GROWTH)


def multiplicities(plan):
    """Weights of a Miller plan's unique indices in the mean square of F, (n_unique,) numpy.

    F(h) is the sum over the operators of exp(2 pi i h.t) E(h R): where epsilon operators leave h unchanged,
    or their translations make it absent, E(h R) counts epsilon^2 times, or not at all; each E counts once for
    every reflection that it is an equivalent of.
    """
    same = (plan.gather == plan.gather[0]) & (plan.conjugate == plan.conjugate[0])
    size = (plan.phase[0].abs() ** 2).clamp(min=1e-30)
    epsilon = ((plan.phase * plan.phase[0].conj()).real * same).sum(0).clamp(min=0) / size
    epsilon = epsilon * (plan.phase[0].abs() > 1e-6)
    weights = (
        torch.bincount(plan.gather.flatten(), epsilon.expand(plan.gather.shape).flatten(), minlength=len(plan.indices))
        .cpu()
        .numpy()
    )
    return weights if weights.sum() > 0 else np.ones_like(weights)


@functools.lru_cache(maxsize=1)
def exponent_grid():
    return E_FIRST + E_SCALE * (E_GROWTH ** np.arange(N_E) - 1)


@functools.lru_cache(maxsize=1)
def _truncation_transforms():
    """Phi(c, y) = 4/sqrt(pi) int_{sqrt c}^inf x^2 exp(-x^2) sinc(2 x y) dx on the grids of c and y."""
    y = np.arange(0.0, _Y_MAX + _Y_STEP, _Y_STEP)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    result = np.empty((len(_CUTS), len(y)))
    for i, c in enumerate(_CUTS):
        start = math.sqrt(c)
        length = 9.0 / (start + 1.5)
        x, w = start + (nodes + 1) / 2 * length, weights / 2 * length
        kernel = np.sinc(2 * y[:, None] * x / math.pi)
        result[i] = 4 / math.sqrt(math.pi) * kernel @ (w * x * x * np.exp(-x * x))
    return result


def alias_bound(accuracy):
    """Mean square of aliasing, over that of what is calculated, that is aimed at."""
    return _ALIAS_SHARE * (_AIM * accuracy) ** 2


def largest_alias(accuracy):
    """The same at which the accuracy is just met, when the other errors take what was left to them."""
    return (1 - (1 - _ALIAS_SHARE) * _AIM**2) * accuracy**2


class ErrorModel:
    """Errors of Gaussians on one grid, for one set of reflections and one table of form factors.

    Parameters
    ----------
    indices : numpy.ndarray
        (n, 3) Miller indices.
    d_star_sq : numpy.ndarray
        (n,) d*^2 of the reflections, Å^-2.
    multiplicities : numpy.ndarray
        (n,) what the mean square of the asymmetric unit's sum at each index counts for in the result, from
        :func:`multiplicities`.
    reciprocal_basis : numpy.ndarray
        (3, 3), rows a*, b*, c* in Å^-1.
    grid : tuple of int
        Numbers of grid points along a, b, c.
    alphas, exponents : numpy.ndarray
        (n_types, n_terms) terms alpha exp(-exponent tau) of the form factors, constant terms with exponent
        zero.
    """

    def __init__(self, indices, d_star_sq, multiplicities, reciprocal_basis, grid, alphas, exponents):
        self.s_sq = float(d_star_sq.max())
        counts = np.histogram(d_star_sq / self.s_sq, bins=_N_NODES, range=(0, 1), weights=multiplicities)[0]
        self.weights = (counts + 1e-6 * counts.sum()) / (counts.sum() * (1 + 1e-6 * _N_NODES))
        self.tau = (np.arange(_N_NODES) + 0.5) / _N_NODES
        self._sample_aliases(indices, d_star_sq, multiplicities, reciprocal_basis, grid)
        bins = exponent_grid()
        # The last row is a constant, for f' and f''.
        alphas = np.vstack([alphas, np.eye(1, alphas.shape[1])])
        exponents = np.vstack([exponents, np.zeros((1, alphas.shape[1]))])

        def factors(tau):
            return (alphas[:, :, None] * np.exp(-exponents[:, :, None] * tau)).sum(1)

        inside = factors(self.tau) ** 2 * self.weights
        decay = np.exp(-2 * bins[:, None] * self.tau)
        powers = np.stack([np.ones_like(self.tau), self.tau, self.tau**2])
        #  Mean squares of an atom's contributions to F, to the position and to the B gradient, (3, n_types +
        # 1, N_E).
        self.norms = np.einsum("mr,tr,er->mte", powers, inside, decay)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            outside = factors(self.alias_tau)
            squares = (outside * outside)[:, None] * np.stack(
                [np.ones_like(self.alias_tau), self.alias_tau, self.alias_tau**2]
            )
            growth = 2 * SHARPENINGS[:, None] * self.alias_tau
            kernel = np.exp(np.minimum(growth[:, None, :] - 2 * bins[:, None] * self.alias_tau, 300.0))
            kernel *= self.alias_weights[:, None, :]
            #: The same of equation 1, (n_sharpenings, 3, n_types + 1, N_E).
            self.aliases = np.einsum("pes,tms->pmte", kernel, squares, optimize=True)
        # White rounding noise of the grid, seen through q: its mean square over the share of the spectrum
        # that the band fills, per unit of what the atoms put there.
        filled = 4 / 3 * math.pi * self.s_sq**1.5 / abs(np.linalg.det(reciprocal_basis)) / math.prod(grid)
        noise = (np.exp(-2 * SHARPENINGS[:, None] * self.tau) @ self.weights) * filled
        blurred = np.einsum(
            "r,pr,tr,er->pte",
            self.weights,
            np.exp(2 * SHARPENINGS[:, None] * self.tau),
            factors(self.tau) ** 2,
            np.exp(-2 * bins[:, None] * self.tau),
            optimize=True,
        )
        #: Mean squares of rounding noise, for a relative rounding of 1, (n_sharpenings, n_types + 1, N_E).
        self.noises = noise[:, None, None] * blurred
        self._cut_tables = Kept(64)

    def _sample_aliases(self, indices, d_star_sq, multiplicities, reciprocal_basis, grid):
        """tau(s + G) of a sample of the reflections, binned; the weight of a bin has q^2 in it, for every p.

        Sets ``alias_tau`` (n_bins,) and ``alias_weights`` (n_sharpenings, n_bins).
        """
        rng = np.random.default_rng(0)
        # Few reflections are close to an image of the atoms' spectrum, and they make most of the error.
        walls = np.asarray(grid)[:, None] * reciprocal_basis
        along = np.abs(indices @ (reciprocal_basis @ walls.T))
        nearest = d_star_sq + ((walls**2).sum(1) - 2 * along).min(1)
        n = len(nearest)
        order = np.argpartition(nearest, min(_N_NEAREST, n - 1))
        first, others = order[:_N_NEAREST], order[_N_NEAREST:]
        sample = others if len(others) <= _N_SAMPLES else rng.choice(others, _N_SAMPLES, replace=False)
        chosen = np.concatenate([first, sample])
        share = multiplicities[chosen] / multiplicities.sum()
        if len(sample):
            left = multiplicities[others].sum() / multiplicities.sum()
            share[len(first) :] *= left / max(share[len(first) :].sum(), 1e-300)
        vectors = indices[chosen] @ reciprocal_basis
        steps = np.array([m for m in itertools.product(range(-2, 3), repeat=3) if any(m)])
        lattice = (steps * np.asarray(grid)) @ reciprocal_basis
        found = ((vectors[:, None] + lattice) ** 2).sum(-1) / self.s_sq
        near = found < 2.5 * found.min()
        band = np.broadcast_to((d_star_sq[chosen] / self.s_sq)[:, None], found.shape)[near]
        share = np.broadcast_to(share[:, None], found.shape)[near]
        found = found[near]
        bins = ((found / found.min() - 1) / 1.5 * _N_ALIAS_BINS).astype(np.int64)
        bins = np.minimum(bins, _N_ALIAS_BINS - 1)
        counts = np.bincount(bins, minlength=_N_ALIAS_BINS)
        used = counts > 0
        self.alias_tau = np.bincount(bins, found, minlength=_N_ALIAS_BINS)[used] / counts[used]
        self.alias_weights = np.stack(
            [np.bincount(bins, share * np.exp(-2 * p * band), minlength=_N_ALIAS_BINS)[used] for p in SHARPENINGS]
        )

    def sharpening(self, histogram, accuracy, rounding, orders, contributions=None):
        """Number of the sharpest p of the ladder that leaves aliasing its share of the error.

        Parameters
        ----------
        histogram : numpy.ndarray
            (n_types + 1, N_E) sums of squared weights of the atoms; the last row for terms beyond the form
            factors.
        accuracy : float
        rounding : float
            Relative rounding of a value of the grid.
        orders : tuple of int
            Whose errors count: 0 for F, 1 for gradients in positions, 2 for those in displacements.
        contributions : numpy.ndarray, optional
            The histogram that the structure's own contributions are taken from, where it is another.

        Returns
        -------
        index : int
            -1 when no p of the ladder will do: the grid is too coarse.
        norms : numpy.ndarray
            (3,) mean squares of the structure's contributions.
        """
        own = histogram if contributions is None else contributions
        norms = np.empty(3)
        mean_squares(self.norms, own, norms)
        bound = alias_bound(accuracy)
        wanted = tuple(order in orders for order in range(3))
        return sharpest(self.aliases, self.noises, histogram, norms, wanted, rounding, bound), norms

    def cut_table(self, index, norms, orders):
        """Where to end a Gaussian: (table, first log width, step, first level, step).

        The table is over log(e - p) and over level = log(tolerance / |w alpha|), the tolerance in units of F.
        """
        # Ratios of gradient norms on a coarse ladder: the table is then shared by all structures that are
        # alike.
        ratios = tuple(round(4 * math.log2(norms[m] / norms[0])) if m in orders else 0 for m in (1, 2))
        key = (index, ratios, orders)
        widths = [2 ** (r / 4) for r in ratios]
        return self._cut_tables.get(key, lambda: self._make_cut_table(SHARPENINGS[index], widths, orders))

    def _make_cut_table(self, p, ratios, orders):
        tau = np.concatenate([self.tau, self.alias_tau])
        weights = np.concatenate(
            [self.weights * np.exp(-2 * p * self.tau), self.alias_weights[int(np.searchsorted(SHARPENINGS, p))]]
        )
        phi = _truncation_transforms()
        # Thousands of samples are more than a smooth average needs: bins of tau.
        edges = np.linspace(0, math.sqrt(tau.max()) * 1.0001, 161)
        total, _ = np.histogram(np.sqrt(tau), bins=edges, weights=weights)
        root_tau = (edges[1:] + edges[:-1]) / 2
        table = np.empty((len(_WIDTHS), len(_LEVELS)))
        for i, width in enumerate(_WIDTHS):
            y = np.minimum(math.sqrt(width) * root_tau, _Y_MAX - _Y_STEP) / _Y_STEP
            j = y.astype(np.int64)
            values = phi[:, j] * (1 - (y - j)) + phi[:, j + 1] * (y - j)
            error = np.sqrt((values**2) @ total)
            # The derivatives of a Gaussian are larger beyond the cut than the Gaussian, by 2 sqrt(c) and by
            # c.
            larger = {0: 1.0, 1: np.sqrt(_CUTS / (width * ratios[0])), 2: _CUTS / (width * math.sqrt(ratios[1]))}
            worst = np.max([np.broadcast_to(larger[order], _CUTS.shape) for order in orders], axis=0)
            logs = np.minimum.accumulate(np.log(error * worst + 1e-300))
            table[i] = np.interp(-_LEVELS, -logs, _CUTS, left=0.0, right=_CUTS[-1])
            # A term that is below the tolerance even when all of it is left out.
            all_of_it = (np.exp(-2 * (width + p) * self.tau) * self.weights).sum()
            everything = 0.5 * math.log(max(all_of_it, 1e-300))
            table[i][everything + math.log(5.0) < _LEVELS] = -1.0
        return (table, math.log(_WIDTHS[0]), math.log(_WIDTHS[1] / _WIDTHS[0]), _LEVELS[0], _LEVELS[1] - _LEVELS[0])

    @staticmethod
    def tolerance(norms, n_atoms, accuracy, n_terms):
        """Truncation error that every term of every atom may make, in units of F; norms as from
        :meth:`sharpening`."""
        return _AIM * accuracy * math.sqrt((1 - _ALIAS_SHARE) * norms[0] / (n_atoms * n_terms))
