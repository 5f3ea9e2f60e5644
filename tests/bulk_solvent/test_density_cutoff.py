"""The density-cutoff mask: equations 5-8, batches, and a gradient that finite differences confirm."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.bulk_solvent.cutoff import apply_cutoff, cutoff_mask, percentile
from mmtbx_sfdiff.bulk_solvent.density_map import density_map

import iotbx.pdb
import numpy as np
import pytest
from cctbx import maptbx, sgtbx
from cctbx.array_family import flex
from cctbx.development import random_structure


def random_atoms(symbol="P 21 21 21", seed=0, n_atoms=20, volume_per_atom=60, **keywords):
    random_structure.random.seed(seed)
    flex.set_random_seed(seed)
    structure = random_structure.xray_structure(
        space_group_info=sgtbx.space_group_info(symbol),
        elements=["C", "N", "O", "S"] * (n_atoms // 4),
        volume_per_atom=volume_per_atom,
        min_distance=1.2,
        u_iso=0.15,
        general_positions_only=False,
    )
    return structure, sfdiff.Atoms.from_cctbx(structure, **keywords)


def entry_atoms(pdb_dir, entry):
    path = next(pdb_dir.joinpath(entry).glob(f"{entry}.[pc][di][bf].gz"))
    return sfdiff.Atoms.from_cctbx(iotbx.pdb.input(file_name=str(path)).xray_structure_simple())


@pytest.mark.parametrize(
    "symbol", ["P 1", "P -1", "C 1 2 1", "P 31 2 1", "R 3 :R", "R 3 :H", "I 4/m", "F d -3 m :2", "P 65"]
)
def test_density_is_cctbx_fft_map(symbol):
    structure, atoms = random_atoms(symbol, n_atoms=8)
    n_real = atoms.crystal.grid(0.5)
    f = structure.structure_factors(d_min=2.0, algorithm="direct").f_calc()
    gridding = maptbx.crystal_gridding(
        unit_cell=structure.unit_cell(), space_group_info=structure.space_group_info(), pre_determined_n_real=n_real
    )
    expected = f.fft_map(crystal_gridding=gridding).apply_volume_scaling().real_map_unpadded().as_numpy_array()
    indices = sfdiff.crystal.as_miller_tensor(f)
    density = torch.empty(n_real, dtype=torch.float64)
    density_map(torch.tensor(f.data().as_numpy_array()), sfdiff.plan(atoms.crystal, indices), density)
    np.testing.assert_allclose(density.numpy(), expected, atol=1e-9 * np.abs(expected).max())


def test_equations_are_applied_as_written():
    structure, atoms = random_atoms()
    mask = sfdiff.solvent_mask(
        atoms,
        atoms.crystal,
        method="density_cutoff",
        solvent_fraction=0.4,
        d_min=2.5,
        grid_step=0.6,
        voxel_average=False,
    )
    assert tuple(mask.shape) == atoms.crystal.grid(0.6)
    f = structure.structure_factors(d_min=2.5, algorithm="direct").f_calc()
    gridding = maptbx.crystal_gridding(
        unit_cell=structure.unit_cell(),
        space_group_info=structure.space_group_info(),
        pre_determined_n_real=tuple(mask.shape),
    )
    density = f.fft_map(crystal_gridding=gridding).apply_sigma_scaling().real_map_unpadded().as_numpy_array()
    cutoff = np.quantile(density, 0.4)
    # cctbx's sigma counts deviations from zero; without F(000) the mean of the map is zero.
    expected = 1 / (1 + np.exp(-50 * (cutoff - density)))
    np.testing.assert_allclose(mask.numpy(), expected, atol=1e-6)
    assert abs(float((mask > 0.5).to(torch.float64).mean()) - 0.4) < 1e-3


def test_mask_is_a_step_between_0_and_1():
    _, atoms = random_atoms(seed=2)
    options = dict(method="density_cutoff", solvent_fraction=0.5, grid_step=0.5)
    soft = sfdiff.solvent_mask(atoms, atoms.crystal, steepness=5.0, **options)
    steep = sfdiff.solvent_mask(atoms, atoms.crystal, **options)
    assert float(soft.min()) >= 0 and float(soft.max()) <= 1
    assert float((steep - steep.round()).abs().mean()) < float((soft - soft.round()).abs().mean())
    # The cutoff encloses the solvent fraction, whatever the steepness.
    for mask in (soft, steep):
        assert float(mask.mean()) == pytest.approx(0.5, abs=1e-9)


def test_voxel_average_is_the_mask_of_a_fine_grid():
    _, atoms = random_atoms(seed=3)
    indices = atoms.crystal.build_miller_indices(3.5)

    def f_mask(step, **options):
        mask = sfdiff.solvent_mask(
            atoms, atoms.crystal, method="density_cutoff", solvent_fraction=0.4, d_min=2.4, grid_step=step, **options
        )
        return sfdiff.mask_structure_factors(mask, atoms.crystal, indices)

    fine = f_mask(0.1, voxel_average=False)

    def error(step, **options):
        return float((f_mask(step, **options) - fine).norm() / fine.norm())

    assert error(0.6, voxel_average=True) < error(0.6, voxel_average=False)
    assert error(0.3, voxel_average=True) < 0.5 * error(0.6, voxel_average=True)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.77777, 0.9999])
def test_percentile(fraction):
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert percentile(values, fraction) == pytest.approx(float(torch.quantile(values, fraction)), rel=1e-12)


@pytest.mark.parametrize("symbol", ["P 1", "P 31 2 1", "F 2 2 2"])
def test_the_gradient_by_f_protein_is_exact(symbol):
    """With the average over voxels the mask is a smooth function of F_protein, the cutoff included."""
    _, atoms = random_atoms(symbol, n_atoms=4)
    there = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(4.0))
    grid = list(atoms.crystal.grid(1.5))
    values = sfdiff.structure_factors(atoms, atoms.crystal, there.miller_indices, method="direct")
    weights = torch.randn(grid, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def total(values):
        fraction = torch.tensor([0.4], dtype=torch.float64)
        return (apply_cutoff(values[None], fraction, there.handle, grid, 8.0, 0.03, True)[0] * weights).sum()

    assert torch.autograd.gradcheck(total, (values.clone().requires_grad_(),), eps=1e-5, atol=1e-5, rtol=1e-6)


def test_the_percentile_s_gradient_is_an_average_over_its_surface():
    """Without the average over voxels the cutoff is a percentile, of which the gradient is spread over the values near it."""
    _, atoms = random_atoms("P 1", n_atoms=8)
    there = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(2.5))
    grid = list(atoms.crystal.grid(0.25))
    values = sfdiff.structure_factors(atoms, atoms.crystal, there.miller_indices, method="direct")
    fraction = torch.tensor([0.4], dtype=torch.float64)
    leaf = values.clone().requires_grad_()
    mask = apply_cutoff(leaf[None], fraction, there.handle, grid, 1e-3, 0.03, False)[0]
    # So flat a sigmoid is (level - map) / 4000 + 1/2, and the map's mean is 0: the sum is the level's.
    (gradient,) = torch.autograd.grad(mask.mean() * 4000, leaf)
    # Along the gradient: the level of a grid moves in jumps, which elsewhere are larger than what it moves by.
    change = gradient * (0.02 * float(values.norm() / gradient.norm()))

    def level(x):
        return float(cutoff_mask((values + x * change)[None], fraction, there.handle, grid, 50.0, 0.03, False)[1])

    found = float((gradient.conj() * change).real.sum())
    assert found == pytest.approx((level(1.0) - level(-1.0)) / 2, rel=0.15)


@pytest.mark.parametrize("symbol", ["P 1", "P 21 21 21", "P 31 2 1"])
def test_gradient_of_made_up_structures_against_finite_differences(symbol):
    """Linear functionals of F_mask in random directions of the sites, over steps that a refinement makes."""
    _, atoms = random_atoms(symbol, seed=4, n_atoms=20, volume_per_atom=35)
    indices = atoms.crystal.build_miller_indices(3.0)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(len(indices), 2, generator=generator, dtype=torch.float64)

    def functional(sites):
        moved = atoms.replace(sites_cart=sites)
        f = sfdiff.solvent_structure_factors(
            moved, atoms.crystal, indices, method="density_cutoff", solvent_fraction=0.4
        )
        return (torch.view_as_real(f) * weights).sum()

    sites = atoms.sites_cart.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional(sites), sites)
    for step in (0.003, 0.01):
        expected, found = [], []
        for _ in range(6):
            direction = torch.randn(sites.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                up, down = (functional(sites + sign * step * direction) for sign in (1, -1))
            expected.append(float(up - down) / (2 * step))
            found.append(float((gradient * direction).sum()))
        # The default resolution: grid points cross the level in jumps (docs/masks.rst).
        assert np.linalg.norm(np.subtract(found, expected)) < 0.05 * np.linalg.norm(expected)


def test_a_batch_is_its_models_in_any_order():
    _, atoms = random_atoms("P 31 2 1", seed=1)
    generator = torch.Generator().manual_seed(0)
    sites = atoms.sites_cart + 0.3 * torch.randn(4, atoms.n_atoms, 3, generator=generator, dtype=torch.float64)
    indices = atoms.crystal.build_miller_indices(3.0)

    def f_mask(sites, **options):
        mask = sfdiff.solvent_mask(
            atoms.replace(sites_cart=sites), atoms.crystal, method="density_cutoff", grid_step=0.6, **options
        )
        return sfdiff.mask_structure_factors(mask, atoms.crystal, indices)

    together = f_mask(sites)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(f_mask(sites[order]), together[order], rtol=1e-12, atol=1e-10)
    for i in range(4):
        torch.testing.assert_close(f_mask(sites[i]), together[i], rtol=1e-12, atol=1e-10)
    fractions = torch.tensor([0.2, 0.3, 0.4, 0.5])
    together = f_mask(sites, solvent_fraction=fractions)
    for i in range(4):
        torch.testing.assert_close(
            f_mask(sites[i], solvent_fraction=float(fractions[i])), together[i], rtol=1e-5, atol=1e-4
        )
    assert torch.equal(f_mask(sites), f_mask(sites))


def test_known_f_protein_gives_the_same_mask():
    structure, atoms = random_atoms("P 41", seed=5)
    indices = atoms.crystal.build_miller_indices(2.5)
    values = sfdiff.structure_factors(atoms, atoms.crystal, indices, method="direct")
    options = dict(method="density_cutoff", solvent_fraction=0.4, grid_step=0.6)
    own = sfdiff.solvent_mask(atoms, atoms.crystal, d_min=2.5, **options)
    given = sfdiff.solvent_mask(atoms, atoms.crystal, f_protein=(indices, values), **options)
    torch.testing.assert_close(own, given, rtol=0, atol=1e-10)
    # The same reflections elsewhere in reciprocal space, F(000) included, and on another scale.
    moved = torch.cat([-indices, torch.zeros(1, 3, dtype=torch.int64)])
    values = torch.cat([values.conj(), values.new_full((1,), 1000.0)]) * 3.0
    again = sfdiff.solvent_mask(atoms, atoms.crystal, f_protein=(moved, values), **options)
    torch.testing.assert_close(again, given, rtol=0, atol=1e-9)


def test_float32():
    _, atoms = random_atoms(dtype=torch.float32)
    mask = sfdiff.solvent_mask(atoms, atoms.crystal, method="density_cutoff", solvent_fraction=0.4, grid_step=0.6)
    double = atoms.to(dtype=torch.float64)
    expected = sfdiff.solvent_mask(double, double.crystal, method="density_cutoff", solvent_fraction=0.4, grid_step=0.6)
    assert mask.dtype == torch.float32
    assert float((mask - expected).abs().max()) < 5e-3


@pytest.mark.parametrize("entry", ["1yjp", "5wkd", "1dur", "2okz"])
def test_gradient_against_finite_differences(pdb_dir, entry):
    """Linear functionals of F_mask in random directions, over steps that a refinement makes; root mean squares."""
    atoms = entry_atoms(pdb_dir, entry)
    crystal = atoms.crystal
    indices = crystal.build_miller_indices(3.0)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(len(indices), 2, generator=generator, dtype=torch.float64)

    def functional(sites):
        mask = sfdiff.solvent_mask(atoms.replace(sites_cart=sites), crystal, method="density_cutoff")
        return (torch.view_as_real(sfdiff.mask_structure_factors(mask, crystal, indices)) * weights).sum()

    sites = atoms.sites_cart.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional(sites), sites)
    for step in (0.003, 0.01, 0.02):
        expected, found = [], []
        for _ in range(6):
            direction = torch.randn(sites.shape, generator=generator, dtype=torch.float64)
            direction = direction / direction.square().sum(-1).mean().sqrt()
            with torch.no_grad():
                up, down = (functional(sites + sign * step * direction) for sign in (1, -1))
            expected.append(float(up - down) / (2 * step))
            found.append(float((gradient * direction).sum()))
        error = np.linalg.norm(np.subtract(found, expected)) / np.linalg.norm(expected)
        assert error <= 0.05, f"step {step}: {error:.3f}"


def test_gradient_reaches_all_parameters():
    _, atoms = random_atoms()
    parameters = {
        name: getattr(atoms, name).clone().requires_grad_() for name in ("sites_cart", "u_iso", "occupancies")
    }
    mask = sfdiff.solvent_mask(atoms.replace(**parameters), atoms.crystal, method="density_cutoff", grid_step=0.6)
    f = sfdiff.mask_structure_factors(mask, atoms.crystal, atoms.crystal.build_miller_indices(4.0))
    for gradient in torch.autograd.grad(f.abs().sum(), parameters.values()):
        assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0


def test_refusals():
    _, atoms = random_atoms()
    indices = atoms.crystal.build_miller_indices(4.0)
    values = sfdiff.structure_factors(atoms, atoms.crystal, indices)

    def mask(**options):
        return sfdiff.solvent_mask(atoms, atoms.crystal, method="density_cutoff", **options)

    with pytest.raises(ValueError, match="solvent_fraction"):
        mask(solvent_fraction=1.0)
    with pytest.raises(ValueError, match="not both"):
        mask(d_min=3.0, f_protein=(indices, values))
    with pytest.raises(ValueError, match="coarse"):
        mask(d_min=1.0, grid_step=0.8)
    with pytest.raises(ValueError, match="values of shape"):
        mask(f_protein=(indices, values[:-1]))
    with pytest.raises(TypeError, match="r_probe"):
        mask(r_probe=1.1)
