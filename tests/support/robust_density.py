"""The density on a grid of anything: random cases for the driver of :mod:`tests.support.robustness`.

A case is a seed.  From it come a crystal, atoms, a grid, a limit of resolution, what is asked for, and with some chance faults
of every kind in the atoms, their shapes, the grid.
"""

import random

import mmtbx_sfdiff as sfdiff
import torch

from tests.support.robust_structure_factors import PARAMETERS, _some_parameters, _structure
from tests.support.robustness import finite

GROUPS = ("P 1", "P 1 21 1", "P 21 21 21", "C 1 2 1")


def call(seed):
    """One case: whether what came out is finite."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    atoms = _structure(rng.choice(GROUPS), rng.random() < 0.3)
    atoms = atoms.to(dtype=rng.choice((torch.float64, torch.float64, torch.float32)))
    atoms = atoms.select(torch.arange(rng.choice((0, 1, 3, 8, 8, 8))))
    values = _some_parameters(atoms, rng, generator)
    atoms = atoms.replace(**values)
    grid = rng.choice(((12, 12, 12), (12, 12, 12), (6, 9, 18), (1, 1, 1), (16, 16, 20)))
    if rng.random() < 0.05:
        grid = rng.choice(((0, 1, 2), (-3, 4, 5), (12, 12), (10**5, 10**5, 10**5), (12, 12, 12.5), None))
    d_min = rng.choice((None, None, 3.0, 4.0, 10.0))
    if rng.random() < 0.05:
        d_min = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e-9))
    place = sfdiff.plan(atoms.crystal, [(1, 2, 3)]) if rng.random() < 0.3 else atoms.crystal
    wanted = [name for name in PARAMETERS if rng.random() < 0.4]
    order = rng.choice((0, 1, 1, 2)) if wanted else 0
    leaves = [getattr(atoms, name).detach().requires_grad_() for name in wanted] if order else []
    if order:
        atoms = atoms.replace(**dict(zip(wanted, leaves)))
    rho = sfdiff.density(atoms, place, grid, d_min=d_min)
    found = [rho]
    if order and rho.requires_grad:
        found += torch.autograd.grad((rho * 1.5 + rho**2).sum(), leaves, create_graph=order == 2, allow_unused=True)
    live = [x for x in found[1:] if x is not None and x.requires_grad]
    if order == 2 and live:
        found += torch.autograd.grad(sum(x.sum() for x in live), leaves, allow_unused=True)
    return {"finite": finite(found)}
