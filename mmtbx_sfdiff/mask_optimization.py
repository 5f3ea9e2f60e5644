"""The solvent mask's radii and softness learned from the data of one entry.

mmtbx's ``optimize_mask`` tries 225 pairs of r_probe and r_shrink.  The probe-shrink mask is differentiable in them, so a
few gradients do: with the scales fixed, L-BFGS lowers

    T = sum over the work set (|F_model| - F_obs)^2 / sum F_obs^2

in r_probe, r_shrink, softness and, if asked, one radius for each element; the scales are then determined anew, and so on.
A weak restraint keeps the lengths near where they started, because their effects on F_mask are nearly the same and one may
be traded for another.  What is kept is the point of the lowest R-work after scaling.

Reference: ``mmtbx.f_model.manager.optimize_mask``.
"""
from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.optimize import minimize

from .bulk_solvent import mask_structure_factors, probe_shrink_defaults, solvent_mask
from .scaling import update_all_scales

#: Å; the standard deviation of the restraint, and the range.
_SPREAD = {"r_probe": 0.3, "r_shrink": 0.3, "softness": 0.4, "element": 0.2}
_LIMITS = {"r_probe": (0.3, 2.0), "r_shrink": (0.1, 2.0), "softness": (0.3, 1.6), "element": (-0.6, 0.6)}


@dataclasses.dataclass(frozen=True)
class OptimizedMask:
    """What :func:`optimize_mask` found.

    Attributes
    ----------
    options : dict
        Arguments of :func:`~mmtbx_sfdiff.solvent_mask`: r_probe, r_shrink, softness, and radii if those were learned.
    element_shifts : dict of str to float
        Å, added to the van der Waals radius of an element.
    r_work, r_free : float
        After scaling with this mask.
    start : tuple of float
        R-work and R-free before.
    n_masks : int
        Masks that were computed.
    """

    options: dict
    element_shifts: dict
    r_work: float
    r_free: float
    start: tuple
    n_masks: int


def optimize_mask(atoms, reflections, f_calc, cycles=3, steps=5, per_element=True, weight=1e-4, grid_step=0.6, report=None,
                  **scaling):
    """Radii and softness of the probe-shrink mask that lower the least-squares residual of the work set.

    Parameters
    ----------
    atoms : Atoms
        A single model.
    reflections : Reflections
    f_calc : torch.Tensor
        (n,) complex, F of the atoms; a constant here.
    cycles : int
        Times that the scales are determined.
    steps : int
        Steps of L-BFGS in each.
    per_element : bool
        Learn a radius for each element too.
    weight : float
        Of the restraint on the lengths, against T.
    grid_step : float
        Å.
    report : callable, optional
        Called with (cycle, R-work, R-free) after each scaling.
    **scaling
        Of :func:`~mmtbx_sfdiff.scaling.update_all_scales`.

    Returns
    -------
    OptimizedMask
    """
    crystal = reflections.crystal
    elements = atoms.elements
    learned = sorted(set(elements) - {"H", "D"}) if per_element else []
    row = torch.tensor([learned.index(e) if e in learned else len(learned) for e in elements])
    table = atoms.vdw_radii()
    names = ["r_probe", "r_shrink", "softness"] + ["element"] * len(learned)
    start = np.array([*probe_shrink_defaults(), *[0.0] * len(learned)])
    spread = np.array([_SPREAD[name] for name in names])
    n_masks = 0

    def f_mask_of(lengths):
        nonlocal n_masks
        n_masks += 1
        shifts = torch.cat([lengths[3:], lengths.new_zeros(1)])
        mask = solvent_mask(atoms, crystal, method="probe_shrink", grid_step=grid_step, r_probe=lengths[0],
                            r_shrink=lengths[1], softness=lengths[2],
                            radii=(table + shifts[row].to(table)).clamp(min=0.5) if learned else table)
        return mask_structure_factors(mask, crystal, reflections.miller_indices)

    def scaled(values):
        with torch.no_grad():
            return update_all_scales(reflections, f_calc, f_mask_of(torch.from_numpy(values)), **scaling)

    scales = scaled(start)
    first = scales.r_work, scales.r_free
    best, best_scales, point = start, scales, start
    for cycle in range(cycles):
        if report is not None:
            report(cycle, scales.r_work, scales.r_free)
        work = scales.selection.clone()
        if reflections.r_free_flags is not None:
            work &= ~reflections.r_free_flags
        f_obs = reflections.f_obs[work] / scales.f_obs_scale

        def target(values):
            lengths = torch.tensor(values, requires_grad=True)
            amplitudes = scales.f_model(f_calc, f_mask_of(lengths))[work].abs()
            # The overall scale follows at once.
            k = (f_obs @ amplitudes.detach()) / (amplitudes.detach() @ amplitudes.detach())
            value = (k * amplitudes - f_obs).square().sum() / f_obs.square().sum()
            pull = (lengths - torch.from_numpy(start)) / torch.from_numpy(spread)
            value = value + weight * pull.square().sum()
            gradient, = torch.autograd.grad(value, lengths)
            return 1e3 * float(value.detach()), 1e3 * gradient.numpy().astype(np.float64)

        found = minimize(lambda x: (lambda v, g: (v, g * spread))(*target(x * spread)), point / spread, jac=True,
                         method="L-BFGS-B", bounds=[tuple(np.array(_LIMITS[n]) / s) for n, s in zip(names, spread)],
                         options={"maxiter": steps, "maxfun": steps + 3})
        point = found.x * spread
        scales = scaled(point)
        if scales.r_work < best_scales.r_work:
            best, best_scales = point, scales
    if report is not None:
        report(cycles, scales.r_work, scales.r_free)
    options = dict(zip(("r_probe", "r_shrink", "softness"), best[:3].tolist()))
    shifts = dict(zip(learned, best[3:].tolist()))
    if learned:
        options["radii"] = (table + torch.from_numpy(np.append(best[3:], 0.0))[row].to(table)).clamp(min=0.5)
    return OptimizedMask(options, shifts, float(best_scales.r_work), float(best_scales.r_free), tuple(map(float, first)), n_masks)
