"""Everything that puts a model on the scale of the data, in mmtbx's order.

1. F_obs is divided by the overall scale k1 when that is outside 0.9-1.1.
2. Five rounds of outlier rejection by Wilson statistics (:mod:`.outliers`).
3. k_mask and the isotropic and anisotropic scales (:mod:`.scaler`).
4. With riding hydrogens: their contribution (:mod:`.hydrogens`), and step 3 again with it in the place of the
   solvent.
5. Five rounds of outlier rejection, now by the model too.
6. Where the lowest-resolution bin still has R above 0.7, it is left out and 2-5 are repeated.

The order and the rule of each step decide where this greedy search ends, hence R; both are those of the
reference.

Reference: ``mmtbx.f_model.manager.update_all_scales(fast=True)``, ``mmtbx.bulk_solvent.f_model_all_scales``.
"""

from __future__ import annotations

import math
from typing import Any

import torch

import numpy as np

from ..kernels.threads import one_cpu_thread
from ..reflections import Reflections
from .anisotropic import AnisotropicScale
from .binning import Segments, log_binning
from .exponential import fit_exponential_model
from .hydrogens import fit_hydrogens
from .outliers import reject
from .residual import r_factor, scale
from .scaler import Scaler, ScalingSet
from .scales import Scales

_ROUNDS = 5
_R_LOW_LIMIT = 0.7


def update_all_scales(
    reflections: Reflections,
    f_calc: torch.Tensor,
    f_mask: torch.Tensor,
    f_hydrogen: torch.Tensor | None = None,
    b_mean: float | None = None,
    remove_outliers: bool = True,
    scale_f_obs: bool = True,
    bulk_solvent: bool = True,
    anisotropic_scaling: bool = True,
    f_model: torch.Tensor | None = None,
    model: str = "mmtbx",
    twin_law: str | None = None,
) -> Scales:
    """Bulk-solvent and overall scales, and the reflections to use.

    Parameters
    ----------
    reflections : Reflections
    f_calc, f_mask : torch.Tensor
        (n,) complex structure factors of the atoms and of the solvent mask; with batch dimensions refused.
    f_hydrogen : torch.Tensor, optional
        (n,) complex structure factors of riding hydrogens (zero occupancy in the model) at occupancy 1 and
        B = 0.
    b_mean : float, optional
        Mean B of the other atoms, Å^2; needed with ``f_hydrogen``.
    remove_outliers : bool
    scale_f_obs : bool
        Put F_obs on the scale of the model first.
    bulk_solvent, anisotropic_scaling : bool
        Whether to determine these scales.
    f_model : torch.Tensor, optional
        (n,) current F_model that F_obs is put on the scale of; by default ``f_calc``.
    model : {"mmtbx", "exponential"}
        The scales of :mod:`.scaler`, or equation 2 (:mod:`.exponential`).
    twin_law : optional
        Anything but None is refused: see :func:`~mmtbx_sfdiff.scaling.twin.update_twin_scales`.

    Returns
    -------
    Scales
        Of the reflections' dtype, and on their device.

    Raises
    ------
    ValueError
        Structure factors of another shape than the reflections, fewer than two reflections, all F_calc or
        F_obs zero; a twin law; an unknown model; so few or such reflections that no finite scales follow.

    Examples
    --------
    >>> scales = sfdiff.update_all_scales(data, fmodel.f_calc(), fmodel.f_mask())
    >>> scales.r_work < 0.05, tuple(scales.k_masks[0].shape)
    (True, (881,))
    """
    if twin_law is not None:
        raise ValueError(
            f"Scales of twinned data (twin law {twin_law}) need the structure factors of the mates: use FModel(twin_law=...), "
            "or scaling.twin.update_twin_scales."
        )
    if model not in ("mmtbx", "exponential"):
        raise ValueError(f"model must be 'mmtbx' or 'exponential', not {model!r}.")
    if model == "exponential" and f_hydrogen is not None:
        raise ValueError("Riding hydrogens are fitted with model='mmtbx' only; leave out f_hydrogen.")
    check(reflections, f_calc, f_mask, f_hydrogen, b_mean, f_model)
    with torch.no_grad(), one_cpu_thread(reflections.f_obs.device):
        return Run(reflections, f_calc, f_mask, f_hydrogen, b_mean, f_model, scale_f_obs).run(
            model, remove_outliers, bulk_solvent, anisotropic_scaling
        )


