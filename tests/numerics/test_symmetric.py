"""Packed symmetric tensors and their least eigenvalue."""

import torch
from mmtbx_sfdiff.numerics import symmetric

import numpy as np
import pytest


def test_packing_and_unpacking_are_inverse_for_tensors_and_arrays():
    six = np.random.default_rng(0).normal(size=(2, 4, 6))
    square = symmetric.full(six)
    np.testing.assert_array_equal(square, np.swapaxes(square, -1, -2))
    for place, (i, j) in enumerate(symmetric.PAIRS):
        np.testing.assert_array_equal(square[..., i, j], six[..., place])
    np.testing.assert_array_equal(symmetric.packed(square), six)
    assert torch.equal(symmetric.full(torch.from_numpy(six)), torch.from_numpy(square))


@pytest.mark.parametrize("kind", ["any", "isotropic", "two equal", "zero", "flat"])
def test_least_eigenvalue_is_that_of_a_solver(kind):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(200, 3))
    if kind == "isotropic":
        values[:, 1:] = values[:, :1]
    elif kind == "two equal":
        values[:, 2] = values[:, 1]
    elif kind == "zero":
        values[:] = 0
    elif kind == "flat":
        values[:, 0] = 0
    axes = np.linalg.qr(rng.normal(size=(200, 3, 3)))[0]
    tensors = torch.from_numpy(axes @ (values[:, :, None] * np.swapaxes(axes, 1, 2)))
    found = symmetric.least_eigenvalue(tensors)
    # The closed form loses half of the digits of the difference where two eigenvalues coincide.
    torch.testing.assert_close(
        found, torch.linalg.eigvalsh(tensors)[..., 0], rtol=0, atol=1e-12 if kind == "any" else 1e-7
    )
