"""alpha and beta: how far a calculated amplitude is from the true one, estimated from the free reflections.

    p(Fo | Fm) = Rice(alpha |Fm|, epsilon beta)

In zones of about 140 free reflections the likelihood is maximised by one variable t, found by halving and
false position; t is smoothed over zones, and gives alpha and beta of each.

References: Lunin & Skovoroda (1995), Acta Cryst. A51, 880; Afonine, Lunin & Urzhumtsev (2003), J. Appl.
Cryst. 36, 158; ``alpha_beta_est`` in ``mmtbx/max_lik/max_lik.h``, ``mmtbx.f_model.manager.alpha_beta``.
"""

from __future__ import annotations

import dataclasses
import math

import torch

import numpy as np

from .bessel import i1_over_i0

_PER_ZONE = 140
_FEW_FREE = 300
_LOW_RESOLUTION = 15.0
_HUGE = 1e10
_SAME_RESOLUTION = 1e-10
_LEAST = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class AlphaBeta:
    """Parameters of the amplitudes' distribution, constants for differentiation.

    Attributes
    ----------
    alpha, beta : torch.Tensor
        (n,); beta is without the reflection's epsilon.
    epsilons : torch.Tensor
        (n,)
    centric : torch.Tensor
        (n,) bool.
    """

    alpha: torch.Tensor
    beta: torch.Tensor
    epsilons: torch.Tensor
    centric: torch.Tensor

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> AlphaBeta:
        """The same in another dtype or on another device."""
        return AlphaBeta(
            self.alpha.to(dtype=dtype, device=device),
            self.beta.to(dtype=dtype, device=device),
            self.epsilons.to(dtype=dtype, device=device),
            self.centric.to(device=device),
        )


def estimate_alpha_beta(reflections, f_model, selection=None, f_obs_scale=1.0, per_zone=_PER_ZONE, free_only=False):
    """alpha and beta of every reflection, as mmtbx estimates them.

    The work set takes the place of the free set where that has fewer than 300 reflections and the data reach
    beyond 15 Å.

    Parameters
    ----------
    reflections : Reflections
    f_model : torch.Tensor
        (n,) scaled structure factors or amplitudes.
    selection : torch.Tensor, optional
        (n,) bool, the reflections in use (see ``Scales.selection``); others get alpha = beta = 0.
    f_obs_scale : float
        ``f_obs`` is divided by it (see ``Scales.f_obs_scale``).
    per_zone : int
        Free reflections in a zone; mmtbx takes 140 for targets and 100 for maps.
    free_only : bool
        Take the free set however few they are, as mmtbx does for maps.

    Returns
    -------
    AlphaBeta

    Raises
    ------
    ValueError
        When no reflection is selected or the shapes differ.
    """
    n = len(reflections)
    if tuple(f_model.shape) != (n,):
        raise ValueError(
            f"f_model must have one value for each of the {n} reflections, not shape {tuple(f_model.shape)}."
        )
    crystal, indices = reflections.crystal, reflections.miller_indices
    epsilons, centric = crystal.epsilons(indices).to(torch.float64), crystal.centric_flags(indices)
    d_star_sq = crystal.d_star_sq(indices)
    used = torch.arange(n, device=indices.device) if selection is None else selection.nonzero()[:, 0]
    if not len(used):
        raise ValueError("No reflections are selected to estimate alpha and beta from.")
    with torch.no_grad():
        alpha, beta = _estimate(
            (reflections.f_obs[used].to(torch.float64) / f_obs_scale),
            f_model.detach()[used].abs().to(torch.float64),
            ~reflections.work[used],
            epsilons[used],
            centric[used],
            d_star_sq[used],
            per_zone,
            free_only,
        )
    dtype = reflections.f_obs.dtype
    full = [torch.zeros(n, dtype=dtype, device=indices.device) for _ in range(2)]
    for target, values in zip(full, (alpha, beta)):
        target[used] = values.to(dtype)
    return AlphaBeta(alpha=full[0], beta=full[1], epsilons=epsilons.to(dtype), centric=centric)


def _estimate(f_obs, f_model, free, epsilons, centric, d_star_sq, per_zone, free_only):
    n_free = int(free.sum())
    few = (
        not free_only
        and n_free < _FEW_FREE
        and 1 / math.sqrt(float(d_star_sq.min())) > _LOW_RESOLUTION
        and n_free != len(free)
    )
    test = ~free if few or not n_free else free
    zones = _zones_of_equal_number(d_star_sq[test].cpu().numpy(), min(per_zone, int(test.sum())))
    a, b, t = _best_t(zones, f_obs[test], f_model[test], epsilons[test], centric[test])
    alpha, beta = _from_t(a, b, _smooth_interior(t))
    if not few:
        alpha, beta = _smooth(alpha), _smooth(beta)
    zone = _zones_of_equal_volume(d_star_sq, len(alpha))
    return tuple(torch.as_tensor(values, device=d_star_sq.device)[zone] for values in (alpha, beta))


