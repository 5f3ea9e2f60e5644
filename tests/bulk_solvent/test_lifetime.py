"""What a mask was worked out with may go before the backward pass."""

import gc

import mmtbx_sfdiff as sfdiff
import torch

import pytest

from tests.support.long_life import random_atoms

OPTIONS = {
    "soft": {},
    "hard": {"softness": 0.0},
    "soft, torch": {"engine": "torch", "grid_step": 2.0},
    "density cutoff": {"method": "density_cutoff", "solvent_fraction": 0.5},
}


def forward(options, by_map):
    """F of a mask and the sites behind it; crystal, plan and atoms are nobody's afterwards."""
    crystal = sfdiff.Crystal((18.0, 21.0, 24.0, 90.0, 95.0, 90.0), "P 1 21 1")
    atoms = random_atoms(crystal, 12, 0)
    sites = atoms.sites_cart.clone().requires_grad_()
    plan, moved = sfdiff.plan(crystal, crystal.build_miller_indices(4.0)), atoms.replace(sites_cart=sites)
    if by_map:
        return sfdiff.solvent_mask(moved, crystal, **options).square().sum(), sites
    return sfdiff.solvent_structure_factors(moved, plan, **options).abs().square().sum(), sites


@pytest.mark.parametrize("by_map", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_crystals_and_plans_may_go_before_the_backward_pass(name, by_map):
    total, sites = forward(OPTIONS[name], by_map)
    # Other crystals push it out of what is kept.
    for i in range(40):
        crystal = sfdiff.Crystal((20.0 + i, 21.0, 24.0, 90.0, 90.0, 90.0), "P 1")
        sfdiff.mask_structure_factors(torch.ones(crystal.grid(4.0)), crystal, torch.tensor([[1, 0, 0]]))
    gc.collect()
    (gradient,) = torch.autograd.grad(total, sites)
    assert bool(torch.isfinite(gradient).all()) and float(gradient.norm()) > 0
