"""A map between its points: SciPy's and cctbx's linear interpolation as oracles."""

import torch
from mmtbx_sfdiff import Crystal
from mmtbx_sfdiff.real_space.interpolation import map_values

import numpy as np
import pytest
import scipy.ndimage

CELL, GROUP, GRID = (14.0, 11.0, 17.0, 90.0, 104.0, 90.0), "P 1 21 1", (12, 10, 15)


@pytest.fixture(scope="module")
def case():
    random = torch.Generator().manual_seed(3)
    rho = torch.randn(GRID, generator=random, dtype=torch.float64)
    sites = 40 * torch.rand(50, 3, generator=random, dtype=torch.float64) - 15  # in and out of the cell
    return Crystal(CELL, GROUP), rho, sites


def test_values_are_scipys(case):
    crystal, rho, sites = case
    at = (sites @ crystal.fractionalization.T * torch.tensor(GRID)).numpy().T
    expected = scipy.ndimage.map_coordinates(rho.numpy(), at, order=1, mode="grid-wrap")
    found = map_values(rho, crystal, sites.reshape(5, 10, 3))
    assert found.shape == (5, 10) and np.allclose(found.flatten().numpy(), expected, atol=1e-12)
    points = torch.tensor([[0.0, 0, 0], [3 / 12, 2 / 10, 14 / 15]], dtype=torch.float64)
    exact = map_values(rho, crystal, points @ crystal.orthogonalization.T)
    assert torch.allclose(exact, torch.stack([rho[0, 0, 0], rho[3, 2, 14]]), atol=1e-9)


def test_values_are_cctbxs(case):
    pytest.importorskip("cctbx.maptbx")
    from scitbx.array_family import flex

    crystal, rho, sites = case
    data = flex.double(rho.numpy().copy())
    frac = (sites @ crystal.fractionalization.T).tolist()
    expected = [data.eight_point_interpolation(site) for site in frac]
    assert np.allclose(map_values(rho, crystal, sites).numpy(), expected, atol=1e-10)


def test_derivatives_and_refusals(case):
    crystal, rho, sites = case
    small, few = rho.clone().requires_grad_(), sites[:4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, x: map_values(m, crystal, x), (small, few))
    with pytest.raises(ValueError, match="three axes"):
        map_values(rho[0], crystal, sites)
