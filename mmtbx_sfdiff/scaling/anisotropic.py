"""The overall anisotropic scale.

* exponential: exp(-2 pi^2 h U h^T), U by least squares on ln(Fo / |Fm|) under the point group's constraints;
* polynomial: 1 + sum over pairs of axes of (V1 4d^2 + V0) h_i a*_i h_j a*_j, 12 coefficients by least
  squares;
* minimised: the exponential again, U by minimising sum (Fo - k |Fm|)^2, where the polynomial is not positive.

References: Afonine et al. (2013), Acta Cryst. D69, 625; Usón et al. (1999), Acta Cryst. D55, 1158;
``aniso_u_scaler`` in ``mmtbx/bulk_solvent/bulk_solvent.h``; ``mmtbx.bulk_solvent.kbu_refinery``;
``cctbx.sgtbx.tensor_rank_2_constraints``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

import numpy as np
import numpy.typing as npt

from ..atom_arrays import EIGHT_PI_SQ
from ..crystal import Crystal
from ..numerics.jacobi import jacobi
from ..numerics.lbfgs import minimize
from ..numerics.symmetric import PAIRS
from .residual import r_factor, scale

_TWO_PI_SQ = 2 * math.pi**2
_EXPONENT_LIMIT = 40.0


def independent_tensors(rotations: torch.Tensor) -> tuple[npt.NDArray[Any], list[int]]:
    """Symmetric tensors that the operators leave alone: U = R U R^T.

    Parameters
    ----------
    rotations : torch.Tensor
        (n, 3, 3) int64, acting on fractional coordinates.

    Returns
    -------
    basis : numpy.ndarray
        (n_independent, 6): the elements 11, 22, 33, 12, 13, 23 of U when one independent element is 1.
    independent : list of int
        Which elements those are.
    """
    rows = []
    for r in rotations.cpu().numpy().tolist():
        for i, j in PAIRS:
            row = [r[i][k] * r[j][l] + (r[i][l] * r[j][k] if k != l else 0) for k, l in PAIRS]
            row[PAIRS.index((i, j))] -= 1
            if any(row) and row not in rows:
                rows.append(row)
    rows = [[Fraction(value) for value in row] for row in rows]
    pivots: list[int] = []
    for column in range(6):
        found = next((row for row in rows[len(pivots) :] if row[column]), None)
        if found is None:
            continue
        at = len(pivots)
        rows.remove(found)
        found = [value / found[column] for value in found]
        rows = [[value - row[column] * p for value, p in zip(row, found)] for row in rows]
        rows.insert(at, found)
        pivots.append(column)
    independent = [column for column in range(6) if column not in pivots]
    basis = np.zeros((len(independent), 6))
    for i, column in enumerate(independent):
        basis[i, column] = 1.0
        for row, pivot in zip(rows, pivots):
            basis[i, pivot] = -float(row[column])
    return basis, independent


class AnisotropicScale:
    """The index-dependent part of the fits, made once for a set of reflections.

    Parameters
    ----------
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) int64.
    n_work : int
        The first n_work reflections are fitted; scales are made for all.
    """

    def __init__(self, crystal: Crystal, miller_indices: torch.Tensor, n_work: int) -> None:
        device = miller_indices.device
        h = miller_indices.to(torch.float64).T
        self.n_work = n_work
        self.basis, self.independent = independent_tensors(crystal.rotations)
        # (6, n): h U h^T = quadratic . (U11, U22, U33, U12, U13, U23)
        self.quadratic = torch.stack([h[i] * h[j] * (1 if i == j else 2) for i, j in PAIRS])
        self._constrained = torch.as_tensor(self.basis, device=device) @ self.quadratic[:, :n_work]
        self._normal = self._constrained @ self._constrained.T
        star = crystal.reciprocal_metric.diagonal().sqrt()
        g = h * star[:, None]
        inverse = crystal.d_star_sq(miller_indices) / 4
        inverse = torch.where(inverse == 0, 0.0, 1 / inverse)
        terms = []
        for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
            product = g[i] * g[j] * (1 if i == j else 2)
            terms += [product * inverse, product]
        self.terms = torch.stack(terms)

    def exponential(self, u_star: Sequence[float] | npt.NDArray[Any]) -> torch.Tensor:
        """exp(-2 pi^2 h U h^T), (n,), from 6 floats."""
        u = torch.as_tensor(u_star, dtype=torch.float64, device=self.quadratic.device)
        return (u @ self.quadratic).mul_(-_TWO_PI_SQ).clamp_(max=_EXPONENT_LIMIT).exp_()

    def polynomial(self, coefficients: Sequence[float]) -> torch.Tensor:
        """1 + coefficients . terms, (n,), from 12 floats."""
        return torch.as_tensor(coefficients, dtype=torch.float64, device=self.terms.device) @ self.terms + 1.0

    def fit_exponential(self, f_obs: torch.Tensor, f_model: torch.Tensor) -> list[float]:
        """u_star (6 floats) from amplitudes of the first n_work reflections."""
        usable = (f_obs > 0) & (f_model > 0)
        g, normal = self._constrained, self._normal
        if not bool(usable.all()):
            g, f_obs, f_model = g[:, usable], f_obs[usable], f_model[usable]
            normal = g @ g.T
        z = (f_obs / f_model).log() / -_TWO_PI_SQ
        return (_solve(normal, g @ z) @ self.basis).tolist()  # type: ignore[no-any-return]

    def fit_polynomial(self, f_obs: torch.Tensor, f_model: torch.Tensor) -> list[float]:
        """12 coefficients (floats) from amplitudes of the first n_work reflections."""
        terms = self.terms[:, : self.n_work]
        weighted = terms * f_model
        return _solve(weighted @ weighted.T, weighted @ (f_obs - f_model)).tolist()  # type: ignore[no-any-return]

    def minimize_exponential(
        self, f_obs: torch.Tensor, f_model: torch.Tensor, u_star: Sequence[float], crystal: Crystal
    ) -> list[float]:
        """u_star (6 floats) by minimisation from ``u_star``, with mmtbx's number of steps and cycles."""
        quadratic = self.quadratic[:, : self.n_work]
        total = float(f_obs @ f_obs)

        def k_anisotropic(u: npt.NDArray[Any]) -> torch.Tensor:
            return self.exponential(u)[: self.n_work]

        def evaluate(x: npt.NDArray[Any]) -> tuple[float, npt.NDArray[Any]]:
            k = k_anisotropic(x @ self.basis)
            model = k * f_model
            overall = scale(f_obs, model)
            difference = f_obs - overall * model
            gradient = quadratic @ (difference * model * overall) * (2 * _TWO_PI_SQ / total)
            return float(difference @ difference) / total, self.basis @ gradient.cpu().numpy()

        u = np.asarray(u_star, dtype=np.float64)
        for _ in range(5):
            saved, r_start = u, float(r_factor(f_obs, k_anisotropic(u) * f_model))
            x, _, _ = minimize(evaluate, u[self.independent], max_iterations=25)
            u = x @ self.basis
            r = float(r_factor(f_obs, k_anisotropic(u) * f_model))
            if r > r_start and r > 1e-2 and np.abs(b_cart(u, crystal)).max() > 100:
                u = saved
                break
        return u.tolist()  # type: ignore[no-any-return]


def b_cart(u_star: Sequence[float] | npt.NDArray[Any], crystal: Crystal) -> npt.NDArray[Any]:
    """B tensor in Cartesian axes (Å^2; 11, 22, 33, 12, 13, 23) of u_star, both of 6 floats."""
    u = np.zeros((3, 3))
    for value, (i, j) in zip(u_star, PAIRS):
        u[i, j] = u[j, i] = value
    a = crystal.orthogonalization.cpu().numpy()
    b = EIGHT_PI_SQ * (a @ u @ a.T)
    return np.array([b[i, j] for i, j in PAIRS])


def _solve(normal: torch.Tensor, right: torch.Tensor) -> npt.NDArray[Any]:
    """normal^-1 right, leaving out directions that the data do not determine; NumPy."""
    values, vectors, threshold = jacobi(normal.cpu().numpy())
    used = (np.abs(values) >= threshold) & (values != 0)
    inverse = np.zeros_like(values)
    inverse[used] = 1 / values[used]
    return vectors.T @ (inverse * (vectors @ right.cpu().numpy()))  # type: ignore[no-any-return]
