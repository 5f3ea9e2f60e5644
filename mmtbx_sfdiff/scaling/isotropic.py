"""The overall isotropic scale k exp(-B s^2/4): two ways to fit it.

References: Afonine, Grosse-Kunstleve, Adams & Urzhumtsev (2013), Acta Cryst. D69, 625;
``scitbx.math.gaussian_fit_1d_analytical``, ``f_kb_scaled`` in ``mmtbx/bulk_solvent/bulk_solvent.h``.
"""
from __future__ import annotations

import math

import torch

from .residual import scale

B_RANGE = range(-100, 100)


def fit_logarithm(f_obs, f_model, ss):
    """k and B from a straight line through ln(Fo / |Fm|) as a function of s^2/4.

    Parameters
    ----------
    f_obs, f_model : torch.Tensor
        (n,) amplitudes.
    ss : torch.Tensor
        (n,) s^2/4 = 1 / 4d^2, Å^-2.

    Returns
    -------
    k, b : float
        (0, 0) when a logarithm does not exist.
    """
    ratio = f_obs / f_model
    if not bool(((ratio > 0) & ratio.isfinite()).all()):
        return 0.0, 0.0
    y = ratio.log()
    p, q, r, s = torch.stack([y.sum(), ss.sum(), ss @ ss, ss @ y]).tolist()
    if r == 0 or len(ss) - q * q / r == 0:
        return 0.0, 0.0
    u = (p - s * q / r) / (len(ss) - q * q / r)
    return math.exp(u), (u * q - s) / r


def search_b(f_obs, f_model, ss):
    """k and B with the lowest R on the grid of B = -100 ... 99 Å^2, k by least squares.

    Returns
    -------
    k, b : float
    """
    step = (-ss).exp()
    scaled = f_model * (-B_RANGE[0] * ss).exp()
    lowest, best = 1e10 * float(f_obs.sum()), (1.0, 0.0)
    for b in B_RANGE:
        k = float(scale(f_obs, scaled))
        residual = float(torch.sub(f_obs, scaled, alpha=k).abs_().sum())
        if residual < lowest:
            lowest, best = residual, (k, float(b))
        scaled *= step
    return best
