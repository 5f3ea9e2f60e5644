"""Crystals, atoms, reflections, plans and restraints of anything: random cases for :mod:`tests.support.robustness`.

A case is a seed.  From it come the arguments of one constructor, with some chance of a fault of every kind in each.
"""

import random

import mmtbx_sfdiff as sfdiff
import torch

import numpy as np

from tests.support.monomers import peptide_restraints
from tests.support.robust_structure_factors import NUMBERS
from tests.support.robustness import finite

GROUPS = ("P 1", "P 21 21 21", "C 1 2 1", "R 3 :H", "P 31 2 1", "I 41 3 2")
ANGLES = {"P 1": (80, 95, 100), "C 1 2 1": (90, 105, 90), "R 3 :H": (90, 90, 120), "P 31 2 1": (90, 90, 120)}
_known = {}


def call(seed):
    """One case: whether what came out is finite."""
    rng = random.Random(seed)
    return {"finite": finite(rng.choice((_crystal, _atoms, _reflections, _plan, _restraints))(rng))}


def _a_crystal(rng, faults=True):
    symbol = rng.choice(GROUPS)
    lengths = [rng.uniform(8, 40) for _ in range(3)]
    if symbol in ("R 3 :H", "P 31 2 1"):
        lengths[1] = lengths[0]
    if symbol == "I 41 3 2":
        lengths = lengths[:1] * 3
    cell = [*lengths, *ANGLES.get(symbol, (90, 90, 90))]
    if faults and rng.random() < 0.5:
        cell[rng.randrange(6)] = rng.choice((*NUMBERS, 180.0, 1e-3, 90.5))
    if faults and rng.random() < 0.1:
        cell = rng.choice((cell[:-1], [0.0] * 6, [1.0] * 6, "cell", None, torch.tensor(cell)))
    if faults and rng.random() < 0.1:
        symbol = rng.choice(("P 2 3 4 5", "", "19", 19, None, "P21", "p 21 21 21"))
    return sfdiff.Crystal(cell, symbol)


def _crystal(rng):
    crystal = _a_crystal(rng)
    d_min = rng.choice((2.5, 4.0, 4.0, *NUMBERS))
    indices = crystal.build_miller_indices(d_min)
    found = [crystal.orthogonalization, crystal.d_star_sq(indices), crystal.epsilons(indices)]
    step = rng.choice((0.6, 1.0, *NUMBERS))
    return [*found, torch.tensor(crystal.grid(step)), torch.tensor(crystal.volume)]


def _faulty(value, rng, chance=0.3):
    """An array in any layout and kind, with a fault with some chance."""
    value = np.array(value, dtype=float)
    if rng.random() < chance and value.size:
        value.reshape(-1)[rng.randrange(value.size)] = rng.choice(NUMBERS)
    if rng.random() < 0.1:
        value = rng.choice((value[:-1], value[..., None], value[:0], np.asfortranarray(value), value[::-1][::-1]))
    kind = rng.randrange(8)
    if kind == 0:
        return value.tolist()
    if kind == 1:
        return torch.from_numpy(np.ascontiguousarray(value)).to(
            rng.choice((torch.float16, torch.float32, torch.bfloat16))
        )
    if kind == 2:
        return np.nan_to_num(value, nan=0, posinf=9, neginf=-9).clip(-1e9, 1e9).astype(int)
    return value if kind % 2 else torch.from_numpy(np.ascontiguousarray(value))


def _some_atoms(rng):
    n = rng.choice((0, 1, 4, 9, 9))
    elements = [rng.choice("CNOSH") for _ in range(n)]
    if rng.random() < 0.1 and n:
        elements[rng.randrange(n)] = rng.choice(("", "Xx", "Fe3+", "c", "D", "X", "*", 6))
    options = {}
    numbers = np.random.default_rng(rng.randrange(2**31))
    if rng.random() < 0.9:
        options["b_iso"] = (
            _faulty(numbers.uniform(5, 80, n), rng) if rng.random() < 0.7 else rng.choice((20.0, *NUMBERS))
        )
    if rng.random() < 0.4:
        options["occupancies"] = _faulty(numbers.uniform(0, 1, n), rng)
    if rng.random() < 0.3:
        options["u_cart"] = _faulty(numbers.uniform(-0.02, 0.02, (n, 6)) + 0.3 * (np.arange(6) < 3), rng)
    if rng.random() < 0.1:
        options["charges"] = rng.choice(([0] * n, [2] * n, [1] * (n + 1), [10**6] * n))
    if rng.random() < 0.2:
        options["table"] = rng.choice(("it1992", "wk1995", "electron", "neutron", "none"))
    if rng.random() < 0.2:
        options["d_min"] = rng.choice((0.5, 2.0, *NUMBERS))
    options["dtype"] = rng.choice((torch.float64, torch.float64, torch.float32))
    sites = _faulty(numbers.uniform(-20, 40, (n, 3)), rng)
    return sfdiff.Atoms.from_arrays(_a_crystal(rng, False), elements, sites, **options)