def check(
    reflections: Reflections,
    f_calc: torch.Tensor,
    f_mask: torch.Tensor,
    f_hydrogen: torch.Tensor | None,
    b_mean: float | None,
    f_model: torch.Tensor | None,
) -> None:
    """Refuse structure factors that cannot be scaled."""
    n = len(reflections)
    if n < 2:
        raise ValueError(f"At least two reflections are needed to determine scales, not {n}.")
    for name, value in (
        ("f_calc", f_calc),
        ("f_mask", f_mask),
        ("f_hydrogen", f_hydrogen),
        ("f_model", f_model),
    ):
        if value is None:
            if name in ("f_hydrogen", "f_model"):
                continue
            raise ValueError(f"{name} is needed.")
        if not torch.is_complex(value) or tuple(value.shape) != (n,):
            raise ValueError(
                f"{name} must be complex with one value for each of the {n} reflections, not "
                f"{value.dtype} of shape {tuple(value.shape)}; scale the members of a batch one by one."
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} contains values that are not finite.")
    if f_hydrogen is not None and b_mean is None:
        raise ValueError("b_mean is needed with f_hydrogen: the mean B factor of the other atoms.")
    if not bool((f_calc != 0).any()):
        raise ValueError("All f_calc are zero: there is no model to scale.")
    if not bool(torch.isfinite(reflections.f_obs).all()):
        raise ValueError("f_obs contains values that are not finite.")
    if not bool((reflections.f_obs[reflections.work] > 0).any()):
        raise ValueError("No f_obs of the work set is positive: there are no data to scale to.")


