"""Data of a made-up crystal with solvent, noise, free flags and outliers, with mmtbx's manager."""

import random

import torch
from mmtbx_sfdiff.reflections import Reflections

import mmtbx.f_model
import numpy as np
from cctbx import adptbx, miller, sgtbx
from cctbx.array_family import flex
from cctbx.development import random_structure


def tensor(array):
    """Values of a miller array."""
    return torch.from_numpy(array.data().as_numpy_array())


def manager(symbol="P 21 21 21", n_atoms=40, d_min=2.0, seed=0, flags=True, n_outliers=0, hydrogens=0, scale=3.0):
    """An f_model manager whose F_obs come from a distorted model with solvent and scales."""
    random.seed(seed)
    flex.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    elements = ["C", "N", "O", "S"] * (n_atoms // 4) + ["H"] * hydrogens
    structure = random_structure.xray_structure(
        space_group_info=sgtbx.space_group_info(symbol),
        elements=elements,
        volume_per_atom=90,
        random_u_iso=True,
        u_iso=0.15,
        use_u_iso=True,
        min_distance=1.2,
    )
    structure.scattering_type_registry(table="n_gaussian", d_min=d_min)
    if hydrogens:
        structure.set_occupancies(0.0, selection=structure.hd_selection())
    indices = miller.build_set(structure, anomalous_flag=False, d_min=d_min)
    everywhere = (
        flex.bool(indices.size(), False) if not flags else flex.bool((rng.random(indices.size()) < 0.1).tolist())
    )
    blank = indices.array(data=flex.double(indices.size(), 1.0)).set_observation_type_xray_amplitude()
    first = mmtbx.f_model.manager(f_obs=blank, r_free_flags=indices.array(data=everywhere), xray_structure=structure)
    f_calc, f_mask = first.f_calc().data(), first.f_masks()[0].data()
    ss = 1 / flex.pow2(indices.d_spacings().data()) / 4
    u_star = adptbx.u_cart_as_u_star(structure.unit_cell(), adptbx.b_as_u([3, -1, -2, 0, 0, 0]))
    u_star = structure.space_group().average_u_star(u_star)
    k = flex.double([adptbx.debye_waller_factor_u_star(h, u_star) for h in indices.indices()])
    total = f_calc + 0.35 * flex.exp(-46 * ss) * f_mask
    if hydrogens:
        with_h = structure.select(structure.hd_selection()).deep_copy_scatterers()
        with_h = with_h.set_occupancies(value=1).set_b_iso(value=0)
        total += 0.9 * flex.exp(-12 * ss) * first.compute_f_calc(xray_structure=with_h).data()
    amplitudes = (scale * k * flex.abs(total)).as_numpy_array()
    sigmas = 0.05 * amplitudes + 0.02 * amplitudes.mean()
    amplitudes = np.abs(
        amplitudes * (1 + 0.15 * rng.standard_normal(len(k))) + 0.3 * sigmas * rng.standard_normal(len(k))
    )
    amplitudes[rng.choice(len(k), n_outliers, replace=False)] *= 6
    f_obs = indices.array(
        data=flex.double(amplitudes), sigmas=flex.double(sigmas)
    ).set_observation_type_xray_amplitude()
    return mmtbx.f_model.manager(f_obs=f_obs, r_free_flags=indices.array(data=everywhere), xray_structure=structure)


def reflections_of(fmodel):
    return Reflections.from_cctbx(fmodel.f_obs(), fmodel.r_free_flags())


def structure_factors_of(fmodel):
    """F_calc and F_mask as tensors."""
    return tensor(fmodel.f_calc()), tensor(fmodel.f_masks()[0])
