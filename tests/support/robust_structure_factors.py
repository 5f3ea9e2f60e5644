"""Structure factors of anything: random cases for the driver of :mod:`tests.support.robustness`.

A case is a seed.  From it come a crystal, atoms, indices, a method, what is asked for, and with some chance faults of every
kind: numbers that are none, empty batches, atoms and sets, other dtypes, layouts and shapes.
"""

import random

import mmtbx_sfdiff as sfdiff
import torch

from cctbx import sgtbx
from cctbx.array_family import flex
from cctbx.development import random_structure

PARAMETERS = ("sites_cart", "u_iso", "u_star", "occupancies", "fp", "fdp")
GROUPS = ("P 1", "P 1 21 1", "P 21 21 21", "R 3 :H", "F 4 3 2", "C 1 2 1")
NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e5, -1e5, 1e12, 40.0, -40.0, -1.0, -0.3, 0.0, 1e-30)
_known = {}


def _structure(symbol, anisotropic):
    if (symbol, anisotropic) not in _known:
        random.seed(0)
        flex.set_random_seed(0)
        structure = random_structure.xray_structure(
            sgtbx.space_group_info(symbol),
            elements=["C", "N", "O", "S"] * 5,
            volume_per_atom=40,
            random_u_iso=True,
            use_u_iso=True,
            use_u_aniso=anisotropic,
        )
        structure.scattering_type_registry(table="it1992")
        _known[symbol, anisotropic] = sfdiff.Atoms.from_cctbx(structure)
    return _known[symbol, anisotropic]


def call(seed):
    """One case: what came out, in a few numbers."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    atoms = _structure(rng.choice(GROUPS), rng.random() < 0.3)
    if rng.random() < 0.3:
        atoms = atoms.to(dtype=torch.float32)
    if rng.random() < 0.1:
        atoms = atoms.select(torch.arange(rng.choice((0, 1, 3))))
    indices = _indices(atoms.crystal, rng)
    values = _some_parameters(atoms, rng, generator)
    atoms = atoms.replace(**values)
    place = (sfdiff.plan(atoms.crystal, indices),) if rng.random() < 0.5 else (atoms.crystal, indices)
    options = {"method": rng.choice(("direct", "fft", "auto")), "accuracy": rng.choice((1e-2, 1e-4, 1e-6))}
    if rng.random() < 0.1:
        options["memory"] = 2**20
    wanted = [name for name in PARAMETERS if rng.random() < 0.4]
    order = rng.choice((0, 1, 1, 2)) if wanted else 0
    leaves = [getattr(atoms, name).detach().requires_grad_() for name in wanted] if order else []
    f = sfdiff.structure_factors(atoms.replace(**dict(zip(wanted, leaves))) if order else atoms, *place, **options)
    assert f.shape == (
        *torch.broadcast_shapes(
            *(values[n].shape[: len(values[n].shape) - 1 - (n in ("sites_cart", "u_star"))] for n in PARAMETERS)
        ),
        len(indices),
    )
    found = [f]
    if order:
        target = (f.real * 1.5 + f.imag).sum() + (f.real**2 + f.imag**2).sum() * 1e-3
        found += torch.autograd.grad(target, leaves, create_graph=order == 2)
    if order == 2:
        found += torch.autograd.grad(sum(x.sum() for x in found[1:]), leaves, allow_unused=True)
    return {
        "finite": all(
            bool(torch.isfinite(torch.view_as_real(x) if x.is_complex() else x).all()) for x in found if x is not None
        )
    }


def in_batch(atoms, names, batch, rng, generator):
    """These parameters of atoms, each of the whole batch or shared by its models, moved or not."""
    values = {}
    for name in names:
        value = getattr(atoms, name)
        own = rng.choice((batch, batch, ())) if name != "sites_cart" else batch
        value = value.expand(*own, *value.shape)
        if rng.random() < 0.5:
            value = value.clone() + 0.01 * torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value)
        values[name] = value
    return values


def _some_parameters(atoms, rng, generator):
    """Parameters of a batch of these atoms, each shared or not, moved or not, with up to two faults."""
    batch = rng.choice(((), (), (), (1,), (3,), (0,), (2, 2), (2, 0)))
    values = in_batch(atoms, PARAMETERS, batch, rng, generator)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        _spoil(values, rng, generator)
    return values


def _indices(crystal, rng):
    kind = rng.randrange(6)
    if kind == 0:
        return torch.zeros((0, 3), dtype=torch.int64)
    if kind == 1:
        return torch.tensor([[0, 0, 0]])
    if kind == 2:
        return torch.tensor([[0, 0, 0], [1, 2, 3], [1, 2, 3], [-1, -2, -3], [0, 0, 4]])
    if kind == 3:
        return crystal.build_miller_indices(4.0).flip(0)[::2]
    return crystal.build_miller_indices(rng.choice((2.5, 4.0)))


def _spoil(values, rng, generator):
    """One fault in one parameter."""
    name = rng.choice(PARAMETERS)
    value = values[name]
    kind = rng.randrange(9)
    if kind <= 4 and value.numel() and value.is_floating_point():
        value = value.clone(memory_format=torch.contiguous_format)
        value.view(-1)[rng.randrange(value.numel())] = rng.choice(NUMBERS)
    elif kind == 5:
        value = value * rng.choice((0.0, -1.0, 1e3))
    elif kind == 6:
        value = value.transpose(0, -1).contiguous().transpose(0, -1)
    elif kind == 7:
        value = value.to(rng.choice((torch.float16, torch.float32, torch.float64, torch.int64, torch.complex128)))
    else:
        value = value[..., :-1] if rng.random() < 0.5 else value[None, ..., None]
    values[name] = value
