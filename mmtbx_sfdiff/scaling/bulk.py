"""The bulk-solvent scale k_mask, one number in each resolution bin, and how it varies within a bin.

Everything follows from |Fc|^2, Re(Fc Fmask*) and |Fmask|^2, because |Fc + k Fmask|^2 is a polynomial of them
in k. Where the mask has no structure factors (mmtbx sets them to 0 beyond 3 Å) there is nothing to search.

References: Afonine et al. (2013), Acta Cryst. D69, 625; ``k_mask_and_k_overall_grid_search`` and
``overall_and_bulk_solvent_scale_coefficients_analytical`` in ``mmtbx/bulk_solvent/bulk_solvent.h``;
``mmtbx.bulk_solvent.scaler`` (smoothing and interpolation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_ROOT_EPS = 1e-9
_RESIDUAL_LIMIT = 1e-4
_HIGH_RESOLUTION = 3.0
# Numbers that would be equal but for rounding: the same k_mask reached in two ways, or R without free
# reflections.
TIE = 1e-12
# Elements of a (trials x reflections) block, small enough for the cache.
_BLOCK = 2**18


def mask_range(start: int, stop: int, step: int) -> list[float]:
    """Floats from start to stop."""
    return [i / 1000 for i in range(start, stop, step)]


def amplitude(
    square: torch.Tensor, product: torch.Tensor, mask_square: torch.Tensor, k_mask: torch.Tensor
) -> torch.Tensor:
    """|Fc + k Fmask| from |Fc|^2, 2 Re(Fc Fmask*) and |Fmask|^2; shapes broadcast."""
    return torch.addcmul(square, k_mask, torch.addcmul(product, k_mask, mask_square)).clamp_(min=0).sqrt_()


def search(
    f_obs: torch.Tensor,
    square: torch.Tensor,
    product: torch.Tensor,
    mask_square: torch.Tensor,
    trials: Sequence[float],
    r_unscaled: float,
) -> tuple[float, float]:
    """The k_mask among trials with the lowest R in one bin.

    Parameters
    ----------
    f_obs, square, product, mask_square : torch.Tensor
        (n,) of the bin's work reflections, see :func:`amplitude`.
    trials : sequence of float
    r_unscaled : float
        R without a solvent that has to be undercut.

    Returns
    -------
    k_mask, k_overall : float
        (0, 1) when no trial is better.
    """
    total = float(f_obs.sum())
    if total == 0:
        return 0.0, 1.0
    at_once = max(1, _BLOCK // max(1, len(f_obs)))
    k = torch.as_tensor(trials, dtype=torch.float64, device=f_obs.device)[:, None]
    scales, residuals = [], []
    for part in k.split(at_once):
        model = amplitude(square, product, mask_square, part)
        denominator = torch.linalg.vecdot(model, model)
        scale = torch.where(denominator == 0, 0.0, model @ f_obs / denominator)
        residuals.append(model.mul_(-scale[:, None]).add_(f_obs).abs_().sum(1))
        scales.append(scale)
    r = torch.cat(residuals) / total
    best = int(r.argmin())
    if float(r[best]) < r_unscaled - TIE:
        return float(trials[best]), float(torch.cat(scales)[best])
    return 0.0, 1.0


def fine_trials(x: float, shift: float = 0.05) -> list[float]:
    """k_mask and its surroundings in steps of 0.01."""
    trials = [x]
    x = min(x, 1)
    value = max(0, x - shift)
    while value <= x + shift + 1e-3:
        trials.append(value)
        value += 0.01
    return trials


def analytical_roots(sums: Sequence[float]) -> list[float]:
    """Stationary k_mask >= 0 of sum (K |Fc + k Fmask|^2 - I)^2 with K eliminated, in one bin.

    Parameters
    ----------
    sums : sequence of 9 floats
        Sums over the bin of uI, 2vI, wI, I^2, uv, 2v^2 + uw, 3vw, w^2, vI, where u, v, w are |Fc|^2, Re(Fc
        Fmask*),
        |Fmask|^2.

    Returns
    -------
    list of float
        0 first.
    """
    a2, b2, c2, y2, a3, b3, c3, d3, y3 = sums
    denominator = d3 * y2 - c2 * c2
    if denominator == 0:
        return [0.0]
    a = (c3 * y2 - c2 * b2 - c2 * y3) / denominator
    b = (b3 * y2 - c2 * a2 - y3 * b2) / denominator
    c = (a3 * y2 - y3 * a2) / denominator
    roots = [0.0]
    for x in cubic_roots(a, b, c):
        residual = abs(x**3 + a * x**2 + b * x + c)
        if x > 0 and residual < _RESIDUAL_LIMIT:
            roots.append(x)
    return roots


def cubic_roots(p: float, q: float, r: float) -> list[float]:
    """Real roots of x^3 + p x^2 + q x + r, told apart as ``scitbx.math.cubic_equation`` does."""
    a = (3 * q - p * p) / 3
    b = (2 * p * p * p - 9 * p * q + 27 * r) / 27
    d = a * a * a / 27 + b * b / 4
    third = p / 3
    if d < 0:
        cosine = math.sqrt(-((b / a) ** 2) * 27 / (4 * a))
        if abs(1 - abs(cosine)) < _ROOT_EPS:
            cosine = 1.0
        phi = math.acos(-cosine if b > 0 else cosine) / 3
        size = 2 * math.sqrt(-a / 3)
        return [size * math.cos(phi + turn) - third for turn in (0.0, 2 * math.pi / 3, -2 * math.pi / 3)]
    if abs(a) < _ROOT_EPS and abs(b) < _ROOT_EPS and abs(d) < _ROOT_EPS:
        return [-_cube_root(r)] * 3
    m, n = _cube_root(-b / 2 + math.sqrt(d)), _cube_root(-b / 2 - math.sqrt(d))
    if d < _ROOT_EPS:
        return [m + n - third] + [-(m + n) / 2 - third] * 2
    return [m + n - third]


def _cube_root(x: float) -> float:
    return math.copysign(abs(x) ** (1 / 3), x)


def smooth(k_mask: Sequence[float], ss_max: Sequence[float]) -> list[float]:
    """k_mask of the bins without isolated extremes, and 0 beyond the first 0 at high resolution.

    Neighbours often have the same k_mask of the grid; that rounding makes them differ is not taken for an
    extreme.

    Parameters
    ----------
    k_mask : sequence of float
        (n_bins,)
    ss_max : sequence of float
        (n_bins,) largest s^2/4 in each bin.
    """
    padded = [k_mask[0], *k_mask, k_mask[-1]]
    for _ in range(5):
        values = list(padded)
        for i in range(1, len(values) - 1):
            before, here, after = padded[i - 1 : i + 2]
            if min(here - before, here - after) > TIE or min(before - here, after - here) > TIE:
                values[i] = (before + here + after) / 3.0
        padded = values
    result = [0.0] * len(k_mask)
    for i, value in enumerate(padded[1:-1]):
        if value == 0 and 1 / math.sqrt(ss_max[i]) / 2 < _HIGH_RESOLUTION:
            break
        result[i] = value
    return result


def lines(k_mask: Sequence[float], ss_min: Sequence[float], ss_max: Sequence[float]) -> tuple[list[float], list[float]]:
    """Slope and intercept in s^2/4 of the line from each bin's k_mask to its neighbour's, lists of float.

    Each bin leads to the next; the last leads back to the one before.
    """
    slopes, intercepts = [], []
    for i, y1 in enumerate(k_mask):
        y2 = k_mask[i - 1] if i == len(k_mask) - 1 else k_mask[i + 1]
        slope = (y2 - y1) / (ss_max[i] - ss_min[i]) if ss_max[i] != ss_min[i] else 0.0
        slopes.append(slope)
        intercepts.append(y1 - slope * ss_min[i])
    return slopes, intercepts
