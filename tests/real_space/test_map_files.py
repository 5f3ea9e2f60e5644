"""Maps between programs by files, with gemmi alone: this file runs where cctbx is not installed, too."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import real_space

import gemmi
import numpy as np
import pytest

from tests.interop.crystals import write_crystal


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_crystal(tmp_path_factory.mktemp("crystal"), d_min=2.5)


@pytest.fixture(scope="module")
def fmodel(files):
    atoms = sfdiff.Atoms.from_gemmi(gemmi.read_structure(str(files[0])))
    data = sfdiff.Reflections.from_gemmi(gemmi.read_mtz_file(str(files[1])))
    result = sfdiff.FModel(atoms, data)
    result.update_scales()
    return result


def gemmi_s_density(fmodel, grid, d_min=2.5):
    """gemmi's own density of the same atoms to a resolution, without its F(0,0,0): (n1, n2, n3)."""
    crystal = fmodel.atoms.crystal
    structure = gemmi.Structure()
    model, chain = gemmi.Model("1") if gemmi.__version__ < "0.7" else gemmi.Model(1), gemmi.Chain("A")
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*crystal.unit_cell), "P 21 21 21"
    for element, site, u in zip(fmodel.atoms.elements, fmodel.atoms.sites_cart.tolist(), fmodel.atoms.u_iso.tolist()):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name = "UNK"
        atom.name, atom.element, atom.pos = element, gemmi.Element(element), gemmi.Position(*site)
        atom.occ, atom.b_iso = 1.0, 8 * np.pi**2 * u
        residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    structure.setup_cell_images()
    calculator = gemmi.StructureFactorCalculatorX(structure.cell)
    half = crystal.build_miller_indices(d_min)
    f = [calculator.calculate_sf_from_model(structure[0], h) for h in half.tolist()]
    return real_space.fourier_map(crystal, half, torch.tensor(f, dtype=torch.complex128), grid)


def test_a_map_written_here_is_read_by_gemmi_and_back(fmodel, tmp_path):
    crystal = fmodel.atoms.crystal
    rho = sfdiff.density(fmodel.atoms, crystal, (40, 48, 54), d_min=2.5)
    real_space.write_map(tmp_path / "ours.ccp4", rho, crystal)
    theirs = gemmi.read_ccp4_map(str(tmp_path / "ours.ccp4"))
    theirs.setup(float("nan"))
    assert theirs.grid.spacegroup.hm == "P 21 21 21" and np.allclose(
        theirs.grid.unit_cell.parameters, crystal.unit_cell
    )
    np.testing.assert_allclose(np.array(theirs.grid), rho.numpy(), atol=1e-6 * float(rho.abs().max()))
    torch.testing.assert_close(real_space.read_map(tmp_path / "ours.ccp4", crystal), rho, rtol=0, atol=1e-6)


def test_targets_against_a_map_of_gemmi_s_as_a_file(fmodel, tmp_path):
    """The asymmetric unit alone is in the file: reading it completes the cell."""
    crystal, grid = fmodel.atoms.crystal, (40, 48, 54)
    observed = gemmi_s_density(fmodel, grid)
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = gemmi.FloatGrid(
        observed.numpy().astype(np.float32), gemmi.UnitCell(*crystal.unit_cell), gemmi.SpaceGroup("P 21 21 21")
    )
    ccp4.update_ccp4_header()
    ccp4.set_extent(gemmi.find_asu_brick(gemmi.SpaceGroup("P 21 21 21")).get_extent())
    ccp4.write_ccp4_map(str(tmp_path / "theirs.ccp4"))
    read = real_space.read_map(tmp_path / "theirs.ccp4", crystal)
    assert tuple(read.shape) == grid
    sites = fmodel.atoms.sites_cart.clone().requires_grad_()
    rho = sfdiff.density(fmodel.atoms.replace(sites_cart=sites), crystal, grid, d_min=2.5)
    without_mean = rho.detach() - rho.detach().mean()
    assert float((without_mean - observed).norm()) < 1e-3 * float(observed.norm())
    correlation = real_space.map_correlation(rho, read)
    assert float(correlation.detach()) > 1 - 1e-5 and float(real_space.map_least_squares(rho, read).detach()) < 1e-5
    moved = sfdiff.density(fmodel.atoms.replace(sites_cart=sites + 0.3), crystal, grid, d_min=2.5)
    loss = real_space.map_least_squares(moved, read)
    (gradient,) = torch.autograd.grad(loss, sites)
    # Downhill leads back.
    assert float(loss.detach()) > 0.05 and float((gradient.sum(0) > 0).double().sum()) == 3


def test_targets_against_the_coefficients_of_an_mtz(fmodel, tmp_path):
    crystal = fmodel.atoms.crystal
    fmodel.write_map_coefficients(tmp_path / "maps.mtz")
    theirs = gemmi.read_mtz_file(str(tmp_path / "maps.mtz")).transform_f_phi_to_map(
        "2FOFCWT", "PH2FOFCWT", (40, 48, 54)
    )
    h, coefficients = real_space.read_map_coefficients(tmp_path / "maps.mtz", "2FOFCWT,PH2FOFCWT")
    observed = real_space.fourier_map(crystal, h, coefficients, (40, 48, 54))
    np.testing.assert_allclose(np.array(theirs), observed.numpy(), atol=1e-4 * float(observed.abs().max()))
    rows = fmodel.selection
    with torch.no_grad():
        scaled = real_space.fourier_map(
            crystal, fmodel.reflections.miller_indices[rows], fmodel.f_model()[rows], (40, 48, 54)
        )
    assert float(real_space.map_correlation(scaled, observed)) > 0.99
    # The atoms alone lack the solvent.
    rho = sfdiff.density(fmodel.atoms, crystal, (40, 48, 54), d_min=2.5)
    assert 0.7 < float(real_space.map_correlation(rho, observed)) < 0.99
    groups = torch.arange(fmodel.atoms.n_atoms) // 5
    residues = real_space.residue_correlation(rho, observed, fmodel.atoms, groups)
    assert len(residues) == int(groups[-1]) + 1 and float(residues.median()) > 0.8
