"""The scales of F_model = k_exp k_iso k_aniso (F_calc + k_mask F_mask) that mmtbx finds, by the same greedy
path.

Cycle 0 twice fits the overall exponential scale, k_mask in each bin by a grid, and the exponential again;
later cycles refine k_mask around an analytical solution, with k_iso the scale of each bin.  Every cycle ends
with the anisotropic scale.  A step is kept when it lowers R(work), and cycles end when R does.

References: Afonine et al. (2013), Acta Cryst. D69, 625; ``mmtbx.bulk_solvent.scaler.run``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ..crystal import Crystal
from . import bulk
from .anisotropic import AnisotropicScale
from .binning import Segments
from .isotropic import fit_logarithm, search_b
from .residual import binned_r_factor, binned_residual, binned_scale, r_factor, scale

_B_LIMIT = -100
_MAX_CYCLES = 100
_CONVERGED = 1e-4
_LEAST_MASK = 1e-9


@dataclasses.dataclass(eq=False)
class ScalingSet:
    """Reflections in the order in which they are scaled, and their bins.

    First the work reflections, then the rest of those in use, then the ones left out, each by resolution.

    Attributes
    ----------
    f_obs, ss : torch.Tensor
        (n,) float64; ss = s^2/4.
    n_work, n_used : int
    bin_index : torch.Tensor
        (n,) int64.
    work, rest : Segments
        The bins of the first n_work, and of the following n_used - n_work, reflections.
    ss_min, ss_max : list of float
        Of the reflections in use, in each bin.
    anisotropic : AnisotropicScale
    crystal : Crystal
    """

    f_obs: torch.Tensor
    ss: torch.Tensor
    n_work: int
    n_used: int
    bin_index: torch.Tensor
    work: Segments
    rest: Segments
    ss_min: list[float]
    ss_max: list[float]
    anisotropic: AnisotropicScale
    crystal: Crystal


class Scaler:
    """One run of the scaling.

    Parameters
    ----------
    data : ScalingSet
    f_calc, f_mask : torch.Tensor
        (n,) complex128 in the set's order.
    bulk_solvent, anisotropic_scaling : bool
        Whether to determine these scales.
    mates : tuple, optional
        F_calc and F_mask of the twin mates, and the fraction of the second domain.

    Attributes
    ----------
    k_isotropic_exp, k_isotropic, k_anisotropic, k_mask : torch.Tensor
        (n,) the result.
    r_work : float
        Over the reflections that were fitted.
    cycles : list of (str, float)
        What was done, and R after it.
    """

    def __init__(
        self,
        data: ScalingSet,
        f_calc: torch.Tensor,
        f_mask: torch.Tensor,
        bulk_solvent: bool = True,
        anisotropic_scaling: bool = True,
        mates: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> None:
        self.data = data
        self.square, self.product, self.mask_square = _products(f_calc, f_mask)
        if mates is not None:
            second = _products(*mates[:2])
            own = (self.square, self.product, self.mask_square)
            both = ((1 - mates[2]) * a + mates[2] * b for a, b in zip(own, second, strict=True))
            self.square, self.product, self.mask_square = both
        self.bulk_solvent = bulk_solvent and bool((self.mask_square[: data.n_used] != 0).any())
        self.try_anisotropic = anisotropic_scaling
        self.try_minimized = False
        self.u_minimized = [0.0] * 6
        ones = torch.ones_like(data.f_obs)
        self.k_isotropic_exp, self.k_isotropic, self.k_anisotropic = ones, ones, ones
        self.k_mask = torch.zeros_like(ones)
        self.cycles: list[tuple[str, float]] = []
        self._find_mask_bins()
        self._without_mask = self.square.sqrt()
        self._model = self._without_mask
        self._exponentials: tuple[torch.Tensor | None, list[torch.Tensor]] = (None, [])
        self._k_mask_bins: list[float] | None = None
        self._f_obs_work = data.f_obs[: data.n_work]
        self._ss_work = data.ss[: data.n_work]
        self._run()

    def _find_mask_bins(self) -> None:
        """How many bins, from low resolution, hold all the reflections with a solvent contribution."""
        data = self.data
        present = data.bin_index[: data.n_used][self.mask_square[: data.n_used] != 0]
        self.n_mask_bins = int(present.max()) + 1 if len(present) else 0
        self.mask_bins = data.work.first(self.n_mask_bins)
        self.n_mask_work = self.mask_bins.offsets[-1]

    # Amplitudes and R factors

    def _amplitude(self, k_mask: torch.Tensor) -> torch.Tensor:
        """|F_calc + k_mask F_mask|, (n,)."""
        # Most reflections of high-resolution data have no solvent contribution.
        n_work = self.data.n_work
        result = self._without_mask.clone()
        for part in (slice(0, self.n_mask_work), slice(n_work, None)):
            result[part] = bulk.amplitude(self.square[part], self.product[part], self.mask_square[part], k_mask[part])
        return result

    def _overall(self) -> torch.Tensor:
        return self.k_isotropic_exp * self.k_isotropic * self.k_anisotropic

    def _r(self, k: torch.Tensor | None = None, model: torch.Tensor | None = None) -> float:
        """R(work) of k |F_calc + k_mask F_mask|, by default as they are."""
        n = self.data.n_work
        k = self._overall() if k is None else k
        model = self._model if model is None else model
        return float(r_factor(self._f_obs_work, k[:n] * model[:n]))

    # The cycles

    def _run(self) -> None:
        for cycle in range(_MAX_CYCLES):
            r = r_start = self._r()
            if self.bulk_solvent:
                if cycle == 0:
                    for _ in range(2):
                        r = self._fit_exponential(r)
                        r = self._search_k_mask(r)
                        r = self._fit_exponential(r)
                else:
                    r = self._refine_k_mask(r)
                self.cycles.append(("bulk solvent", r))
            if self.try_anisotropic:
                r = self._fit_anisotropic(r)
                self.cycles.append(("anisotropic scale", r))
            if self._converged(r_start):
                break
        n = self.data.n_work
        k = scale(self._f_obs_work, (self._overall() * self._model)[:n])
        self.k_isotropic = self.k_isotropic * k
        self.r_work = self._r()

    def _converged(self, r_start: float) -> bool:
        r = self._r()
        return r_start <= r or abs(r_start - r) < _CONVERGED or abs(round(r_start, 4) - round(r, 4)) < _CONVERGED

    def _fit_exponential(self, r_start: float) -> float:
        """k_isotropic_exp from the model with no other scale, if that lowers R."""
        data = self.data
        if self._exponentials[0] is not self.k_mask:
            model = self._model[: data.n_work]
            straight = fit_logarithm(self._f_obs_work, model, self._ss_work)
            fits = []
            if straight[1] >= _B_LIMIT:
                fits = [straight, search_b(self._f_obs_work, model, self._ss_work)]
            # Nothing but k_mask enters, so that the fits hold until it changes.
            self._exponentials = (self.k_mask, [k * (-b * data.ss).exp() for k, b in fits])
        if not self._exponentials[1]:
            return r_start
        others = self.k_isotropic * self.k_anisotropic
        first, second = self._exponentials[1]
        r1, r2 = self._r(first * others), self._r(second * others)
        r, k = (r1, first) if r1 < r2 else (r2, second)
        if r < r_start:
            self.k_isotropic_exp = k
        return self._r()

    def _total_scale(self) -> torch.Tensor:
        """All scales but k_mask, put on the scale of F_obs by all reflections in use, (n,)."""
        n = self.data.n_used
        k = self._overall()
        return k * scale(self.data.f_obs[:n], (k * self._model)[:n])

    def _r_without_solvent(self, f_obs: torch.Tensor, model: torch.Tensor) -> list[float]:
        """(n_bins,) R of the model without solvent over all reflections in use; list of float."""
        data = self.data
        parts = ((slice(0, data.n_work), data.work), (slice(data.n_work, data.n_used), data.rest))

        def total(values: torch.Tensor) -> torch.Tensor:
            return torch.stack([segments.sum(values[part]) for part, segments in parts]).sum(0)

        denominator = total(model * model)
        k = torch.where(denominator == 0, 0.0, total(f_obs * model) / denominator)
        residual = sum(binned_residual(f_obs[part], model[part], k, segments) for part, segments in parts)
        return (residual / total(f_obs)).tolist()

    def _search_k_mask(self, r_start: float) -> float:
        """k_mask and the scale of each bin by a grid."""
        data, n = self.data, self.data.n_work
        f_obs = data.f_obs / self._total_scale()
        r_limit = self._r_without_solvent(f_obs, self._without_mask)
        scales = binned_scale(f_obs[:n], self._without_mask[:n], data.work)
        r_bins = binned_residual(f_obs[:n], self._without_mask[:n], scales, data.work) / data.work.sum(f_obs[:n])
        k_overall = [
            k if r < limit - bulk.TIE else 1.0 for k, r, limit in zip(scales.tolist(), r_bins.tolist(), r_limit)
        ]
        k_bins = [0.0] * data.work.n
        trials = bulk.mask_range(0, 1010, 10)
        for i, part in enumerate(self.mask_bins):
            k_bins[i], k_overall[i] = bulk.search(
                f_obs[part], self.square[part], self.product[part], self.mask_square[part], trials, r_limit[i]
            )
        smoothed = bulk.smooth(k_bins, data.ss_max)
        k_mask = self._interpolate(smoothed)
        k_isotropic = self._spread(k_overall)
        if self._accept(k_mask, k_isotropic, r_start):
            self._k_mask_bins = k_bins
        return self._r()

    def _refine_k_mask(self, r_start: float) -> float:
        """k_mask of each bin near the better of the previous grid's and the analytical one."""
        data, m = self.data, self.n_mask_work
        total = self._total_scale()
        f_obs = data.f_obs
        r_limit = self._r_without_solvent(f_obs, total * self._without_mask)
        t = total[:m].square()
        square, product, mask_square = (x[:m] * t for x in (self.square, self.product, self.mask_square))
        best = self._analytical(f_obs[:m], square, product, mask_square)
        if self._k_mask_bins is not None:
            previous = self._k_mask_bins[: self.n_mask_bins]
            r_previous, r_best = (
                self._r_of_bins(f_obs[:m], square, product, mask_square, k).tolist() for k in (previous, best)
            )
            best = [x0 if r0 <= r1 else x1 for x0, r0, x1, r1 in zip(previous, r_previous, best, r_best)]
        k_bins = [0.0] * data.work.n
        for i, part in enumerate(self.mask_bins):
            k_bins[i], _ = bulk.search(
                f_obs[part], square[part], product[part], mask_square[part], bulk.fine_trials(best[i]), r_limit[i]
            )
        k_mask = self._interpolate(bulk.smooth(k_bins, data.ss_max))
        n = data.n_work
        model = self._amplitude(k_mask)
        scales = binned_scale(f_obs[:n], (self.k_isotropic_exp * self.k_anisotropic * model)[:n], data.work)
        self._accept(k_mask, scales[data.bin_index], r_start, model)
        return self._r()

    def _analytical(
        self, f_obs: torch.Tensor, square: torch.Tensor, product: torch.Tensor, mask_square: torch.Tensor
    ) -> list[float]:
        """k_mask of each bin with solvent, list of float."""
        intensity, u, v, w = f_obs * f_obs, square, 0.5 * product, mask_square
        columns = (
            u * intensity,
            2 * v * intensity,
            w * intensity,
            intensity * intensity,
            u * v,
            2 * v * v + u * w,
            3 * v * w,
            w * w,
            v * intensity,
        )
        sums = torch.stack([self.mask_bins.sum(c) for c in columns], 1).tolist()
        roots = [bulk.analytical_roots(row) for row in sums]
        for i, part in enumerate(self.mask_bins):
            # A bin that the mask reaches only in part is left to the grid.
            if not len(f_obs[part]) or float(mask_square[part].min().sqrt()) <= _LEAST_MASK:
                roots[i] = [0.0]
        lowest, best = [1e9] * len(roots), [0.0] * len(roots)
        for j in range(max(map(len, roots), default=0)):
            k = [row[j] if j < len(row) else 0.0 for row in roots]
            for i, r in enumerate(self._r_of_bins(f_obs, square, product, mask_square, k).tolist()):
                if j < len(roots[i]) and r <= lowest[i]:
                    lowest[i], best[i] = r, k[i]
        return best

    def _r_of_bins(
        self,
        f_obs: torch.Tensor,
        square: torch.Tensor,
        product: torch.Tensor,
        mask_square: torch.Tensor,
        k_mask: Sequence[float],
    ) -> torch.Tensor:
        """(n_mask_bins,) R in each bin with one k_mask in each."""
        model = bulk.amplitude(square, product, mask_square, self.mask_bins.spread(k_mask))
        return binned_r_factor(f_obs, model, self.mask_bins)

    def _interpolate(self, k_bins: list[float]) -> torch.Tensor:
        """k_mask of every reflection: constant in a bin or on the line to the next, whichever has the lower R."""
        data, m = self.data, self.n_mask_work
        slopes, intercepts = bulk.lines(k_bins, data.ss_min, data.ss_max)
        f_obs, square, product, mask_square = (x[:m] for x in (data.f_obs, self.square, self.product, self.mask_square))
        k = self._overall()[:m]
        segments = self.mask_bins

        def r(k_mask: torch.Tensor) -> list[float]:
            return binned_r_factor(f_obs, k * bulk.amplitude(square, product, mask_square, k_mask), segments).tolist()

        line = (segments.spread(slopes[: segments.n]) * data.ss[:m] + segments.spread(intercepts[: segments.n])).clamp(
            min=0
        )
        r_lines, r_constants = r(line), r(segments.spread(k_bins[: segments.n]))
        for i in range(len(k_bins)):
            if i >= segments.n or not r_lines[i] < r_constants[i]:
                slopes[i], intercepts[i] = 0.0, k_bins[i]
        return (self._spread(slopes) * data.ss + self._spread(intercepts)).clamp_(min=0)

    def _spread(self, values: Sequence[float]) -> torch.Tensor:
        """(n,) values of the bins, list of float, at every reflection."""
        return torch.tensor(values, dtype=torch.float64, device=self.data.ss.device)[self.data.bin_index]

    def _accept(
        self, k_mask: torch.Tensor, k_isotropic: torch.Tensor, r_start: float, model: torch.Tensor | None = None
    ) -> bool:
        """Keep k_mask and k_isotropic when they lower R; whether they did."""
        model = self._amplitude(k_mask) if model is None else model
        accepted = self._r(self.k_isotropic_exp * k_isotropic * self.k_anisotropic, model) < r_start
        if accepted:
            self.k_mask, self.k_isotropic, self._model = k_mask, k_isotropic, model
        return accepted

    def _fit_anisotropic(self, r_start: float) -> float:
        """The best of the anisotropic scales, if it lowers R."""
        data, n, fits = self.data, self.data.n_work, self.data.anisotropic
        others = self.k_isotropic_exp * self.k_isotropic
        f_obs, model = self._f_obs_work, (others * self._model)[:n]

        def trial(k: torch.Tensor) -> tuple[float, torch.Tensor]:
            return self._r(k * others), k

        exponential = trial(fits.exponential(fits.fit_exponential(f_obs, model)))
        polynomial = trial(fits.polynomial(fits.fit_polynomial(f_obs, model)))
        trials = [exponential, polynomial]
        forced = polynomial[0] < exponential[0] and bool((polynomial[1][: data.n_used] <= 0).any())
        if forced or self.try_minimized:
            self.try_minimized = True
            self.u_minimized = fits.minimize_exponential(f_obs, model, self.u_minimized, data.crystal)
            trials.append(trial(fits.exponential(self.u_minimized)))
            if forced:
                self.k_anisotropic = trials[-1][1]
                return self._r()
        r_best = r_start
        for r, k in trials:
            if r < r_best:
                r_best, self.k_anisotropic = r, k
        return r_best


def _products(f_calc: torch.Tensor, f_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """|F_calc|^2, 2 Re(F_calc F_mask*) and |F_mask|^2."""
    return (
        f_calc.real.square() + f_calc.imag.square(),
        2 * (f_calc.real * f_mask.real + f_calc.imag * f_mask.imag),
        f_mask.real.square() + f_mask.imag.square(),
    )