def _atoms(rng):
    atoms = _some_atoms(rng)
    return [
        atoms.sites_cart,
        atoms.sites_frac,
        atoms.u_iso,
        atoms.u_star,
        atoms.occupancies,
        atoms.b_iso,
        atoms.vdw_radii(),
    ]


def _indices(rng, n):
    numbers = np.random.default_rng(rng.randrange(2**31))
    indices = numbers.integers(0, 9, (n, 3))
    if rng.random() < 0.2 and n:
        indices[rng.randrange(n)] = rng.choice(
            ((0, 0, 0), (10**9, 0, 0), (2**40, 1, 1), (-5, -5, -5), (2**62, 2**62, 0))
        )
    if rng.random() < 0.2:
        return rng.choice(
            (
                indices.tolist(),
                indices.astype(float),
                torch.from_numpy(indices).to(torch.int32),
                indices[:, :2],
                indices[None],
                indices + 0.5,
                torch.from_numpy(indices).flip(0)[::2],
                None,
                "indices",
                indices.astype(np.int8),
            )
        )
    return indices


def _reflections(rng):
    n = rng.choice((0, 1, 5, 20))
    numbers = np.random.default_rng(rng.randrange(2**31))
    sigmas = rng.choice((None, _faulty(numbers.uniform(0.1, 1, n), rng)))
    free = rng.choice((None, numbers.uniform(size=n) < 0.1, numbers.integers(0, 9, n), [True] * n, np.ones(n, bool)))
    data = sfdiff.Reflections.from_arrays(
        _a_crystal(rng, False),
        _indices(rng, n),
        _faulty(numbers.uniform(1, 100, n), rng),
        sigmas,
        free,
        dtype=rng.choice((torch.float64, torch.float32, torch.float16, torch.int64)),
    )
    return [data.f_obs, *([] if data.sigmas is None else [data.sigmas])]


def _plan(rng):
    """A plan of any indices, and F of an atom by it: indices beyond every reflection are no reason to crash."""
    crystal = _a_crystal(rng, False)
    plan = sfdiff.plan(crystal, _indices(rng, rng.choice((0, 1, 5, 20))))
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C"], [[1.0, 2.0, 3.0]], b_iso=20.0)
    f = sfdiff.structure_factors(
        atoms, plan, method=rng.choice(("direct", "fft", "auto")), accuracy=rng.choice((1e-2, 1e-4))
    )
    return [f, sfdiff.solvent_structure_factors(atoms, plan, grid_step=1.5)]


def _restraints(rng):
    if not _known:
        _known["restraints"] = peptide_restraints()
    restraints = _known["restraints"]
    sites = torch.from_numpy(restraints.topology.atoms.sites_cart)
    batch = rng.choice(((), (), (2,), (0,), (2, 2)))
    sites = sites.expand(*batch, *sites.shape).clone()
    kind = rng.randrange(8)
    if kind <= 2 and sites.numel():
        sites.view(-1)[rng.randrange(sites.numel())] = rng.choice(NUMBERS)
    elif kind == 3:
        sites = sites.to(rng.choice((torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.complex128)))
    elif kind == 4:
        sites = rng.choice((sites[..., :-1, :], sites[..., :2], sites[..., None]))
    elif kind == 5:
        sites = sites * 0
    sites = sites.detach().requires_grad_(sites.is_floating_point())
    energy = restraints(sites)
    found = [energy]
    if energy.requires_grad:
        found += torch.autograd.grad(energy.sum(), sites)
    return found
