"""The overall isotropic scale k exp(-B s^2/4): two ways to fit it.

References: Afonine, Grosse-Kunstleve, Adams & Urzhumtsev (2013), Acta Cryst. D69, 625;
``scitbx.math.gaussian_fit_1d_analytical``, ``f_kb_scaled`` in ``mmtbx/bulk_solvent/bulk_solvent.h``.
"""

from __future__ import annotations

import math

import torch

B_RANGE = range(-100, 100)


def fit_logarithm(f_obs: torch.Tensor, f_model: torch.Tensor, ss: torch.Tensor) -> tuple[float, float]:
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


def search_b(f_obs: torch.Tensor, f_model: torch.Tensor, ss: torch.Tensor) -> tuple[float, float]:
    """k and B with the lowest R on the grid of B = -100 ... 99 Å^2, k by least squares.

    R falls to its minimum and rises again, so that a coarse grid finds where to look closer; it is fine
    enough for the exponential to change little from one point to the next.

    Returns
    -------
    k, b : float
    """
    coarse_step = int(min(10, max(1, 0.5 / float(ss.max()))))
    found = _search(f_obs, f_model, ss, range(B_RANGE.start, B_RANGE.stop, coarse_step))
    if coarse_step > 1:
        values = sorted(found)
        lowest = [
            b
            for i, b in enumerate(values)
            if found[b][0] <= min(found[other][0] for other in values[max(0, i - 1) : i + 2])
        ]
        for b in sorted(lowest, key=lambda b: found[b][0])[:2]:
            near = range(max(B_RANGE.start, b - coarse_step + 1), min(B_RANGE.stop, b + coarse_step))
            found.update(_search(f_obs, f_model, ss, near))
    b = min(sorted(found), key=lambda b: found[b][0])
    return found[b][1], float(b)


def _search(
    f_obs: torch.Tensor, f_model: torch.Tensor, ss: torch.Tensor, b_values: range
) -> dict[int, tuple[float, float]]:
    """{B: (sum |Fo - k exp(-B s^2/4) |Fm||, k)} for B in equal steps."""
    ratio = (-b_values.step * ss).exp()
    scaled = f_model * (-b_values.start * ss).exp()
    difference = torch.empty_like(scaled)
    found = {}
    for b in b_values:
        denominator = float(scaled @ scaled)
        k = float(f_obs @ scaled) / denominator if denominator else 0.0
        torch.sub(f_obs, scaled, alpha=k, out=difference)
        found[b] = (float(difference.abs_().sum()), k)
        scaled *= ratio
    return found
