"""Masks of anything: random cases for the driver of :mod:`tests.support.robustness`.

A case is a seed.  From it come a crystal, atoms, a kind of mask and its options, what is asked for, and with some chance
faults of every kind in the atoms, the radii, the lengths, the occupancies of an ensemble, the grid, the mask itself.
"""

import random

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.plans import Plan

from tests.support.robust_structure_factors import NUMBERS, _indices, _structure, in_batch

GROUPS = ("P 1", "P 1 21 1", "P 21 21 21", "R 3 :H", "C 1 2 1")
METHODS = ("probe_shrink", "probe_shrink", "hard", "binary", "density_cutoff")
PARAMETERS = ("sites_cart", "occupancies", "radii", "u_iso", "r_probe", "r_shrink", "softness")


def call(seed):
    """One case: whether what came out is finite."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    atoms = _structure(rng.choice(GROUPS), False)
    if rng.random() < 0.3:
        atoms = atoms.to(dtype=torch.float32)
    if rng.random() < 0.1:
        atoms = atoms.select(torch.arange(rng.choice((0, 1, 3))))
    batch = rng.choice(((), (), (), (1,), (2,), (4,), (0,), (2, 2), (2, 0)))
    method = rng.choice(METHODS)
    values = in_batch(atoms, ("sites_cart", "occupancies", "u_iso"), batch, rng, generator)
    options = {"method": "probe_shrink", "softness": 0} if method == "hard" else {"method": method}
    if method != "density_cutoff" and rng.random() < 0.4:
        values["radii"] = torch.full((*rng.choice((batch, ())), atoms.n_atoms), 1.7, dtype=torch.float64)
    for name in ("r_probe", "r_shrink", "softness"):
        if method == "probe_shrink" and rng.random() < 0.2:
            values[name] = torch.tensor(rng.choice((0.3, 0.9, 1.2)), dtype=rng.choice((torch.float32, torch.float64)))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        _spoil(values, rng)
    wanted = [name for name in values if rng.random() < 0.5 and values[name].is_floating_point()]
    order = rng.choice((0, 1, 1, 2)) if wanted else 0
    leaves = {name: values[name].detach().requires_grad_() for name in wanted} if order else {}
    values |= leaves
    atoms = atoms.replace(**{name: values.pop(name) for name in ("sites_cart", "occupancies", "u_iso")})
    options |= values | _options(method, batch, rng)
    place = sfdiff.plan(atoms.crystal, _indices(atoms.crystal, rng)) if rng.random() < 0.5 else atoms.crystal
    f = _asked(atoms, place, options, rng)
    found = [f]
    if order and f.requires_grad:
        parts = torch.view_as_real(f) if f.is_complex() else f
        found += torch.autograd.grad(
            (parts * 1.5 + parts**2).sum(), list(leaves.values()), create_graph=order == 2, allow_unused=True
        )
    if order == 2 and f.requires_grad:
        # Refused, or the data's own part.
        loss = sum(x.sum() for x in found[1:] if x is not None and x.requires_grad)
        if isinstance(loss, torch.Tensor):
            found += torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        "finite": all(
            bool(torch.isfinite(torch.view_as_real(x) if x.is_complex() else x).all()) for x in found if x is not None
        )
    }


def _options(method, batch, rng):
    options = {"grid_step": rng.choice((0.8, 1.0, 1.2, 1.2, 1.2))}
    if rng.random() < 0.05:
        options["grid_step"] = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e-9, 1e9, 40.0))
    if rng.random() < 0.05:
        options["n_real"] = rng.choice(((0, 1, 2), (1, 1, 1), (7, 11, 13), (24, 24, 24), (12, 12), (-3, 4, 5)))
    if method != "density_cutoff" and rng.random() < 0.3:
        options["include_zero_occupancy"] = True
    if method != "density_cutoff" and rng.random() < 0.1:
        options["memory"] = rng.choice((2**16, 2**20))
    if method in ("probe_shrink", "hard") and rng.random() < 0.1:
        # The hard mask in torch alone takes minutes for a batch.
        options["engine"] = rng.choice(("torch" if method == "probe_shrink" else "cpu", "cpu", "nothing"))
    if method == "density_cutoff" and rng.random() < 0.4:
        options["solvent_fraction"] = rng.choice((0.5, 0.3, 0.0, 1.0, -1.0, float("nan"), 2.0))
    if batch and rng.random() < 0.3:
        weights = torch.tensor([rng.random() for _ in range(batch[-1])], dtype=torch.float64)
        if rng.random() < 0.3 and len(weights):
            weights[-1] = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
        if rng.random() < 0.2:
            weights = weights[:-1] if rng.random() < 0.5 else weights.expand(3, -1)
        options["ensemble"] = weights
    return options


def _asked(atoms, place, options, rng):
    """The mask, its structure factors, or those of a mask with a fault in it."""
    kind = rng.randrange(3)
    d_min = rng.choice((3.0, 3.0, 4.0, None, 0.0, -1.0, float("nan"), 1e6))
    rest = () if isinstance(place, Plan) else (_indices(atoms.crystal, rng),)
    if kind == 0:
        return sfdiff.solvent_structure_factors(atoms, place, *rest, d_min=d_min, **options)
    mask = sfdiff.solvent_mask(atoms, place, **options)
    if not float(mask.detach().min() if mask.numel() else 0) >= -1e-5:
        raise AssertionError("a mask below 0")
    if not float(mask.detach().max() if mask.numel() else 1) <= 1 + 1e-5:
        raise AssertionError("a mask above 1")
    if kind == 1:
        return mask
    if mask.numel() and rng.random() < 0.4:
        mask = mask.detach().clone()
        mask.view(-1)[rng.randrange(mask.numel())] = rng.choice(NUMBERS)
        mask.requires_grad_()
    if rng.random() < 0.2:
        mask = rng.choice((mask.transpose(-1, -2).contiguous().transpose(-1, -2), mask.to(torch.float16), mask[..., 0]))
    f = sfdiff.mask_structure_factors(mask, place, *rest, d_min=d_min)
    # Their gradient goes to the mask, too.
    return f if mask.is_leaf else f + 0 * mask.sum()


def _spoil(values, rng):
    """One fault in one parameter."""
    name = rng.choice([name for name in PARAMETERS if name in values])
    value = values[name]
    kind = rng.randrange(9)
    if kind <= 4 and value.numel() and value.is_floating_point():
        value = value.clone(memory_format=torch.contiguous_format)
        value.view(-1)[rng.randrange(value.numel())] = rng.choice(NUMBERS)
    elif kind == 5:
        value = value * rng.choice((0.0, -1.0, 1e3))
    elif kind == 6:
        value = value.transpose(0, -1).contiguous().transpose(0, -1) if value.ndim else value
    elif kind == 7:
        value = value.to(rng.choice((torch.float16, torch.float32, torch.float64, torch.int64, torch.complex128)))
    elif value.ndim:
        value = value[..., :-1] if rng.random() < 0.5 else value[None, ..., None]
    values[name] = value
