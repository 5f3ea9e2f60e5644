"""Numbers of the contracts that ``mmtbx_sfdiff.compare`` does not measure, on one entry.

Direct summation and its gradients against cctbx's direct summation with the same form factors, in both
precisions; the binary mask against mmtbx's F_mask; the gradient of the default mask against finite differences
of the same mask over the steps that a refinement takes; and, where R factors differ, whether rounding is why.
"""

from __future__ import annotations

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.comparison import mmtbx_numbers as reference
from mmtbx_sfdiff.comparison.bench import F_MASK_D_MIN
from mmtbx_sfdiff.comparison.measure import MMTBX_GRID_STEP
from mmtbx_sfdiff.comparison.statistics import relative_l2

import numpy as np
from cctbx import xray
from cctbx.array_family import flex

from ..studies.scaling import AGREES, tolerant_mmtbx

# Å: the steps of atoms over which the mask's gradient has to hold.
MASK_STEPS = (0.001, 0.005, 0.02)
_FUNCTIONALS = 5


def measure_contracts(entry, parameters, comparison=None, report=lambda step, fraction=None: None):
    """The numbers, as a dict that JSON can hold.

    Parameters
    ----------
    entry : mmtbx_sfdiff.files.Entry
    parameters : validation.suite.parameters.Parameters
    comparison : mmtbx_sfdiff.comparison.Comparison, optional
        Of the entry; without it scaling is left out.
    report : callable, optional
        Called with what is being done.
    """
    report("contract: direct summation")
    result = {"direct": _direct(entry, parameters.contract_terms)}
    low = entry.data.f_obs.select(entry.data.f_obs.d_spacings().data() >= F_MASK_D_MIN)
    atoms = sfdiff.Atoms.from_cctbx(entry.model.xray_structure)
    report("contract: binary mask")
    result["binary_mask"] = _binary_mask(entry.model.xray_structure, atoms, low)
    report("contract: gradient of the mask")
    small = atoms.crystal.volume <= parameters.mask_gradient_volume
    result["mask_gradient"] = _mask_gradient(atoms, low, parameters.grid_step) if small else None
    result["scaling"] = None
    if comparison is not None:
        report("contract: scaling")
        result["scaling"] = _scaling(entry, comparison)
    return result


def _scaling(entry, comparison):
    """Differences of R between this package's scaling and mmtbx's, the largest of work, free and both pairs of F.

    mmtbx smooths k_mask by comparing neighbouring bins that are often equal but for rounding, so that its own R is
    one of several.  ``with_ties`` is the difference from mmtbx with that comparison made tolerant, run where they
    differ by more than 1e-6; None where they do not.
    """
    part, with_ties = comparison.result["r_factors"], None
    differences = {name: _difference(part["sfdiff_scaling"][name], part[name]) for name in comparison.pairs}
    for name, (f_calc, f_mask) in comparison.pairs.items():
        if differences[name] > AGREES:
            manager = reference.unscaled_model(
                entry.data.f_obs, entry.data.r_free_flags, entry.model.xray_structure, f_calc, f_mask
            )
            with tolerant_mmtbx():
                reference.scale_model(manager)
            theirs = {"r_work": float(manager.r_work()), "r_free": float(manager.r_free())}
            with_ties = max(with_ties or 0.0, _difference(part["sfdiff_scaling"][name], theirs))
    return {"largest_difference": max(differences.values()), "with_ties": with_ties}


def _difference(ours, theirs):
    return max(abs(ours[kind] - theirs[kind]) for kind in ("r_work", "r_free") if ours[kind] is not None)


