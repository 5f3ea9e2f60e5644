"""Bonds, angles and torsions: there and back, volumes, handedness, frames of reference."""

import math

import torch
from mmtbx_sfdiff.latent import MixedTransform, superpose
from mmtbx_sfdiff.latent.generator.units import md_value
from mmtbx_sfdiff.latent.generator.z_matrix import build_z_matrix

import pytest

from tests.support.latent_systems import (
    dipeptide,
    dipeptide_system,
    protein,
    protein_system,
    random_sites,
    turned,
)


def placed(transform, sites):
    return superpose(sites, transform.reference, transform.cart_index)[0]


@pytest.mark.parametrize("prepared", [dipeptide, protein])
def test_round_trip(prepared):
    transform = MixedTransform.from_prepared(prepared())
    sites = placed(transform, turned(random_sites(prepared(), 20, 0.1)))
    x, log_det = transform.to_features(sites)
    assert x.shape == (20, 3 * prepared().n_ff - 6) and transform.n_features == x.shape[1]
    again, log_det_back = transform.to_sites(x)
    assert (again - sites).abs().max() < 1e-8
    assert (log_det + log_det_back).abs().max() < 1e-8
    x_again, _ = transform.to_features(again)
    assert (x_again - x).abs().max() < 1e-8
    single, single_det = transform.to_sites(x[3])
    torch.testing.assert_close(single, again[3], rtol=0, atol=1e-12)
    torch.testing.assert_close(single_det, log_det_back[3])


def test_large_deviations_still_come_back():
    # frames are superposed exactly, not to first order: a backbone bent by ångströms is no approximation
    transform = MixedTransform.from_prepared(protein())
    sites = random_sites(protein(), 5, 0.05)
    sites = sites + 0.03 * (sites[:, :, :1] - sites[:, :, :1].mean()) ** 2 * torch.tensor([0.0, 1.0, 0.0])
    sites = placed(transform, sites)
    assert (sites - protein().sites_cart).norm(dim=-1).max() > 1
    assert (transform.to_sites(transform.to_features(sites)[0])[0] - sites).abs().max() < 1e-8


def test_log_det_is_that_of_autograd():
    # (shift, turn about the origin, features) -> sites is square: its determinant is the volume of shapes at no turn
    prepared = dipeptide()
    transform = MixedTransform.from_prepared(prepared)
    for sites in placed(transform, random_sites(prepared, 3, 0.15)):
        x, log_det = transform.to_features(sites)

        def moved(numbers):
            shift, turn, x = numbers.split([3, 3, len(numbers) - 6])
            zero = torch.zeros_like(turn[0])
            generator = torch.stack(
                [
                    torch.stack([zero, -turn[2], turn[1]]),
                    torch.stack([turn[2], zero, -turn[0]]),
                    torch.stack([-turn[1], turn[0], zero]),
                ]
            )
            made = transform.to_sites(x)[0] - transform._centre
            return (made + made @ generator.T + shift).flatten()

        start = torch.cat([torch.zeros(6, dtype=torch.float64), x])
        jacobian = torch.autograd.functional.jacobian(moved, start)
        # shifts of m atoms: columns (1, 1, 1, ...) have length sqrt(m) beside the orthonormal basis
        expected = torch.linalg.slogdet(jacobian)[1] - 1.5 * math.log(len(transform.cart_index))
        assert abs((-log_det - expected).item()) < 1e-8


def test_frozen_bonds_are_those_of_the_constraints():
    prepared, system = dipeptide(), dipeptide_system()
    free = MixedTransform.from_prepared(prepared)
    frozen = MixedTransform.from_prepared(prepared, system)
    n_hydrogens = prepared.elements.count("H")
    assert free.n_features - frozen.n_features == n_hydrogens == system.getNumConstraints()
    assert torch.bincount(frozen.kinds).tolist() == [3, 19 - n_hydrogens, 19, 19]
    sites = placed(free, random_sites(prepared, 4, 0.1))
    x, log_det = frozen.to_features(sites)
    made, back = frozen.to_sites(x)
    torch.testing.assert_close(log_det, -back)
    again, log_det_free = free.to_features(made)
    torch.testing.assert_close(log_det_free, log_det)  # the same measure, at the constraints' lengths
    for n in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(n)
        lengths = (made[:, i] - made[:, j]).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, 10 * md_value(length)))


