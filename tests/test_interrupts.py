"""Ctrl-C inside a long call of any operation ends it, and leaves nothing running and nothing broken."""

import re

import pytest

from tests.support.processes import interrupted

SCRIPT = """
import resource, threading, time
import mmtbx_sfdiff as sfdiff
import torch
from tests.support.long_life import random_atoms

def world(n_atoms, edge, d_min, n_models=1):
    crystal = sfdiff.Crystal((edge, edge + 3, edge + 7, 90, 90, 90), "P 21 21 21")
    atoms = random_atoms(crystal, n_atoms, 0)
    if n_models > 1:
        atoms = atoms.replace(sites_cart=torch.stack([atoms.sites_cart + 0.01 * i for i in range(n_models)]))
    return atoms, sfdiff.plan(crystal, crystal.build_miller_indices(d_min))

def call(name, atoms, plan):
    if name == "scaling":
        n = len(plan)
        generator = torch.Generator().manual_seed(0)
        f = torch.view_as_complex(torch.randn((n, 2), generator=generator, dtype=torch.float64)) * 100
        mask = f * torch.exp(-20 * plan.crystal.d_star_sq(plan.miller_indices))
        noise = 1 + 0.2 * torch.randn(n, generator=generator, dtype=torch.float64)
        data = sfdiff.Reflections(
            plan.crystal, plan.miller_indices, (f + 0.4 * mask).abs() * noise.abs(), None, torch.arange(n) % 20 == 0, False
        )
        return lambda: sfdiff.update_all_scales(data, f, mask)
    sites = atoms.sites_cart.clone().requires_grad_()
    moved = atoms.replace(sites_cart=sites)
    if name in ("fft", "direct"):
        return lambda: sfdiff.structure_factors(moved, plan, method=name, accuracy=1e-5)
    if name == "mask":
        return lambda: sfdiff.solvent_structure_factors(moved, plan, grid_step=STEP)
    if name == "hard mask":
        return lambda: sfdiff.solvent_mask(moved, plan, grid_step=STEP, softness=0.0)
    if name == "map":
        mask = torch.rand((8, *plan.crystal.grid(STEP)), dtype=torch.float64)
        return lambda: sfdiff.mask_structure_factors(mask, plan)
    if name == "density":
        return lambda: sfdiff.density(moved, plan.crystal, plan.crystal.grid(STEP))
    method = name.split()[0]
    if method == "mask":
        f = sfdiff.solvent_structure_factors(moved, plan, grid_step=STEP)
    else:
        f = sfdiff.structure_factors(moved, plan, method=method, accuracy=1e-5)
    total = f.abs().sum()
    return lambda: torch.autograd.grad(total, sites, retain_graph=True)

NAME, SMALL, LARGE, STEP = {what!r}, {small!r}, {large!r}, {step!r}
small = call(NAME, *world(*SMALL))
small()
large = call(NAME, *world(*LARGE))
begin, number = time.perf_counter(), 0
try:
    print("ready")
    # One call after another, for those that a fast machine ends sooner than the signal comes.
    for number in range(1000):
        large()
    print("too short")
except KeyboardInterrupt:
    used = time.process_time()
    print("interrupted in call", number, "after", round(time.perf_counter() - begin, 2), "s")
time.sleep(0.5)
assert time.process_time() - used < 0.25, time.process_time() - used
small()
assert torch.get_num_threads() == 2, torch.get_num_threads()
"""
# Operation: (atoms, edge of the cell, d_min, models) of a small call and of one that takes seconds; grid step.
CALLS = {
    "fft": ((50, 20, 3.0), (30000, 110, 1.7, 24), 0.6),
    "fft gradient": ((50, 20, 3.0), (20000, 100, 1.8, 16), 0.6),
    "direct": ((50, 20, 3.0), (20000, 90, 1.6), 0.6),
    "direct gradient": ((50, 20, 3.0), (1500, 90, 1.6), 0.6),
    "mask": ((50, 20, 3.0), (8000, 110, 3.0, 24), 0.5),
    "mask gradient": ((50, 20, 3.0), (4000, 90, 3.0, 12), 0.5),
    "hard mask": ((50, 20, 3.0), (8000, 110, 3.0, 24), 0.5),
    "map": ((50, 20, 3.0), (10, 110, 3.0), 0.5),
    "scaling": ((50, 20, 3.0), (50, 110, 1.3), 0.6),
    "density": ((50, 20, 3.0), (4000, 60, 3.0), 0.5),
}
QUICK = ("fft", "direct", "mask", "scaling")


def end(what, seconds):
    small, large, step = CALLS[what]
    script = SCRIPT.format(what=what, small=small, large=large, step=step)
    took, line, err = interrupted(script, seconds)
    print(f"{what}: {took:.2f} s of two threads from the signal to the end; {line}")
    assert line.startswith("interrupted"), (line, err[-2000:])
    assert not re.search(r"\w+Error", err), err[-2000:]
    return took


@pytest.mark.parametrize("what", [w if w in QUICK else pytest.param(w, marks=pytest.mark.slow) for w in CALLS])
def test_ctrl_c_ends_a_call_and_leaves_nothing_running(what):
    # Measured idle: a second at most, of two threads.
    assert end(what, 0.7) < 8.0
