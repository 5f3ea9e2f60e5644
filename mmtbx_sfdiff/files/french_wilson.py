"""Amplitudes from intensities by French and Wilson's method, and which intensities have none.

The posterior mean of F, given I, sigma(I) and the mean intensity of the resolution shell, from the tables of

    S. French and K. Wilson, On the treatment of negative intensity observations, Acta Cryst. A34, 517 (1978).

Reference: ``cctbx.french_wilson``, whose numbers these are: its shells, interpolated means, limits and order of
reflections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .french_wilson_tables import ACENTRIC_F, ACENTRIC_SIGMA, CENTRIC_F, CENTRIC_SIGMA

Reals = npt.NDArray[np.float64]

_MAX_SHELLS, _MIN_IN_SHELL, _FEW_IN_SHELL = 60, 40, 5
_LEAST_H = -4.0  # the tables begin here
_LEAST_RATIO = _LEAST_H + 0.3  # of I to sigma
_MARGIN = 1e-6  # by which the outermost shells are wider than the data

TOO_NEGATIVE = "French-Wilson: I below -3.7 sigma"
EMPTY_SHELL = "French-Wilson: the mean intensity of the shell is 0"
IMPROBABLE = "French-Wilson: too negative for the mean intensity of the shell"


@dataclass(frozen=True, eq=False)
class Amplitudes:
    """Result of :func:`french_wilson`.

    Attributes
    ----------
    rows : numpy.ndarray
        (m,) numbers of the intensities that have an amplitude: shell by shell, centric reflections first.
    f, sigmas : numpy.ndarray
        (m,)
    left_out : dict
        Reason to number, for the others.
    """

    rows: npt.NDArray[np.int64]
    f: Reals
    sigmas: Reals
    left_out: dict[str, int]


def french_wilson(intensities: Reals, sigmas: Reals, d_star_sq: Reals, centric: npt.NDArray[np.bool_]) -> Amplitudes:
    """Amplitudes and their standard deviations.

    Parameters
    ----------
    intensities, sigmas : numpy.ndarray
        (n,) of unique reflections; sigmas are positive.
    d_star_sq : numpy.ndarray
        (n,) 1 / d^2.
    centric : numpy.ndarray
        (n,) bool.

    Returns
    -------
    Amplitudes

    Examples
    --------
    >>> import numpy as np
    >>> n = 500
    >>> rng = np.random.default_rng(0)
    >>> result = french_wilson(rng.exponential(100, n), np.full(n, 10.0), np.linspace(0.01, 0.2, n), np.zeros(n, bool))
    >>> len(result.rows), bool((result.f > 0).all())
    (500, True)
    """
    shell, n_shells = _shells(d_star_sq)
    mean = _mean_intensities(intensities, d_star_sq, shell, n_shells)
    order = np.lexsort((np.arange(len(shell)), ~centric, shell))
    i, s, m, c = intensities[order], sigmas[order], mean[order], centric[order]
    with np.errstate(divide="ignore", invalid="ignore"):
        h = i / s - np.where(c, s / (2.0 * m), s / m)
    empty = m == 0
    negative = ~empty & (i / s < _LEAST_RATIO)
    improbable = ~empty & ~negative & ~(h >= _LEAST_H)
    good = ~(empty | negative | improbable)
    left_out = {
        reason: int(rows.sum())
        for reason, rows in ((TOO_NEGATIVE, negative), (EMPTY_SHELL, empty), (IMPROBABLE, improbable))
        if rows.any()
    }
    f, sigma_f = np.zeros(len(i)), np.zeros(len(i))
    for rows, amplitudes in ((good & c, _centric), (good & ~c, _acentric)):
        f[rows], sigma_f[rows] = amplitudes(h[rows], s[rows])
    return Amplitudes(order[good], f[good], sigma_f[good], left_out)


def _acentric(h: Reals, sigma: Reals) -> tuple[Reals, Reals]:
    low = h < 3.0
    f, sigma_f = np.empty(len(h)), np.empty(len(h))
    f[low] = _interpolated(ACENTRIC_F, h[low]) * np.sqrt(sigma[low])
    sigma_f[low] = _interpolated(ACENTRIC_SIGMA, h[low]) * np.sqrt(sigma[low])
    f[~low] = np.sqrt(h[~low] * sigma[~low])
    sigma_f[~low] = 0.5 * (sigma[~low] / f[~low])
    return f, sigma_f


def _centric(h: Reals, sigma: Reals) -> tuple[Reals, Reals]:
    low = h < 4.0
    f, sigma_f = np.empty(len(h)), np.empty(len(h))
    f[low] = _interpolated(CENTRIC_F, h[low]) * np.sqrt(sigma[low])
    sigma_f[low] = _interpolated(CENTRIC_SIGMA, h[low]) * np.sqrt(sigma[low])
    # the expansion of the paper, with cctbx's term in h^-6
    x = h[~low]
    h2 = 1.0 / (x * x)
    h4, h6 = h2 * h2, h2 * (h2 * h2)
    mean = np.sqrt(x) * (1.0 - (3.0 / 8.0) * h2 - (87.0 / 128.0) * h4 - (2889.0 / 1024.0) * h6)
    deviation = np.sqrt(x * ((1.0 / 4.0) * h2 + (15.0 / 32.0) * h4 + (273.0 / 128.0) * h6))
    f[~low], sigma_f[~low] = mean * np.sqrt(sigma[~low]), deviation * np.sqrt(sigma[~low])
    return f, sigma_f


def _interpolated(table: Reals, h: Reals) -> Reals:
    point = 10.0 * (h + 4.0)
    before = point.astype(np.int64)
    part = point - before
    return (1.0 - part) * table[before] + part * table[np.minimum(before + 1, len(table) - 1)]


def _shells(d_star_sq: Reals) -> tuple[npt.NDArray[np.int64], int]:
    """Number of the shell of each reflection, from 1, and how many there are."""
    low, high = float(d_star_sq.min()), float(d_star_sq.max())
    margin = _MARGIN * (high - low)
    low, high = low - margin, high + margin
    for n in range(_MAX_SHELLS, 0, -1):
        steps = low**1.5 + np.arange(1, n) * ((high**1.5 - low**1.5) / n)
        shell = _between(d_star_sq, np.concatenate([[low], steps ** (2.0 / 3.0), [high]]))
        counts = np.bincount(shell, minlength=n + 2)
        if not ((counts > 0) & (counts < _MIN_IN_SHELL)).any():
            return shell, n
    return _small_shells(d_star_sq)


def _small_shells(d_star_sq: Reals) -> tuple[npt.NDArray[np.int64], int]:
    """For a few reflections: shells of five different d-spacings (``setup_binner_counting_sorted``)."""
    tolerance = 1e-10
    ordered = np.sort(d_star_sq)
    distinct = ordered[np.concatenate([[True], np.diff(ordered) > tolerance])]
    n = max(1, _rounded(len(distinct) / _FEW_IN_SHELL))
    limits = [max(0.0, distinct[0] * (1 - tolerance))]
    for number in range(1, n):
        place = _rounded(number * len(distinct) / n)
        limits.append(distinct[place] * (1 - tolerance))
        if place == len(distinct) - 1:
            break
    limits.append(distinct[-1] * (1 + tolerance))
    return _between(d_star_sq, np.array(limits)), len(limits) - 1


def _rounded(x: float) -> int:
    return int(x + 0.5)


def _between(values: Reals, limits: Reals) -> npt.NDArray[np.int64]:
    return np.searchsorted(limits, values, side="right").astype(np.int64)


def _mean_intensities(intensities: Reals, d_star_sq: Reals, shell: npt.NDArray[np.int64], n_shells: int) -> Reals:
    """The shells' means, interpolated linearly in d between the shells' centers."""
    n = n_shells + 2
    counts = np.bincount(shell, minlength=n)
    used = counts > 0
    with np.errstate(invalid="ignore"):
        means = np.bincount(shell, intensities, n) / counts
    lowest, highest = np.full(n, np.inf), np.zeros(n)
    np.minimum.at(lowest, shell, d_star_sq)
    np.maximum.at(highest, shell, d_star_sq)
    with np.errstate(divide="ignore", invalid="ignore"):
        centers = np.where(used, (1 / np.sqrt(lowest) + 1 / np.sqrt(highest)) / 2, np.nan)
    d = 1 / np.sqrt(d_star_sq)
    before = d > centers[shell]
    first = np.where(before, shell - 1, shell)
    second = first + 1
    inside = (first >= 0) & (second < n)
    first, second = np.clip(first, 0, n - 1), np.clip(second, 0, n - 1)
    inside &= used[first] & used[second] & (d != centers[shell])
    with np.errstate(invalid="ignore", divide="ignore"):
        part = (centers[first] - d) / (centers[first] - centers[second])
        between = (1.0 - part) * means[first] + part * means[second]
    return np.where(inside, between, means[shell])
