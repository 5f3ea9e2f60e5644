"""What putting atoms on a grid costs, estimated from a setting."""

from __future__ import annotations

import math

import numpy as np

from .accuracy import SHARPENINGS, ErrorModel
from .tables import Tables

# Measured, ns on one core, for values and for gradients: a block of eight points under a pair of Gaussians, a
# column of blocks of one plane, an atom and pair, a grid point's transform.
_COSTS = {False: (1.7, 8.0, 300.0, 4.0), True: (3.0, 30.0, 400.0, 7.0)}


def cost(
    model: ErrorModel,
    index: int,
    norms: np.ndarray,
    orders: tuple[int, ...],
    tables: Tables,
    dims: tuple[int, int, int],
    n_atoms: float,
    mean_exponent: float,
    accuracy: float,
) -> float:
    """Estimated time of the values (``orders`` (0,)) or the gradients of one model, ns on one core."""

    block, column, pair, point = _COSTS[orders != (0,)]
    table, width_first, width_step, level_first, level_step = model.cut_table(index, norms, orders)
    level = math.log(model.tolerance(norms, 1.0, accuracy, 2) / 3.0)
    j = int(np.clip((level - level_first) / level_step, 0, table.shape[1] - 1))
    axes = tables.plan.axes
    total = 0.0
    exponents = np.median(tables.terms.exponents, axis=0) if tables.terms.exponents.size else np.zeros(0)
    if tables.terms.has_constants or not len(exponents):
        exponents = np.append(exponents, 0.0)
    exponents = np.sort(exponents)
    for first in range(0, len(exponents), 2):
        width = max(float(exponents[first : first + 2].max()) + mean_exponent - SHARPENINGS[index], 0.05)
        i = int(np.clip((math.log(width) - width_first) / width_step, 0, table.shape[0] - 1))
        radius = math.sqrt(width * max(table[i, j], 0.5) / tables.s_sq) / math.pi
        half = [radius * tables.lengths[axis] * n for axis, n in zip(axes, dims)]
        columns = 2 * half[2] / 8 + 0.6
        total += pair + columns * (2 * half[0] * column + block * math.pi * half[0] * half[1])
    return n_atoms * total + math.prod(dims) * point
