"""Modified Bessel functions as cctbx approximates them.

mmtbx's estimates and outlier tests rest on polynomial approximations, some of them coarse (1e-4).  What is
compared with a threshold has to be the same number, so the same approximations are used here, not better
ones.

References: Abramowitz & Stegun (1964), 9.8.1-9.8.4; ``scitbx/math/bessel.h``.
"""

from __future__ import annotations

import math

import torch

SWITCH = 3.75
# The middle coefficient differs between cctbx's functions.
_I0_SMALL = (1.0, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.0360768, 0.0045813)
_I0_SMALL_RATIO = (1.0, 3.5156229, 3.0899424, 1.2067292, 0.2659732, 0.0360768, 0.0045813)
_I0_LARGE = (
    0.39894228,
    0.01328592,
    0.00225319,
    -0.00157565,
    0.00916281,
    -0.02057706,
    0.02635537,
    -0.01647633,
    0.00392377,
)
_I1_SMALL = (0.5, 0.87890594, 0.51498869, 0.15084934, 0.02658733, 0.00301532, 0.00032411)
_I1_LARGE = (
    0.39894228,
    -0.03988024,
    -0.00362018,
    0.00163801,
    -0.01031555,
    0.02282967,
    -0.02895312,
    0.01787654,
    -0.00420059,
)
_E_I0 = (1.0, -1.51857, 0.862203, -1.11554, 1.72229, -0.804154)
_E_I1 = (0.0, 0.47735, 0.175945, -2.82479, 8.74696, -14.2023, 10.9149, -3.14135)


def horner(coefficients, x):
    """sum_i c_i x^i, of a tensor or a float."""
    result = coefficients[-1] * x + coefficients[-2]
    for c in coefficients[-3::-1]:
        result = result * x + c
    return result


def i1_over_i0_and_log_i0(x):
    """I1(x) / I0(x) and ln I0(x) of x >= 0, (m, n)."""
    small = x < SWITCH
    large = x.clamp(min=SWITCH)
    y = torch.where(small, x * (1 / SWITCH), 0.0).square_()
    i0_small, i1_small = _two_polynomials(_I0_SMALL, _I1_SMALL, y)
    i0_large, i1_large = _two_polynomials(_I0_LARGE, _I1_LARGE, SWITCH / large)
    # The ratio has another third coefficient.
    other_small = i0_small + y * y * y * (_I0_SMALL_RATIO[3] - _I0_SMALL[3])
    ratio = torch.where(small, x * i1_small, i1_large) / torch.where(small, other_small, i0_large)
    # ln[p exp(x) / sqrt(x)]
    i0_large = i0_large / large.sqrt()
    log_i0 = torch.where(small, i0_small, i0_large).log_()
    return ratio, log_i0.add_(torch.where(small, 0.0, x))


def _two_polynomials(first, second, x):
    """Two polynomials of the same degree at once."""
    result = [x * first[-1] + first[-2], x * second[-1] + second[-2]]
    for pair in zip(first[-3::-1], second[-3::-1]):
        for value, c in zip(result, pair):
            value.mul_(x).add_(c)
    return result


def i1_over_i0(x):
    """I1(x) / I0(x) of any x."""
    size = x.abs()
    small = size < SWITCH
    y = torch.where(small, (x / SWITCH).square(), 0.0)
    z = SWITCH / size.clamp(min=SWITCH)
    ratio = torch.where(
        small, size * horner(_I1_SMALL, y) / horner(_I0_SMALL_RATIO, y), horner(_I1_LARGE, z) / horner(_I0_LARGE, z)
    )
    return torch.where(x < 0, -ratio, ratio)


def i1_over_i0_scalar(x):
    """I1(x) / I0(x) of a float."""
    size = abs(x)
    if size < SWITCH:
        y = (x / SWITCH) ** 2
        ratio = size * horner(_I1_SMALL, y) / horner(_I0_SMALL_RATIO, y)
    else:
        ratio = horner(_I1_LARGE, SWITCH / size) / horner(_I0_LARGE, SWITCH / size)
    return -ratio if x < 0 else ratio


def log_i0(x):
    """ln I0(x) of x >= 0."""
    small = x < SWITCH
    y = torch.where(small, (x / SWITCH).square(), 0.0)
    large = x.clamp(min=SWITCH)
    value = torch.where(small, horner(_I0_SMALL, y), horner(_I0_LARGE, SWITCH / large)).log()
    return torch.where(small, value, value + x - 0.5 * large.log())


def scaled_i0(x):
    """exp(-x) I0(x) of x >= 0, to 2e-4; a tensor or a float."""
    return _scaled(_E_I0, x)


def scaled_i1(x):
    """exp(-x) I1(x) of x >= 0, to 4e-4; a tensor or a float."""
    return _scaled(_E_I1, x)


def _scaled(coefficients, x):
    t = x / (1 + x)
    if isinstance(x, torch.Tensor):
        return (1 - t).sqrt() * t.exp() * horner(coefficients, t)
    return math.sqrt(1 - t) * math.exp(t) * horner(coefficients, t)