def test_chirality_is_kept_in_a_thousand_samples():
    prepared = protein()
    transform = MixedTransform.from_prepared(prepared, protein_system())
    x, _ = transform.to_features(transform.reference)
    spread = torch.tensor([0.08, 0.03, 0.06, 0.08], dtype=torch.float64)[transform.kinds]
    k = len(transform.z_matrix)
    neighbours = {i: [] for i in range(prepared.n_ff)}
    for a, b in prepared.topology.bonds():
        neighbours[a.index].append(b.index)
        neighbours[b.index].append(a.index)
    proper = torch.tensor([t not in neighbours[p] for _, p, _, t in transform.z_matrix.tolist()])
    spread[-k:][proper] = 2.0  # torsions that are free to turn, turn
    noise = torch.randn(1000, len(x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made, _ = transform.to_sites(x + spread * noise)
    centres = [
        (i, n)
        for i, n in neighbours.items()
        if len(n) == 4
        and len({prepared.names[j][0] + str(prepared.names[j]) for j in n}) == 4
        and sum(prepared.elements[j] == "H" for j in n) <= 1
    ]
    assert len(centres) >= 31 - 3
    for _, (a, b, c, d) in centres:

        def volume(sites):
            return (
                torch.linalg.cross(sites[..., b, :] - sites[..., a, :], sites[..., c, :] - sites[..., a, :])
                * (sites[..., d, :] - sites[..., a, :])
            ).sum(-1)

        assert (volume(made) * volume(transform.reference) > 0).all()


def test_torsions_are_cut_where_no_frame_is():
    prepared = dipeptide()
    transform = MixedTransform.from_prepared(prepared)
    x, _ = transform.to_features(transform.reference)
    k = len(transform.z_matrix)
    row = transform.n_features - k  # any torsion
    x = x.repeat(50, 1)
    x[:, row] += math.pi - x[0, row] + torch.linspace(-0.8, 0.8, 50, dtype=torch.float64)
    frames, _ = transform.to_sites(x)
    cut = MixedTransform.from_prepared(prepared, frames=frames)
    found, _ = cut.to_features(placed(cut, frames))
    assert found[:, row].diff().abs().max() < 0.1 and found[:, row].abs().max() < 1


def test_superposition_finds_the_same_shape_and_no_mirror_image():
    prepared = dipeptide()
    sites = turned(prepared.sites_cart.repeat(4, 1, 1))
    transform = MixedTransform.from_prepared(prepared)
    assert (placed(transform, sites) - prepared.sites_cart).abs().max() < 1e-8
    mirrored, rotation = superpose(-prepared.sites_cart, prepared.sites_cart, torch.arange(prepared.n_ff))
    assert torch.det(rotation) > 0.999 and (mirrored - prepared.sites_cart).norm(dim=-1).max() > 0.5


def test_gradient():
    transform = MixedTransform.from_prepared(dipeptide(), dipeptide_system())
    x = transform.to_features(transform.reference)[0].requires_grad_()
    assert torch.autograd.gradcheck(transform.to_sites, x, fast_mode=True)
    sites = transform.reference.clone().requires_grad_()
    assert torch.autograd.gradcheck(transform.to_features, sites, fast_mode=True)


def test_single_precision():
    transform = MixedTransform.from_prepared(protein()).float()
    sites = transform.reference
    x, _ = transform.to_features(sites)
    assert x.dtype == torch.float32 and (transform.to_sites(x)[0] - sites).abs().max() < 1e-3


def test_wrong_input():
    prepared = dipeptide()
    transform = MixedTransform.from_prepared(prepared)
    with pytest.raises(ValueError, match="21, 3"):
        transform.to_features(prepared.sites_cart[1:])
    with pytest.raises(ValueError, match="59 features"):
        transform.to_sites(torch.zeros(59))
    with pytest.raises(ValueError, match="each atom once"):
        MixedTransform(prepared.sites_cart, transform.cart_index, transform.z_matrix[1:])
    with pytest.raises(ValueError, match="lie on a line"):
        MixedTransform(
            torch.eye(3, dtype=torch.float64)[:1] * torch.arange(3.0)[:, None],
            torch.arange(3),
            torch.zeros(0, 4, dtype=torch.long),
        )
    with pytest.raises(ValueError, match="not connected"):
        build_z_matrix([0, 1, 2], [(0, 1), (1, 2)], ["N", "C", "C", "O"], [0, 0, 0, 0])
    loop = transform.z_matrix.clone()
    loop[0, 1] = loop[0, 0]
    with pytest.raises(ValueError, match="never places"):
        MixedTransform(prepared.sites_cart, transform.cart_index, loop)
