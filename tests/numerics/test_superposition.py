"""Kabsch's superposition, one by one and in batches."""

import torch
from mmtbx_sfdiff.numerics.superposition import best_rotation, followed_rotation, superposed

import pytest


def some_sites(n=12, seed=0):
    return 4 * torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed):
    turn, _ = torch.linalg.qr(some_sites(3, seed))
    return turn * torch.linalg.det(turn)


def test_it_finds_the_movement_and_never_a_mirror_image():
    sites, turn, shift = some_sites(), rotation(1), torch.tensor([3.0, -20.0, 7.0], dtype=torch.float64)
    moved = sites @ turn.T + shift
    torch.testing.assert_close(superposed(sites, moved), moved, rtol=0, atol=1e-10)
    found, _, _ = best_rotation(sites, sites * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    assert float(torch.linalg.det(found)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="three or more"):
        best_rotation(sites[:2], sites[:2])


def test_a_batch_is_the_same_as_one_by_one():
    target = some_sites()
    batch = torch.stack([target @ rotation(seed) + seed + 0.3 * some_sites(12, 9 + seed) for seed in range(4)])
    together = best_rotation(batch, target)
    for number, mobile in enumerate(batch):
        for found, alone in zip(together[:2], best_rotation(mobile, target)[:2]):
            torch.testing.assert_close(found[number], alone)
    rows = torch.tensor([0, 3, 4, 7])
    torch.testing.assert_close(superposed(batch, target, rows)[2], superposed(batch[2], target, rows))


def test_no_small_turn_comes_closer():
    mobile, target = some_sites(), some_sites(12, 3)
    best = superposed(mobile, target)
    least = (best - target).square().sum()
    for axis in range(3):
        for angle in (0.01, -0.01):
            turn = torch.linalg.matrix_exp(
                angle * torch.linalg.cross(torch.eye(3).double(), torch.eye(3).double()[axis].expand(3, 3))
            )
            assert ((best - best.mean(0)) @ turn + target.mean(0) - target).square().sum() > least


def test_the_followed_rotation_has_the_derivative_of_differences():
    target = some_sites()
    mobile = (target @ rotation(2) + 1 + 0.5 * some_sites(12, 7)).requires_grad_()

    def moved(x):
        found, center, new_center = followed_rotation(x, target)
        return (x - center) @ found.mT + new_center

    torch.testing.assert_close(moved(mobile), superposed(mobile, target))
    assert torch.autograd.gradcheck(moved, mobile)
