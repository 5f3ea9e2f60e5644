"""Settings that hold for all atoms within a range, for engines that do not let the host look at them.

Elsewhere a setting follows from the atoms (:mod:`.setting`); to look at atoms on a GPU the host has to wait.  There grid,
precision and blur follow from the plan, the form factors and the accuracy alone.  By equation 1 of :mod:`.accuracy` errors and
contributions of atoms add up, so what is good enough for every kind of atom at every exponent E = 2 pi^2 U s_max^2 of a range is
good enough for any mixture.  The range is 0 <= E <= 8: U from 0 to 0.4 d_min^2, B to 32 d_min^2 (Å^2), the mean being that of the
squared contributions to F, which atoms of small U make.  Where Gaussians end follows from the atoms, on the device.

That the sums of the error model are within what was asked for is checked there for the atoms that come; where they are not, the
model's results are NaN, and the host is told (:mod:`~mmtbx_sfdiff.kernels.deferred`).
"""

from __future__ import annotations

import dataclasses
import math

import torch

import numpy as np

from ..form_factors import FormFactors
from ..kernels.atom_jobs import ErrorBounds
from ..kernels.jobs import DensitySetting, FFTUnsuitable
from ..plans import Plan
from ..plans.grid import grid_dims
from . import accuracy as error_model
from .cost import cost as estimated_cost
from .setting import (
    LEAST_ACCURACY,
    OVERSAMPLING,
    ROUNDING,
    SCATTER,
    SINGLE_PRECISION,
    Dims,
    error_orders,
    storage,
)
from .tables import Tables, tables_of

#: Exponents E that a setting is made for.
RANGE = (0.0, 8.0)
# A typical exponent, by which grids are compared.
_TYPICAL = 2.0
_NO_LIMIT = 1e200


@dataclasses.dataclass(frozen=True, eq=False)
class Standing:
    """A setting, and what has to be true of the atoms."""

    setting: DensitySetting
    bounds: ErrorBounds


def standing(
    plan: Plan,
    form_factors: FormFactors,
    accuracy: float,
    memory: int,
    n_atoms: int,
    slack: float,
    wanted: tuple[bool, ...] | None = None,
) -> Standing:
    """The :class:`Standing` of a plan, made once for each accuracy and number of atoms.

    Raises
    ------
    FFTUnsuitable
        When no grid will do.
    """
    tables = tables_of(plan, form_factors)
    orders = error_orders(wanted)
    extra = bool(wanted and (wanted[4] or wanted[5]))
    key = ("standing", accuracy, memory, n_atoms, slack, orders, extra, wanted is None)
    return tables.choices.get(key, lambda: _make(tables, accuracy, memory, n_atoms, slack, orders, extra, wanted))


def _make(
    tables: Tables,
    accuracy: float,
    memory: int,
    n_atoms: int,
    slack: float,
    orders: tuple[int, ...],
    extra: bool,
    wanted: tuple[bool, ...] | None,
) -> Standing:
    asked = accuracy
    if wanted is not None:
        # As in setting.choose_setting; anisotropic atoms and the others are taken to be many.
        accuracy = max(accuracy / (1 + SCATTER / max(n_atoms, 1)), LEAST_ACCURACY)
    dims, dtype, index = _cheapest(tables, accuracy, memory, n_atoms, orders)
    model, terms = tables.model(dims), tables.terms
    ratios = _ratios(model, orders)
    norms = np.array([1.0, *ratios])
    sharpening = float(error_model.SHARPENINGS[index])
    n_terms = terms.alphas.shape[1] + (1 if terms.has_constants else 0)
    setting = DensitySetting(
        cell=tables.cell,
        grid=tables.grid(dims),
        dtype=dtype,
        sharpening=sharpening,
        s_sq=tables.s_sq,
        cuts=model.cut_table(index, norms, orders),
        tolerance=1.0,
        typical_weight=1.0,
        table=terms,
        factor=tables.factor(sharpening, dtype),
        phase=tables.phase(dtype),
        box=(0, 0, 0),
    )
    bounds = ErrorBounds(
        norms=np.concatenate([model.norms[:, :-1], np.zeros_like(model.norms[:, -1:])], 1),
        aliases=model.aliases[index],
        exponents=(error_model.E_FIRST, error_model.E_SCALE, math.log(error_model.E_GROWTH)),
        tolerance=model.tolerance(np.ones(3), 1, accuracy, max(n_terms, 1)) * slack,
        largest_errors=_three(orders, _NO_LIMIT, [error_model.largest_alias(asked)] * 3),
        # The table of cuts has these ratios in steps.
        least_contributions=_three(orders, -_NO_LIMIT, [-_NO_LIMIT, *(0.8 * r for r in ratios)]),
        least_extra=terms.typical_factor if extra else 0.0,
    )
    return Standing(setting, bounds)


