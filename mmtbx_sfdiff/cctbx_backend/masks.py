"""F_mask for cctbx: what ``mmtbx.masks.manager`` holds, computed by this package, and its gradient.

A manager says which mask it wants by its parameters, which travel with it through every copy; managers that ask for
cctbx's mask, or whose parameters are older than the registration, are left to cctbx.
"""

from __future__ import annotations

from typing import Any

import torch

import numpy as np
import numpy.typing as npt
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..bulk_solvent import mask_structure_factors, solvent_mask
from .conversion import as_complex_tensor, as_flex_complex, atoms_of, miller_tensor
from .settings import usable_device
from .usage import count_call


def wants_sfdiff(mask_params: Any) -> bool:
    """Whether these mask parameters ask for this package's mask, in a form that it has."""
    return getattr(mask_params, "algorithm", None) == "sfdiff" and mask_params.n_radial_shells <= 1


def has_gradient(mask_params: Any) -> bool:
    """Whether that mask is differentiable in the sites."""
    return wants_sfdiff(mask_params) and mask_params.sfdiff.method != "binary"


def compute_f_mask(manager: Any, params: Any) -> None:
    """Fill an ``mmtbx.masks.manager`` as its own ``compute_f_mask`` does.

    Parameters
    ----------
    manager : mmtbx.masks.manager
    params : libtbx.phil.scope_extract
        Those in force, which need not be the manager's own.

    Raises
    ------
    libtbx.utils.Sorry
        A grid that does not carry the symmetry, an element without a radius, a device that is not there.
    """
    count_call("masks")
    # The manager has left out hydrogens and empty atoms already.
    atoms, mask = _mask(
        params,
        manager.xray_structure,
        _grid_step(params, manager.miller_array),
        include_hydrogens=True,
        include_zero_occupancy=True,
    )
    manager._f_mask = [_f_mask(mask, atoms.crystal, manager.miller_array, params)]
    if manager.miller_array_twin is not None:
        manager._f_mask_twin = [_f_mask(mask, atoms.crystal, manager.miller_array_twin, params)]
    manager.solvent_content_via_mask = float(mask.mean())
    manager.layer_volume_fractions = (manager.solvent_content_via_mask,)


def site_gradient(mask_params: Any, xray_structure: Any, miller_set: Any, d_target_d_f_mask: Any) -> npt.NDArray[Any]:
    """Gradient of a target with respect to the sites, through the mask alone.

    Parameters
    ----------
    mask_params : libtbx.phil.scope_extract
    xray_structure : cctbx.xray.structure
        All atoms of the model.
    miller_set : cctbx.miller.set
    d_target_d_f_mask : flex.complex_double

    Returns
    -------
    numpy.ndarray
        (n_atoms, 3), per Å.
    """

    def require_grad(atoms: Any) -> Atoms:
        return atoms.replace(sites_cart=atoms.sites_cart.clone().requires_grad_())  # type: ignore[no-any-return]

    atoms, mask = _mask(
        mask_params,
        xray_structure,
        _grid_step(mask_params, miller_set),
        require_grad,
        include_hydrogens=not mask_params.ignore_hydrogens,
        include_zero_occupancy=not mask_params.ignore_zero_occupancy_atoms,
    )
    with torch.enable_grad():
        f_mask = mask_structure_factors(
            mask, atoms.crystal, miller_tensor(miller_set, atoms.device), d_min=mask_params.Fmask_res_high
        )
    if not f_mask.requires_grad:
        return np.zeros((atoms.n_atoms, 3))
    (gradient,) = torch.autograd.grad(
        f_mask, atoms.sites_cart, as_complex_tensor(d_target_d_f_mask, mask.dtype, mask.device)
    )
    return gradient.cpu().numpy()


def _mask(
    params: Any, xray_structure: Any, grid_step: Any, prepare: Any = None, **selection: Any
) -> tuple[Atoms, torch.Tensor]:
    """The atoms and their mask on the whole cell."""
    device = usable_device(params.sfdiff.device, "mask.sfdiff.device")
    # A grid point may be just as far from an atom as its radius: the last bit of a site counts.
    atoms = atoms_of(xray_structure, torch.float64, device, lasting=True)
    if prepare is not None:
        atoms = prepare(atoms)
    method = params.sfdiff.method
    options = dict(selection, memory=params.sfdiff.memory * 2**20)
    if method in ("probe_shrink", "binary"):
        options["r_probe"], options["r_shrink"] = params.solvent_radius, params.shrink_truncation_radius
    if method == "probe_shrink" and params.sfdiff.softness is not None:
        options["softness"] = params.sfdiff.softness
    if method == "density_cutoff":
        options = {"memory": options["memory"]}
    try:
        with torch.set_grad_enabled(prepare is not None):
            return atoms, solvent_mask(
                atoms, atoms.crystal, method=method, grid_step=grid_step, n_real=_n_real(params), **options
            )
    except ValueError as error:
        raise Sorry(str(error)) from error


def _grid_step(params: Any, miller_set: Any) -> float:
    if params.use_resolution_based_gridding:
        return miller_set.d_min() / params.grid_step_factor  # type: ignore[no-any-return]
    return params.step  # type: ignore[no-any-return]


def _n_real(params: Any) -> Any:
    return None if params.n_real is None or params.step is not None else tuple(params.n_real)


def _f_mask(mask: Any, crystal: Any, miller_array: Any, params: Any) -> Any:
    f_mask = mask_structure_factors(
        mask, crystal, miller_tensor(miller_array, mask.device), d_min=params.Fmask_res_high
    )
    return miller_array.set().array(data=as_flex_complex(f_mask))
