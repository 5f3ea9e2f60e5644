"""Masks of anything: numbers, or one sentence; never a crash, a hang, or a NaN."""

import random

import mmtbx_sfdiff as sfdiff
import torch

import pytest

from tests.bulk_solvent.test_probe_shrink import one_atom
from tests.support.robustness import run

KINDS = {
    "soft": {},
    "hard": {"softness": 0},
    "binary": {"method": "binary"},
    "torch": {"engine": "torch"},
}


def test_random_calls():
    seeds = [random.Random(21).randrange(2**31) + i for i in range(120)]
    outcomes = run("tests.support.robust_masks:call", seeds, seconds=60)
    assert not [str(o) for o in outcomes if o.fault]
    kinds = [o.kind for o in outcomes]
    assert kinds.count("value") > 25 and kinds.count("refused") > 25


def test_random_calls_of_fmodel():
    seeds = [random.Random(22).randrange(2**31) + i for i in range(60)]
    outcomes = run("tests.support.robust_fmodel:call", seeds, seconds=60)
    assert not [str(o) for o in outcomes if o.fault]
    kinds = [o.kind for o in outcomes]
    assert kinds.count("value") > 12 and kinds.count("refused") > 12


def atoms_of(n=5):
    first = one_atom((12, 13, 14, 90, 100, 90))
    return first.select(torch.zeros(n, dtype=torch.int64)).replace(
        sites_cart=first.sites_cart + torch.arange(n, dtype=torch.float64)[:, None]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sites_cart", "occupancies"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
def test_the_bad_atom_and_its_model_are_named(kind, name, number):
    atoms = atoms_of()
    value = getattr(atoms, name).clone()
    value[3] = number
    for call in (sfdiff.solvent_mask, lambda a, c, **k: sfdiff.solvent_structure_factors(a, c, [(1, 1, 1)], **k)):
        with pytest.raises(ValueError, match=rf"{name} of atom 3 .*it must be finite"):
            call(atoms.replace(**{name: value}), atoms.crystal, **KINDS[kind])
        batch = torch.stack([getattr(atoms, name), value, value])
        with pytest.raises(ValueError, match=rf"{name} of atom 3 .*in model 1 of the batch"):
            call(atoms.replace(**{name: batch}), atoms.crystal, **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_bad_radii_are_named(kind):
    atoms = atoms_of()
    radii = torch.full((5,), 1.7, dtype=torch.float64)
    for number in (float("nan"), float("inf"), -1.0, 1e30):
        wrong = radii.clone()
        wrong[2] = number
        with pytest.raises(ValueError, match="of atom 2"):
            sfdiff.solvent_mask(atoms, atoms.crystal, radii=wrong, **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_empty_in_solvent_or_nothing_out(kind):
    atoms = atoms_of()
    grid = sfdiff.solvent_mask(atoms, atoms.crystal, **KINDS[kind]).shape
    none = atoms.replace(sites_cart=atoms.sites_cart.new_zeros(0, 5, 3))
    assert sfdiff.solvent_mask(none, atoms.crystal, **KINDS[kind]).shape == (0, *grid)
    nothing = atoms.select(torch.zeros(5, dtype=torch.bool))
    mask = sfdiff.solvent_mask(nothing, atoms.crystal, **KINDS[kind])
    assert mask.shape == grid and float((mask - 1).abs().max()) < 1e-6
    no_indices = torch.zeros((0, 3), dtype=torch.int64)
    assert sfdiff.solvent_structure_factors(atoms, atoms.crystal, no_indices, **KINDS[kind]).shape == (0,)
    origin = torch.zeros((1, 3), dtype=torch.int64)
    total = sfdiff.solvent_structure_factors(nothing, atoms.crystal, origin, **KINDS[kind])
    assert abs(complex(total[0]) - atoms.crystal.volume) < 1e-5 * atoms.crystal.volume


@pytest.mark.parametrize("kind", ["soft", "binary", "density_cutoff"])
def test_ensembles_of_odd_shapes(kind):
    atoms = atoms_of()
    options = KINDS.get(kind, {"method": kind})
    grid = sfdiff.solvent_mask(atoms, atoms.crystal, **options).shape
    batch = atoms.replace(sites_cart=atoms.sites_cart.expand(2, 3, -1, -1))
    half = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert sfdiff.solvent_mask(batch, atoms.crystal, ensemble=half, **options).shape == (2, *grid)
    empty = atoms.replace(sites_cart=atoms.sites_cart.new_zeros(0, 3, 5, 3))
    assert sfdiff.solvent_mask(empty, atoms.crystal, ensemble=half, **options).shape == (0, *grid)
    for wrong in (half[:2], half.expand(4, 3), half.expand(2, 2, 3), half[:0]):
        with pytest.raises(ValueError, match="ensemble"):
            sfdiff.solvent_mask(batch, atoms.crystal, ensemble=wrong, **options)
    none = atoms.replace(sites_cart=atoms.sites_cart.new_zeros(2, 0, 5, 3))
    with pytest.raises(ValueError, match="no conformers"):
        sfdiff.solvent_mask(none, atoms.crystal, ensemble=half[:0], **options)
    bad = half.clone()
    bad[1] = float("nan")
    with pytest.raises(ValueError, match="conformer 1"):
        sfdiff.solvent_mask(batch, atoms.crystal, ensemble=bad, **options)


def test_a_mask_that_is_none_is_refused():
    crystal = atoms_of().crystal
    mask = torch.ones((12, 12, 16), dtype=torch.float64)
    for number in (float("nan"), float("inf"), -float("inf")):
        wrong = mask.clone()
        wrong[3, 4, 5] = number
        with pytest.raises(ValueError, match=r"at the grid point \(3, 4, 5\)"):
            sfdiff.mask_structure_factors(wrong, crystal, [(1, 1, 1)])
    with pytest.raises(ValueError, match="points along each axis"):
        sfdiff.mask_structure_factors(mask[:0], crystal, [(1, 1, 1)])


SECOND = {
    "soft": {},
    "hard": {"softness": 0},
    "density_cutoff": {"method": "density_cutoff"},
    "ensemble": {"ensemble": torch.tensor([0.6, 0.4], dtype=torch.float64)},
}


@pytest.mark.parametrize("kind", SECOND)
@pytest.mark.parametrize("through", ["mask", "structure factors"])
def test_second_derivatives_are_refused_in_a_sentence(kind, through):
    atoms = atoms_of()
    sites = atoms.sites_cart.expand(2, -1, -1) + torch.tensor([0.0, 0.1]).to(torch.float64)[:, None, None]
    sites = sites if kind == "ensemble" else sites[0]
    plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(4.0))

    def function(sites):
        moved = atoms.replace(sites_cart=sites)
        if through == "mask":
            return sfdiff.solvent_mask(moved, plan, **SECOND[kind]).square().sum()
        return sfdiff.solvent_structure_factors(moved, plan, **SECOND[kind]).abs().square().sum()

    direction = torch.ones_like(sites)
    refusal = pytest.raises(
        NotImplementedError, match="^Derivatives of the solvent mask.* of this order are not available"
    )
    with refusal:
        torch.autograd.functional.hvp(function, sites, direction)
    with refusal:
        torch.autograd.functional.hessian(function, sites)
    leaf = sites.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    with refusal:
        torch.autograd.grad(first.sum(), leaf)
    with refusal:
        torch.func.jvp(function, (sites,), (direction,))


def test_second_derivatives_of_a_mask_s_structure_factors_by_the_mask_are_right():
    crystal = atoms_of().crystal
    plan = sfdiff.plan(crystal, crystal.build_miller_indices(5.0))
    mask = torch.rand((12, 12, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = torch.rand(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def function(mask):
        return sfdiff.mask_structure_factors(mask, plan).abs().square().square().sum()

    _, found = torch.autograd.functional.hvp(function, mask, direction)
    step = 1e-4
    gradients = []
    for sign in (1, -1):
        leaf = (mask + sign * step * direction).requires_grad_()
        gradients += torch.autograd.grad(function(leaf), leaf)
    expected = (gradients[0] - gradients[1]) / (2 * step)
    assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_a_target_through_the_mask_refuses_its_second_derivative_and_one_beside_it_has_it():
    atoms = atoms_of()
    indices = atoms.crystal.build_miller_indices(3.0)
    f_obs = sfdiff.structure_factors(atoms, atoms.crystal, indices, method="direct").abs() + 1
    data = sfdiff.Reflections.from_arrays(
        atoms.crystal, indices, f_obs, 0.05 * f_obs, torch.arange(len(f_obs)) % 9 == 0
    )
    fmodel = sfdiff.FModel(atoms, data, method="direct")
    fmodel.update_scales()
    sites = atoms.sites_cart + 0.05
    # No shift of the whole crystal, which changes nothing.
    direction = torch.rand(sites.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in ("least_squares", "maximum_likelihood"):
        with pytest.raises(NotImplementedError, match="Derivatives of the solvent mask"):
            torch.autograd.functional.hvp(lambda x, name=name: fmodel.target(name, sites_cart=x), sites, direction)
    fixed = fmodel.f_mask().detach()

    def beside(sites):
        return (fmodel.f_model(sites, f_mask=fixed).abs() - f_obs).square().sum()

    _, found = torch.autograd.functional.hvp(beside, sites, direction)
    gradients = []
    for sign in (1, -1):
        leaf = (sites + sign * 1e-5 * direction).requires_grad_()
        gradients += torch.autograd.grad(beside(leaf), leaf)
    expected = (gradients[0] - gradients[1]) / 2e-5
    assert float((found - expected).norm() / expected.norm()) < 1e-5
