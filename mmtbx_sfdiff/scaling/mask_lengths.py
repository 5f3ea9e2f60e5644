"""The solvent mask's radii and softness learned from the data of one entry.

mmtbx's ``optimize_mask`` tries 225 pairs of r_probe and r_shrink.  F_mask is a smooth function of the probe-shrink mask's
lengths p, so that a handful of masks tell how it changes with all of them, and a Gauss-Newton step where to go.  With k and
F_calc as the scales have them, what is lowered is

    sum over the work set | F_obs - s_b k |F_calc + (k_mask + q_b) F_mask(p)| | / sum F_obs  +  restraint of p

over p and, in each resolution bin b, over s_b and q_b, because the scales follow the mask; only the reflections that have
an F_mask matter.  The absolute values are squares over their present size (iteratively reweighted least squares).  One
Jacobian, by differences, serves for all steps.  The lengths are r_probe, r_shrink, softness and, if asked, a radius for
each frequent element.  The restraint is weak; it keeps apart lengths whose effects on F_mask are nearly the same.

Reference: ``mmtbx.f_model.manager.optimize_mask``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

import numpy as np
import numpy.typing as npt

from ..atoms import Atoms
from ..bulk_solvent import mask_structure_factors, probe_shrink_defaults, solvent_mask
from ..reflections import Reflections
from . import update_all_scales
from .scales import Scales

#: Å; the standard deviation of the restraint, the range, and the difference that gives the Jacobian.
_SPREAD = {"r_probe": 0.3, "r_shrink": 0.3, "softness": 0.4, "element": 0.2}
_LIMITS = {"r_probe": (0.3, 2.0), "r_shrink": (0.1, 2.0), "softness": (0.3, 1.6), "element": (-0.6, 0.6)}
_DIFFERENCE = 0.1
#: Share of the atoms from which on an element has a radius of its own.
_FREQUENT = 0.05
#: Residuals smaller than this share of the median count as much as one of that size.
_SMALLEST = 0.2
_TRIALS = np.linspace(0.4, 1.8, 15)


@dataclasses.dataclass(frozen=True)
class OptimizedMask:
    """What :func:`optimize_mask` found.

    Attributes
    ----------
    options : dict
        Arguments of :func:`~mmtbx_sfdiff.solvent_mask`: r_probe, r_shrink, softness, and radii if those were learned.
    element_shifts : dict of str to float
        Å, added to the van der Waals radius of an element.
    r_work, r_free : float
        After scaling with this mask.
    start : tuple of float
        R-work and R-free before.
    n_masks : int
        Masks that were computed.
    """

    options: dict[str, Any]
    element_shifts: dict[str, float]
    r_work: float
    r_free: float
    start: tuple[float, float]
    n_masks: int


def optimize_mask(
    atoms: Atoms,
    reflections: Reflections,
    f_calc: torch.Tensor,
    steps: int = 2,
    per_element: bool = True,
    weight: float = 1e-4,
    grid_step: float = 0.6,
    report: Callable[[int, float], object] | None = None,
    **scaling: Any,
) -> OptimizedMask:
    """Radii and softness of the probe-shrink mask that lower R-work.

    Parameters
    ----------
    atoms : Atoms
        A single model.
    reflections : Reflections
    f_calc : torch.Tensor
        (n,) complex, F of the atoms; a constant here.
    steps : int
        Gauss-Newton steps, one mask each.
    per_element : bool
        Learn a radius for each element that makes up at least 5 % of the atoms.
    weight : float
        Of the restraint on the lengths, against R.
    grid_step : float
        Å.
    report : callable, optional
        Called with (step, R) before the first step and after each; R is over the reflections that have an F_mask.
    **scaling
        Of :func:`~mmtbx_sfdiff.scaling.update_all_scales`.

    Returns
    -------
    OptimizedMask
        Of the start, if nothing has a lower R-work.
    """
    masks = _Masks(atoms, reflections, per_element, grid_step)
    start = np.array([*probe_shrink_defaults(), *[0.0] * len(masks.learned)])
    spread = np.array([_SPREAD[name] for name in masks.names])
    low, high = np.array([_LIMITS[name] for name in masks.names]).T
    f_first = masks.f_mask(start)
    first = update_all_scales(reflections, f_calc, f_first, **scaling)
    fit = _Fit(reflections, f_calc, first, f_first)
    f_mask = fit.of(f_first)
    jacobian = (
        np.stack(
            [(fit.of(masks.f_mask(start + _DIFFERENCE * axis)) - f_mask) / _DIFFERENCE for axis in np.eye(len(start))],
            1,
        )
        if fit.n
        else np.zeros((0, len(start)))
    )
    points = [(fit.r(f_mask), start, f_first)]
    if report is not None:
        report(0, points[0][0])
    for step in range(steps if fit.n else 0):
        point = points[-1][1]
        point = np.clip(
            point + fit.step(fit.of(points[-1][2]), jacobian, (point - start) / spread**2, 1 / spread**2, weight),
            low,
            high,
        )
        f_all = masks.f_mask(point)
        points.append((fit.r(fit.of(f_all)), point, f_all))
        if report is not None:
            report(step + 1, points[-1][0])
    _, best, f_best = min(points, key=lambda found: found[0])
    scales = first if best is start else update_all_scales(reflections, f_calc, f_best, **scaling)
    if scales.r_work > first.r_work:
        best, scales = start, first
    options = dict(zip(("r_probe", "r_shrink", "softness"), best[:3].tolist()))
    if masks.learned:
        options["radii"] = masks.radii(best)
    return OptimizedMask(
        options,
        dict(zip(masks.learned, best[3:].tolist())),
        float(scales.r_work),
        float(scales.r_free),
        (float(first.r_work), float(first.r_free)),
        masks.n_made,
    )


class _Masks:
    """F_mask as a function of the lengths."""

    def __init__(self, atoms: Atoms, reflections: Reflections, per_element: bool, grid_step: float) -> None:
        self.atoms, self.reflections, self.grid_step = atoms, reflections, grid_step
        heavy = [e for e, hydrogen in zip(atoms.elements, atoms.hydrogens.tolist()) if not hydrogen]
        self.learned = [e for e in sorted(set(heavy)) if per_element and heavy.count(e) >= _FREQUENT * len(heavy)]
        self.names = ["r_probe", "r_shrink", "softness"] + ["element"] * len(self.learned)
        self.row = torch.tensor(
            [self.learned.index(e) if e in self.learned else len(self.learned) for e in atoms.elements], device="cpu"
        )
        self.table = atoms.vdw_radii()
        self.n_made = 0

    def radii(self, lengths: npt.NDArray[Any]) -> torch.Tensor:
        shifts = torch.from_numpy(np.append(lengths[3:], 0.0))
        return (self.table + shifts[self.row].to(self.table)).clamp(min=0.5)  # type: ignore[no-any-return]

    def f_mask(self, lengths: npt.NDArray[Any]) -> torch.Tensor:
        self.n_made += 1
        crystal = self.reflections.crystal
        with torch.no_grad():
            mask = solvent_mask(
                self.atoms,
                crystal,
                method="probe_shrink",
                grid_step=self.grid_step,
                r_probe=lengths[0],
                r_shrink=lengths[1],
                softness=lengths[2],
                radii=self.radii(lengths),
            )
            return mask_structure_factors(mask, crystal, self.reflections.miller_indices)


class _Fit:
    """The work reflections that have an F_mask, and their bins."""

    def __init__(self, reflections: Reflections, f_calc: torch.Tensor, scales: Scales, f_mask: torch.Tensor) -> None:
        chosen = scales.selection & reflections.work & (f_mask != 0)
        self.rows = chosen.nonzero()[:, 0]
        self.n = len(self.rows)

        def numbers(values: torch.Tensor) -> npt.NDArray[Any]:
            return values.detach()[self.rows].cpu().numpy()

        self.f_obs = numbers(reflections.f_obs) / scales.f_obs_scale
        self.k_total, self.k_mask = numbers(scales.k_total), numbers(scales.k_masks[0])
        self.f_calc = numbers(f_calc if scales.f_part2 is None else f_calc + scales.f_part2)
        bins = numbers(scales.bin_index)
        self.bins = np.unique(bins, return_inverse=True)[1]
        self.n_bins = int(self.bins.max(initial=-1)) + 1
        self.total = float((reflections.f_obs[scales.selection & reflections.work]).sum()) / scales.f_obs_scale

    def of(self, f_mask: torch.Tensor) -> npt.NDArray[Any]:
        """F_mask of these reflections."""
        return f_mask[self.rows].cpu().numpy()

    def _best_scales(self, f_mask: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], float]:
        """s and k_mask of every reflection with the lowest sum of residuals in each bin, and that sum of all."""
        best = np.full(self.n_bins, np.inf)
        s, q = np.ones(self.n_bins), np.ones(self.n_bins)
        for factor in _TRIALS:
            model = self.k_total * np.abs(self.f_calc + factor * self.k_mask * f_mask)
            scale = self._sum(model * self.f_obs) / np.maximum(self._sum(model * model), 1e-300)
            residual = self._sum(np.abs(self.f_obs - scale[self.bins] * model))
            better = residual < best
            best[better], s[better], q[better] = residual[better], scale[better], factor
        return s[self.bins], q[self.bins] * self.k_mask, best.sum()

    def _sum(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.bincount(self.bins, values, self.n_bins)

    def r(self, f_mask: npt.NDArray[Any]) -> float:
        """Share of R-work of these reflections, with the best scales of each bin."""
        return float(self._best_scales(f_mask)[2] / self.total) if self.n else 0.0

    def step(
        self,
        f_mask: npt.NDArray[Any],
        jacobian: npt.NDArray[Any],
        pull: npt.NDArray[Any],
        stiffness: npt.NDArray[Any],
        weight: float,
    ) -> npt.NDArray[Any]:
        """The change of the lengths, (n_lengths,); pull and stiffness are those of the restraint."""
        s, k_mask, _ = self._best_scales(f_mask)
        f = self.f_calc + k_mask * f_mask
        phase = np.conj(f) / np.maximum(np.abs(f), 1e-300)
        k = s * self.k_total
        residual = self.f_obs - k * np.abs(f)
        by_length = (phase * k_mask * k)[:, None] * jacobian
        in_bin = np.eye(self.n_bins)[self.bins]
        by_scales = np.concatenate(
            [in_bin * (k * np.abs(f))[:, None], in_bin * (k * (phase * f_mask).real)[:, None]], 1
        )
        columns = np.concatenate([by_length.real, by_scales], 1)
        size = np.abs(residual)
        size = np.maximum(size, _SMALLEST * np.median(size))
        normal = columns.T @ (columns / size[:, None]) / self.total
        right = columns.T @ (residual / size) / self.total
        n = jacobian.shape[1]
        normal[range(n), range(n)] += 2 * weight * stiffness
        right[:n] -= 2 * weight * pull
        normal[range(n, len(normal)), range(n, len(normal))] += 1e-9 * np.trace(normal)
        return np.linalg.solve(normal, right)[:n]
