"""Success against the starting error: a logistic curve, and where it is one half."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.optimize

_PRIOR = 4.0  # standard deviation of slope (per Å) and of the place of the half-way point (Å): where all succeed, or none, there is no likeliest one
_REACH = (0.0, 8.0)  # Å


@dataclasses.dataclass(frozen=True)
class Curve:
    """p(x) = 1 / (1 + exp(slope (x - half)))

    Attributes
    ----------
    half : float
        Å, where it is 1/2.
    slope : float
        1/Å, positive.
    """

    half: float
    slope: float

    def __call__(self, x):
        return 1 / (1 + np.exp(np.clip(self.slope * (np.asarray(x) - self.half), -50, 50)))


def fit(x, success, weights=None) -> Curve:
    """The likeliest curve with weak priors: slope about 3 per Å (log-normal), half-way point about 2 Å.

    Parameters
    ----------
    x : array
        Å.
    success : array of bool
    weights : array, optional
        How often each counts.
    """
    x, success = np.asarray(x, dtype=float), np.asarray(success, dtype=float)
    weights = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)

    def loss(p):
        half, log_slope = p
        u = np.clip(np.exp(log_slope) * (x - half), -50, 50)
        # -ln p and -ln (1 - p)
        data = weights * (success * np.logaddexp(0, u) + (1 - success) * np.logaddexp(0, -u))
        return data.sum() + 0.5 * ((half - 2) / _PRIOR) ** 2 + 0.5 * (log_slope - np.log(3)) ** 2

    starts = [(half, np.log(slope)) for half in (0.5, 1.5, 3.0) for slope in (1.5, 5.0)]
    found = min((scipy.optimize.minimize(loss, start, method="Nelder-Mead") for start in starts), key=lambda r: r.fun)
    return Curve(float(np.clip(found.x[0], *_REACH)), float(np.exp(found.x[1])))


def bootstrap(table, n=400, seed=0):
    """Half-way points of methods over resampled starts, so that differences between methods are of the same starts.

    Parameters
    ----------
    table : dict of str to dict of start to (x, success)
        By method, then by start.

    Returns
    -------
    dict of str to numpy.ndarray
        (n,) Å; methods without runs are left out.
    """
    rng = np.random.default_rng(seed)
    starts = sorted({start for runs in table.values() for start in runs})
    result = {method: np.empty(n) for method, runs in table.items() if runs}
    for k in range(n):
        count = np.bincount(rng.integers(0, len(starts), len(starts)), minlength=len(starts))
        often = dict(zip(starts, count))
        for method, halves in result.items():
            runs = table[method]
            x, success = zip(*runs.values())
            halves[k] = fit(x, success, [often[start] for start in runs]).half
    return result
