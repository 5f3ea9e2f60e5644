"""Structure factors of the solvent from the representatives of the grid's orbits, against the way by the map of the cell."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.bulk_solvent import solvent_structure_factors

import pytest
from cctbx import sgtbx

from tests.bulk_solvent.test_probe_shrink import GROUPS, atoms_of, relative


def both(atoms, indices, d_min=3.0, **options):
    """(F, gradients) by the short way and by the long one."""
    results = []
    for short in (True, False):
        sites = atoms.sites_cart.clone().requires_grad_()
        occupancies = (0.3 * torch.ones_like(atoms.occupancies)).requires_grad_()
        radii = atoms.vdw_radii().requires_grad_()
        moved = atoms.replace(sites_cart=sites, occupancies=occupancies)
        given = {"radii": radii, "full_occupancy": 0.7, "precision": "double"} | options
        if short:
            f = solvent_structure_factors(moved, atoms.crystal, indices, d_min=d_min, **given)
        else:
            f = sfdiff.mask_structure_factors(
                sfdiff.solvent_mask(moved, atoms.crystal, **given), atoms.crystal, indices, d_min
            )
        weights = torch.randn(f.shape, dtype=f.dtype, generator=torch.Generator().manual_seed(0))
        gradients = torch.autograd.grad((f * weights.conj()).real.sum(), (sites, occupancies, radii))
        results.append((f.detach(), *gradients))
    return results


@pytest.mark.parametrize("symbol", GROUPS)
def test_as_by_the_map(symbol):
    order = sgtbx.space_group_info(symbol).group().order_z()
    atoms = atoms_of(symbol, n_atoms=5 if order < 20 else 2, volume_per_atom=60 if order < 20 else 25)
    equivalent, _ = atoms.crystal.equivalent_indices(atoms.crystal.build_miller_indices(2.5))
    # Any representatives of the reflections, among them some that are beyond 3 Å, and so zero.
    indices = equivalent[-1].contiguous()
    short, long = both(atoms, indices)
    size = float(long[0].abs().max())
    assert float((short[0] - long[0]).abs().max()) < 1e-11 * size + 1e-9
    assert bool((short[0] == 0).any()) and size > 1
    for a, b in zip(short[1:], long[1:]):
        assert float((a - b).norm()) <= 1e-10 * float(b.norm()) + 1e-9


@pytest.mark.parametrize(
    "options", [{"precision": "single"}, {"memory": 2**20}, {"grid_step": 0.9}, {"d_min": None, "grid_step": 0.4}]
)
def test_choices(options):
    atoms = atoms_of("P 21 21 21", n_atoms=12)
    short, long = both(atoms, atoms.crystal.build_miller_indices(2.5), **options)
    tolerance = 1e-5 if "precision" in options else 1e-10
    assert all(relative(a, b) < tolerance for a, b in zip(short, long))


def test_batches_float32_and_a_set_that_changes():
    atoms = atoms_of("C 1 2 1", dtype=torch.float32)
    indices = atoms.crystal.build_miller_indices(3.0)
    sites = torch.stack([atoms.sites_cart, atoms.sites_cart + 0.3])
    f = solvent_structure_factors(atoms.replace(sites_cart=sites), atoms.crystal, indices)
    assert f.shape == (2, len(indices)) and f.dtype == torch.complex64
    assert torch.equal(f[1], solvent_structure_factors(atoms.replace(sites_cart=sites[1]), atoms.crystal, indices))
    # What is kept of a set of indices must not outlive a change of it.
    indices.neg_()
    assert relative(solvent_structure_factors(atoms, atoms.crystal, indices), f[0].conj()) < 1e-5
    assert solvent_structure_factors(atoms, atoms.crystal, indices[:0]).shape == (0,)


@pytest.mark.parametrize(
    "options",
    [
        {"softness": 0.0},
        {"engine": "torch"},
        {"method": "binary"},
        {"softness": torch.tensor(0.8, dtype=torch.float64, requires_grad=True)},
    ],
)
def test_other_masks_go_the_long_way(options):
    atoms = atoms_of("P 21 21 21")
    indices = atoms.crystal.build_miller_indices(3.0)
    f = solvent_structure_factors(atoms, atoms.crystal, indices, **options)
    expected = sfdiff.mask_structure_factors(
        sfdiff.solvent_mask(atoms, atoms.crystal, **options), atoms.crystal, indices
    )
    # With a gradient in the softness the mask is made at the representatives alone, in single precision.
    assert relative(f, expected) <= (1e-6 if isinstance(options.get("softness"), torch.Tensor) else 0.0)
    assert f.requires_grad == expected.requires_grad


def test_two_gradients_of_one_value():
    """The field that is kept serves the first gradient; the second makes its own."""
    atoms = atoms_of("P 21 21 21")
    sites = atoms.sites_cart.clone().requires_grad_()
    f = solvent_structure_factors(
        atoms.replace(sites_cart=sites), atoms.crystal, atoms.crystal.build_miller_indices(3.0)
    )
    (first,) = torch.autograd.grad(f.real.sum(), sites, retain_graph=True)
    (second,) = torch.autograd.grad(f.real.sum(), sites)
    assert torch.equal(first, second)


def test_what_is_wrong():
    atoms = atoms_of("P 21 21 21")
    far = torch.tensor([[0, 0, 0], [40, 0, 0]])
    with pytest.raises(ValueError, match="Nyquist"):
        solvent_structure_factors(atoms, atoms.crystal, far, d_min=None)
    assert float(solvent_structure_factors(atoms, atoms.crystal, far)[1].abs()) == 0
    with pytest.raises(TypeError, match="no option"):
        solvent_structure_factors(atoms, atoms.crystal, far, colour=1)
    with pytest.raises(ValueError, match="Unknown method"):
        solvent_structure_factors(atoms, atoms.crystal, far, method="flat")
