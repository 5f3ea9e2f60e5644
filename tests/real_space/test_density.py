"""Density of a model: its transform, cctbx's map, gradients, errors."""

import dataclasses

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.real_space import fourier_map, fourier_transform, gaussians

import pytest
from cctbx import maptbx

from tests.support.structures import random_xray_structure, relative_l2


def model(symbol, anisotropic=False, n=2):
    structure = random_xray_structure(symbol, anisotropic=anisotropic, n=n)
    for scatterer in structure.scatterers():
        scatterer.fdp = 0  # a density is real
    return sfdiff.Atoms.from_cctbx(structure), structure


@pytest.mark.parametrize(
    "symbol, anisotropic",
    [("P 21 21 21", False), ("P 31 2 1", True), ("I 1 2 1", True), ("P -1", False), ("P 21 21 21 (a-1/4,b,c)", True)],
)
def test_transform_of_the_sum_of_gaussians_tends_to_f(symbol, anisotropic):
    atoms, _ = model(symbol, anisotropic, n=1)
    crystal = atoms.crystal
    indices = crystal.build_miller_indices(2.5)
    expected = sfdiff.structure_factors(atoms, crystal, indices, method="direct")
    errors = [
        relative_l2(fourier_transform(crystal, sfdiff.density(atoms, crystal, crystal.grid(step)), indices), expected)
        for step in (0.8, 0.5, 0.3)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 1e-3


def test_transform_of_the_sum_to_d_min_is_f_inside_and_nothing_beyond():
    atoms, structure = model("P 31 2 1", True)
    crystal = atoms.crystal
    rho = sfdiff.density(atoms, crystal, crystal.grid(0.6), d_min=2.0, accuracy=1e-8)
    indices = crystal.build_miller_indices(1.5)
    found = fourier_transform(crystal, rho, indices)
    inside = crystal.d_spacings(indices) >= 2.0
    expected = sfdiff.structure_factors(atoms, crystal, indices, method="direct")
    assert relative_l2(found[inside], expected[inside]) < 1e-7
    assert float(found[~inside].abs().max()) < 1e-9 * float(expected.abs().max())
    # The map itself is cctbx's, but for F(0,0,0).
    f_calc = structure.structure_factors(d_min=2.0, algorithm="direct").f_calc()
    gridding = maptbx.crystal_gridding(
        structure.unit_cell(), space_group_info=structure.space_group_info(), pre_determined_n_real=crystal.grid(0.6)
    )
    theirs = f_calc.fft_map(crystal_gridding=gridding).apply_volume_scaling().real_map_unpadded().as_numpy_array()
    mean = sfdiff.structure_factors(atoms, crystal, torch.zeros(1, 3, dtype=torch.int64), method="direct").real
    expected = torch.from_numpy(theirs) + mean / crystal.volume
    torch.testing.assert_close(rho, expected, rtol=0, atol=1e-6 * float(expected.max()))


def test_symmetry_of_the_map_and_the_number_of_electrons():
    atoms, _ = model("P 21 21 21")
    crystal = atoms.crystal
    grid = crystal.grid(0.4)
    for rho in (sfdiff.density(atoms, crystal, grid), sfdiff.density(atoms, crystal, grid, d_min=2.0)):
        turned = rho.flip(0, 1, 2).roll((1, 1, 1), (0, 1, 2))
        assert not torch.allclose(turned, rho, atol=1e-3)
        # (x+1/2, -y+1/2, -z)
        a, b, _ = grid
        moved = rho.roll((a // 2, 0, 0), (0, 1, 2)).flip(1, 2).roll((0, b // 2 + 1, 1), (0, 1, 2))
        torch.testing.assert_close(moved, rho, rtol=0, atol=1e-4 * float(rho.max()))
        total = float(rho.mean()) * crystal.volume
        f000 = sfdiff.structure_factors(atoms, crystal, torch.zeros(1, 3, dtype=torch.int64), method="direct")
        assert total == pytest.approx(float(f000.real), rel=1e-3)


@pytest.mark.parametrize("d_min", [None, 2.5])
def test_gradients_and_batches(d_min):
    atoms, _ = model("P 21 21 21", True, n=1)
    crystal = atoms.crystal
    grid = crystal.grid(0.9)
    weight = torch.randn(grid, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    names = ("sites_cart", "u_iso", "u_star", "occupancies", "fp")
    leaves = {name: getattr(atoms, name).clone().requires_grad_() for name in names}

    def value(**parameters):
        return (weight * sfdiff.density(atoms.replace(**parameters), crystal, grid, d_min, accuracy=1e-7)).sum()

    gradients = torch.autograd.grad(value(**leaves), list(leaves.values()))
    for name, gradient in zip(names, gradients):
        if not gradient.norm() > 0:
            assert name in ("u_iso",) and bool(atoms.use_u_aniso.all())
            continue
        direction = gradient / gradient.norm()
        step = (1e-7 if name == "u_star" else 1e-4) * direction
        with torch.no_grad():
            pair = [value(**{name: leaves[name].detach() + s}) for s in (step, -step)]
        assert float(pair[0] - pair[1]) == pytest.approx(2 * float((gradient * step).sum()), rel=1e-4)
    batch = torch.stack([atoms.sites_cart, atoms.sites_cart + 0.1])
    maps = sfdiff.density(atoms.replace(sites_cart=batch), crystal, grid, d_min)
    assert maps.shape == (2, *grid)
    torch.testing.assert_close(maps[1], sfdiff.density(atoms.replace(sites_cart=batch[1]), crystal, grid, d_min))
    assert sfdiff.density(atoms.to(torch.float32), crystal, grid, d_min).dtype == torch.float32


def test_maps_and_structure_factors_are_inverse():
    crystal = model("P 31 2 1")[0].crystal
    indices = crystal.build_miller_indices(2.2)
    f = torch.randn(2, len(indices), dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    centric = crystal.centric_flags(indices)
    f = f[:, ~centric]
    rho = fourier_map(crystal, indices[~centric], f, crystal.grid(0.7))
    torch.testing.assert_close(fourier_transform(crystal, rho, indices[~centric]), f)


@pytest.mark.parametrize("symbol, anisotropic", [("C 1 2 1", True), ("P 21 21 21", False), ("P -1", True)])
def test_the_kernels_sum_is_the_formula_s(symbol, anisotropic):
    atoms, _ = model(symbol, anisotropic, n=1)
    grid = (27, 30, 35)  # any numbers, whatever the symmetry would like
    n, cell = atoms.n_atoms, atoms.crystal
    asymmetric = dataclasses.replace(atoms, site_weights=torch.ones(n, dtype=torch.float64))
    rho = 0.0
    operators = [(r, t + c) for r, t in zip(cell.rotations, cell.translations) for c in cell.centring]
    for r, t in operators:
        r = r.to(torch.float64)
        u = r @ asymmetric.u_star[:, [0, 3, 4, 3, 1, 5, 4, 5, 2]].reshape(n, 3, 3) @ r.T
        packed = u.flatten(1)[:, [0, 4, 8, 1, 2, 5]]
        moved = (asymmetric.sites_frac @ r.T + t)[None]
        u_iso = torch.where(atoms.use_u_iso, atoms.u_iso, 0.0)[None]
        packed = torch.where(atoms.use_u_aniso[:, None], packed, 0.0)[None]
        weights = (atoms.occupancies * atoms.site_weights)[None]
        parameters = (moved, u_iso, packed, weights, atoms.fp[None])
        rho = rho + gaussians.plain_density(parameters, atoms.type_index, cell, atoms.form_factors, grid)[0]
    found = sfdiff.density(atoms, cell, grid)
    # Kernels go on to the end of a row of eight points where the formula ends: 1e-7 of each term's height.
    torch.testing.assert_close(found, rho, rtol=0, atol=5e-7 * float(rho.max()))


def test_second_derivatives_and_maps_of_torch_func():
    atoms, _ = model("P 21 21 21", n=1)
    atoms = dataclasses.replace(atoms, site_weights=torch.ones(atoms.n_atoms, dtype=torch.float64))
    crystal, grid = atoms.crystal, (12, 12, 15)
    weight = torch.randn(grid, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(sites):
        return (weight * sfdiff.density(atoms.replace(sites_cart=sites), crystal, grid)).sum()

    x = atoms.sites_cart.clone().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(value(x), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * direction).sum(), x)
    step = 1e-4 * direction
    pair = [torch.autograd.grad(value(y), y)[0] for y in ((x + s).detach().requires_grad_() for s in (step, -step))]
    torch.testing.assert_close(product, (pair[0] - pair[1]) / 2e-4, rtol=1e-4, atol=1e-4 * float(product.abs().max()))
    several = torch.stack([atoms.sites_cart, atoms.sites_cart + 0.2])
    mapped = torch.func.vmap(torch.func.grad(value))(several)
    torch.testing.assert_close(mapped[0], gradient.detach())


def test_errors():
    atoms, _ = model("P 21 21 21", n=1)
    crystal = atoms.crystal
    point = atoms.replace(u_iso=torch.where(torch.arange(atoms.n_atoms) == 3, -0.2, atoms.u_iso))
    for given, options, said in (
        (atoms, {"grid": (4, 4)}, "three positive integers"),
        (atoms, {"grid": (4, 4, 4), "d_min": 1.0}, "too coarse"),
        (atoms, {"grid": (9, 9, 9), "d_min": 0.0}, "d_min must be positive"),
        (point, {"grid": (9, 9, 9)}, "density of atom 3 .* is a point"),
    ):
        with pytest.raises(ValueError, match=said):
            sfdiff.density(given, crystal, **options)
    other = model("P 1", n=1)[0].crystal
    with pytest.raises(ValueError, match="belong to"):
        sfdiff.density(atoms, other, (9, 9, 9))
    with pytest.raises(ValueError, match="cannot tell indices"):
        fourier_transform(crystal, torch.zeros(4, 4, 4, dtype=torch.float64), torch.tensor([[3, 0, 0]]))
