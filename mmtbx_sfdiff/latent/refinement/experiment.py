"""The data side of a refinement: F_model of some sites and B factors, with scales and mask that are refreshed
now and then.

Scales, alpha and beta or sigmaA, and the solvent mask unless it is asked to follow, are constants of the gradient. They are
determined anew for the present model every so many steps, and whenever the resolution limit changes, through
:class:`mmtbx_sfdiff.FModel`.
"""

from __future__ import annotations

import dataclasses

import torch

from ...atom_arrays import EIGHT_PI_SQ
from ...atoms import Atoms
from ...fmodel import FModel
from ...likelihood import EValues, e_values, llg, targets
from ...likelihood.gain import calculated_scale
from ...reflections import Reflections
from .objective import FLOOR, objective, sigma_a_curve, work_bins


@dataclasses.dataclass(frozen=True)
class Value:
    """An objective (scalar tensor, nats) and R factors of the reflections in use."""

    objective: torch.Tensor
    r_work: float
    r_free: float | None


class Experiment:
    """What sites and B factors of a fixed list of atoms are compared with.

    Parameters
    ----------
    fmodel : FModel
        Atoms (isotropic; those that are refined, in their order), data, methods. It is not changed.
    name : str
        One of :data:`~mmtbx_sfdiff.latent.refinement.objective.OBJECTIVES`.
    floor : float
        Of the floored Gaussian.
    live_mask : bool
        Whether the mask follows every step, and its gradient counts.

    Attributes
    ----------
    part : FModel
        Of the reflections in use, with the scales that were determined last.
    f_mask : torch.Tensor or None
        (n,) of the solvent, at the same time.

    Raises
    ------
    ValueError
        Anisotropic atoms; a least-squares objective without sigmas.
    """

    def __init__(
        self, fmodel: FModel, name: str = "floored_gaussian", floor: float = FLOOR, live_mask: bool = False
    ) -> None:
        if bool(fmodel.atoms.use_u_aniso.any()):
            raise ValueError(
                "Anisotropic displacement parameters are not refined here: make the atoms isotropic first."
            )
        if name == "least_squares" and fmodel.reflections.sigmas is None:
            raise ValueError(
                "The least-squares objective needs the standard deviations of f_obs, and there are none: "
                "use floored_gaussian."
            )
        self.whole, self.name, self.floor, self.live_mask = fmodel, name, floor, live_mask
        self.f_mask: torch.Tensor | None = None
        self._bins: tuple[torch.Tensor, torch.Tensor] | None = None
        self._sigma_a: torch.Tensor | None = None
        self._scale: torch.Tensor | None = None
        self._limited: dict[float | None, Reflections] = {}
        self._e_values: dict[float | None, EValues] = {}
        self.limit(None)

    @property
    def has_free(self) -> bool:
        return self.whole.reflections.r_free_flags is not None

    def limit(self, d_min: float | None) -> None:
        """Use reflections with d at least ``d_min`` (Å); None for all."""
        self.d_min = d_min
        if d_min not in self._limited:
            reflections = self.whole.reflections
            if d_min is not None:
                reflections = reflections.select(reflections.d_spacings >= d_min)
            self._limited[d_min] = reflections
        self.part = self.whole.with_(reflections=self._limited[d_min])

    def refresh(self, sites_cart: torch.Tensor, b: torch.Tensor, remove_outliers: bool = False) -> FModel:
        """Scales and mask of this model, (n, 3) Å and (n,) Å², from now on; the FModel with them."""
        part = self.part
        with torch.no_grad():
            part.atoms = self._atoms(sites_cart, b)
            scales = part.update_scales(remove_outliers=remove_outliers)
            self.f_mask = part.f_mask()
            self._bins = work_bins(part.reflections, scales.selection)
            if self.name == "likelihood_gain":
                if self.d_min not in self._e_values:
                    self._e_values[self.d_min] = e_values(part.reflections)
                f_model = part.f_model(f_mask=self.f_mask)
                self._scale = calculated_scale(part.reflections, f_model.abs())
                self._sigma_a = sigma_a_curve(
                    part.reflections, f_model, self._e_values[self.d_min], part.in_use()["selection"], self._scale
                )
        return part

    def __call__(self, sites_cart: torch.Tensor, b: torch.Tensor) -> Value:
        """The objective of a model, differentiable, with R factors."""
        part = self.part
        part.atoms = self._atoms(sites_cart, b)
        f_model = part.f_model(f_mask=None if self.live_mask else self.f_mask)
        value = self.objective_of(f_model)
        with torch.no_grad():
            r_work, r_free = targets.r_factors(part.reflections, f_model.detach(), **part.in_use())
        return Value(value, float(r_work), float(r_free) if self.has_free else None)

    def objective_of(self, f_model: torch.Tensor) -> torch.Tensor:
        """The objective (...,) of scaled structure factors (..., n) of the reflections in use."""
        if self.name == "likelihood_gain":
            return -self.gain(f_model)
        return objective(self.name, self.part, f_model, self.floor, self._bins)

    def gain(self, f_model: torch.Tensor, test: bool = False) -> torch.Tensor:
        """Nats above Wilson's distribution, (...,), of the work set, or of the reflections that are none; after :meth:`refresh`."""
        reflections = self.part.reflections
        if test:
            reflections = dataclasses.replace(reflections, r_free_flags=reflections.work)
        return llg(
            reflections,
            f_model,
            self._sigma_a,
            self._e_values[self.d_min],
            self.part.in_use()["selection"],
            self._scale,
        )

    def finished(self, sites_cart: torch.Tensor, b: torch.Tensor) -> FModel:
        """An FModel of this model against all data, with scales and outliers determined."""
        result = self.whole.with_(atoms=self._atoms(sites_cart.detach(), b.detach()))
        result.update_scales()
        return result

    def _atoms(self, sites_cart: torch.Tensor, b: torch.Tensor) -> Atoms:
        atoms = self.whole.atoms
        moved: Atoms = atoms.replace(sites_cart=sites_cart.to(atoms.dtype), u_iso=(b / EIGHT_PI_SQ).to(atoms.dtype))
        return moved
