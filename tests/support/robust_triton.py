"""Structure factors, densities and masks by the Triton engine, in Triton's interpreter: small cases of every fault.

The interpreter is chosen where Triton is imported, for the whole process: the driver of :mod:`tests.support.robustness` starts
one for these cases.  Tensors are on the CPU, where a check is waited for; half of the cases treat it as a GPU, where it is
not, and ask afterwards.
"""

import contextlib
import os
import random

os.environ["TRITON_INTERPRET"] = "1"

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels import checks, deferred, engines
from mmtbx_sfdiff.kernels.cuda import density as triton_density
from mmtbx_sfdiff.kernels.cuda import soft_mask as triton_soft_mask

from tests.support.long_life import random_atoms
from tests.support.robust_structure_factors import NUMBERS
from tests.support.robustness import finite

engines.usable = lambda device: ("triton", "torch")
# The interpreter is slow by the operation, not by the number.
triton_density._TILE, triton_density._LANES = (16, 16, 16), 4096
triton_soft_mask._TILE, triton_soft_mask._BLOCK = (16, 16, 32), 8192

CELLS = {"P 1": (4.0, 4.5, 5.0, 80.0, 95.0, 100.0), "P 21": (4.0, 5.0, 4.5, 90.0, 100.0, 90.0)}
_known = {}


def call(seed):
    """One case: whether what came out is finite, or what was not was said."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    symbol = rng.choice(sorted(CELLS))
    if symbol not in _known:
        crystal = sfdiff.Crystal(CELLS[symbol], symbol)
        _known[symbol] = random_atoms(crystal, 3, 0), sfdiff.plan(crystal, crystal.build_miller_indices(2.5))
    atoms, plan = _known[symbol]
    atoms = atoms.select(torch.arange(rng.choice((0, 1, 2, 3))))
    batch = rng.choice(((), (), (2,), (0,)))
    operation = rng.choice(sorted(OPERATIONS))
    names = ["sites_cart", "occupancies"] + (["radii"] if operation == "mask" else ["u_iso", "u_star", "fp", "fdp"])
    values = {}
    for name in names:
        value = torch.full((atoms.n_atoms,), 1.5, dtype=torch.float64) if name == "radii" else getattr(atoms, name)
        value = value.expand(*batch, *value.shape).clone()
        values[name] = value + 0.01 * torch.rand(value.shape, generator=generator, dtype=torch.float64)
    if rng.random() < 0.6:
        value = values[rng.choice(names)]
        if value.numel():
            value.view(-1)[rng.randrange(value.numel())] = rng.choice(NUMBERS)
    order = rng.choice((0, 1, 1))
    leaves = [value.requires_grad_() for value in values.values()] if order else []
    radii = values.pop("radii", None)
    atoms = atoms.replace(**values)
    with deferred.everywhere() if rng.random() < 0.5 else contextlib.nullcontext():
        value = OPERATIONS[operation](atoms, plan, radii)
        found = [value]
        if order and value.requires_grad:
            found += torch.autograd.grad(value.abs().square().sum(), leaves, allow_unused=True)
        # Where nobody waited, what was wrong is said now.
        checks.raise_pending()
    return {"finite": finite(found)}


OPERATIONS = {
    "structure factors": lambda atoms, plan, radii: sfdiff.structure_factors(atoms, plan, method="fft", accuracy=1e-3),
    "density": lambda atoms, plan, radii: sfdiff.density(atoms, plan, (6, 6, 6)),
    "mask": lambda atoms, plan, radii: sfdiff.solvent_mask(atoms, plan, grid_step=1.2, radii=radii),
}
