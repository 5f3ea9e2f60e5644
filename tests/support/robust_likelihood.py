"""Scales, targets and likelihoods of anything: random cases for the driver of :mod:`tests.support.robustness`.

A case is a seed.  From it come data, structure factors of a model and of a mask, one of the functions that compare them, and
with some chance faults of every kind in each of its arguments.
"""

import random

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import targets
from mmtbx_sfdiff.likelihood.alpha_beta import AlphaBeta, estimate_alpha_beta
from mmtbx_sfdiff.reflections import Reflections

from tests.support.robust_fmodel import GROUPS, _amplitudes
from tests.support.robust_structure_factors import NUMBERS
from tests.support.robustness import finite

SIZES = (1e-300, 1e-160, 1e-40, 1e-20, 1e20, 1e40, 1e160, 1e300, -1.0, 0.0)
_known = {}


def call(seed):
    """One case: whether what came out is finite."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    data, f, f_mask = _arguments(rng, generator)
    name = rng.choice(sorted(OPERATIONS))
    order = rng.choice((0, 1, 1, 2))
    f = f.detach().requires_grad_(order > 0 and (f.is_complex() or f.is_floating_point()))
    found = OPERATIONS[name](data, f, f_mask, rng)
    if f.requires_grad:
        live = [x for x in found if x.requires_grad]
        if live:
            grad = torch.autograd.grad(sum(x.abs().sum() for x in live), f, create_graph=order == 2)
            found += grad
            if order == 2 and grad[0].requires_grad:
                found += torch.autograd.grad(grad[0].abs().sum(), f, allow_unused=True)
    return {"finite": finite(found)}


def _arguments(rng, generator):
    symbol = rng.choice(GROUPS)
    atoms, indices, f_obs = _amplitudes(symbol)
    if symbol not in _known:
        f = sfdiff.structure_factors(atoms, atoms.crystal, indices, method="direct")
        _known[symbol] = f, sfdiff.solvent_structure_factors(atoms, atoms.crystal, indices, grid_step=1.0)
    f, f_mask = _known[symbol]
    f_obs, free = f_obs.clone(), torch.arange(len(f_obs)) % rng.choice((3, 10, 10)) == 0
    sigmas = 0.05 * f_obs
    n = rng.choice((len(f_obs),) * 6 + (0, 1, 2, 3, 7, 40))
    chosen = torch.randperm(len(f_obs), generator=generator)[:n]
    indices, f_obs, sigmas, free, f, f_mask = (x[chosen] for x in (indices, f_obs, sigmas, free, f, f_mask))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        kind = rng.randrange(12)
        some = rng.randrange(n) if n else 0
        if kind == 0 and n:
            f_obs[some] = rng.choice(NUMBERS)
        elif kind == 1 and n:
            sigmas[some] = rng.choice(NUMBERS)
        elif kind == 2:
            free = torch.full_like(free, rng.random() < 0.5)
        elif kind == 3:
            f_obs = f_obs * rng.choice(SIZES)
        elif kind == 4:
            f = f * rng.choice(SIZES)
        elif kind == 5 and f.numel() and f.is_complex():
            f = f.clone()
            f.view(-1)[rng.randrange(f.numel())] = complex(rng.choice(NUMBERS), rng.choice((0.0, 1.0, float("nan"))))
        elif kind == 6 and f_mask.numel():
            f_mask = f_mask.clone()
            f_mask.view(-1)[0] = rng.choice(NUMBERS)
        elif kind == 7:
            f = rng.choice(
                (
                    f[..., :-1],
                    torch.stack([f] * 3),
                    torch.stack([f] * 3)[:0],
                    f.real,
                    f.to(torch.complex64),
                    f.abs().int(),
                    f[..., None],
                )
            )
        elif kind == 8:
            f_mask = rng.choice((f_mask[:-1], f_mask * 0, f_mask[None], f_mask.real, f_mask * 1e30, f))
        elif kind == 9:
            sigmas = rng.choice((None, sigmas * 1e20, sigmas * 1e-20, sigmas[:-1]))
        elif kind == 10:
            f = f * 0 if rng.random() < 0.5 else torch.where(torch.arange(f.shape[-1]) % 2 == 0, f, 0)
        else:
            f_obs = torch.where(torch.arange(n) % 2 == 0, f_obs, 0) if rng.random() < 0.5 else f_obs * 0 + 1
    data = Reflections.from_arrays(
        atoms.crystal,
        indices,
        f_obs,
        sigmas,
        rng.choice((free, free, free, None)),
        dtype=rng.choice((torch.float64, torch.float64, torch.float32)),
    )
    return data, f, f_mask


def _scales(data, f, f_mask, rng):
    options = {"model": rng.choice(("mmtbx", "mmtbx", "exponential", "other"))}
    for name in ("remove_outliers", "scale_f_obs", "bulk_solvent", "anisotropic_scaling"):
        if rng.random() < 0.2:
            options[name] = False
    if rng.random() < 0.1:
        options |= {
            "f_hydrogen": rng.choice((f.detach(), f_mask)),
            "b_mean": rng.choice((20.0, None, float("nan"), 0.0)),
        }
    scales = sfdiff.update_all_scales(data, f, f_mask, **options)
    r_free = [] if scales.r_free is None else [torch.tensor(scales.r_free)]
    return [scales.k_total, *scales.k_masks, torch.tensor(scales.r_work), *r_free, scales.f_model(f, f_mask)]


def _e_values(data, f, f_mask, rng):
    found = sfdiff.e_values(data)
    return [x for x in (found.e, found.sigma, found.epsilon) if x is not None]


def _llg(data, f, f_mask, rng):
    given = None
    if rng.random() < 0.3:
        given = torch.full((len(data),), rng.choice((0.0, 0.5, 0.999, 1.0, -0.1, float("nan"))), dtype=torch.float64)
    return [sfdiff.llg(data, f, sigma_a=given)]


def _normalized(data, f, f_mask, rng):
    options = {"weights": rng.choice(("unit", "sigma")), "scale": rng.choice(("k1", "unit"))}
    return [targets.normalized_least_squares(data, f, f_obs_scale=1.0, **options)]


def _maximum_likelihood(data, f, f_mask, rng):
    alpha_beta = estimate_alpha_beta(data, f)
    if rng.random() < 0.2 and len(data):
        beta = alpha_beta.beta.clone()
        beta[rng.randrange(len(data))] = rng.choice((0.0, 1e-30, 1e30, -1.0))
        alpha_beta = AlphaBeta(alpha_beta.alpha, beta, alpha_beta.epsilons, alpha_beta.centric)
    return [alpha_beta.alpha, alpha_beta.beta, targets.maximum_likelihood(data, f, alpha_beta, f_obs_scale=1.0)]


OPERATIONS = {
    "update_all_scales": _scales,
    "e_values": _e_values,
    "sigma_a": lambda data, f, f_mask, rng: [sfdiff.sigma_a(data, f)],
    "llg": _llg,
    "least_squares": lambda data, f, f_mask, rng: [targets.least_squares(data, f, f_obs_scale=1.0)],
    "intensity_least_squares": lambda data, f, f_mask, rng: [targets.intensity_least_squares(data, f, f_obs_scale=1.0)],
    "normalized_least_squares": _normalized,
    "maximum_likelihood": _maximum_likelihood,
    "r_factors": lambda data, f, f_mask, rng: [*targets.r_factors(data, f)],
}
