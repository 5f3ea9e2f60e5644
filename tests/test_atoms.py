"""Atoms: nothing is lost between cctbx and tensors."""

import copy
import pickle

import mmtbx_sfdiff as sfdiff
import torch

import numpy as np
import pytest
from cctbx import miller, xray

from tests.support.structures import (
    NON_STANDARD_SETTINGS,
    cctbx_direct,
    random_xray_structure,
    relative_l2,
)


def assert_same_structure(a, b):
    assert a.is_similar_symmetry(b)
    assert a.space_group() == b.space_group()
    for x, y in zip(a.scatterers(), b.scatterers(), strict=True):
        assert (x.label, x.scattering_type, x.site, x.occupancy, x.fp, x.fdp) == (
            y.label,
            y.scattering_type,
            y.site,
            y.occupancy,
            y.fp,
            y.fdp,
        )
        assert (x.u_iso, x.u_star, x.flags.bits, x.flags.param) == (y.u_iso, y.u_star, y.flags.bits, y.flags.param)
        assert x.multiplicity() == y.multiplicity()
    tables = [s.site_symmetry_table() for s in (a, b)]
    assert list(tables[0].indices()) == list(tables[1].indices())
    registries = [s.scattering_type_registry() for s in (a, b)]
    assert registries[0].last_table() == registries[1].last_table()
    gaussians = [r.as_type_gaussian_dict() for r in registries]
    assert gaussians[0].keys() == gaussians[1].keys()
    for key in gaussians[0]:
        x, y = gaussians[0][key], gaussians[1][key]
        assert (x.array_of_a(), x.array_of_b(), x.c()) == (y.array_of_a(), y.array_of_b(), y.c())


@pytest.mark.parametrize("anisotropic", [False, True])
@pytest.mark.parametrize("symbol", ("P 1", "P 21 21 21", "I 4 3 2") + NON_STANDARD_SETTINGS)
def test_round_trip_keeps_every_bit(symbol, anisotropic):
    structure = random_xray_structure(symbol, anisotropic=anisotropic)
    xray.set_scatterer_grad_flags(scatterers=structure.scatterers()[:2], site=True, occupancy=True)
    assert_same_structure(sfdiff.Atoms.from_cctbx(structure).to_cctbx(), structure)


@pytest.mark.parametrize("table", ["n_gaussian", "it1992", "wk1995", "electron", "neutron"])
def test_round_trip_keeps_the_scattering_table(table):
    structure = random_xray_structure("P 21", elements=("C", "N", "O", "H"), table=table)
    atoms = sfdiff.Atoms.from_cctbx(structure)
    assert atoms.form_factors.table == table
    assert_same_structure(atoms.to_cctbx(), structure)
    registry = structure.scattering_type_registry()
    d_star_sq = torch.tensor([0.0, 0.1, 0.7])
    values = atoms.form_factors(d_star_sq)
    for name, row in zip(atoms.form_factors.types, values):
        expected = [registry.gaussian(name).at_d_star_sq(float(x)) for x in d_star_sq]
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_round_trip_of_an_atom_with_u_iso_and_u_aniso():
    structure = random_xray_structure("C 1 2 1", anisotropic=True)
    for scatterer in structure.scatterers():
        scatterer.flags.set_use_u_iso(True)
        scatterer.u_iso = 0.05
    assert_same_structure(sfdiff.Atoms.from_cctbx(structure).to_cctbx(), structure)


def test_special_positions_forced_to_be_general():
    """mmtbx treats partly occupied atoms near a symmetry element as general; the copy must do so too."""
    structure = random_xray_structure("P 4", seed=5)
    scatterers = structure.scatterers().deep_copy()
    scatterers[0].site, scatterers[0].occupancy = (0.001, 0.001, 0.3), 0.25
    forced = xray.structure(
        special_position_settings=structure,
        scatterers=scatterers,
        non_unit_occupancy_implies_min_distance_sym_equiv_zero=True,
    )
    snapped = xray.structure(special_position_settings=structure, scatterers=scatterers)
    assert forced.special_position_indices().size() != snapped.special_position_indices().size()
    for each in (forced, snapped):
        each.scattering_type_registry(table="it1992")
        atoms = sfdiff.Atoms.from_cctbx(each)
        assert_same_structure(atoms.to_cctbx(), each)
        miller_set = miller.build_set(each, anomalous_flag=False, d_min=2)
        assert (
            relative_l2(sfdiff.structure_factors(atoms, atoms.crystal, miller_set), cctbx_direct(each, miller_set))
            < 1e-12
        )


def test_changed_values_arrive_in_cctbx():
    structure = random_xray_structure("P 21", anisotropic=True)
    atoms = sfdiff.Atoms.from_cctbx(structure)
    changed = atoms.replace(
        sites_cart=atoms.sites_cart + 0.1, occupancies=atoms.occupancies / 2, u_star=atoms.u_star * 2
    )
    back = changed.to_cctbx()
    np.testing.assert_allclose(
        back.sites_cart().as_double().as_numpy_array().reshape(-1, 3), changed.sites_cart, atol=1e-12
    )
    np.testing.assert_allclose(list(back.scatterers().extract_occupancies()), changed.occupancies)
    np.testing.assert_allclose([s.u_star for s in back.scatterers()], changed.u_star)
    # The source is left as it was.
    assert_same_structure(atoms.to_cctbx(), structure)


