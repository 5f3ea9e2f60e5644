"""Gradients for cctbx: the object that ``cctbx.xray.structure_factors.gradients`` hands out.

cctbx's dT/dF_calc is dT/dRe(F) + i dT/dIm(F), which is what torch's backward takes.  Which parameters get a gradient
is said by the flags of each scatterer; a scatterer's packed parameters are site (3, Cartesian), u_iso, u_cart (6),
occupancy, f', f'', each where it is refined, and f' and f'' of every scatterer where any has one of them refined.

Reference: ``cctbx.xray.structure_factors.gradients_direct``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from cctbx import adptbx, xray
from cctbx.array_family import flex
from cctbx.xray.structure_factors.gradients_base import gradients_base
from libtbx.utils import Sorry

from ..structure_factors import structure_factor_gradients
from .conversion import as_complex_tensor, atoms_of, miller_tensor
from .settings import Settings, usable_device
from .usage import count_call

_LENGTHS = {"sites_cart": 3, "u_iso": 1, "u_star": 6, "occupancies": 1, "fp": 1, "fdp": 1}


class gradients_sfdiff(gradients_base):
    """Gradients of a target with respect to the parameters of the scatterers.

    Parameters
    ----------
    manager : cctbx.xray.structure_factors.manager or None
        Not used beyond its symmetry.
    xray_structure : cctbx.xray.structure
    u_iso_refinable_params : flex.double or None
        The substitutes for u_iso of scatterers flagged ``tan_u_iso``.
    miller_set : cctbx.miller.set
    d_target_d_f_calc : flex.complex_double
    n_parameters : int
        Size of :meth:`packed`; 0 for one array for each kind of parameter instead.
    extra_params, settings
        See :class:`.from_scatterers.from_scatterers_sfdiff`.
    algorithm : str
    site_gradient : callable, optional
        ``site_gradient(xray_structure)`` gives (n, 3) numpy, per Å, to be added to the gradient of the sites.
    """

    def __init__(
        self,
        manager: Any,
        xray_structure: Any,
        u_iso_refinable_params: Any,
        miller_set: Any,
        d_target_d_f_calc: Any,
        n_parameters: Any,
        extra_params: Any = None,
        settings: Any = None,
        algorithm: str = "sfdiff",
        site_gradient: Callable[[Any], npt.NDArray[Any]] | None = None,
    ) -> None:
        gradients_base.__init__(self, manager, xray_structure, miller_set, algorithm=algorithm)
        count_call("gradients")
        self._d_target_d_f_calc = d_target_d_f_calc
        flags = _Flags(xray_structure.scatterers())
        values = _gradients(
            xray_structure, miller_set, d_target_d_f_calc, flags, settings or Settings.from_phil(extra_params)
        )
        if site_gradient is not None and flags.refined["sites_cart"].any():
            values["sites_cart"] = values["sites_cart"] + site_gradient(xray_structure)
        _constrain_sites(xray_structure, values)
        _substitute_u_iso(xray_structure, u_iso_refinable_params, values)
        for name, value in values.items():
            if not flags.refined[name].all():
                value[~flags.refined[name]] = 0
        self._values, self._packed = values, flex.double()
        if n_parameters:
            self._packed = _pack(xray_structure, values, flags)
            if self._packed.size() != n_parameters:
                raise RuntimeError(f"The scatterers have {self._packed.size()} refined parameters, not {n_parameters}.")

    def packed(self) -> Any:
        """All gradients in one ``flex.double``, scatterer by scatterer; empty where ``n_parameters`` was 0."""
        return self._packed

    def d_target_d_site_cart(self) -> Any:
        return self.check_size(flex.vec3_double(_flex(self._values["sites_cart"])))

    def d_target_d_site_frac(self) -> Any:
        return self.d_target_d_site_cart() * self.xray_structure().unit_cell().orthogonalization_matrix()

    def d_target_d_u_iso(self) -> Any:
        return self.check_size(_flex(self._values["u_iso"]))

    def d_target_d_u_star(self) -> Any:
        return self.check_size(flex.sym_mat3_double(_flex(self._values["u_star"])))

    def d_target_d_u_cart(self) -> Any:
        return adptbx.grad_u_star_as_u_cart(self.xray_structure().unit_cell(), self.d_target_d_u_star())

    def d_target_d_occupancy(self) -> Any:
        return self.check_size(_flex(self._values["occupancies"]))

    def d_target_d_fp(self) -> Any:
        return self.check_size(_flex(self._values["fp"]))

    def d_target_d_fdp(self) -> Any:
        return self.check_size(_flex(self._values["fdp"]))


class _Flags:
    """Which parameters are refined, as (n,) bool arrays by name of the parameter."""

    def __init__(self, scatterers: Any) -> None:
        n = scatterers.size()
        counts = xray.ext.scatterer_grad_flags_counts(scatterers)
        asked = {}

        def everyone() -> npt.NDArray[Any]:
            return np.ones(n, bool)

        # Asking each scatterer is slow: only where some have the flag and some have not.  Parameters are counted.
        for name, count, users, method in (
            ("sites_cart", counts.site, everyone, "grad_site"),
            ("u_iso", counts.u_iso, lambda: scatterers.extract_use_u_iso().as_numpy_array(), "grad_u_iso"),
            ("u_star", counts.u_aniso, lambda: scatterers.extract_use_u_aniso().as_numpy_array(), "grad_u_aniso"),
            ("occupancies", counts.occupancy, everyone, "grad_occupancy"),
            ("fp", counts.fp, everyone, "grad_fp"),
            ("fdp", counts.fdp, everyone, "grad_fdp"),
        ):
            if count == 0:
                asked[name] = np.zeros(n, bool)
                continue
            asked[name] = users()
            if count != n * _LENGTHS[name] or not asked[name].all():
                asked[name] &= np.fromiter((getattr(s.flags, method)() for s in scatterers), bool, n)
        self.refined = asked
        self.tan_u_iso = counts.tan_u_iso > 0


def _gradients(
    xray_structure: Any, miller_set: Any, d_target_d_f_calc: Any, flags: _Flags, settings: Any
) -> dict[str, Any]:
    """Gradients by name, (n, length) or (n,) float64 arrays, without constraints."""
    n = xray_structure.scatterers().size()
    values = {name: np.zeros((n, length) if length > 1 else n) for name, length in _LENGTHS.items()}
    wanted = [name for name in _LENGTHS if flags.refined[name].any()]
    if not wanted or miller_set.indices().size() == 0:
        return values
    device = usable_device(settings.device)
    atoms = atoms_of(xray_structure, settings.dtype, device)
    try:
        found = structure_factor_gradients(
            atoms,
            atoms.crystal,
            miller_tensor(miller_set, device),
            as_complex_tensor(d_target_d_f_calc, settings.dtype, device),
            parameters=wanted,
            method=settings.method,
            accuracy=settings.accuracy,
            memory=settings.memory,
        )
    except ValueError as error:
        raise Sorry(str(error)) from error
    for name, gradient in zip(wanted, found):
        values[name] = gradient.cpu().numpy().astype(np.float64, copy=False)
    return values


def _constrain_sites(xray_structure: Any, values: dict[str, Any]) -> None:
    """Project the gradient of sites on special positions, as cctbx does: a row vector times the special operator."""
    table = xray_structure.site_symmetry_table()
    special = table.special_position_indices()
    if special.size() == 0:
        return
    unit_cell = xray_structure.unit_cell()
    orthogonalization = np.array(unit_cell.orthogonalization_matrix()).reshape(3, 3)
    fractionalization = np.array(unit_cell.fractionalization_matrix()).reshape(3, 3)
    for i in special:
        rotation = np.array(table.get(i).special_op().r().as_double()).reshape(3, 3)
        values["sites_cart"][i] = values["sites_cart"][i] @ orthogonalization @ rotation @ fractionalization


def _substitute_u_iso(xray_structure: Any, refinable: Any, values: dict[str, Any]) -> None:
    """Chain rule for u_iso = u_max (arctan(p) / pi + 1/2), where a scatterer is flagged so."""
    if refinable is None or refinable.size() == 0:
        return
    for i, scatterer in enumerate(xray_structure.scatterers()):
        if scatterer.flags.tan_u_iso() and scatterer.flags.grad_u_iso() and scatterer.flags.param > 0:
            values["u_iso"][i] *= adptbx.b_as_u(scatterer.flags.param) / math.pi / (1 + refinable[i] ** 2)


def _pack(xray_structure: Any, values: dict[str, Any], flags: _Flags) -> Any:
    n = len(values["u_iso"])
    columns, present = [], []
    for name, length in _LENGTHS.items():
        chosen = flags.refined[name]
        if not chosen.any():
            continue
        value = values[name]
        if name == "u_star":
            value = (
                adptbx.grad_u_star_as_u_cart(xray_structure.unit_cell(), flex.sym_mat3_double(_flex(value)))
                .as_double()
                .as_numpy_array()
            )
        if name in ("fp", "fdp"):
            chosen = np.ones(n, bool)
        columns.append(value.reshape(n, length))
        present.append((chosen, length))
    if not columns:
        return flex.double()
    packed = np.concatenate(columns, axis=1)
    if all(chosen.all() for chosen, _ in present):
        return _flex(packed)
    return _flex(
        packed[np.concatenate([np.repeat(chosen[:, None], length, axis=1) for chosen, length in present], axis=1)]
    )


def _flex(array: Any) -> Any:
    return flex.double(np.ascontiguousarray(array).ravel())
