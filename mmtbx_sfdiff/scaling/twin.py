"""Scales and fraction of twinned data.

    |F_twin(h)| = k_total(h) sqrt( (1 - alpha) |F_calc(h) + k_mask F_mask(h)|^2 + alpha |F_calc(hT) + k_mask F_mask(hT)|^2 )

The overall scales are those of the measured reflection; k_mask is that of its resolution, which its mate shares.  Squares of both
domains are mixed before the scales are sought, as for a single crystal, in turns with alpha, which is that of least squares of the
work set's amplitudes.  No outliers are rejected, as in mmtbx's twin model: the statistics of their tests are those of single crystals.

Reference: ``mmtbx.twinning.twin_f_model``, whose scales are exponential.
"""

from __future__ import annotations

import dataclasses

import torch

from ..kernels.threads import one_cpu_thread
from ..numerics.residual import scale
from ..reflections import Reflections
from .all_scales import Run, check
from .scaler import Scaler
from .scales import Scales

_START = 0.25
_ROUNDS = 6
_CONVERGED = 1e-3


def mixed_amplitude(own: torch.Tensor, mate: torch.Tensor, fraction: float | torch.Tensor) -> torch.Tensor:
    """Amplitude (..., n) of intensities of both domains; its gradient is 0 where it is 0."""
    intensity = (1 - fraction) * own + fraction * mate
    positive = intensity > 0
    return torch.where(positive, torch.where(positive, intensity, 1.0).sqrt(), 0.0)


def fit_fraction(f_obs: torch.Tensor, own: torch.Tensor, mate: torch.Tensor, k: torch.Tensor | float = 1.0) -> float:
    """alpha between 0 and 0.5 with the least sum of squares of amplitudes.

    Parameters
    ----------
    f_obs : torch.Tensor
        (n,) amplitudes.
    own, mate : torch.Tensor
        (n,) intensities of the model of the reflection and its mate, less the overall scale.
    k : torch.Tensor or float
        (n,) overall scale.
    """

    from scipy.optimize import minimize_scalar  # a quarter of a second, for twins only

    def residual(fraction: float) -> float:
        model = k * mixed_amplitude(own, mate, fraction)
        return float((f_obs - scale(f_obs, model) * model).square().sum())

    found = minimize_scalar(residual, bounds=(0.0, 0.5), method="bounded", options={"xatol": 1e-5})
    return min((float(found.x), 0.0, 0.5), key=residual)


def update_twin_scales(
    reflections: Reflections,
    f_calc: torch.Tensor,
    f_mask: torch.Tensor,
    mate_f_calc: torch.Tensor,
    mate_f_mask: torch.Tensor,
    fraction: float | None = None,
    bulk_solvent: bool = True,
    anisotropic_scaling: bool = True,
    scale_f_obs: bool = True,
) -> Scales:
    """Bulk-solvent and overall scales, and the twin fraction.

    Parameters
    ----------
    reflections : Reflections
    f_calc, f_mask, mate_f_calc, mate_f_mask : torch.Tensor
        (n,) complex, of the reflections and of their twin mates.
    fraction : float, optional
        Of the second domain; by default it is determined.
    bulk_solvent, anisotropic_scaling, scale_f_obs : bool
        As of :func:`~mmtbx_sfdiff.scaling.update_all_scales`.

    Returns
    -------
    Scales
        With ``twin_fraction``; R factors are of the twin.

    Raises
    ------
    ValueError
        As :func:`~mmtbx_sfdiff.scaling.update_all_scales`; a fraction outside 0 to 1.
    """
    if fraction is not None and not 0 <= fraction <= 1:
        raise ValueError(f"A twin fraction is between 0 and 1, not {fraction!r}.")
    for calculated, mask in ((f_calc, f_mask), (mate_f_calc, mate_f_mask)):
        check(reflections, calculated, mask, None, None, None)
    now = _START if fraction is None else fraction
    with torch.no_grad(), one_cpu_thread(reflections.f_obs.device):
        for _ in range(_ROUNDS):
            run = _TwinRun(reflections, f_calc, f_mask, mate_f_calc, mate_f_mask, now, scale_f_obs)
            scales = run.run("mmtbx", False, bulk_solvent, anisotropic_scaling)
            if fraction is not None:
                break
            before, now = now, run.best_fraction()
            if abs(now - before) < _CONVERGED:
                break
    return dataclasses.replace(scales, twin_fraction=run.fraction)


class _TwinRun(Run):
    """The scaling with the squares of two domains."""

    def __init__(
        self,
        reflections: Reflections,
        f_calc: torch.Tensor,
        f_mask: torch.Tensor,
        mate_f_calc: torch.Tensor,
        mate_f_mask: torch.Tensor,
        fraction: float,
        scale_f_obs: bool,
    ) -> None:
        self.fraction = fraction
        order = reflections.crystal.d_star_sq(reflections.miller_indices).argsort(stable=True)
        self.mate_f_calc, self.mate_f_mask = (
            f.detach()[order].to(torch.complex128) for f in (mate_f_calc, mate_f_mask)
        )
        super().__init__(reflections, f_calc, f_mask, None, None, None, scale_f_obs)

    def _scale(self, bulk_solvent: bool, anisotropic_scaling: bool) -> None:
        data, order = self._scaling_set()
        mates = (self.mate_f_calc[order], self.mate_f_mask[order], self.fraction)
        result = Scaler(data, self.f_calc[order], self.f_mask[order], bulk_solvent, anisotropic_scaling, mates)
        self._adopt(result, order)
        self.k_mask = torch.empty_like(result.k_mask).index_copy_(0, order, result.k_mask)
        self._note("bulk solvent and scales")

    def _intensities(self) -> tuple[torch.Tensor, torch.Tensor]:
        own = self.f_calc + self.k_mask * self.f_mask
        mate = self.mate_f_calc + self.k_mask * self.mate_f_mask
        return own.abs().square(), mate.abs().square()

    def _overall(self) -> torch.Tensor:
        return self.k_isotropic_exp * self.k_isotropic * self.k_anisotropic

    def _amplitude(self) -> torch.Tensor:
        return self._overall() * mixed_amplitude(*self._intensities(), self.fraction)

    def best_fraction(self) -> float:
        """alpha under the present scales."""
        own, mate = self._intensities()
        work = self.kept & ~self.free
        return fit_fraction(self.f_obs[work], own[work], mate[work], self._overall()[work])
