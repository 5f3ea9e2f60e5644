"""Resolution bins on a logarithmic scale, and sums over them.

Bulk solvent shows at low resolution, so bins are of equal width in ln d*^2: about 100 reflections in the
first, at most 30 bins, none with fewer than 50 reflections.

References: Urzhumtsev, Afonine & Adams (2009), Acta Cryst. D65, 1283; ``cctbx.miller.set.log_binning``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

import numpy as np

_N_LOWEST = 100
_MAX_BINS = 30
_LEAST_IN_BIN = 50
_EPS = 1e-4


def log_binning(d_star_sq: torch.Tensor) -> list[int]:
    """Start of each bin in reflections sorted by resolution.

    Parameters
    ----------
    d_star_sq : torch.Tensor
        (n,) Å^-2, ascending.

    Returns
    -------
    list of int
        First reflection of each bin, and n at the end.

    Raises
    ------
    ValueError
        When reflections are repeated so often at low resolution that no bin width follows from them.
    """
    n = len(d_star_sq)
    if n <= 2 * _N_LOWEST:
        return [0, n]
    d = 1 / np.sqrt(d_star_sq.cpu().numpy())
    # Limits are made from these very d, and whether a reflection is above its own limit is a matter of the
    # last digit: NumPy's square root is correctly rounded, that of torch (MKL) is not.
    s0, s1, s2, s_max = (math.log(1.0 / (d[i] * d[i])) for i in (0, _N_LOWEST, 2 * _N_LOWEST, -1))
    if s2 <= s1:
        raise ValueError("The reflections have too few different resolutions to be put in bins.")
    limits = _limits(s0, s1, s2 - s1, s_max)
    if len(limits) > _MAX_BINS:
        limits = _limits(s0, s1, (s_max - s1) / (_MAX_BINS - 1), s_max)
    # (d_max, d_min) of each bin; the last but one limit opens the last bin.
    pairs = list(zip(limits[:-2], limits[1:-1])) + [(limits[-2], limits[-1])]
    counts = []
    for i, (d_max, d_min) in enumerate(pairs):
        upper = d_max + _EPS if i == 0 else d_max
        lower = d_min - _EPS if i == len(pairs) - 1 and i else d_min
        counts.append(int(np.count_nonzero((d <= upper) & (d > lower))))
    if counts[-1] < counts[-2] / 4:
        counts[-2:] = [counts[-2] + counts[-1]]
    merged: list[int] = []
    for count in counts:
        if count < _LEAST_IN_BIN and merged:
            merged[-1] += count
        else:
            merged.append(count)
    return np.concatenate([[0], np.cumsum(merged)]).tolist()  # type: ignore[no-any-return]


def _limits(s0: float, s1: float, step: float, s_max: float) -> list[float]:
    limits = [math.sqrt(1 / math.exp(s0))]
    s = s1
    while s <= s_max:
        limits.append(math.sqrt(1 / math.exp(s)))
        s += step
    limits.append(math.sqrt(1 / math.exp(min(s_max, s))))
    return limits


class Segments:
    """Consecutive runs of a sorted array: their sums, and values handed back to their members."""

    def __init__(self, offsets: list[int], device: torch.device | str) -> None:
        self.offsets = offsets
        self.n = len(offsets) - 1
        counts = np.diff(offsets)
        self.index = torch.as_tensor(np.repeat(np.arange(self.n), counts), device=device)
        self._offsets = torch.as_tensor(offsets, device=device)

    def __iter__(self) -> Iterator[slice]:
        return (slice(a, b) for a, b in zip(self.offsets[:-1], self.offsets[1:]))

    def first(self, n: int) -> Segments:
        """The first n segments."""
        return Segments(self.offsets[: n + 1], self.index.device)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """(n_segments,) sums of (n,) values."""
        if not self.n:
            return values.new_zeros(0)
        return torch.segment_reduce(values, "sum", offsets=self._offsets)

    def spread(self, values: torch.Tensor | Sequence[float]) -> torch.Tensor:
        """(n,) the value of each member's segment, from (n_segments,) or a sequence of floats."""
        return torch.as_tensor(values, dtype=torch.float64, device=self.index.device)[self.index]
