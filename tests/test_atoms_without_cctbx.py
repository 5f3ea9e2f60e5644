"""Atoms from arrays and from gemmi are those from cctbx, to the bit; the way back works for all of them."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.tables.gaussians import TABLES

import gemmi
import numpy as np
import pytest

from tests.support.structures import NON_STANDARD_SETTINGS, random_xray_structure

pytest.importorskip("cctbx")

import iotbx.pdb
from cctbx import adptbx

FIELDS = ("sites_cart", "sites_frac", "u_iso", "u_star", "occupancies", "fp", "fdp", "use_u_iso", "use_u_aniso")


def arrays_of(structure):
    """Arguments of from_arrays that describe a cctbx structure."""
    cell, scatterers = structure.unit_cell(), structure.scatterers()
    aniso = [s.flags.use_u_aniso() for s in scatterers]
    u_cart = [adptbx.u_star_as_u_cart(cell, s.u_star) if a else [float("nan")] * 6 for s, a in zip(scatterers, aniso)]
    return {
        "elements": [s.scattering_type for s in scatterers],
        "sites_cart": np.array(structure.sites_cart()),
        "b_iso": np.array([adptbx.u_as_b(s.u_iso) if not a else 0 for s, a in zip(scatterers, aniso)]),
        "occupancies": np.array([s.occupancy for s in scatterers]),
        "u_cart": np.array(u_cart),
    }


@pytest.mark.parametrize("symbol", ["P 21 21 21", "C 1 2 1", "I 41 2 2", "P -1", "R 3 :H", *NON_STANDARD_SETTINGS[:4]])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_atoms_from_arrays_scatter_as_those_from_cctbx(symbol, anisotropic):
    structure = random_xray_structure(symbol, anisotropic=anisotropic, seed=5)
    for i in structure.special_position_indices():
        structure.scatterers()[i].occupancy = 1  # by the PDB's convention another one has been reduced already
    expected = sfdiff.Atoms.from_cctbx(structure)
    crystal = sfdiff.Crystal(structure.unit_cell().parameters(), f"Hall: {expected.crystal.hall_symbol}")
    assert crystal.is_same_as(expected.crystal)
    table = structure.scattering_type_registry().last_table()
    atoms = sfdiff.Atoms.from_arrays(crystal, table=table, **arrays_of(structure))
    indices = crystal.build_miller_indices(2.0)
    assert torch.equal(atoms.site_weights, expected.site_weights)
    f = sfdiff.structure_factors(atoms, crystal, indices, method="direct")
    f_expected = sfdiff.structure_factors(expected, expected.crystal, indices, method="direct")
    assert float((f - f_expected).abs().max() / f_expected.abs().max()) < 1e-12


PDB = """\
CRYST1   21.937    4.866   23.477  90.00 107.08  90.00 P 1 21 1      2
ATOM      1  N   GLY A   1      -9.009   4.612   6.102  1.00 16.77           N
ANISOU    1  N   GLY A   1     2165   2077   2129    -52    -12     43       N
ATOM      2  CA AGLY A   1      -9.052   4.207   4.651  0.60 16.57           C
ATOM      3  CA BGLY A   1      -9.152   4.307   4.751  0.40 11.57           C
ATOM      4  O   GLY A   1      -7.900   3.300   4.300  1.00  9.00           O1-
ATOM      5  D   GLY A   1      -7.000   3.000   4.000  1.00  9.00           D
HETATM    6 FE    FE A   2       0.001   1.000   0.000  0.50 12.00          FE3+
HETATM    8  S     S A   4       0.001   3.000   0.002  1.00 12.00           S
ANISOU    8  S     S A   4     2165   2077   2129    -52    -12     43       S
HETATM    7  N   NH4 A   3       5.001   1.000   7.000  1.00 12.00           N1+
END
"""


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("d_min", [0.0, 1.5])
@pytest.mark.parametrize("anisotropic", [False, True])
@pytest.mark.filterwarnings("ignore:The table .* has no form factor for")
def test_atoms_from_gemmi_have_the_bits_of_those_from_cctbx(table, d_min, anisotropic):
    text = PDB.replace("P 1 21 1 ", "P 1 2 1  ")  # a twofold axis through iron and sulfur
    if table == "electron":  # which has neither ions nor deuterium
        text = text.replace("O1-", "O  ").replace("FE3+", "FE  ").replace("           D", "           H")
    if not anisotropic:
        text = "\n".join(line for line in text.splitlines() if not line.startswith("ANISOU"))
    structure = iotbx.pdb.input(source_info=None, lines=text.splitlines()).xray_structure_simple()
    structure.scattering_type_registry(table=table, d_min=d_min)
    expected = sfdiff.Atoms.from_cctbx(structure)
    atoms = sfdiff.Atoms.from_gemmi(gemmi.read_pdb_string(text), table=table, d_min=d_min)
    assert atoms.scattering_types == expected.scattering_types and atoms.elements == expected.elements
    for name in FIELDS:
        found, right = getattr(atoms, name), getattr(expected, name)
        if name == "u_star":  # cctbx multiplies the integers of ANISOU records by 1e-4, which rounds
            assert torch.allclose(found, right, rtol=1e-13, atol=1e-17)
        else:
            assert torch.equal(found, right), name
    assert torch.equal(atoms.site_weights, expected.site_weights) and atoms.site_weights.min() == 0.5
    assert torch.equal(atoms.form_factors.a, expected.form_factors.a)
    assert torch.equal(atoms.form_factors.c, expected.form_factors.c)
    indices = atoms.crystal.build_miller_indices(2.0)
    f = sfdiff.structure_factors(atoms, atoms.crystal, indices, method="direct")
    right = sfdiff.structure_factors(expected, expected.crystal, indices, method="direct")
    assert torch.equal(f, right) if not anisotropic else torch.allclose(f, right, rtol=1e-12, atol=1e-12)
    assert torch.equal(sfdiff.solvent_mask(atoms, atoms.crystal), sfdiff.solvent_mask(expected, expected.crystal))


def test_the_way_to_cctbx_does_not_need_to_have_come_from_there():
    text = PDB.replace("P 1 21 1 ", "P 1 2 1  ")  # iron, half occupied, and sulfur are on a twofold axis
    atoms = sfdiff.Atoms.from_gemmi(gemmi.read_pdb_string(text), table="it1992")
    structure = atoms.to_cctbx()
    again = sfdiff.Atoms.from_cctbx(structure)
    for name in (*FIELDS, "site_weights"):
        assert torch.equal(getattr(again, name), getattr(atoms, name)), name
    assert again.labels == atoms.labels and again.scattering_types == atoms.scattering_types
    assert structure.scattering_type_registry().last_table() == "it1992"
    indices = atoms.crystal.build_miller_indices(1.5)
    expected = again.crystal.to_cctbx().build_miller_set(anomalous_flag=False, d_min=1.5)
    f = expected.structure_factors_from_scatterers(structure, algorithm="direct").f_calc().data().as_numpy_array()
    found = sfdiff.structure_factors(atoms, atoms.crystal, indices, method="direct").numpy()
    assert abs(found - f).max() / abs(f).max() < 1e-12


def test_atoms_can_be_chosen_and_moved_without_cctbx_objects():
    atoms = sfdiff.Atoms.from_gemmi(gemmi.read_pdb_string(PDB), dtype=torch.float32)
    chosen = atoms.select(~atoms.hydrogens)
    assert chosen.n_atoms == 7 and "FE" in chosen.labels[4] and chosen.dtype == torch.float32
    assert chosen.to(torch.float64).select(torch.tensor([4])).elements == ("Fe",)


def test_gradients_go_to_what_was_given():
    crystal = sfdiff.Crystal((10, 11, 12, 90, 100, 90), "P 1 21 1")
    generator = torch.Generator().manual_seed(0)
    sites = (10 * torch.rand(5, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    b = torch.full((5,), 15.0, dtype=torch.float64, requires_grad=True)
    occupancies = torch.ones(5, dtype=torch.float64, requires_grad=True)
    u = torch.full((5, 6), torch.nan, dtype=torch.float64)  # which says that an atom is isotropic
    row = torch.tensor([0.2, 0.3, 0.25, 0.01, -0.02, 0.03], dtype=torch.float64, requires_grad=True)
    indices = crystal.build_miller_indices(3.0)[:20]

    def amplitudes(sites, b, occupancies, row):
        tensors = torch.cat([u[:3], row[None], u[4:]])
        atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "N", "O", "S", "C"], sites, b, occupancies, tensors)
        return torch.view_as_real(sfdiff.structure_factors(atoms, crystal, indices, method="direct"))

    assert torch.autograd.gradcheck(amplitudes, (sites, b, occupancies, row))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sites_cart": np.zeros((2, 3))}, r"sites_cart must have the shape \(1, 3\)"),
        ({"b_iso": [1, 2]}, r"b_iso must have the shape \(1,\)"),
        ({"elements": ["Xq"]}, "the element 'Xq', which has no form factor"),
        ({"b_iso": None}, "have no displacements"),
        ({"sites_cart": np.full((1, 3), np.nan)}, "sites_cart of atom 0 is not a finite number"),
        ({"table": "cromer"}, "There is no table 'cromer'"),
    ],
)
def test_what_does_not_fit_is_said(changes, said):
    crystal = sfdiff.Crystal((10, 11, 12, 90, 90, 90), "P 1")
    with pytest.raises(ValueError, match=said):
        sfdiff.Atoms.from_arrays(
            **({"crystal": crystal, "elements": ["C"], "sites_cart": np.zeros((1, 3)), "b_iso": 9} | changes)
        )


def test_models_are_read_together_and_a_cell_is_needed():
    structure = gemmi.read_pdb_string(PDB)
    structure.add_model(structure[0].clone())
    assert sfdiff.Atoms.from_gemmi(structure).n_atoms == 16
    with pytest.raises(ValueError, match="crystal symmetry is incomplete"):
        sfdiff.Atoms.from_gemmi(gemmi.read_pdb_string("\n".join(PDB.splitlines()[1:])))


def test_displacement_tensors_go_there_and_back():
    from mmtbx_sfdiff.displacements import u_cart_as_u_star, u_star_as_u_cart

    structure = random_xray_structure("P 1", anisotropic=True)
    atoms = sfdiff.Atoms.from_cctbx(structure)
    expected = np.array(structure.scatterers().extract_u_cart(structure.unit_cell()))
    used = atoms.use_u_aniso.numpy()
    assert used.any() and abs(atoms.u_cart.numpy()[used] - expected[used]).max() < 1e-14
    back = u_cart_as_u_star(u_star_as_u_cart(atoms.u_star, atoms.crystal), atoms.crystal)
    assert float((back - atoms.u_star).abs().max()) < 1e-15


def test_arrays_may_be_empty_or_of_half_precision():
    crystal = sfdiff.Crystal((20, 25, 30, 90, 90, 90), "P 21 21 21")
    none = sfdiff.Atoms.from_arrays(crystal, [], torch.zeros(0, 3))
    assert none.n_atoms == 0 and float(sfdiff.solvent_mask(none, crystal, grid_step=2.0).min()) > 1 - 1e-9
    sites = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16, requires_grad=True)
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C"], sites, b_iso=10.0)
    sfdiff.structure_factors(atoms, crystal, [(1, 2, 3)]).real.sum().backward()
    assert atoms.sites_cart.dtype == torch.float64 and sites.grad.dtype == torch.bfloat16