def test_single_precision_keeps_the_sites_of_a_large_cell():
    structure = random_xray_structure("P 1", n=30, volume_per_atom=200000)
    exact = sfdiff.Atoms.from_cctbx(structure)
    single = sfdiff.Atoms.from_cctbx(structure, dtype=torch.float32)
    assert single.sites_cart.dtype == torch.float32
    assert float(single.sites_cart.abs().max()) > 100
    assert torch.equal(single.sites_frac, exact.sites_frac)
    assert torch.equal(exact.to(torch.float32).sites_cart, single.sites_cart)
    np.testing.assert_allclose(exact.to(torch.float32).sites_frac, exact.sites_frac, rtol=0, atol=1e-15)


def test_replace_carries_the_gradient():
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("C 1 2 1"))
    leaf = atoms.sites_cart.clone().requires_grad_()
    moved = atoms.replace(sites_cart=leaf)
    assert moved.sites_cart is leaf
    moved.sites_frac.square().sum().backward()
    assert torch.isfinite(leaf.grad).all() and float(leaf.grad.abs().max()) > 0
    frac = atoms.sites_frac.clone().requires_grad_()
    again = atoms.replace(sites_frac=frac)
    np.testing.assert_allclose(again.sites_frac.detach(), frac.detach(), atol=1e-15)
    again.sites_cart.sum().backward()
    assert frac.grad is not None


def test_select_and_model():
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21", anisotropic=True))
    some = atoms.select(torch.arange(atoms.n_atoms) % 2 == 0)
    assert some.labels == atoms.labels[::2]
    assert torch.equal(some.sites_frac, atoms.sites_frac[::2])
    assert some.to_cctbx().scatterers().size() == some.n_atoms
    batch = atoms.replace(sites_cart=torch.stack([atoms.sites_cart, atoms.sites_cart + 1]))
    assert batch.batch_shape == (2,)
    assert torch.equal(batch.model(1).sites_cart, atoms.sites_cart + 1)
    assert torch.equal(batch.model(1).u_star, atoms.u_star)
    np.testing.assert_allclose(batch.select(torch.tensor([2])).model(0).sites_cart, atoms.sites_cart[2:3])


def test_copies():
    structure = random_xray_structure("P 31 2 1")
    atoms = sfdiff.Atoms.from_cctbx(structure)
    for twin in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        assert torch.equal(twin.sites_frac, atoms.sites_frac)
        assert torch.equal(twin.form_factors.a, atoms.form_factors.a)
        assert twin.labels == atoms.labels


def test_radii_are_those_of_the_mask_in_mmtbx():
    from mmtbx.masks import vdw_radii_from_xray_structure

    structure = random_xray_structure("P 21", elements=("C", "N", "O1-", "Fe2+", "Zn2+", "H", "S"))
    expected = vdw_radii_from_xray_structure(xray_structure=structure)
    np.testing.assert_array_equal(sfdiff.Atoms.from_cctbx(structure).vdw_radii(), list(expected))


def test_errors():
    structure = random_xray_structure("P 21")
    atoms = sfdiff.Atoms.from_cctbx(structure)
    with pytest.raises(TypeError, match="no parameter 'site'"):
        atoms.replace(site=atoms.sites_cart)
    with pytest.raises(ValueError, match=r"\(\.\.\., 12, 3\)"):
        atoms.replace(sites_cart=atoms.sites_cart[:3])
    with pytest.raises(TypeError, match="float32 but the atoms are torch.float64"):
        atoms.replace(sites_cart=atoms.sites_cart.float())
    with pytest.raises(TypeError, match="must be a torch.Tensor"):
        atoms.replace(u_iso=[0.1] * atoms.n_atoms)
    with pytest.raises(TypeError, match="not both"):
        atoms.replace(sites_cart=atoms.sites_cart, sites_frac=atoms.sites_frac)
    with pytest.raises(TypeError, match="float32 or torch.float64"):
        sfdiff.Atoms.from_cctbx(structure, dtype=torch.float16)
    with pytest.raises(ValueError, match="no atoms"):
        sfdiff.Atoms.from_cctbx(xray.structure(crystal_symmetry=structure.crystal_symmetry()))
    with pytest.raises(ValueError, match="model\\(i\\)"):
        atoms.replace(u_iso=torch.stack([atoms.u_iso] * 2)).to_cctbx()
    structure.scatterers()[0].scattering_type = "Qq"
    structure.scattering_type_registry(table="it1992")
    with pytest.raises(ValueError, match="No form factor for scattering type 'Qq'"):
        sfdiff.Atoms.from_cctbx(structure)


def test_u_equivalent_as_cctbx():
    structure = random_xray_structure("P 31 2 1", anisotropic=True, n=3)
    structure.scatterers()[0].flags.set_use_u_iso_only()
    atoms = sfdiff.Atoms.from_cctbx(structure)
    cell = structure.unit_cell()
    expected = [s.u_iso_or_equiv(cell) for s in structure.scatterers()]
    torch.testing.assert_close(atoms.u_equivalent, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(atoms.b_iso, 8 * torch.pi**2 * atoms.u_equivalent)
    assert atoms.replace(u_iso=torch.stack([atoms.u_iso] * 2)).u_equivalent.shape == (2, atoms.n_atoms)
