"""Minimiser and eigenvectors, against scitbx's own."""

import mmtbx_sfdiff  # noqa: F401
from mmtbx_sfdiff.numerics.jacobi import jacobi
from mmtbx_sfdiff.numerics.lbfgs import minimize

import numpy as np
import pytest
import scitbx.lbfgs
from scitbx.array_family import flex
from scitbx.linalg import eigensystem


class Rosenbrock:
    """A curved valley of n dimensions."""

    def __init__(self, x):
        self.x = flex.double(x)
        self.points = []

    def compute_functional_and_gradients(self):
        x = self.x.as_numpy_array()
        self.points.append(x.copy())
        value, gradient = self.evaluate(x)
        return value, flex.double(gradient)

    @staticmethod
    def evaluate(x):
        difference = x[1:] - x[:-1] ** 2
        value = float((100 * difference**2).sum() + ((1 - x[:-1]) ** 2).sum())
        gradient = np.zeros_like(x)
        gradient[1:] += 200 * difference
        gradient[:-1] += -400 * x[:-1] * difference - 2 * (1 - x[:-1])
        return value, gradient


@pytest.mark.parametrize("n", [2, 5, 13])
@pytest.mark.parametrize("max_iterations", [4, 25, None])
def test_lbfgs_takes_scitbx_s_path(n, max_iterations):
    start = np.linspace(-1.2, 1.4, n)
    reference = Rosenbrock(start.tolist())
    scitbx.lbfgs.run(
        target_evaluator=reference,
        termination_params=scitbx.lbfgs.termination_parameters(max_iterations=max_iterations),
    )
    points = []

    def evaluate(x):
        points.append(x.copy())
        return Rosenbrock.evaluate(x)

    last, lowest, failed = minimize(evaluate, start, max_iterations=max_iterations)
    assert len(points) == len(reference.points) and not failed
    for found, expected in zip(points, reference.points):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(last, reference.x.as_numpy_array(), rtol=1e-10)
    assert Rosenbrock.evaluate(lowest)[0] <= Rosenbrock.evaluate(last)[0]


@pytest.mark.parametrize("n", [1, 3, 6, 12])
def test_jacobi_finds_scitbx_s_eigenvectors(n):
    rng = np.random.default_rng(n)
    factor = rng.normal(size=(n, 2 * n)) * 10 ** rng.uniform(-3, 3, n)[:, None]
    matrix = factor @ factor.T
    values, vectors, _ = jacobi(matrix)
    packed = flex.double(flex.grid(n, n))
    for i in range(n):
        for j in range(n):
            packed[i, j] = matrix[i, j]
    reference = eigensystem.real_symmetric(packed)
    order = np.argsort(-values)
    np.testing.assert_allclose(
        values[order], reference.values().as_numpy_array(), rtol=1e-10, atol=1e-12 * values.max()
    )
    expected = reference.vectors().as_numpy_array().reshape(n, n)
    for value, mine, theirs in zip(values[order], vectors[order], expected):
        # Below that the rotations stop before a vector is determined, in scitbx as here.
        if value > 1e-7 * values.max():
            assert abs(abs(mine @ theirs) - 1) < 1e-9
