"""The ball of the soft mask, B(d) = S((r_shrink - d) / b + 1/2), and how fine a grid it is summed on."""

from __future__ import annotations

import math

import numpy as np

from ..crystal import Crystal


def fineness(crystal: Crystal, n_real: tuple[int, ...], step: float) -> int:
    """How many times finer a grid has to be to have steps of about ``step`` Å."""
    edges = crystal.orthogonalization.cpu().numpy()
    edges = np.sqrt((edges**2).sum(0)) / np.array(n_real)
    return max(1, math.ceil(float(edges.max()) / step - 1e-6))


class Ball:
    """B(d) and its derivatives by r_shrink and b."""

    def __init__(self, radius: float, edge: float) -> None:
        self.radius, self.edge = radius, edge
        self.reach = radius + edge / 2

    def _t(self, d: np.ndarray) -> np.ndarray:
        return np.clip((self.radius - d) / self.edge + 0.5, 0, 1)

    def value(self, d: np.ndarray) -> np.ndarray:
        t = self._t(d)
        return t * t * (3 - 2 * t)

    def by_radius(self, d: np.ndarray) -> np.ndarray:
        t = self._t(d)
        return 6 * t * (1 - t) / self.edge

    def by_edge(self, d: np.ndarray) -> np.ndarray:
        t = self._t(d)
        return -6 * t * (1 - t) * (t - 0.5) / self.edge