def _zones_of_equal_number(d_star_sq, per_zone):
    """List of index arrays, each of reflections next to one another in resolution."""
    ordered = np.sort(d_star_sq)
    distinct = ordered[np.concatenate([[True], np.diff(ordered) > _SAME_RESOLUTION])]
    n = max(1, int(len(distinct) / per_zone + 0.5))
    limits = [max(0.0, distinct[0] * (1 - _SAME_RESOLUTION))]
    for i in range(1, n):
        at = int(i * (len(distinct) / n) + 0.5)
        limits.append(distinct[at] * (1 - _SAME_RESOLUTION))
        if at == len(distinct) - 1:
            break
    limits.append(distinct[-1] * (1 + _SAME_RESOLUTION))
    zone = np.searchsorted(limits, d_star_sq, side="right")
    zones = [np.nonzero(zone == i)[0] for i in range(1, len(limits))]
    return [members for members in zones if len(members)]


def _zones_of_equal_volume(d_star_sq, n):
    """(n_reflections,) int64: which of n shells of equal volume in reciprocal space each is in."""
    low, high = float(d_star_sq.min()), float(d_star_sq.max())
    # cctbx's binner is this much wider on either side.
    low, high = max(0.0, low - 1e-6 * (high - low)), high + 1e-6 * (high - low)
    volume = low**1.5
    step = (high**1.5 - volume) / n
    limits = [(volume + i * step) ** (2 / 3) for i in range(1, n)]
    return torch.searchsorted(torch.tensor(limits, dtype=torch.float64, device=d_star_sq.device), d_star_sq, right=True)


def _best_t(zones, f_obs, f_model, epsilons, centric):
    """A, B and t of each zone, NumPy (n_zones,)."""
    device = f_obs.device
    longest = max(map(len, zones))
    index = torch.tensor(np.stack([np.pad(z, (0, longest - len(z))) for z in zones]), device=device)
    present = torch.tensor(np.stack([np.arange(longest) < len(z) for z in zones]), device=device)
    cen = centric[index]
    weight = torch.where(present, torch.where(cen, 1.0, 2.0), 0.0).to(torch.float64)
    weight = weight / weight.sum(1, keepdim=True)
    oo, mm, om = (
        torch.where(present, x[index], 0.0)
        for x in (f_obs**2 / epsilons, f_model**2 / epsilons, f_obs * f_model / epsilons)
    )
    sums = [(weight * x).sum(1).cpu().numpy() for x in (mm, oo, om, om * om, mm * mm, oo * oo)]
    a, b, c, d, p, q = sums
    w = a * b - c * c
    r = (p - a * a) * (q - b * b)
    correlation = np.where(r > 0, (d - a * b) / np.sqrt(np.where(r > 0, r, 1.0)), 0.0)
    t = np.where(correlation <= 0, 0.0, _HUGE)
    solvable = np.nonzero((correlation > 0) & (w / (a * b) > 3e-7))[0]
    searches = {i: _solve(c[i] / w[i]) for i in solvable}
    points = {i: next(search) for i, search in searches.items()}
    while points:
        rows = list(points)
        at = np.array([points[i] for i in rows])
        x = om[rows] * torch.as_tensor(at, device=device)[:, None]
        merit = torch.where(cen[rows], x.tanh(), i1_over_i0(2 * x))
        mean = (weight[rows] * om[rows] * merit).sum(1).cpu().numpy()
        values = np.sqrt(1 + 4 * a[rows] * b[rows] * at * at) - 1 - 2 * at * mean
        for i, value in zip(rows, values.tolist()):
            try:
                points[i] = searches[i].send(value)
            except StopIteration as end:
                t[i] = end.value
                del points[i]
    return a, b, t


def _solve(t):
    """Root of the function whose values are sent for the points yielded, from t where it is positive."""
    left = t
    at_left = yield left
    top = 0.0
    for _ in range(50):
        right, at_right = left, at_left
        left = right * 0.5
        at_left = yield left
        if at_left == 0:
            return left
        if at_left < 0:
            top = right
            for _ in range(100):
                if right - left < 1e-5 * top:
                    return top
                top = (left * at_right - right * at_left) / (at_right - at_left)
                at_top = yield top
                if at_top > 0:
                    right, at_right = top, at_top
                else:
                    left, at_left = top, at_top
    return top


def _from_t(a, b, t):
    """alpha and beta of each zone."""
    root = np.sqrt(1 + a * b * (2 * t) ** 2)
    half = b / (root + 1)
    alpha, beta = np.sqrt(half * (root - 1) / a), 2 * half
    alpha = np.where(t == 0, 0.0, np.where(t >= _HUGE, np.sqrt(a / b), alpha))
    return alpha, np.where(t == 0, b, np.where(t >= _HUGE, 1e-10, beta))


def _smooth_interior(x):
    """Means of three neighbours; the ends stay."""
    result = x.copy()
    result[1:-1] = (x[:-2] + x[1:-1] + x[2:]) / 3
    return result


def _smooth(x):
    """The same, and what is below 0.01 is replaced by its predecessor (the last one's, for the first)."""
    if len(x) == 1:
        return x
    result = _smooth_interior(x)
    for i in range(len(result)):
        if result[i] < _LEAST:
            result[i] = result[i - 1]
    return result
