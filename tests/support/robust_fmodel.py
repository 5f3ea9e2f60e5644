"""FModel of anything: random cases for the driver of :mod:`tests.support.robustness`.

A case is a seed.  From it come a crystal, atoms, data that fit them about, and with some chance faults of every kind in the
atoms, the sites that it is called with, the data, the ensemble's weights.
"""

import random
import warnings

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.reflections import Reflections

from tests.support.robust_structure_factors import NUMBERS, _structure
from tests.support.robustness import finite

GROUPS = ("P 1", "P 21 21 21", "C 1 2 1")
_data = {}


def _amplitudes(symbol):
    """(atoms, indices, f_obs): of the atoms with a flat solvent and noise."""
    if symbol not in _data:
        atoms = _structure(symbol, False)
        indices = atoms.crystal.build_miller_indices(2.5)
        f = sfdiff.structure_factors(atoms, atoms.crystal, indices, method="direct")
        f_mask = sfdiff.solvent_structure_factors(atoms, atoms.crystal, indices)
        noise = 1 + 0.05 * torch.randn(len(f), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        _data[symbol] = atoms, indices, (f + 0.35 * f_mask).abs() * noise.clamp(min=0.5)
    return _data[symbol]


def call(seed):
    """One case: whether what came out is finite."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    atoms, indices, f_obs = _amplitudes(rng.choice(GROUPS))
    f_obs, free = f_obs.clone(), torch.arange(len(f_obs)) % 10 == 0
    sigmas = 0.05 * f_obs
    if rng.random() < 0.15:
        # Data beyond what anybody measures; none of one kind; none at all.
        kind = rng.randrange(6)
        if kind == 0:
            f_obs[rng.randrange(len(f_obs))] = rng.choice(NUMBERS)
        elif kind == 1:
            sigmas[rng.randrange(len(f_obs))] = rng.choice(NUMBERS)
        elif kind == 2:
            free = torch.full_like(free, rng.random() < 0.5)
        elif kind == 3:
            f_obs = f_obs * 0
        elif kind == 4:
            n = rng.choice((0, 1, 5))
            indices, f_obs, sigmas, free = indices[:n], f_obs[:n], sigmas[:n], free[:n]
        else:
            f_obs = f_obs * rng.choice((1e-20, 1e20, -1.0))
    dtype = rng.choice((torch.float64, torch.float64, torch.float32))
    atoms = atoms.to(dtype=dtype)
    data = Reflections.from_arrays(
        atoms.crystal, indices, f_obs, sigmas, free, dtype=rng.choice((dtype, torch.float64))
    )
    options = {"mask": rng.choice(({}, {"grid_step": 1.0}, {"method": "binary"}, {"softness": 0}))}
    if rng.random() < 0.2:
        options["follow_scales"] = True
    if rng.random() < 0.1:
        options["refresh_scales"] = rng.choice((1, 2))
    if rng.random() < 0.2:
        options["refine"] = rng.choice((("sites_cart",), ("sites_cart", "u_iso", "occupancies"), ("nothing",)))
    conformers = rng.choice((0, 0, 0, 1, 3))
    if conformers:
        moved = atoms.sites_cart + 0.1 * torch.randn(
            (conformers, *atoms.sites_cart.shape), generator=generator, dtype=torch.float64
        ).to(dtype)
        atoms = atoms.replace(sites_cart=moved)
        weights = torch.rand(conformers, generator=generator, dtype=torch.float64)
        if rng.random() < 0.2:
            weights[-1] = rng.choice((0.0, *NUMBERS[:5]))
        options |= {"ensemble": weights, "solvent": rng.choice(("combined", "combined", "per_conformer", "none"))}
    if rng.random() < 0.3:
        atoms = atoms.replace(**_spoiled(atoms, rng))
    fmodel = sfdiff.FModel(atoms, data, **options)
    fmodel.update_scales()
    found = [x for x in fmodel.r_factors() if x is not None]
    sites, given = None, {}
    if rng.random() < 0.7:
        sites = _sites(atoms, conformers, rng, generator)
        given = {"sites_cart": sites}
    target = rng.choice(("least_squares", "maximum_likelihood"))
    value = fmodel.target(target, **given)
    found.append(value)
    inputs = [x for x in (sites, *fmodel.parameters()) if isinstance(x, torch.Tensor) and x.requires_grad]
    if inputs and value.requires_grad:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            gradients = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
        # Half precision ends at 65504, which is said.
        said = any("float16" in str(warning.message) for warning in told)
        found += [x for x in gradients if not (said and x is not None and x.dtype == torch.float16)]
    return {"finite": finite(torch.as_tensor(x) for x in found if x is not None)}


def _spoiled(atoms, rng):
    name = rng.choice(("sites_cart", "u_iso", "occupancies"))
    value = getattr(atoms, name).clone()
    value.view(-1)[rng.randrange(value.numel())] = rng.choice(NUMBERS)
    return {name: value}


def _sites(atoms, conformers, rng, generator):
    """Sites as a network gives them: moved, in batches, in any precision and layout, with faults."""
    sites = atoms.sites_cart.detach().clone()
    batch = rng.choice(((), (), (2,), (4,), (0,)))
    sites = sites.expand(*batch, *sites.shape).clone()
    sites = sites + 0.05 * torch.randn(sites.shape, generator=generator, dtype=torch.float64).to(sites)
    kind = rng.randrange(8)
    if kind <= 1 and sites.numel():
        sites.view(-1)[rng.randrange(sites.numel())] = rng.choice(NUMBERS)
    elif kind == 2:
        sites = sites.to(rng.choice((torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64)))
    elif kind == 3:
        sites = rng.choice((sites[..., :-1, :], sites[..., :2], sites[..., None]))
    elif kind == 4:
        sites = sites.transpose(-1, -2).contiguous().transpose(-1, -2)
    return sites.requires_grad_(sites.is_floating_point() and rng.random() < 0.8)
