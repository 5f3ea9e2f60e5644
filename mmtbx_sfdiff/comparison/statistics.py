"""Agreement of amplitudes or maps: Pearson correlation, also by resolution shell, and relative L2."""

from __future__ import annotations

from typing import Any

import torch

import numpy as np

from ..reflections import resolution_shells

# Fewer pairs than this have no correlation worth a number.
_MIN_PAIRS = 3


def correlation(x: Any, y: Any) -> float | None:
    """Pearson correlation of two real arrays; None for too few values, or where one of them is constant."""
    x, y = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if len(x) < _MIN_PAIRS:
        return None
    x, y = x - x.mean(), y - y.mean()
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    if not norm > 0:
        return None
    return float(np.clip(np.dot(x, y) / norm, -1, 1))


def relative_l2(value: Any, reference: Any) -> float | None:
    """||value - reference|| / ||reference||; None where the reference is zero or empty."""
    norm = np.linalg.norm(reference)
    return float(np.linalg.norm(np.asarray(value) - reference) / norm) if norm > 0 else None


def by_shell(d_spacings: Any, value: Any, reference: Any, n_least: int = 100) -> list[dict[str, Any]]:
    """Correlation of |value| with |reference| in resolution shells of equal volume.

    Parameters
    ----------
    d_spacings : array
        (n,) Å.
    value, reference : array
        (n,) complex or real.
    n_least : int
        Shells with fewer reflections are joined with their neighbours: data can be sparse at either end.

    Returns
    -------
    list of dict
        ``d_max``, ``d_min`` (Å), ``n``, ``cc`` (None where it does not exist), low resolution first.
    """
    if len(d_spacings) == 0:
        return []
    joined: list[tuple[float, float, torch.Tensor]] = []
    for d_max, d_min, chosen in resolution_shells(torch.as_tensor(np.array(d_spacings, dtype=np.float64))):
        if joined and len(joined[-1][2]) < n_least:
            joined[-1] = (joined[-1][0], d_min, torch.cat([joined[-1][2], chosen]))
        else:
            joined.append((d_max, d_min, chosen))
    if len(joined) > 1 and len(joined[-1][2]) < n_least:
        _, d_min, chosen = joined.pop()
        joined[-1] = (joined[-1][0], d_min, torch.cat([joined[-1][2], chosen]))
    value, reference = np.abs(value), np.abs(reference)
    return [
        {
            "d_max": float(d_max),
            "d_min": float(d_min),
            "n": len(chosen),
            "cc": correlation(value[chosen.numpy()], reference[chosen.numpy()]),
        }
        for d_max, d_min, chosen in joined
    ]


def agreement(d_spacings: Any, value: Any, reference: Any) -> dict[str, Any]:
    """``cc`` of the amplitudes, ``relative_l2`` of the complex numbers, and ``shells``: a dict."""
    return {
        "cc": correlation(np.abs(value), np.abs(reference)),
        "relative_l2": relative_l2(value, reference),
        "shells": by_shell(d_spacings, value, reference),
    }
