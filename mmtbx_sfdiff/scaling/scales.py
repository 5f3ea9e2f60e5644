"""The scales of a model, as a value: what :mod:`.all_scales` and :mod:`.twin` find, and what is made with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..kernels import opaque
from ..reflections import Reflections


@dataclasses.dataclass(frozen=True, eq=False)
class Scales:
    """The scales of F_model = k_isotropic_exp k_isotropic k_anisotropic (F_calc + k_mask F_mask + f_part2).

    Tensors of n have one element for each reflection that was given, also for those left out; they carry no
    gradient.

    Attributes
    ----------
    k_isotropic_exp, k_isotropic, k_anisotropic : torch.Tensor
        (n,)
    k_masks : tuple of torch.Tensor
        (n,) for each solvent region: one.
    f_part2 : torch.Tensor or None
        (n,) complex, the scaled contribution of riding hydrogens.
    selection : torch.Tensor
        (n,) bool, False for reflections that were rejected.
    f_obs_scale : float
        k1: the scales put F_model on the scale of ``f_obs / f_obs_scale``.
    r_work, r_free : float
        Over the selected reflections; ``r_free`` is over all of them where there are no free ones.
    bin_index : torch.Tensor
        (n,) int64 resolution bin.
    outliers : dict of str to torch.Tensor
        Indices of the reflections that each test rejected.
    hydrogens : tuple of float or None
        k and B (Å^2) of riding hydrogens.
    log : tuple of (str, float, float, int)
        Steps with R-work, R-free and the number of reflections after each.
    exponential : dict or None
        k_total, k_sol, b_sol, u_star and b_cart of equation 2, when that model was asked for.
    twin_fraction : float or None
        Of the second domain (:mod:`.twin`).

    Examples
    --------
    >>> scales = fmodel.update_scales()
    >>> bool((scales.f_model(fmodel.f_calc(), fmodel.f_mask()) == fmodel.f_model()).all()), len(scales.selected(data))
    (True, 881)
    >>> scales.to(torch.float32).k_total.dtype, scales.show().splitlines()[0].split()
    (torch.float32, ['step', 'r_work', 'r_free', 'reflections'])
    """

    k_isotropic_exp: torch.Tensor
    k_isotropic: torch.Tensor
    k_anisotropic: torch.Tensor
    k_masks: tuple[torch.Tensor, ...]
    f_part2: torch.Tensor | None
    selection: torch.Tensor
    f_obs_scale: float
    r_work: float
    r_free: float
    bin_index: torch.Tensor
    outliers: dict[str, torch.Tensor]
    hydrogens: tuple[float, float] | None
    log: tuple[tuple[str, float, float, int], ...]
    exponential: dict[str, Any] | None = None
    twin_fraction: float | None = None

    @property
    def k_total(self) -> torch.Tensor:
        """(n,) product of the overall scales."""
        parts = self.k_isotropic_exp, self.k_isotropic, self.k_anisotropic
        if not opaque.lasting() or any(x.requires_grad or x.is_inference() for x in parts):
            return parts[0] * parts[1] * parts[2]
        state = tuple(x._version for x in parts)
        kept = self.__dict__.get("_k_total")
        if kept is None or kept[0] != state:
            kept = self.__dict__["_k_total"] = state, parts[0] * parts[1] * parts[2]
        return kept[1]

    def f_model(self, f_calc: torch.Tensor, f_mask: torch.Tensor) -> torch.Tensor:
        """Scaled structure factors (..., n) of f_calc and f_mask (..., n) complex; differentiable in both."""
        total = f_calc + self.k_masks[0] * f_mask
        if self.f_part2 is not None:
            total = total + self.f_part2
        return self.k_total * total

    def selected(self, reflections: Reflections) -> Reflections:
        """The reflections that the scales are for, on their scale: ``f_obs / f_obs_scale`` without the outliers."""
        chosen = reflections.select(self.selection)
        sigmas = None if chosen.sigmas is None else chosen.sigmas / self.f_obs_scale
        return dataclasses.replace(chosen, f_obs=chosen.f_obs / self.f_obs_scale, sigmas=sigmas)  # type: ignore[no-any-return]

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Scales:
        """The same scales in another dtype or on another device."""
        return dataclasses.replace(
            self, **{f.name: _moved(getattr(self, f.name), dtype, device) for f in dataclasses.fields(self)}
        )

    def show(self) -> str:
        """The steps as text."""
        lines = ["                          step  r_work  r_free  reflections"]
        lines += [f"{step:>30s}  {r_work:.4f}  {r_free:.4f}  {n}" for step, r_work, r_free, n in self.log]
        return "\n".join(lines)


def _moved(value: Any, dtype: torch.dtype | None, device: torch.device | str | None) -> Any:
    """Tensors, and those in tuples and dictionaries: real and complex ones in the dtype of that precision."""
    if isinstance(value, dict):
        return {name: _moved(item, dtype, device) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(item, dtype, device) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    if dtype is not None and value.is_complex():
        return value.to(dtype=dtype.to_complex(), device=device)
    return value.to(dtype=dtype if value.is_floating_point() else None, device=device)
