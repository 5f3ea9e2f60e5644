"""Map targets, map coefficients and map files."""

import dataclasses

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import real_space

import gemmi
import iotbx.ccp4_map
import numpy as np
import pytest
from scipy import stats

from tests.support.scaling_data import manager, tensor


@pytest.fixture(scope="module")
def fmodel():
    result = sfdiff.FModel.from_cctbx(
        manager("P 21 21 21", n_atoms=24, d_min=2.5), method="direct", mask={"method": "binary"}
    )
    result.update_scales()
    return result


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_correlation_and_least_squares():
    a, b, w = noise(2, 4, 5, 6), noise(4, 5, 6, seed=1), noise(4, 5, 6, seed=2).square()
    b = b + a[0]
    found = real_space.map_correlation(a, b)
    expected = [stats.pearsonr(x.flatten().numpy(), b.flatten().numpy())[0] for x in a]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(real_space.map_least_squares(a, b), 1 - found**2)
    design = np.stack([a[0].flatten().numpy(), np.ones(120)], 1) * w.flatten().sqrt().numpy()[:, None]
    right = (b.flatten() * w.flatten().sqrt()).numpy()
    _, residual, *_ = np.linalg.lstsq(design, right, rcond=None)
    mean = float((w * b).sum() / w.sum())
    expected = float(residual[0]) / float((w * (b - mean) ** 2).sum())
    assert float(real_space.map_least_squares(a[0], b, w)) == pytest.approx(expected, rel=1e-10)
    expected = float(((b - a[0]) ** 2).sum() / ((b - b.mean()) ** 2).sum())
    assert float(real_space.map_least_squares(a[0], b, scale="unit")) == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda x: real_space.map_correlation(x, b, w), (a.requires_grad_(),))
    assert float(real_space.map_correlation(torch.ones_like(b), b)) == 0
    with pytest.raises(ValueError, match="different grids"):
        real_space.map_correlation(a, b[:-1])
    with pytest.raises(ValueError, match="scale must be"):
        real_space.map_least_squares(a, b, scale="k1")


def test_residues_that_moved_have_the_lower_correlation(fmodel):
    atoms, crystal = fmodel.atoms, fmodel.atoms.crystal
    grid = crystal.grid(0.6)
    observed = sfdiff.density(atoms, crystal, grid, d_min=2.0)
    groups = torch.arange(atoms.n_atoms) // 4
    shift = torch.where((groups == 2)[:, None], 0.7, 0.0).to(torch.float64)
    sites = (atoms.sites_cart + shift).requires_grad_()
    moved = atoms.replace(sites_cart=sites)
    found = real_space.residue_correlation(sfdiff.density(moved, crystal, grid, d_min=2.0), observed, moved, groups)
    assert (
        found.shape == (6,)
        and float(found[2].detach()) < 0.9
        and float(found[[0, 3, 4]].detach().min()) > float(found[2].detach())
    )
    (gradient,) = torch.autograd.grad(found.sum(), sites)
    assert float(gradient[groups == 2].norm()) > 0
    same = real_space.residue_correlation(observed, observed, atoms, groups)
    torch.testing.assert_close(same, torch.ones_like(same))
    with pytest.raises(ValueError, match="radius must be positive"):
        real_space.residue_correlation(observed, observed, atoms, groups, radius=0)


@pytest.mark.parametrize("kind", real_space.coefficients.KINDS)
def test_coefficients_are_mmtbx_s(fmodel, kind):
    found = fmodel.map_coefficients()[kind]
    expected = tensor(fmodel.to_cctbx().electron_density_map().map_coefficients(map_type=kind, fill_missing=False))
    # mmtbx's polynomials for I1/I0 are good to 1e-6.
    assert float((found - expected).abs().max()) < 5e-6 * float(expected.abs().max())


