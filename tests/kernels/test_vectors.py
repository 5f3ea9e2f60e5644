"""The vector instructions one by one against NumPy, in single and double precision; and the loops that the ablation has instead."""

import mmtbx_sfdiff  # noqa: F401
from mmtbx_sfdiff.kernels.cpu import density_vectors as dv
from mmtbx_sfdiff.kernels.cpu import mask_vectors as mv

import numba
import numpy as np
import pytest

from validation.studies import plain_vectors

PRECISIONS = pytest.mark.parametrize("dtype, rounding", ((np.float32, 1e-6), (np.float64, 1e-15)))


@pytest.fixture(autouse=True, params=("instructions", "plain loops"))
def _written(request, monkeypatch):
    """Every test is of both."""
    if request.param == "plain loops":
        for module, names in ((dv, plain_vectors.DENSITY), (mv, plain_vectors.MASK)):
            for name in names:
                monkeypatch.setattr(module, name, getattr(plain_vectors, name))


def compiled(intrinsic, n_arguments):
    """A function that calls an intrinsic."""
    names = ", ".join(f"x{i}" for i in range(n_arguments))
    space = {"f": intrinsic}
    exec(f"def call({names}):\n    return f({names})", space)
    return numba.njit(space["call"])


def numbers(n, dtype, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 1.0, n).astype(dtype)


def agree(found, expected, rounding, size=30):
    assert np.abs(found.astype(np.float64) - expected).max() <= size * rounding * np.abs(expected).max()


@PRECISIONS
def test_store_gaussian(dtype, rounding):
    table = np.zeros(64, dtype)
    a, b, c, first = (dtype(x) for x in (0.3, -0.2, 0.05, -7.4))
    compiled(dv.store_gaussian, 7)(table, 8, 3, a, b, c, first)
    t = float(first) + np.arange(24)
    exact = np.exp(-(float(a) + float(b) * t + float(c) * t * t))
    # An exponent of so many units is rounded so many times as much.
    assert np.abs(table[8:32] / exact - 1).max() < 30 * rounding and not table[:8].any() and not table[32:].any()


@PRECISIONS
def test_exponentials_of_what_is_far_and_of_what_is_none_are_small_numbers(dtype, rounding):
    table = np.zeros(8, dtype)
    for a in (1e4, 1e30, np.inf, np.nan):
        compiled(dv.store_gaussian, 7)(table, 0, 1, dtype(a), dtype(0), dtype(0), dtype(0))
        assert (table >= 0).all() and table.max() < 2e-38


@PRECISIONS
def test_multiply(dtype, rounding):
    table = numbers(64, dtype)
    expected = table[16:32] * table[32:48]
    compiled(dv.multiply, 5)(table, 0, 16, 32, 2)
    assert np.array_equal(table[:16], expected)


@PRECISIONS
def test_store_plane(dtype, rounding):
    table = np.zeros(80, dtype)
    b, c, y, t = (dtype(x) for x in (0.02, 0.03, -2.3, -6.7))
    compiled(dv.store_plane, 9)(table, 0, 2, 5, 16, b, c, y, t)
    rows, columns = float(y) + np.arange(5)[:, None], float(t) + np.arange(16)
    exact = np.exp(-(float(b) * rows * columns + float(c) * columns**2))
    assert np.abs(table.reshape(5, 16) / exact - 1).max() < 60 * rounding


@PRECISIONS
def test_rows_are_added(dtype, rounding):
    table, grid = numbers(200, dtype), numbers(100, dtype, 1)
    x1, x2 = dtype(0.7), dtype(-0.4)
    expected, oblique = grid.astype(np.float64), grid.astype(np.float64)
    for j in range(4):
        at = slice(3 + 20 * j, 11 + 20 * j)
        first, second = x1 * table[0 + j] * table[16:24], x2 * table[8 + j] * table[24:32]
        expected[at] += first + second
        oblique[at] += first * table[40 + 8 * j : 48 + 8 * j] + second * table[80 + 8 * j : 88 + 8 * j]
    found = grid.copy()
    compiled(dv.add_rows, 11)(found, 3, 20, 4, table, x1, x2, 0, 8, 16, 24)
    agree(found, expected, rounding)
    found = grid.copy()
    compiled(dv.add_rows_oblique, 14)(found, 3, 20, 4, table, x1, x2, 0, 8, 16, 24, 40, 80, 8)
    agree(found, oblique, rounding)