class Run:
    """The state of one call: everything by resolution, and what has been rejected so far."""

    def __init__(
        self,
        reflections: Reflections,
        f_calc: torch.Tensor,
        f_mask: torch.Tensor,
        f_hydrogen: torch.Tensor | None,
        b_mean: float | None,
        f_model: torch.Tensor | None,
        scale_f_obs: bool,
    ) -> None:
        crystal, indices = reflections.crystal, reflections.miller_indices
        self.reflections = reflections
        d_star_sq = crystal.d_star_sq(indices)
        self.order = d_star_sq.argsort(stable=True)
        self.crystal = crystal
        self.indices = indices[self.order]
        self.d_star_sq = d_star_sq[self.order]

        def sort(values: torch.Tensor | None, dtype: torch.dtype = torch.complex128) -> Any:
            return None if values is None else values.detach()[self.order].to(dtype)

        self.f_obs = sort(reflections.f_obs, torch.float64)
        self.free = ~reflections.work[self.order]
        self.f_calc, self.f_mask, self.f_hydrogen = sort(f_calc), sort(f_mask), sort(f_hydrogen)
        self.b_mean = b_mean
        self.kept = torch.ones_like(self.free)
        self.outliers: dict[str, list[torch.Tensor]] = {}
        self.log: list[tuple[str, float, float, int]] = []
        self._epsilons: torch.Tensor | None = None
        self.exponential: dict[str, Any] | None = None
        self.k1 = 1.0
        if scale_f_obs:
            k1 = float(scale(self.f_obs, (sort(f_calc) if f_model is None else sort(f_model)).abs()))
            if k1 != 0 and not 0.9 < k1 < 1.1:
                self.k1 = k1
                self.f_obs = self.f_obs / k1
        self.n_bins = 0
        self._bin_all()
        self._reset()

    def run(self, model: str, remove_outliers: bool, bulk_solvent: bool, anisotropic_scaling: bool) -> Scales:
        self._note("start")
        for attempt in range(_ROUNDS + 1):
            self._reset()
            if remove_outliers:
                self._reject(with_model=False)
                self._note("outliers by Wilson statistics")
            if model == "mmtbx":
                self._scale(bulk_solvent, anisotropic_scaling)
            else:
                self._scale_exponentially(bulk_solvent)
            if remove_outliers:
                self._reject(with_model=True)
                self._note("outliers by the model")
            if not remove_outliers or attempt == _ROUNDS or self.n_bins == 1 or self._r_low() <= _R_LOW_LIMIT:
                break
            self._drop_lowest_bin()
            self._note("without the lowest resolution")
        return self._result()

    # Bins

    def _bin_all(self) -> None:
        """Bins of the reflections in use, which the others join by resolution."""
        kept = self.d_star_sq[self.kept]
        offsets = log_binning(kept)
        self.n_bins = len(offsets) - 1
        starts = kept[torch.tensor(offsets[1:-1], dtype=torch.int64, device=kept.device)]
        self.bin_index = torch.searchsorted(starts, self.d_star_sq, right=True)

    def _counts(self, selection: torch.Tensor) -> torch.Tensor:
        return torch.bincount(self.bin_index[selection], minlength=self.n_bins)

    def _r_low(self) -> float:
        chosen = self.kept & ~self.free & (self.bin_index == 0)
        return float(r_factor(self.f_obs[chosen], self._amplitude()[chosen]))

    def _drop_lowest_bin(self) -> None:
        lowest = self.kept & (self.bin_index == 0)
        beyond = self.d_star_sq < self.d_star_sq[lowest].max()
        self.outliers.setdefault("low_resolution", []).append((self.kept & beyond).nonzero()[:, 0])
        self.kept = self.kept & ~beyond
        self._bin_all()

    # Steps

    def _reset(self) -> None:
        ones = torch.ones_like(self.f_obs)
        self.k_isotropic_exp = self.k_isotropic = self.k_anisotropic = ones
        self.k_mask = torch.zeros_like(ones)
        self.f_part2: torch.Tensor | None = None
        self.hydrogens: tuple[float, float] | None = None

    def _reject(self, with_model: bool) -> None:
        if self._epsilons is None:
            self._epsilons = self.crystal.epsilons(self.indices).to(torch.float64)
            self._centric = self.crystal.centric_flags(self.indices)
        chosen = self.kept.nonzero()[:, 0]
        kept, reasons = reject(
            self.f_obs[chosen],
            self._epsilons[chosen],
            self._centric[chosen],
            self.free[chosen],
            self.d_star_sq[chosen],
            self._amplitude()[chosen] if with_model else None,
            _ROUNDS,
        )
        for name, rejected in reasons.items():
            self.outliers.setdefault(name, []).append(chosen[rejected])
        if bool(kept.all()):
            return
        self.kept = torch.zeros_like(self.kept)
        self.kept[chosen[kept]] = True
        if bool((self._counts(self.kept) == 0).any()):
            self._bin_all()

    def _scale(self, bulk_solvent: bool, anisotropic_scaling: bool) -> None:
        data, order = self._scaling_set()
        f_calc, f_mask = self.f_calc[order], self.f_mask[order]
        result = Scaler(data, f_calc, f_mask, bulk_solvent, anisotropic_scaling)
        self._adopt(result, order)
        self.k_mask = torch.empty_like(result.k_mask).index_copy_(0, order, result.k_mask)
        self._note("bulk solvent and scales")
        if self.f_hydrogen is None or self.b_mean is None:
            return
        used = order[: data.n_used]
        f_bulk = self.f_calc + self.k_mask * self.f_mask
        k, b = fit_hydrogens(
            self.f_obs[used],
            f_bulk[used],
            self.f_hydrogen[used],
            (self.k_isotropic_exp * self.k_isotropic * self.k_anisotropic)[used],
            data.ss[: data.n_used],
            self.b_mean,
            self._r_factors()[0],
        )
        self.hydrogens = (k, b)
        f_part2 = k * (-b * self.d_star_sq / 4).exp() * self.f_hydrogen
        result = Scaler(data, f_bulk[order], f_part2[order], bulk_solvent, anisotropic_scaling)
        self._adopt(result, order)
        self.f_part2 = torch.empty_like(result.k_mask).index_copy_(0, order, result.k_mask) * f_part2
        self._note("hydrogens")

    def _scale_exponentially(self, bulk_solvent: bool) -> None:
        data, order = self._scaling_set()
        f_mask = self.f_mask[order] if bulk_solvent else torch.zeros_like(self.f_mask)
        fit = self.exponential = fit_exponential_model(data, self.f_calc[order], f_mask)
        k_anisotropic = data.anisotropic.exponential(fit["u_star"])
        self.k_anisotropic = torch.empty_like(k_anisotropic).index_copy_(0, order, k_anisotropic)
        self.k_isotropic = torch.full_like(k_anisotropic, fit["k_total"])
        self.k_mask = fit["k_sol"] * (-fit["b_sol"] * self.d_star_sq / 4).exp()
        self._note("exponential scales")

    def _adopt(self, result: Scaler, order: torch.Tensor) -> None:
        for name in ("k_isotropic_exp", "k_isotropic", "k_anisotropic"):
            value = getattr(result, name)
            setattr(self, name, torch.empty_like(value).index_copy_(0, order, value))

    def _scaling_set(self) -> tuple[ScalingSet, torch.Tensor]:
        """The reflections in the scaler's order, and that order."""
        # Free flags are of use only when every bin has some.
        flags_are_good = bool((self._counts(self.kept & self.free) > 0).all())
        work = self.kept & (self.f_obs > 0)
        if flags_are_good:
            work = work & ~self.free
        rest = self.kept & ~work
        order = torch.cat([chosen.nonzero()[:, 0] for chosen in (work, rest, ~self.kept)])
        n_work, n_rest = int(work.sum()), int(rest.sum())
        device = self.f_obs.device

        def segments(selection: torch.Tensor) -> Segments:
            return Segments(np.concatenate([[0], np.cumsum(self._counts(selection).cpu().numpy())]).tolist(), device)

        ss = self.d_star_sq / 4
        used, counts = ss[self.kept], self._counts(self.kept).cumsum(0)
        last = used[counts - 1].tolist()
        first = [float(used[0])] + used[counts[:-1]].tolist()
        data = ScalingSet(
            f_obs=self.f_obs[order],
            ss=ss[order],
            n_work=n_work,
            n_used=n_work + n_rest,
            bin_index=self.bin_index[order],
            work=segments(work),
            rest=segments(rest),
            ss_min=first,
            ss_max=last,
            anisotropic=AnisotropicScale(self.crystal, self.indices[order], n_work),
            crystal=self.crystal,
        )
        return data, order

    # Results

    def _amplitude(self) -> torch.Tensor:
        total = self.f_calc + self.k_mask * self.f_mask
        if self.f_part2 is not None:
            total = total + self.f_part2
        return self.k_isotropic_exp * self.k_isotropic * self.k_anisotropic * total.abs()  # type: ignore[no-any-return]

    def _r_factors(self) -> tuple[float, float]:
        model = self._amplitude()
        work, free = self.kept & ~self.free, self.kept & self.free
        if not bool(free.any()):
            free = work
        r_work, r_free = (float(r_factor(self.f_obs[s], model[s])) for s in (work, free))
        return r_work, r_free

    def _note(self, step: str) -> None:
        self.log.append((step, *self._r_factors(), int(self.kept.sum())))

    def _result(self) -> Scales:
        dtype = self.reflections.f_obs.dtype

        def back(values: torch.Tensor, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty_like(values).index_copy_(0, self.order, values).to(dtype)

        f_part2 = None
        if self.f_part2 is not None:
            f_part2 = back(self.f_part2, torch.complex64 if dtype == torch.float32 else torch.complex128)
        r_work, r_free = self._r_factors()
        found = self.k_isotropic_exp * self.k_isotropic * self.k_anisotropic * (1 + self.k_mask)
        if not (math.isfinite(r_work) and math.isfinite(r_free) and bool(torch.isfinite(found).all())):
            raise ValueError(
                f"No scales follow from these {len(found)} reflections, {int(self.kept.sum())} of them in use: there are too few, or "
                "their amplitudes and those of the model are of no common scale."
            )
        return Scales(
            k_isotropic_exp=back(self.k_isotropic_exp),
            k_isotropic=back(self.k_isotropic),
            k_anisotropic=back(self.k_anisotropic),
            k_masks=(back(self.k_mask),),
            f_part2=f_part2,
            selection=back(self.kept, torch.bool),
            f_obs_scale=self.k1,
            r_work=r_work,
            r_free=r_free,
            bin_index=back(self.bin_index, torch.int64),
            outliers={name: self.order[torch.cat(parts)] for name, parts in self.outliers.items()},
            hydrogens=self.hydrogens,
            log=tuple(self.log),
            exponential=self.exponential,
        )