def _three(orders: tuple[int, ...], other: float, values: list[float]) -> tuple[float, float, float]:
    """The values of F and its two gradients where they count."""
    a, b, c = (value if m in orders else other for m, value in enumerate(values))
    return a, b, c


def _in_range(model: error_model.ErrorModel) -> np.ndarray:
    """(kinds, exponents) bool: where a setting has to be good enough."""
    bins = error_model.exponent_grid()
    first = int(np.searchsorted(bins, RANGE[0], side="right")) - 1
    last = int(np.searchsorted(bins, RANGE[1]))
    inside = np.zeros(model.norms.shape[1:], dtype=bool)
    inside[:, first : last + 1] = True
    return inside & (model.norms[0] > 0)


def _ratios(model: error_model.ErrorModel, orders: tuple[int, ...]) -> list[float]:
    """The least contributions to the two gradients, over those to F, of any kind of atom in the range."""
    inside = _in_range(model)
    inside[-1] = False
    return [float((model.norms[m][inside] / model.norms[0][inside]).min()) if m in orders else 1.0 for m in (1, 2)]


def _sharpest(model: error_model.ErrorModel, accuracy: float, rounding: float, orders: tuple[int, ...]) -> int:
    """Number of the sharpest p with which every kind of atom in the range has errors within the bound, or -1."""
    inside = _in_range(model)
    worst = np.zeros(len(model.aliases))
    for order in orders:
        ratio = model.aliases[:, order][:, inside] / model.norms[order][inside]
        worst = np.maximum(worst, ratio.max(1))
    noise = rounding**2 * (model.noises[:, inside] / model.norms[0][inside]).max(1)
    good = np.flatnonzero(worst + noise <= error_model.alias_bound(accuracy))
    return int(good[-1]) if len(good) else -1


def _cheapest(
    tables: Tables, accuracy: float, memory: int, n_atoms: int, orders: tuple[int, ...]
) -> tuple[Dims, torch.dtype, int]:
    """(grid, dtype, number of the sharpening) by the cost model."""
    smallest = math.inf
    for dtype in (torch.float32, torch.float64) if accuracy >= SINGLE_PRECISION else (torch.float64,):
        best: tuple[float, Dims, int] | None = None
        for dims in dict.fromkeys(grid_dims(tables.plan, rate) for rate in OVERSAMPLING):
            need = storage(dims, dtype)
            if need > memory and smallest < math.inf:
                break
            model = tables.model(dims)
            index = _sharpest(model, accuracy, ROUNDING[dtype], orders)
            if index < 0:
                continue
            smallest = min(smallest, need)
            if need > memory:
                break
            norms = model.norms[:, :-1, 4].mean(1)
            cost = estimated_cost(model, index, norms, orders, tables, dims, n_atoms, _TYPICAL, accuracy)
            if best is None or cost < best[0]:
                best = (cost, dims, index)
            elif cost > 1.3 * best[0]:
                break
        if best is not None:
            return best[1], dtype, best[2]
    if smallest < math.inf:
        raise FFTUnsuitable(
            f"accuracy={accuracy:g} needs a grid of {smallest / 2**20:.0f} MiB, more than memory={memory} "
            "bytes: raise memory, or use method='direct'."
        )
    raise FFTUnsuitable(f"accuracy={accuracy:g} is out of the FFT's reach: use method='direct'.")