@PRECISIONS
@pytest.mark.parametrize("oblique", (False, True))
def test_moments(dtype, rounding, oblique):
    table, grid = numbers(400, dtype), numbers(100, dtype, 1)
    table[200:] = 0
    y, x1, x2, u, first = (dtype(x) for x in (-1.3, 0.7, -0.4, 1.7, -3.2))
    if oblique:
        arguments = (grid, 3, 20, 4, table, 0, 8, y, 40, 80, 8, 16, 24, x1, x2, u, 200)
        compiled(dv.add_moments_oblique, 17)(*arguments)
    else:
        compiled(dv.add_moments, 12)(grid, 3, 20, 4, table, 0, 8, y, x1, x2, u, 200)
    rows = np.stack([grid[3 + 20 * j : 11 + 20 * j] for j in range(4)]).astype(np.float64)
    ys, u = float(y) + np.arange(4)[:, None], float(u)
    for k, (y_table, scale, z, yz) in enumerate(((0, x1, 16, 40), (8, x2, 24, 80))):
        weight = float(scale) * table[y_table : y_table + 4, None].astype(np.float64)
        if oblique:
            weight = weight * table[z : z + 8] * table[yz : yz + 32].reshape(4, 8)
        m = [(rows * weight * ys**power).sum(0) for power in range(3)]
        expected = np.stack([m[0], m[0] * u, m[0] * u * u, m[1], m[1] * u, m[2]])
        agree(table[200 + 48 * k : 248 + 48 * k].reshape(6, 8), expected, rounding)
        found = compiled(dv.finish_moments, 7)(table, 200 + 48 * k, 96, 1, 16, 8, first)
        t, w = float(first) + np.arange(8), table[16:24].astype(np.float64)
        m0, mx, mxx, my, mxy, myy = expected * w
        ten = (m0, mx, my, m0 * t, mxx, myy, m0 * t * t, mxy, mx * t, my * t)
        agree(np.array(found), np.array([x.sum() for x in ten]), rounding)


def step(start, n, a0, a1, a2):
    d = start + np.arange(n)
    t = np.clip(a0 + a1 * d + a2 * d * d, 0, 1)
    return d, t, t * t * (3 - 2 * t)


@PRECISIONS
def test_blocks_of_a_mask_are_multiplied(dtype, rounding):
    field = numbers(80, dtype)
    a0, a1, a2, start, share = (dtype(x) for x in (-0.5, -0.05, 0.02, -12.0, 0.8))
    s = step(-12.0, 32, float(a0), float(a1), float(a2))[2]
    expected = field.astype(np.float64)
    expected[16:48] *= 1 - float(share) * (1 - s)
    compiled(mv.multiply_blocks, 8)(field, 16, 2, a0, a1, a2, start, share)
    agree(field, expected, rounding)


@PRECISIONS
@pytest.mark.parametrize("everything", (False, True))
def test_blocks_of_a_mask_are_attributed(dtype, rounding, everything):
    field = numbers(80, dtype)
    field[20:30] = 0
    a0, a1, a2, start, share, d0, d1 = (dtype(x) for x in (-0.5, -0.05, 0.02, -12.0, 0.8, 1.5, -2.5))
    sums = np.zeros(mv.SUMS * mv.LANES, dtype)
    compiled(mv.attribute_blocks, 12)(field, 16, 2, a0, a1, a2, start, share, d0, d1, everything, sums)
    d, t, s = step(-12.0, 32, float(a0), float(a1), float(a2))
    value = field[16:48] / (1 - float(share) * (1 - s))
    slope = value * t * (1 - t)
    expected = np.array([(slope * x).sum() for x in (1.5, -2.5, d, 1, t - 0.5)] + [(value * (1 - s)).sum()])
    if not everything:
        expected[3:] = 0
    agree(sums.reshape(mv.SUMS, mv.LANES).sum(1), expected, rounding)


@PRECISIONS
def test_blocks_are_marked_where_anything_is_between_0_and_1(dtype, rounding):
    field, marks = np.zeros(64, dtype), np.full(4, 7, np.uint8)
    field[3], field[17], field[40], field[50] = 1, 0.5, 1, np.nan
    compiled(mv.mark_blocks, 4)(field, 0, 4, marks)
    assert marks.tolist() == [0, 1, 0, 0]


@PRECISIONS
@pytest.mark.parametrize("n_blocks", (1, 2, 3, 7))
def test_weighted_sums(dtype, rounding, n_blocks):
    data, weights = numbers(400, dtype), numbers(9, dtype, 1)
    offsets = np.array([5, -3, 0, 17, 2, 40, -8, 9, 1])
    out = np.zeros(160, dtype)
    compiled(mv.weighted_sums, 8)(out, data, 20, n_blocks, offsets, weights, 2, 8)
    n = 16 * n_blocks
    expected = sum(float(weights[s]) * data[20 + offsets[s] : 20 + offsets[s] + n] for s in range(2, 8))
    agree(out[:n], expected, rounding)
    assert not out[n:].any()
