"""``mmtbx.f_model.manager.update_all_scales`` by this package's scaler, which takes a small part of the time.

The algorithm is mmtbx's own, see :mod:`mmtbx_sfdiff.scaling`; the manager is left in the state mmtbx would leave it in.
What that scaler does not do (twins, several masks, overall B moved to the atoms, minimised scales) is left to mmtbx.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import mmtbx.bulk_solvent.bulk_solvent_and_scaling as bss
import numpy as np
from cctbx import adptbx
from cctbx.array_family import flex
from libtbx import group_args

from ..reflections import Reflections
from ..scaling import update_all_scales as sfdiff_update_all_scales
from .conversion import as_complex_tensor, as_flex_complex, as_flex_double
from .usage import count_call


def can_scale(manager: Any, apply_back_trace: Any, fast: Any, params: Any) -> bool:
    """Whether this package's scaler does what the arguments of mmtbx's ask for."""
    count_call("scaling")
    params = bss.master_params.extract() if params is None else params
    return (
        fast
        and not apply_back_trace
        and not manager.twinned()
        and manager.twin_law is None
        and len(manager.k_masks()) == 1
        and hasattr(params, "bulk_solvent")
    )


def update_all_scales(
    manager: Any,
    params: Any = None,
    optimize_mask: bool = False,
    refine_hd_scattering: bool = True,
    remove_outliers: bool = True,
    apply_scale_k1_to_f_obs: bool = True,
    log: Any = None,
) -> Any:
    """Scale an ``mmtbx.f_model.manager``; arguments and result as of its own method.

    Returns
    -------
    libtbx.group_args
        k_sol, b_sol, b_cart and b_adj, which this model does not have, and k_h and b_h of riding hydrogens.
    """
    params = bss.master_params.extract() if params is None else params
    manager.alpha_beta_cache = None
    reflections = Reflections.from_cctbx(manager.f_obs(), manager.r_free_flags())

    def tensor(array: Any) -> torch.Tensor:
        return as_complex_tensor(array.data(), torch.float64, "cpu")

    hydrogens = {}
    if refine_hd_scattering and _has_riding_hydrogens(manager):
        hydrogens = _riding_hydrogens(manager, tensor)
    f_calc = tensor(manager.f_calc())
    scales = sfdiff_update_all_scales(
        reflections,
        f_calc,
        tensor(manager.f_masks()[0]),
        remove_outliers=remove_outliers,
        scale_f_obs=apply_scale_k1_to_f_obs,
        bulk_solvent=params.bulk_solvent,
        anisotropic_scaling=params.anisotropic_scaling,
        f_model=tensor(manager.f_model()),
        **hydrogens,
    )
    _leave_in_state(manager, scales)
    if log is not None:
        for step, r_work, r_free, n in scales.log:
            print("%24s: r(work,free)=%6.4f %6.4f n_refl.: %d" % (step, r_work, r_free, n), file=log)
    if optimize_mask:
        manager.optimize_mask(out=log)
    k_h, b_h = scales.hydrogens or (0, 0)
    manager.russ = group_args(k_sol=None, b_sol=None, b_cart=None, k_h=k_h, b_h=b_h, b_adj=None)
    return manager.russ


def _leave_in_state(manager: Any, scales: Any) -> None:
    if scales.f_obs_scale != 1:
        f_obs = manager.f_obs()
        sigmas = f_obs.sigmas()
        manager.update(
            f_obs=f_obs.customized_copy(
                data=f_obs.data() / scales.f_obs_scale, sigmas=None if sigmas is None else sigmas / scales.f_obs_scale
            )
        )
    kept = flex.bool(np.ascontiguousarray(scales.selection.numpy()))
    bins = scales.bin_index[scales.selection].numpy()
    if kept.count(False):
        manager.select(selection=kept, in_place=True, deep_copy_xray_structure=False)
    manager.bin_selections = [flex.bool(np.ascontiguousarray(bins == i)) for i in range(int(bins.max()) + 1)]
    chosen = scales.selection
    zero = manager.f_calc().array(data=flex.complex_double(manager.f_calc().data().size(), 0))
    f_part2 = zero if scales.f_part2 is None else zero.array(data=as_flex_complex(scales.f_part2[chosen]))
    manager.update_core(
        f_part1=zero,
        f_part2=f_part2,
        k_mask=[as_flex_double(k[chosen]) for k in scales.k_masks],
        k_isotropic=as_flex_double((scales.k_isotropic_exp * scales.k_isotropic)[chosen]),
        k_anisotropic=as_flex_double(scales.k_anisotropic[chosen]),
    )


def _has_riding_hydrogens(manager: Any) -> bool:
    return manager.xray_structure is not None and manager.need_to_refine_hd_scattering_contribution()


def _riding_hydrogens(manager: Any, tensor: Callable[..., Any]) -> dict[str, Any]:
    selection = manager.xray_structure.hd_selection()
    riding = manager.xray_structure.select(selection).set_occupancies(value=1).set_b_iso(value=0)
    others = manager.xray_structure.select(~selection)
    return {
        "f_hydrogen": tensor(manager.compute_f_calc(xray_structure=riding)),
        "b_mean": flex.mean(others.extract_u_iso_or_u_equiv()) * adptbx.u_as_b(1.0),
    }
