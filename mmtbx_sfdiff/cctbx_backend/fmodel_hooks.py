"""What ``mmtbx.f_model.manager`` does differently where its engine and its mask are both this package's.

For mmtbx the mask is a constant between updates, in the gradient and in the value.  Here it is neither: the gradient of
the sites contains the mask's, and the value has to follow, or a line search would see two different functions.  Both
hooks leave every other manager to mmtbx.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cctbx.array_family import flex

from . import masks
from .gradients import gradients_sfdiff
from .settings import Settings


def settings_of(manager: Any, taken_over: dict[str, Settings]) -> Settings | None:
    """How a manager's structure factors are computed here; None where that is cctbx's affair.

    Parameters
    ----------
    manager : mmtbx.f_model.manager
    taken_over : dict of str to Settings
        By algorithm, for managers that did not ask for this package by name.
    """
    if manager.sfg_params.algorithm == "sfdiff":
        return Settings.from_phil(manager.sfg_params.extra)
    return taken_over.get(manager.sfg_params.algorithm)


def follows_mask(manager: Any, mask_params: Any, settings: Any) -> bool:
    """Whether the gradient of this manager's sites goes through its mask.

    Parameters
    ----------
    manager : mmtbx.f_model.manager
    mask_params : libtbx.phil.scope_extract
        Those in force, which need not be the manager's own.
    settings : Settings or None
        From :func:`settings_of`.
    """
    return (
        settings is not None
        and settings.mask_gradient
        and manager.xray_structure is not None
        and not manager.twinned()
        and len(manager.k_masks()) == 1
        and masks.has_gradient(mask_params)
    )


class gradients_with_mask:
    """What ``manager.structure_factor_gradients_w`` returns: a factory of gradient objects.

    Parameters
    ----------
    manager : mmtbx.f_model.manager
    inner : cctbx.xray.structure_factors.gradients
        mmtbx's own factory, for what concerns symmetry and for other algorithms.
    mask_params : libtbx.phil.scope_extract
    settings : Settings
    """

    def __init__(self, manager: Any, inner: Any, mask_params: Any, settings: Any) -> None:
        self._manager, self._inner, self._settings = manager, inner, settings
        self._mask_params = mask_params

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(
        self,
        xray_structure: Any,
        u_iso_refinable_params: Any,
        miller_set: Any,
        d_target_d_f_calc: Any,
        n_parameters: Any,
        algorithm: Any = None,
        extra_params: Any = None,
    ) -> Any:
        return gradients_sfdiff(
            manager=self._inner,
            xray_structure=xray_structure,
            u_iso_refinable_params=u_iso_refinable_params,
            miller_set=miller_set,
            d_target_d_f_calc=d_target_d_f_calc,
            n_parameters=n_parameters,
            extra_params=extra_params,
            settings=self._settings,
            algorithm=algorithm,
            site_gradient=lambda part: self._site_gradient(part, miller_set, d_target_d_f_calc),
        )

    def _site_gradient(self, xray_structure: Any, miller_set: Any, d_target_d_f_calc: Any) -> Any:
        manager = self._manager
        k_mask = manager.k_masks()[0]
        if k_mask.size() != d_target_d_f_calc.size():
            k_mask = k_mask.select(manager.arrays.work_sel)
        whole = manager.xray_structure
        gradient = masks.site_gradient(self._mask_params, whole, miller_set, d_target_d_f_calc * k_mask)
        return gradient[_rows(xray_structure, whole)]


def _rows(part: Any, whole: Any) -> Any:
    """Where the scatterers of a selection are among all."""
    n = whole.scatterers().size()
    if part.scatterers().size() == n:
        return slice(None)
    known = {key: i for i, key in enumerate(_keys(whole))}
    return np.array([known[key] for key in _keys(part)], dtype=np.int64)


def _keys(structure: Any) -> Any:
    scatterers = structure.scatterers()
    return zip(scatterers.extract_labels(), scatterers.extract_sites())


def mask_is_behind(manager: Any, xray_structure: Any) -> bool:
    """Whether sites have moved since the manager's mask was made."""
    mask_manager = manager.mask_manager
    structure = manager.xray_structure if xray_structure is None else xray_structure
    if mask_manager.sites_cart is None or mask_manager._f_mask is None:
        return True
    sites = mask_manager._load_xrs(structure).sites_cart()
    if sites.size() != mask_manager.sites_cart.size():
        return True
    return flex.max_default((sites - mask_manager.sites_cart).dot(), 0) > 0  # type: ignore[no-any-return]
