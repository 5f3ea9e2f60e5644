"""A long life in one process: thousands of steps of a training loop, a thousand crystals; what it takes of memory meanwhile."""

import functools
import gc
import math
import os
import random
import resource
import sys

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.plans.cache import Kept, TensorCache

import gemmi

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 2**20


def resident():
    """Bytes of memory of this process that are in use now; where the system does not say, the most there ever were."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def caches():
    """{name: (how many things are kept, how many may be)} of every cache of the package that modules hold."""
    found = {}
    for module_name, module in sorted(sys.modules.items()):
        if not module_name.startswith("mmtbx_sfdiff"):
            continue
        for name, value in vars(module).items():
            own = [(f"{module_name}.{name}", value)]
            if isinstance(value, type) and value.__module__ == module_name:
                own = [(f"{module_name}.{name}.{k}", getattr(value, k)) for k in vars(value)]
            for label, thing in own:
                if isinstance(thing, (Kept, TensorCache)):
                    found[label] = len(thing), thing.size
                elif isinstance(thing, functools._lru_cache_wrapper) and thing.__module__ == module_name:
                    info = thing.cache_info()
                    found[label] = info.currsize, info.maxsize
    return found


def random_crystal(rng, rows=()):
    """A crystal: the cell and group of one of the rows of a manifest of entries, or a random cell of a random group."""
    if rows:
        row = rng.choice(rows) if len(rows) > 1 else rows[0]
        return sfdiff.Crystal(tuple(float(x) for x in row["cell"].split()), row["space_group"])
    group = rng.choice(GROUPS)
    a, b, c = (rng.uniform(18, 45) for _ in range(3))
    angles = [90.0, 90.0, 90.0]
    system = group.crystal_system_str()
    if system == "triclinic":
        angles = [rng.uniform(70, 110) for _ in range(3)]
    elif system == "monoclinic":
        angles[1] = rng.uniform(90, 115)
    elif system in ("tetragonal", "hexagonal", "trigonal"):
        b = a
    elif system == "cubic":
        b = c = a
    if system in ("hexagonal", "trigonal"):
        angles[2] = 120.0
    return sfdiff.Crystal((a, b, c, *angles), group.xhm())


# Of proteins: no mirrors, standard settings, hexagonal axes.
GROUPS = [
    group
    for group in gemmi.spacegroup_table()
    if group.is_sohncke() and group.is_reference_setting() and not group.xhm().endswith(":R")
]


def random_atoms(crystal, n_atoms, seed):
    """Atoms anywhere in the cell."""
    generator = torch.Generator().manual_seed(seed)
    fractions = torch.rand((n_atoms, 3), generator=generator, dtype=torch.float64)
    elements = [("C", "C", "C", "N", "O", "O", "S")[i % 7] for i in range(n_atoms)]
    b_iso = 10 + 20 * torch.rand(n_atoms, generator=generator, dtype=torch.float64)
    return sfdiff.Atoms.from_arrays(crystal, elements, fractions @ crystal.orthogonalization.T, b_iso=b_iso)


def training(n_atoms=80, d_min=2.5, seed=0, method="auto"):
    """(FModel, optimiser, step) of a loop of F, mask, target, backward and an optimiser; step() gives the target."""
    crystal = sfdiff.Crystal((18.0, 21.0, 24.0, 90.0, 90.0, 90.0), "P 21 21 21")
    true = random_atoms(crystal, n_atoms, seed)
    indices = crystal.build_miller_indices(d_min)
    plan = sfdiff.plan(crystal, indices)
    f = sfdiff.structure_factors(true, plan) + 0.35 * sfdiff.solvent_structure_factors(true, plan)
    f_obs = f.abs()
    free = torch.arange(len(indices)) % 12 == 0
    data = sfdiff.Reflections.from_arrays(crystal, indices, f_obs, 0.03 * f_obs + 0.02 * f_obs.mean(), free)
    noise = 0.3 * torch.randn(true.sites_cart.shape, generator=torch.Generator().manual_seed(seed + 1)).double()
    fmodel = sfdiff.FModel(
        true.replace(sites_cart=true.sites_cart + noise), data, method=method, refine=("sites_cart", "u_iso")
    )
    fmodel.update_scales()
    optimizer = torch.optim.Adam(fmodel.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        value = fmodel.target("maximum_likelihood")
        value.backward()
        optimizer.step()
        return float(value.detach())

    return fmodel, optimizer, step


def train(n_steps, every=500, report=None, scales_every=100, **options):
    """Memory (bytes) after each ``every`` of so many steps, and the targets then.  The scales are determined anew meanwhile."""
    fmodel, _, step = training(**options)
    memory, values = [], []
    for number in range(1, n_steps + 1):
        value = step()
        if not math.isfinite(value):
            raise AssertionError(f"The target of step {number} is {value}.")
        if number % scales_every == 0:
            fmodel.update_scales()
        if number % every == 0:
            gc.collect()
            memory.append(resident())
            values.append(value)
            if report:
                report(f"step {number}: {memory[-1] / MIB:.1f} MiB, target {value:.5f}")
    return memory, values


def many_crystals(n_crystals, every=100, report=None, rows=(), n_atoms=120, d_min=3.0, seed=0):
    """Memory (bytes) after each ``every`` of so many crystals: F, F_mask, a map, their gradients, a density, of each."""
    rng, memory = random.Random(seed), []
    for number in range(1, n_crystals + 1):
        crystal = random_crystal(rng, rows[number - 1 : number])
        atoms = random_atoms(crystal, n_atoms, number)
        # Entries have large cells: as many reflections of each.
        limit = max(
            d_min, (crystal.volume / (len(crystal.rotations) * len(crystal.centring)) / 60000.0) ** (1 / 3) * d_min
        )
        plan = sfdiff.plan(crystal, crystal.build_miller_indices(limit))
        sites = atoms.sites_cart.clone().requires_grad_()
        moved = atoms.replace(sites_cart=sites)
        step = max(0.8, limit / 4)
        f = sfdiff.structure_factors(moved, plan, method=("fft", "direct")[number % 2], accuracy=1e-3)
        f_mask = sfdiff.solvent_structure_factors(moved, plan, grid_step=step)
        mask = sfdiff.solvent_mask(
            moved, crystal, grid_step=step, method=("probe_shrink", "density_cutoff")[number % 2]
        )
        total = (f + f_mask + sfdiff.mask_structure_factors(mask, plan)).abs().square().sum()
        (gradient,) = torch.autograd.grad(total, sites)
        if not bool(torch.isfinite(gradient).all()):
            raise AssertionError(f"The gradient in {crystal!r} is not finite.")
        if number % 10 == 0:
            sfdiff.density(atoms, crystal, crystal.grid(limit / 3), d_min=limit)
        if number % every == 0:
            gc.collect()
            memory.append(resident())
            if report:
                kept = sum(n for n, _ in caches().values())
                report(f"crystal {number}: {memory[-1] / MIB:.1f} MiB, {kept} things in caches")
    return memory


def growth(memory):
    """Bytes by which the later half grew, by the median of its last quarter over that of the first quarter of the half."""
    half = memory[len(memory) // 2 :]
    quarter = max(1, len(half) // 3)

    def middle(values):
        return sorted(values)[len(values) // 2]

    return middle(half[-quarter:]) - middle(half[:quarter])
