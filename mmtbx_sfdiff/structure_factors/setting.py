"""What an accuracy is turned into: a grid, its precision, a blur, and where Gaussians end.

The choice is a function of the atoms' values alone, never of what was computed before.  What does not depend
on the atoms' parameters is kept with the plan, :class:`.tables.Tables`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

import numpy as np

from ..kernels import engines
from ..kernels.cpu.histogram import summary
from ..kernels.jobs import DensitySetting, FFTUnsuitable, NotPositiveDefinite
from ..plans import Plan
from ..plans.grid import grid_dims
from . import accuracy as error_model
from .cost import cost as estimated_cost
from .population import Population, population
from .scatterers import Scatterers
from .tables import Tables, tables_of

# Below this a single-precision grid would round away what was asked for, and below that a double-precision
# one.
SINGLE_PRECISION, LEAST_ACCURACY = 3e-6, 1e-8
# Relative rounding of the sum and of the transform in each precision.
ROUNDING = {torch.float32: 4e-7, torch.float64: 6e-16}
# Candidate rates of sampling, in units of the Nyquist rate.
OVERSAMPLING = (1.2, 1.3, 1.4, 1.5, 1.65, 1.85, 2.1, 2.5, 3.0, 3.6)
# What the errors of a few atoms' gradients may exceed their mean square by, times their number.
SCATTER = 12
# An atom may reach over so many cells, or points.
_LARGEST_BOX, _ALWAYS = 8, 512

Dims = tuple[int, int, int]


def error_orders(wanted: tuple[bool, ...] | None = None) -> tuple[int, ...]:
    """Whose errors count: of F (0), or of the gradients in (sites, u_iso, u_star, weights, fp, fdp)."""
    if wanted is None:
        return (0,)
    asked = {0: any(wanted[3:]), 1: wanted[0], 2: wanted[1] or wanted[2]}
    return tuple(order for order, yes in asked.items() if yes) or (0,)


def choose_setting(
    scatterers: Scatterers,
    plan: Plan,
    accuracy: float,
    memory: int,
    wanted: tuple[bool, ...] | None = None,
    found: Population | None = None,
) -> DensitySetting:
    """The :class:`DensitySetting` of these atoms: a function of their values alone, not of what was computed before.

    Parameters
    ----------
    scatterers : Scatterers
    plan : Plan
    accuracy : float
    memory : int
    wanted : tuple of bool, optional
        Of which of (sites, u_iso, u_star, weights, fp, fdp) a gradient is wanted: the setting is then for gradients,
        else for F.
    found : Population, optional
        Where it is known already.

    Raises
    ------
    FFTUnsuitable
        When no grid will do.
    """
    tables = tables_of(plan, scatterers.form_factors)
    orders = error_orders(wanted)
    found = found or population(scatterers, tables, wanted)
    _check_range(found)
    if wanted is not None:
        # Mean squares say what happens to many atoms; the gradients of a few scatter about that.
        fewest = min(part.n_atoms for part in (found, *found.parts)) / scatterers.n_models
        accuracy = max(accuracy / (1 + SCATTER / max(fewest, 1)), LEAST_ACCURACY)
    histogram, n_atoms = found.histogram, found.n_atoms
    chosen = choose_grid(tables, found, scatterers.n_models, accuracy, memory, orders)
    for dims, dtype in _from(chosen[:2], tables, memory):
        model = tables.model(dims)
        index, norms = model.sharpening(histogram, accuracy, ROUNDING[dtype], orders, found.contributions)
        for part in found.parts:
            own, contributed = model.sharpening(part.histogram, accuracy, ROUNDING[dtype], (2,), part.contributions)
            index = min(index, own)
            norms[2] = min(norms[2], contributed[2] * n_atoms / part.n_atoms)
        if index >= 0:
            break
    else:
        raise FFTUnsuitable(
            f"accuracy={accuracy:g} is out of the FFT's reach for these atoms within memory={memory} bytes: "
            "raise memory, or use method='direct'."
        )
    terms = tables.terms
    n_terms = terms.alphas.shape[1] + (1 if terms.has_constants else 0)
    sharpening = float(error_model.SHARPENINGS[index])
    slack = engines.engine(scatterers.device).slack
    tolerance = model.tolerance(norms, n_atoms, accuracy, max(n_terms, 1)) * slack
    typical = math.sqrt(summary(histogram, error_model.exponent_grid(), 0.0)[0] / n_atoms)
    cuts = model.cut_table(index, norms, orders)
    size = max(terms.largest + found.extra, terms.typical_factor)
    lowest = math.log(tolerance / (size * max(found.heaviest, typical)))
    box = _box(tables, dims, found.largest, lowest, sharpening, cuts)
    if any(b > max(_LARGEST_BOX * n, _ALWAYS) for b, n in zip(box, dims)):
        raise FFTUnsuitable(
            f"The displacement parameters of atom {found.widest_atom[1]} spread it over more than {_LARGEST_BOX} unit cells: "
            "lower them, or use method='direct'."
        )
    return DensitySetting(
        cell=tables.cell,
        grid=tables.grid(dims),
        dtype=dtype,
        sharpening=sharpening,
        s_sq=tables.s_sq,
        cuts=cuts,
        tolerance=tolerance,
        typical_weight=typical,
        table=terms,
        factor=tables.factor(sharpening, dtype),
        phase=tables.phase(dtype),
        box=box,
    )


def _check_range(found: Population) -> None:
    """Raise unless displacement parameters are within the range for which errors are known.

    Raises
    ------
    NotPositiveDefinite
    """
    if found.least < error_model.E_FIRST:
        raise NotPositiveDefinite(found.least_atom[1])


def _from(chosen: tuple[Dims, torch.dtype], tables: Tables, memory: int) -> Iterator[tuple[Dims, torch.dtype]]:
    """The chosen (grid, dtype), and finer ones for atoms that are further apart in B than the choice took
    them for."""
    yield chosen
    for dtype in (torch.float32, torch.float64):
        for rate in OVERSAMPLING:
            dims = grid_dims(tables.plan, rate)
            finer = (dtype == chosen[1] and math.prod(dims) > math.prod(chosen[0])) or (
                dtype == torch.float64 and chosen[1] == torch.float32
            )
            if finer and storage(dims, dtype) <= memory:
                yield dims, dtype


def storage(dims: Dims, dtype: torch.dtype) -> float:
    """Bytes of a grid, its transform, and the transform's working copy."""
    return 3.5 * (4 if dtype == torch.float32 else 8) * math.prod(dims)


