"""mmtbx's own numbers: what this package is compared with.

Everything here is computed by unchanged cctbx code: structure factors and gradients by
``cctbx.xray.structure_factors`` ("direct" is exact, "fft" is what programs use by default), the bulk-solvent
mask by ``mmtbx.masks``, scales and R factors by ``mmtbx.f_model``.  Numbers come back as NumPy arrays in the
order of the reflections or atoms given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mmtbx.f_model
import mmtbx.masks
import numpy as np
import numpy.typing as npt
from cctbx import maptbx, xray
from cctbx.array_family import flex
from libtbx.utils import null_out

# Terms (atoms x reflections x operators) of direct summation in one call of C++, which cannot be interrupted:
# about 2 s.
_TERMS_PER_CALL = 5e7
# Grid points of mmtbx's mask, at 9 bytes a point: about 1 GB.
MAX_MASK_POINTS = 1.2e8


def f_calc_fft(xray_structure: Any, miller_set: Any) -> Any:
    """F_calc by cctbx's FFT at its default accuracy, (n,) complex128."""
    return (
        miller_set.structure_factors_from_scatterers(xray_structure=xray_structure, algorithm="fft")
        .f_calc()
        .data()
        .as_numpy_array()
    )


def f_calc_direct(xray_structure: Any, miller_set: Any, progress: Callable[[float], object] | None = None) -> Any:
    """F_calc by cctbx's direct summation, (n,) complex128, in portions that can be watched and interrupted.

    Parameters
    ----------
    xray_structure : cctbx.xray.structure
    miller_set : cctbx.miller.set
    progress : callable, optional
        Called with the fraction done.
    """
    result = np.empty(miller_set.size(), dtype=np.complex128)
    for portion in _portions(xray_structure, miller_set, 1):
        part = xray.structure_factors.from_scatterers_direct(
            xray_structure=xray_structure, miller_set=_select(miller_set, portion)
        ).f_calc()
        result[portion] = part.data().as_numpy_array()
        if progress is not None:
            progress(portion.stop / miller_set.size())
    return result


def site_gradients(
    xray_structure: Any, miller_set: Any, d_target_d_f_calc: Any, algorithm: str = "fft"
) -> npt.NDArray[Any]:
    """Gradient of a target with respect to the Cartesian sites, by cctbx.

    Parameters
    ----------
    xray_structure : cctbx.xray.structure
    miller_set : cctbx.miller.set
    d_target_d_f_calc : numpy.ndarray
        (n,) complex, dT/dRe(F) + i dT/dIm(F).
    algorithm : {"fft", "direct"}

    Returns
    -------
    numpy.ndarray
        (n_atoms, 3), per Å.
    """
    structure = xray_structure.deep_copy_scatterers()
    scatterers = structure.scatterers()
    scatterers.flags_set_grads(state=False)
    scatterers.flags_set_grad_site(iselection=flex.size_t_range(scatterers.size()))
    n_parameters = 3 * scatterers.size()
    portions = [slice(0, miller_set.size())]
    if algorithm == "direct":
        portions = _portions(structure, miller_set, 2)
    total = np.zeros((scatterers.size(), 3))
    for portion in portions:
        chosen = _select(miller_set, portion)
        weights = flex.complex_double(np.ascontiguousarray(d_target_d_f_calc[portion], np.complex128))
        gradients = xray.structure_factors.gradients(miller_set=chosen)(
            xray_structure=structure,
            u_iso_refinable_params=None,
            miller_set=chosen,
            d_target_d_f_calc=weights,
            n_parameters=n_parameters,
            algorithm=algorithm,
        )
        total += gradients.packed().as_numpy_array().reshape(-1, 3)
    return total


def f_mask(xray_structure: Any, miller_array: Any, step: float) -> Any:
    """F_mask by ``mmtbx.masks`` at its defaults but for the grid, of every reflection, (n,) complex128.

    Parameters
    ----------
    xray_structure : cctbx.xray.structure
    miller_array : cctbx.miller.array
    step : float
        Grid step, Å; mmtbx's default is 0.6.
    """
    parameters = mmtbx.masks.mask_master_params.extract()
    parameters.step = step
    parameters.Fmask_res_high = 0.0
    manager = mmtbx.masks.manager(miller_array=miller_array, mask_params=parameters)
    return manager.shell_f_masks(xray_structure, force_update=True)[0].data().as_numpy_array()


def mask_map(xray_structure: Any, n_real: Any) -> npt.NDArray[Any]:
    """mmtbx's mask in the whole unit cell, (n1, n2, n3) float64: 1 in the solvent, 0 in the macromolecule."""
    parameters = mmtbx.masks.mask_master_params.extract()
    parameters.step, parameters.n_real = None, tuple(n_real)
    scatterers = xray_structure.scatterers()
    kept = (scatterers.extract_occupancies() > 0) & ~xray_structure.hd_selection()
    cell = xray_structure.select(kept).expand_to_p1(sites_mod_positive=True)
    mask = mmtbx.masks.asu_mask(xray_structure=cell, mask_params=parameters)
    return mask.mask_data_whole_uc().as_numpy_array()  # type: ignore[no-any-return]


def affordable_mask_step(crystal_symmetry: Any, step: float, max_points: float = MAX_MASK_POINTS) -> float:
    """The finest grid step (Å), not below ``step``, at which mmtbx's mask has about ``max_points``."""
    step = max(step, math.ceil(100 * (crystal_symmetry.unit_cell().volume() / max_points) ** (1 / 3)) / 100)
    while True:
        grid = maptbx.crystal_gridding(
            unit_cell=crystal_symmetry.unit_cell(),
            space_group_info=crystal_symmetry.space_group_info(),
            symmetry_flags=maptbx.use_space_group_symmetry,
            step=step,
        ).n_real()
        if math.prod(grid) <= max_points * 1.25:
            return step
        step = round(step + 0.01, 2)


def unscaled_model(f_obs: Any, r_free_flags: Any, xray_structure: Any, f_calc: Any = None, f_mask: Any = None) -> Any:
    """``mmtbx.f_model.manager`` before ``update_all_scales()``.

    Parameters
    ----------
    f_obs : cctbx.miller.array
    r_free_flags : cctbx.miller.array or None
    xray_structure : cctbx.xray.structure
    f_calc, f_mask : numpy.ndarray, optional
        (n,) complex in the order of ``f_obs``, instead of mmtbx's own.

    Returns
    -------
    mmtbx.f_model.manager
    """
    given = {
        name: f_obs.customized_copy(data=flex.complex_double(np.ascontiguousarray(value, np.complex128)), sigmas=None)
        for name, value in (("f_calc", f_calc), ("f_mask", f_mask))
        if value is not None
    }
    return mmtbx.f_model.manager(f_obs=f_obs, r_free_flags=r_free_flags, xray_structure=xray_structure, **given)


def scale_model(manager: Any) -> None:
    """``update_all_scales()`` of a manager, at its defaults and silently."""
    manager.update_all_scales(log=null_out())


def _portions(xray_structure: Any, miller_set: Any, cost: float) -> list[slice]:
    """Slices of the reflections that take direct summation about two seconds each."""
    terms = max(1, xray_structure.scatterers().size() * xray_structure.space_group().order_z() * cost)
    size = max(1, int(_TERMS_PER_CALL / terms))
    return [slice(first, min(first + size, miller_set.size())) for first in range(0, miller_set.size(), size)]


def _select(miller_set: Any, portion: slice) -> Any:
    if portion.start == 0 and portion.stop >= miller_set.size():
        return miller_set
    return miller_set.select(flex.size_t_range(portion.start, portion.stop))
