"""Restraints on displacement parameters: isotropic, anisotropic, mixed."""

import math

import torch
from mmtbx_sfdiff.geometry import DisplacementRestraints, GeometryRestraints

import pytest

from tests.support.monomers import library_or_skip, shipped_structure


@pytest.fixture
def similar():
    bonds, ends = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 2]])
    return DisplacementRestraints(bonds, ends)


def tensors(n, seed=0):
    a = torch.randn(n, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.05 * torch.eye(3, dtype=torch.float64) + 0.01 * a @ a.mT


def test_isotropic_energy_by_hand(similar):
    u = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    expected = (math.log(2) / 0.2) ** 2 + (math.log(1.5) / 0.2) ** 2 + (math.log(3) / 0.3) ** 2
    assert float(similar(u)) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(similar(torch.stack([u, 2 * u])), torch.tensor([expected] * 2, dtype=torch.float64))


def test_an_isotropic_tensor_is_the_isotropic_energy_for_nearly_equal_u(similar):
    u = torch.tensor([0.1, 0.101, 0.102], dtype=torch.float64)
    full = u[:, None, None] * torch.eye(3, dtype=torch.float64)
    for which in ([True, True, True], [False, True, False]):
        assert float(similar(u, full, torch.tensor(which))) == pytest.approx(float(similar(u)), rel=1e-3)


def test_the_divergence_is_zero_for_equal_tensors_and_invariant_to_rotation(similar):
    u = tensors(3)
    every = torch.ones(3, dtype=torch.bool)
    same = u[:1].expand(3, 3, 3)
    zeros = torch.zeros(3, dtype=torch.float64)
    assert abs(float(similar(zeros, same, every))) < 1e-12
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    turned = rotation @ u @ rotation.T
    assert float(similar(zeros, turned, every)) == pytest.approx(float(similar(zeros, u, every)), rel=1e-10)
    assert float(similar(zeros, u, every)) > 0.1


def test_derivatives_are_differences(similar):
    u = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    full = tensors(3).requires_grad_()
    which = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda a, b: similar(a, b @ b.mT, which), (u, full))
    assert torch.autograd.gradgradcheck(lambda a, b: similar(a, b @ b.mT, which), (u, full))
    assert torch.autograd.gradcheck(similar, (u,)) and torch.autograd.gradgradcheck(similar, (u,))


def test_neighbors_are_those_of_the_geometry():
    geometry = GeometryRestraints.from_gemmi(shipped_structure(), library_or_skip())
    similar = DisplacementRestraints.from_geometry(geometry)
    n = len(geometry.bond_rows) + len(geometry.angle_rows)
    waters = [i for i, name in enumerate(geometry.topology.atoms.residue_names) if name == "HOH"]
    assert n < len(similar.rows) and set(similar.rows[n:, 0].tolist()) <= set(waters)
    u = torch.full((geometry.n_atoms,), 0.2, dtype=torch.float64)
    u[3] *= 1.1
    assert float(similar(u)) > 0 and float(similar(3 * u)) == pytest.approx(float(similar(u)), rel=1e-9)
    ln_u = u.log().requires_grad_()
    (first,) = torch.autograd.grad(similar(ln_u.exp()), ln_u, create_graph=True)
    second = torch.stack([torch.autograd.grad(first[i], ln_u, retain_graph=True)[0][i] for i in range(20)])
    torch.testing.assert_close(second, similar.curvature(geometry.n_atoms)[:20], rtol=1e-9, atol=1e-9)
