"""The simple model of the scales: four numbers and a tensor.

    F_model = k_total exp(-2 pi^2 h U h^T) [F_calc + k_sol exp(-B_sol s^2/4) F_mask]   (equation 2)

k_sol and B_sol start from a grid, k_total and U from least squares on it; all are then refined together by
minimising sum (Fo - |Fm|)^2 over work reflections.  Fewer parameters than :mod:`.scaler` has, hence a
slightly higher R; useful where a smooth model is wanted, or data are few.

References: Fokine & Urzhumtsev (2002), Acta Cryst. D58, 1387; Afonine, Grosse-Kunstleve & Adams (2005), Acta
Cryst. D61, 850; ``k_sol_b_sol_k_anisotropic_scaler_twin`` in ``mmtbx/bulk_solvent/bulk_solvent.h`` for the
grid.
"""

from __future__ import annotations

import math
from typing import Any

import torch

import numpy as np
import numpy.typing as npt

from ..numerics.lbfgs import minimize
from .anisotropic import b_cart
from .bulk import amplitude
from .residual import r_factor, scale
from .scaler import ScalingSet

K_SOL_GRID = tuple(i / 20 for i in range(13))
B_SOL_GRID = tuple(float(b) for b in range(0, 151, 10))
_K_SOL_LIMIT, _B_SOL_LIMIT = 2.0, 300.0


def fit_exponential_model(data: ScalingSet, f_calc: torch.Tensor, f_mask: torch.Tensor) -> dict[str, Any]:
    """Parameters of equation 2.

    Parameters
    ----------
    data : ScalingSet
    f_calc, f_mask : torch.Tensor
        (n,) complex128 in the set's order.

    Returns
    -------
    dict
        "k_total", "k_sol", "b_sol" (Å^2), "u_star" (6), "b_cart" (6, Å^2).
    """
    n = data.n_work
    f_obs, ss = data.f_obs[:n], data.ss[:n]
    square = f_calc[:n].abs().square()
    product = 2 * (f_calc[:n] * f_mask[:n].conj()).real
    mask_square = f_mask[:n].abs().square()
    fits = data.anisotropic
    lowest, best = math.inf, (0.0, 0.0, [0.0] * 6)
    for b_sol in B_SOL_GRID:
        decay = (-b_sol * ss).exp()
        for k_sol in K_SOL_GRID if bool((mask_square > 0).any()) else (0.0,):
            model = amplitude(square, product, mask_square, k_sol * decay)
            u_star = fits.fit_exponential(f_obs, scale(f_obs, model) * model)
            r = float(r_factor(f_obs, fits.exponential(u_star)[:n] * model))
            if r < lowest:
                lowest, best = r, (k_sol, b_sol, u_star)
    k_sol, b_sol, u_star = _refine(data, square, product, mask_square, *best)
    k = scale(
        f_obs,
        fits.exponential(u_star)[:n] * amplitude(square, product, mask_square, k_sol * (-b_sol * ss).exp()),
    )
    return {
        "k_total": float(k),
        "k_sol": k_sol,
        "b_sol": b_sol,
        "u_star": list(u_star),
        "b_cart": b_cart(u_star, data.crystal).tolist(),
    }


def _refine(
    data: ScalingSet,
    square: torch.Tensor,
    product: torch.Tensor,
    mask_square: torch.Tensor,
    k_sol: float,
    b_sol: float,
    u_star: list[float],
) -> tuple[float, float, list[float]]:
    """k_sol, B_sol and U that minimise the sum of squares from where they are; k_total is eliminated."""
    n, fits = data.n_work, data.anisotropic
    f_obs, ss = data.f_obs[:n], data.ss[:n]
    quadratic = fits.quadratic[:, :n]
    total = float(f_obs @ f_obs)
    u = np.asarray(u_star)
    # Parameters of about the same influence: changes of 1 change k_mask, or the exponents at d_min, by about
    # 0.1.
    u_size = 0.1 / (2 * math.pi**2 * quadratic.abs().amax(1).cpu().numpy()[fits.independent])
    size = np.concatenate([[0.1, 0.1 / float(ss.median())], u_size])
    start = np.concatenate([[k_sol, b_sol], u[fits.independent]]) / size

    def evaluate(x: npt.NDArray[Any]) -> tuple[float, npt.NDArray[Any]]:
        k, b = x[:2] * size[:2]
        decay = (-b * ss).exp()
        without = amplitude(square, product, mask_square, k * decay)
        aniso = fits.exponential((x[2:] * size[2:]) @ fits.basis)[:n]
        model = aniso * without
        overall = scale(f_obs, model)
        difference = f_obs - overall * model
        d_model = -2 / total * overall * difference * aniso
        d_mask = d_model * (0.5 * product + k * decay * mask_square) / without.clamp(min=1e-300)
        d_u = quadratic @ (d_model * without) * (-2 * math.pi**2)
        gradient = np.concatenate(
            [[float(d_mask @ decay), float(d_mask @ (-k * ss * decay))], fits.basis @ d_u.cpu().numpy()]
        )
        return float(difference @ difference) / total, gradient * size

    value = evaluate(start)[0]
    _, lowest, _ = minimize(evaluate, start, max_iterations=100, tolerance=1e-8)
    k_sol_new, b_sol_new = lowest[:2] * size[:2]
    if not (0 <= k_sol_new <= _K_SOL_LIMIT and 0 <= b_sol_new <= _B_SOL_LIMIT) or evaluate(lowest)[0] > value:
        return k_sol, b_sol, u_star
    return float(k_sol_new), float(b_sol_new), ((lowest[2:] * size[2:]) @ fits.basis).tolist()