def _box(
    tables: Tables,
    dims: Dims,
    largest: float,
    lowest: float,
    sharpening: float,
    cuts: tuple[np.ndarray, float, float, float, float],
) -> Dims:
    """Points along each axis that no atom's Gaussians exceed, rounded up to eight."""
    width = max(largest + tables.terms.widest - sharpening, 0.1)
    # Cuts grow with the width and with the amplitude.
    table, _, _, level_first, level_step = cuts
    column = int(min(max((lowest - level_first) / level_step, 0), table.shape[1] - 1))
    radius = math.sqrt(width * max(float(table[:, column].max()), 0.5) / tables.s_sq) / math.pi
    # Half the box is radius times the length of the reciprocal axis, in grid units.
    a, b, c = (8 * (int(2 * radius * tables.lengths[axis] * n + 1) // 8 + 2) for axis, n in zip(tables.plan.axes, dims))
    return a, b, c


def choose_grid(
    tables: Tables, found: Population, n_models: int, accuracy: float, memory: int, orders: tuple[int, ...]
) -> tuple[Dims, torch.dtype, float]:
    """The cheapest (grid, dtype) by the cost model for a population like this one, and what one model costs, ns on one core.

    Raises
    ------
    FFTUnsuitable
        When no grid will do.
    """
    histogram, n_atoms = found.histogram, found.n_atoms / n_models
    bins = error_model.exponent_grid()
    _, mean, place, constant = summary(histogram, bins, 0.05)
    low = float(bins[place])
    # The choice is a function of these coarse numbers only, so that it does not change from step to step.
    mean_step, low_step = round(3 * math.log2(max(mean, 0.1))), round(4 * low)
    key = (round(2 * math.log2(n_atoms)), mean_step, low_step, constant, accuracy, memory, orders)

    def make() -> tuple[Dims, torch.dtype, float]:
        coarse = np.zeros_like(histogram)
        of_types = histogram[:-1].sum(1) / histogram[:-1].sum()
        for exponent, part in ((low_step / 4, 0.1), (2 ** (mean_step / 3), 0.9)):
            place = int(min(error_model.exponent_bins(np.float64(exponent)), error_model.N_E - 1))
            coarse[:-1, place] += part * of_types
        coarse[-1] = histogram[-1] / histogram[:-1].sum()
        return _cheapest(tables, coarse, n_atoms, mean, accuracy, memory, orders)

    return tables.choices.get(key, make)


def _cheapest(
    tables: Tables,
    coarse: np.ndarray,
    n_atoms: float,
    mean: float,
    accuracy: float,
    memory: int,
    orders: tuple[int, ...],
) -> tuple[Dims, torch.dtype, float]:
    smallest = math.inf
    for dtype in (torch.float32, torch.float64) if accuracy >= SINGLE_PRECISION else (torch.float64,):
        best: tuple[float, Dims] | None = None
        seen = set()
        for rate in OVERSAMPLING:
            dims = grid_dims(tables.plan, rate)
            if dims in seen:
                continue
            seen.add(dims)
            need = storage(dims, dtype)
            if need > memory and smallest < math.inf:
                break
            model = tables.model(dims)
            index, norms = model.sharpening(coarse, accuracy, ROUNDING[dtype], orders)
            if index < 0:
                continue
            smallest = min(smallest, need)
            if need > memory:
                break
            cost = estimated_cost(model, index, norms, orders, tables, dims, n_atoms, mean, accuracy)
            if best is None or cost < best[0]:
                best = (cost, dims)
            elif cost > 1.3 * best[0]:
                break
        if best is not None:
            return best[1], dtype, best[0]
    if smallest < math.inf:
        raise FFTUnsuitable(
            f"accuracy={accuracy:g} needs a grid of {smallest / 2**20:.0f} MiB, more than memory={memory} "
            "bytes: raise memory, or use method='direct'."
        )
    raise FFTUnsuitable(f"accuracy={accuracy:g} is out of the FFT's reach for these atoms: use method='direct'.")
