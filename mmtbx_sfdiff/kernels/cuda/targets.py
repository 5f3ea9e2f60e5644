"""Targets of amplitudes on a GPU: value and derivative in two launches, of which the first does all the work.

Arithmetic is double precision whatever the structure factors are in.  Sums have one order: results repeat bit for bit.
"""

from __future__ import annotations

import functools

import torch

import numpy as np
import triton
import triton.language as tl

from .constants import constant

_BLOCK = 256
# Coefficients of each of the four series that the Bessel functions are summed from.
_TERMS = 32
_SWITCH = 8.0


@functools.lru_cache(maxsize=1)
def _series() -> tuple[float, ...]:
    """Of exp(-x) I_k(x), k = 0, 1: up to 8 over x / 4 - 1, beyond, times sqrt(x), over 16 / x - 1; the highest first."""

    def coefficients(function, beyond):
        def of_place(place):
            y = torch.from_numpy(np.asarray(place, dtype=np.float64)) + 1
            x = 2 * _SWITCH / y if beyond else y * _SWITCH / 2
            return (function(x) * x.sqrt() if beyond else function(x)).numpy()

        return np.polynomial.chebyshev.chebinterpolate(of_place, _TERMS - 1)[::-1].tolist()

    functions = torch.special.i0e, torch.special.i1e
    return tuple(x for function in functions for beyond in (False, True) for x in coefficients(function, beyond))


@triton.jit
def _summed(series, place, beyond, TERMS: tl.constexpr):
    """A Chebyshev series by Clenshaw's recurrence; the one after it where ``beyond``."""
    own = series + tl.where(beyond, TERMS, 0)
    first, second = tl.zeros_like(place), tl.zeros_like(place)
    for k in range(TERMS - 1):
        before = first
        first = 2 * place * first - second + tl.load(own + k)
        second = before
    return place * first - second + tl.load(own + (TERMS - 1))


@triton.jit
def amplitude_terms(
    f,
    table,
    series,
    partial,
    slopes,
    n,
    blocks,
    COMPLEX: tl.constexpr,
    LIKELIHOOD: tl.constexpr,
    TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of a block of reflections of a model the sum of terms, and dT/dF of each.

    ``table`` (n, 6) holds F_obs, alpha, 1 / variance, the constant of a term, its weight, and q.  With m = alpha |F| a term is
    q (F_obs - m)^2 / variance, to which the likelihood adds the constant and subtracts ln of what follows exponentially scaled:
    I0(y) where q = 1, cosh(y / 2) where q = 1/2, y = 2 F_obs m / variance.
    """
    model = tl.program_id(0) // blocks
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    f64 = tl.float64
    own = model.to(tl.int64) * n + i
    if COMPLEX:
        a = tl.load(f + 2 * own, mask=inside, other=0.0).to(f64)
        b = tl.load(f + 2 * own + 1, mask=inside, other=0.0).to(f64)
    else:
        a = tl.load(f + own, mask=inside, other=0.0).to(f64)
        b = tl.zeros_like(a)
    # Squares of very small and very large numbers are none.
    big = tl.maximum(tl.abs(a), tl.abs(b))
    spoiled = ~(tl.abs(a) + tl.abs(b) < float("inf"))
    none = big == 0
    scale = tl.where(none, 1.0, big)
    a, b = a / scale, b / scale
    length = tl.sqrt(a * a + b * b)
    size = tl.where(none, 0.0, length * scale)
    length = tl.where(none, 1.0, length)
    a, b = a / length, b / length
    row = table + 6 * i
    observed = tl.load(row, mask=inside, other=0.0)
    alpha = tl.load(row + 1, mask=inside, other=0.0)
    inverse = tl.load(row + 2, mask=inside, other=0.0)
    weight = tl.load(row + 4, mask=inside, other=0.0)
    q = tl.load(row + 5, mask=inside, other=1.0)
    difference = observed - alpha * size
    value = q * inverse * difference * difference
    slope = -2 * q * inverse * alpha * difference
    if LIKELIHOOD:
        by_size = 2 * observed * alpha * inverse
        y = by_size * size
        # Where the centric ones end in rounding and the others do not, none overflows.
        decay = tl.exp(-y)
        beyond = y > 8
        place = tl.where(beyond, 16 / tl.where(beyond, y, 8.0), y / 4) - 1
        i0 = _summed(series, place, beyond, TERMS)
        i1 = _summed(series + 2 * TERMS, place, beyond, TERMS)
        centric = q < 0.75
        argument = tl.where(centric, 0.5 * (1 + decay), tl.where(beyond, i0 / tl.sqrt(tl.where(beyond, y, 8.0)), i0))
        value += tl.load(row + 3, mask=inside, other=0.0) - tl.log(argument)
        slope -= by_size * tl.where(centric, -decay / (1 + decay), i1 / i0 - 1)
        left_out = (weight == 0) | none
        value, slope = tl.where(left_out, 0.0, value), tl.where(left_out, 0.0, slope)
        spoiled &= weight != 0
    value, slope = value * weight, slope * weight
    nan = float("nan")
    value = tl.where(spoiled, nan, value)
    tl.store(partial + model * blocks + tl.program_id(0) % blocks, tl.sum(value))
    kind = slopes.dtype.element_ty
    a = tl.where(none, 0.0, tl.where(spoiled, nan, slope * a))
    if COMPLEX:
        tl.store(slopes + 2 * own, a.to(kind), mask=inside)
        b = tl.where(none, 0.0, tl.where(spoiled, nan, slope * b))
        tl.store(slopes + 2 * own + 1, b.to(kind), mask=inside)
    else:
        tl.store(slopes + own, a.to(kind), mask=inside)


@triton.jit
def sum_of_terms(partial, out, blocks, BLOCK: tl.constexpr):
    """The target of a model."""
    model = tl.program_id(0)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, blocks, BLOCK):
        lane = start + tl.arange(0, BLOCK)
        total += tl.load(partial + model * blocks + lane, mask=lane < blocks, other=0.0)
    tl.store(out + model, tl.sum(total).to(out.dtype.element_ty))


def amplitude_target(
    f: torch.Tensor, table: torch.Tensor, likelihood: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :meth:`~mmtbx_sfdiff.kernels.engines.AtomsEngine.amplitude_target`."""
    batch, n = f.shape[:-1], f.shape[-1]
    n_models = batch.numel()
    value = torch.empty(batch, dtype=dtype, device=f.device)
    f = f.resolve_conj().contiguous()
    slopes = torch.empty_like(f)
    if not n or not n_models:
        return value.zero_(), slopes
    blocks = triton.cdiv(n, _BLOCK)
    partial = torch.empty((n_models, blocks), dtype=torch.float64, device=f.device)
    parts = [torch.view_as_real(x) if x.is_complex() else x for x in (f, slopes)]
    amplitude_terms[(n_models * blocks,)](
        parts[0], table, constant(f.device, *_series()), partial, parts[1], n, blocks,
        COMPLEX=f.is_complex(), LIKELIHOOD=likelihood, TERMS=_TERMS, BLOCK=_BLOCK,
    )  # fmt: skip
    sum_of_terms[(n_models,)](partial, value, blocks, BLOCK=_BLOCK)
    return value, slopes