def test_map_files(fmodel, tmp_path):
    crystal = fmodel.atoms.crystal
    rho = sfdiff.density(fmodel.atoms, crystal, crystal.grid(0.8), d_min=2.5)
    path = tmp_path / "map.ccp4"
    real_space.write_map(path, rho, crystal)
    torch.testing.assert_close(real_space.read_map(path, crystal), rho, rtol=1e-6, atol=1e-6)
    theirs = iotbx.ccp4_map.map_reader(str(path))
    np.testing.assert_allclose(theirs.map_data().as_numpy_array(), rho.numpy(), rtol=1e-5, atol=1e-5)
    assert theirs.space_group_number == 19
    indices = crystal.build_miller_indices(3.0)
    f = torch.polar(1 + noise(len(indices)).abs(), noise(len(indices), seed=3))
    path = tmp_path / "f.mtz"
    real_space.write_map_coefficients(path, crystal, indices, {"2FOFCWT": f})
    h, values = real_space.read_map_coefficients(path)
    assert torch.equal(h, indices)
    torch.testing.assert_close(values, f, rtol=1e-5, atol=1e-5)
    for wrong, said in (
        (lambda: real_space.read_map(tmp_path / "no.ccp4"), "cannot be read as a CCP4 map"),
        (
            lambda: real_space.read_map_coefficients(path, "FWT,PHWT"),
            "has no columns FWT,PHWT; it has H, K, L, 2FOFCWT",
        ),
        (lambda: real_space.write_map(tmp_path / "no" / "x.ccp4", rho, crystal), "no folder"),
        (lambda: real_space.write_map(tmp_path / "x.ccp4", torch.stack([rho, rho]), crystal), "one map"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


def test_anomalous_difference_maps_peak_at_the_anomalous_scatterer(tmp_path):
    start = manager("P 21 21 21", n_atoms=24, d_min=2.0)
    atoms = sfdiff.Atoms.from_cctbx(start.xray_structure)
    fdp = torch.where(torch.arange(atoms.n_atoms) == 7, 6.0, 0.0).to(torch.float64)
    atoms, crystal = atoms.replace(fdp=fdp), atoms.crystal
    indices = crystal.build_miller_indices(2.0)
    mates = torch.cat([indices, -indices[~crystal.centric_flags(indices)]])
    f = sfdiff.structure_factors(atoms, crystal, mates, method="direct")
    template = sfdiff.FModel.from_cctbx(start).reflections
    data = dataclasses.replace(
        template, miller_indices=mates, f_obs=f.abs(), sigmas=0.02 * f.abs(), r_free_flags=None, anomalous=True
    )
    h, coefficients = real_space.anomalous_difference_coefficients(data, f)
    assert len(h) == int((~crystal.centric_flags(indices)).sum())
    grid = crystal.grid(0.5)
    rho = real_space.fourier_map(crystal, h, coefficients, grid)
    peak = np.unravel_index(int(rho.argmax()), grid)
    rotations, translations = crystal.rotations.to(torch.float64), crystal.translations
    sites = rotations @ atoms.sites_frac[7] + translations
    offset = torch.tensor(peak) / torch.tensor(grid) - sites
    distance = ((offset - offset.round()) @ crystal.orthogonalization.T).norm(dim=1).min()
    assert float(distance) < 0.6 and float(rho.max()) > 5 * float(rho.std())
    fmodel = sfdiff.FModel(atoms, data, method="direct", mask={"method": "binary"})
    fmodel.update_scales(remove_outliers=False)
    fmodel.write_map_coefficients(tmp_path / "maps.mtz")
    labels = gemmi.read_mtz_file(str(tmp_path / "maps.mtz")).column_labels()
    assert {"F-obs-filtered(+)", "F-obs-filtered(-)", "2FOFCWT", "PH2FOFCWT", "PANOM", "PHPANOM"} <= set(labels)
    again = real_space.read_map_coefficients(tmp_path / "maps.mtz", "PANOM,PHPANOM")
    assert len(again[0]) == len(h)
    with pytest.raises(ValueError, match="no Friedel pairs"):
        real_space.anomalous_difference_coefficients(template, torch.ones(len(template), dtype=torch.complex128))