def _direct(entry, max_terms):
    structure, f_obs = entry.model.xray_structure, entry.data.f_obs
    terms = max(1, structure.scatterers().size() * structure.space_group().order_z())
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(f_obs.size())[: max(10, int(max_terms / terms))])
    part = f_obs.select(flex.size_t(chosen.tolist()))
    exact = reference.f_calc_direct(structure, part)
    result = {"n_reflections": part.size()}
    weights = rng.standard_normal((2, part.size()))
    weights = weights[0] + 1j * weights[1]
    expected = _cctbx_gradients(structure, part, weights)
    for dtype, complex_dtype in ((torch.float64, torch.complex128), (torch.float32, torch.complex64)):
        atoms = sfdiff.Atoms.from_cctbx(structure, dtype=dtype)
        leaves = {name: getattr(atoms, name).clone().requires_grad_() for name in expected}
        f = sfdiff.structure_factors(atoms.replace(**leaves), atoms.crystal, part, method="direct")
        name = str(dtype).removeprefix("torch.")
        result[f"relative_l2_{name}"] = relative_l2(f.detach().numpy().astype(np.complex128), exact)
        if dtype == torch.float64:
            gradients = torch.autograd.grad(f, list(leaves.values()), torch.from_numpy(weights).to(complex_dtype))
            result["gradients"] = {
                name: relative_l2(gradient.numpy().ravel(), expected[name].ravel())
                for name, gradient in zip(leaves, gradients)
            }
    return result


def _cctbx_gradients(structure, miller_set, weights):
    """cctbx's gradients by direct summation, by the names that this package has for the parameters."""
    structure = structure.deep_copy_scatterers()
    xray.set_scatterer_grad_flags(structure.scatterers(), site=True, u_iso=True, u_aniso=True, occupancy=True)
    found = xray.structure_factors.gradients_direct(
        xray_structure=structure,
        u_iso_refinable_params=None,
        miller_set=miller_set,
        d_target_d_f_calc=flex.complex_double(weights),
        n_parameters=0,
    )
    result = {
        "sites_cart": found.d_target_d_site_cart().as_double().as_numpy_array().reshape(-1, 3),
        "occupancies": found.d_target_d_occupancy().as_numpy_array(),
    }
    if structure.use_u_iso().count(True):
        result["u_iso"] = found.d_target_d_u_iso().as_numpy_array()
    if structure.use_u_aniso().count(True):
        result["u_star"] = np.array(list(found.d_target_d_u_star()))
    return result


def _binary_mask(structure, atoms, low):
    mask = sfdiff.solvent_mask(atoms, atoms.crystal, method="binary", grid_step=MMTBX_GRID_STEP)
    ours = sfdiff.mask_structure_factors(mask, atoms.crystal, low).numpy()
    return {
        "relative_l2": relative_l2(ours, reference.f_mask(structure, low, MMTBX_GRID_STEP)),
        "n_reflections": low.size(),
    }


def _mask_gradient(atoms, low, grid_step):
    """Directional derivatives of random linear functionals of F_mask, along random shifts of all atoms.

    ``relative_l2`` is, for each step, the relative difference from central differences over the functionals.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(atoms.sites_cart.shape, dtype=torch.float64, generator=generator)
    weights = torch.randn(_FUNCTIONALS, low.size(), dtype=torch.complex128, generator=generator)

    def f_mask(sites):
        mask = sfdiff.solvent_mask(atoms.replace(sites_cart=sites), atoms.crystal, grid_step=grid_step)
        return sfdiff.mask_structure_factors(mask, atoms.crystal, low)

    sites = atoms.sites_cart.clone().requires_grad_()
    f = f_mask(sites)
    slopes = torch.stack(
        [(torch.autograd.grad(f, sites, weight, retain_graph=True)[0] * direction).sum() for weight in weights]
    )
    errors = []
    with torch.no_grad():
        for step in MASK_STEPS:
            change = (f_mask(atoms.sites_cart + step * direction) - f_mask(atoms.sites_cart - step * direction)) / (
                2 * step
            )
            differences = (weights.conj() * change).real.sum(-1)
            errors.append(relative_l2(slopes.numpy(), differences.numpy()))
    return {"steps": list(MASK_STEPS), "relative_l2": errors}
