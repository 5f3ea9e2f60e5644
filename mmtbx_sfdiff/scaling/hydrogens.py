"""The contribution of riding hydrogens: k_H exp(-B_H s^2/4) F_H, where the model keeps them at zero
occupancy.

k_H and B_H come from two grids, coarse and fine, by the R factor over all reflections.

Reference: ``mmtbx.bulk_solvent.f_model_all_scales.run.update_solvent_and_scale_2`` and
``k_sol_b_sol_k_anisotropic_scaler_twin`` in ``mmtbx/bulk_solvent/bulk_solvent.h``.
"""

from __future__ import annotations

import math

import torch

from .bulk import amplitude

_BLOCK = 2**18


def fit_hydrogens(
    f_obs: torch.Tensor,
    f_model: torch.Tensor,
    f_hydrogen: torch.Tensor,
    k_total: torch.Tensor,
    ss: torch.Tensor,
    b_mean: float,
    r_work: float,
) -> tuple[float, float]:
    """k_H and B_H.

    Parameters
    ----------
    f_obs, k_total, ss : torch.Tensor
        (n,) float64; ``k_total`` multiplies the sum of both contributions.
    f_model, f_hydrogen : torch.Tensor
        (n,) complex128: F_calc + k_mask F_mask, and F of all hydrogens at full occupancy with B = 0.
    b_mean : float
        Mean B of the other atoms, Å^2.
    r_work : float
        R that a grid point has to undercut.

    Returns
    -------
    k, b : float
        (0, 0) when none does.
    """
    square = f_model.real.square() + f_model.imag.square()
    product = 2 * (f_model.real * f_hydrogen.real + f_model.imag * f_hydrogen.imag)
    hydrogen_square = f_hydrogen.real.square() + f_hydrogen.imag.square()
    total = float(f_obs.sum())

    def lowest(k_range: list[float], b_range: list[float], r_best: float) -> tuple[float, float, float]:
        """Best (k, b, r) on the grid; (0, 0, r_best) where none is better."""
        best = (0.0, 0.0, r_best)
        k = torch.tensor(k_range, dtype=torch.float64, device=ss.device)[:, None]
        r = torch.empty(len(k_range), len(b_range), dtype=torch.float64, device="cpu")
        for j, b in enumerate(b_range):
            decay = (-b * ss).exp()
            for rows in torch.arange(len(k_range), device="cpu").split(max(1, _BLOCK // len(ss))):
                model = k_total * amplitude(square, product * decay, hydrogen_square * decay.square(), k[rows])
                denominator = torch.linalg.vecdot(model, model)
                scale = torch.where(denominator == 0, 0.0, model @ f_obs / denominator)
                r[rows, j] = ((f_obs - scale[:, None] * model).abs().sum(1) / total).cpu()
        # The first of equal values, k being the outer loop.
        index = int(r.argmin())
        i, j = divmod(index, len(b_range))
        if float(r[i, j]) < r_best:
            best = (k_range[i], b_range[j], float(r[i, j]))
        return best

    b_low, b_high = int(max(0, b_mean) * 0.5), int(b_mean * 1.5)
    k, b, r = lowest(_range(0, 1.5, 0.1), _range(b_low, b_high, 5.0), r_work)
    fine = lowest(_range(max(0, k - 0.1), k + 0.1, 0.01), _range(max(0.0, b - 5.0), b + 5.0, 1.0), r)
    return fine[:2] if fine[2] < r else (k, b)


def _range(start: float, stop: float, step: float) -> list[float]:
    """Floats from start to stop in thousandths, as mmtbx counts them."""
    return [i / 1000.0 for i in range(math.floor(start * 1000.0), math.ceil(stop * 1000.0) + 1, int(step * 1000.0))]
