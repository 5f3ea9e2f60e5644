"""How well an FModel agrees with its data: R factors, and what a refinement minimises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from .fmodel_graph import FModelGraphs
from .kernels import opaque
from .kernels.cuda.constants import keep
from .likelihood import on_device, targets
from .likelihood.alpha_beta import AlphaBeta, estimate_alpha_beta
from .likelihood.sizes import a_number
from .numerics.precision import full_precision
from .reflections import Reflections
from .scaling import Scales

_T = TypeVar("_T")
_NOT_ESTIMATED = (
    "alpha and beta are not known yet, and cannot be estimated in a transform or compilation: call alpha_beta() before."
)
TARGETS = ("least_squares", "maximum_likelihood", "intensity_least_squares")


class FModelTargets(FModelGraphs):
    """The part of :class:`~mmtbx_sfdiff.FModel` that compares; scales, alpha and beta are constants in it."""

    reflections: Reflections
    scales: Scales | None
    _alpha_beta: AlphaBeta | None
    # By name: tensors, their state, and what was made of them.
    _constants: dict[str, tuple[tuple[torch.Tensor, ...], tuple[Any, ...], Any]]

    def f_model(self, sites_cart: torch.Tensor | None = None, f_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Scaled structure factors of all reflections."""
        raise NotImplementedError

    def check(self) -> None:
        """Wait for the device, and raise for what was wrong there."""
        raise NotImplementedError

    def known_scales(self) -> Scales:
        """The scales.

        Raises
        ------
        RuntimeError
            Before :meth:`update_scales`.
        """
        if self.scales is None:
            raise RuntimeError("The scales are not known yet: call update_scales() first.")
        return self.scales

    @property
    def selection(self) -> torch.Tensor:
        """(n,) bool, the reflections in use: all but the outliers that :meth:`update_scales` rejected."""
        return self.known_scales().selection

    def in_use(self) -> dict[str, Any]:
        """``selection`` and ``f_obs_scale``, as the functions of :mod:`mmtbx_sfdiff.targets` take them."""
        scales = self.known_scales()
        return {"selection": scales.selection, "f_obs_scale": scales.f_obs_scale}

    def r_work(self, sites_cart: torch.Tensor | None = None, f_model: torch.Tensor | None = None) -> torch.Tensor:
        """R-work with the present scales, (...,), differentiable.

        Parameters
        ----------
        sites_cart, f_model
            See :meth:`target`.
        """
        return self._r_factors(sites_cart, f_model)[0]

    def r_free(self, sites_cart: torch.Tensor | None = None, f_model: torch.Tensor | None = None) -> torch.Tensor:
        """R-free, likewise.

        Raises
        ------
        ValueError
            Where no reflection in use is free.
        """
        if not self.has_free:
            raise ValueError("There is no R-free: no reflection in use is flagged free.")
        return self._r_factors(sites_cart, f_model)[1]

    @property
    def has_free(self) -> bool:
        """Whether reflections in use are flagged free, so that there is an R-free."""
        flags = self.reflections.r_free_flags
        return flags is not None and bool((flags & self.selection).any())

    def r_factors(self) -> tuple[float, float | None]:
        """(R-work, R-free) of the present model with the present scales, floats; R-free is None where none are free.

        Examples
        --------
        >>> r_work, r_free = fmodel.r_factors()
        >>> r_work == float(fmodel.r_work()), r_free == float(fmodel.r_free()), fmodel.has_free, r_work < r_free < 0.05
        (True, True, True, True)
        >>> fmodel.known_scales() is fmodel.scales, fmodel.selection.shape
        (True, torch.Size([881]))
        """
        with torch.no_grad():
            r_work, r_free = self._r_factors(None, None)
        self.check()
        return float(r_work), float(r_free) if self.has_free else None

    def _r_factors(
        self, sites_cart: torch.Tensor | None, f_model: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        f_model = self.f_model(sites_cart) if f_model is None else f_model
        return targets.r_factors(self.reflections, f_model, **self.in_use())

    def target(
        self,
        name: str = "maximum_likelihood",
        sites_cart: torch.Tensor | None = None,
        f_mask: torch.Tensor | None = None,
        f_model: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What a refinement minimises.

        Parameters
        ----------
        name : {"maximum_likelihood", "least_squares", "intensity_least_squares"}
        sites_cart, f_mask
            See :meth:`f_model`.
        f_model : torch.Tensor, optional
            (..., n) that :meth:`f_model` gave, where it is known already.

        Returns
        -------
        torch.Tensor
            (...,), differentiable in the coordinates and the other parameters of the atoms.

        Raises
        ------
        ValueError
            An unknown name; least squares without sigmas; another number of structure factors than of reflections.
        RuntimeError
            Before :meth:`update_scales`.

        Examples
        --------
        >>> sites = atoms.sites_cart.clone().requires_grad_()
        >>> fmodel.target("least_squares", sites_cart=sites).backward()
        >>> fmodel.check()                     # on a GPU: raises for what was wrong there
        >>> sites.grad.shape
        torch.Size([40, 3])
        >>> f = fmodel.f_model()               # as fmodel() and fmodel.forward()
        >>> bool(fmodel.target(f_model=f) == sfdiff.targets.maximum_likelihood(fmodel.reflections, f, fmodel.alpha_beta()))
        True
        >>> bool((f == fmodel.forward()).all()), sorted(fmodel.in_use())
        (True, ['f_obs_scale', 'selection'])
        """
        if name not in TARGETS:
            raise ValueError(f"Unknown target {name!r}: choose from {', '.join(TARGETS)}.")
        if self._graphs is not None and f_model is None and f_mask is None:
            self._made_ready(name)
            return self._captured(name, lambda x: self._target(name, self.f_model(x)), sites_cart)
        return self._target(name, self.f_model(sites_cart, f_mask) if f_model is None else f_model)

    def _made_ready(self, name: str) -> None:
        """Work out before what a target reads as a constant."""
        if name == "maximum_likelihood":
            self.alpha_beta()

    def _target(self, name: str, f_model: torch.Tensor) -> torch.Tensor:
        if f_model.shape[-1:] != self.reflections.f_obs.shape:
            raise ValueError(
                f"f_model must have one value for each of the {len(self.reflections)} reflections, "
                f"not the shape {tuple(f_model.shape)}."
            )
        if name != "intensity_least_squares":
            engine = on_device.device_engine(f_model)
            table = None if engine is None else self._table(name)
            if engine is not None and table is not None:
                dtype = torch.promote_types(table[0], f_model.dtype.to_real())
                value = on_device.amplitude_target(
                    engine,
                    f_model,
                    table[1],
                    name == "maximum_likelihood",
                    dtype,
                    lambda f: self._plain_target(name, f),
                )
                return a_number(value, self.reflections, f_model)
        return self._plain_target(name, f_model)

    def _plain_target(self, name: str, f_model: torch.Tensor) -> torch.Tensor:
        """In torch's operations."""
        if name == "least_squares":
            constants = self._least_squares()
            if constants is not None:
                return full_precision(targets.weighted_squares)(self.reflections, *constants, f_model)
        if name != "maximum_likelihood":
            function = targets.least_squares if name == "least_squares" else targets.intensity_least_squares
            return function(self.reflections, f_model, **self.in_use())
        return targets.maximum_likelihood(self.reflections, f_model, self.alpha_beta(), **self.in_use())

    def _table(self, name: str) -> tuple[torch.dtype, torch.Tensor] | None:
        """(dtype of the data, what :func:`~.likelihood.on_device.amplitude_target` reads); None where none is to be kept."""
        reflections, scales = self.reflections, self.known_scales()
        if name == "least_squares":
            found = self._least_squares()
            if found is None:
                return None
            table = self._kept("table of least squares", found, lambda: on_device.least_squares_table(*found))
            return None if table is None else (found[1].dtype, table)
        alpha_beta = self.alpha_beta()
        tensors = (
            reflections.f_obs,
            scales.selection,
            *(getattr(alpha_beta, x.name) for x in dataclasses.fields(alpha_beta)),
        )

        def made() -> torch.Tensor:
            counts = targets.likelihood_counts(reflections, alpha_beta, scales.selection)
            return on_device.likelihood_table(reflections, alpha_beta, *counts, scales.f_obs_scale)

        table = self._kept("table of likelihood", tensors, made)
        return None if table is None else (reflections.f_obs.dtype, table)

    def _least_squares(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The constants of least squares; None where they are not to be kept."""
        reflections, scales = self.reflections, self.known_scales()
        if reflections.sigmas is None:
            return None
        return self._kept(
            "least squares",
            (reflections.f_obs, reflections.sigmas, scales.selection),
            lambda: targets.least_squares_constants(reflections, scales.selection, scales.f_obs_scale),
        )

    def _kept(self, name: str, tensors: tuple[torch.Tensor, ...], make: Callable[[], _T]) -> _T | None:
        """What is made of these and of the data's scale, kept as long as they stay; None where it is not to be kept."""
        if not opaque.lasting() or any(x.is_inference() for x in tensors):
            return None
        state = self.known_scales().f_obs_scale, tuple(x._version for x in tensors)
        kept = self._constants.get(name)
        if kept is None or any(a is not b for a, b in zip(kept[0], tensors)) or kept[1] != state:
            with torch.no_grad():
                kept = self._constants[name] = tensors, state, make()
        return keep(kept[2])

    def alpha_beta(self) -> AlphaBeta:
        """alpha and beta of the model as it was at the first use after :meth:`update_scales`.

        Raises
        ------
        RuntimeError
            At a first use within ``torch.compile`` or ``torch.func.grad``, where nothing can be estimated.
        """
        if self._alpha_beta is None:
            if torch.compiler.is_compiling():
                raise RuntimeError(_NOT_ESTIMATED)
            try:
                with opaque.outlasting():
                    self._alpha_beta = estimate_alpha_beta(self.reflections, self.f_model(), **self.in_use())
            except RuntimeError:
                if torch._C._are_functorch_transforms_active():
                    raise RuntimeError(_NOT_ESTIMATED) from None
                raise
        return self._alpha_beta
