"""What an accuracy is turned into: a grid, its precision, a blur, and where Gaussians end.

The choice is a function of the atoms' values alone, never of what was computed before.  What does not depend
on the atoms' parameters is kept with the Miller plan.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref

import torch

import numpy as np

from ..kernels import engines
from ..kernels.cpu.histogram import population
from ..kernels.jobs import DensitySetting, FFTUnsuitable
from ..plans.cell import cell_of
from ..plans.grid import grid_dims, make_grid_plan
from . import accuracy as error_model
from .accuracy import ErrorModel
from .cost import cost as estimated_cost

# Below this a single-precision grid would round away what was asked for, and below that a double-precision
# one.
SINGLE_PRECISION, LEAST_ACCURACY = 3e-6, 1e-8
# Relative rounding of the sum and of the transform in each precision.
ROUNDING = {torch.float32: 4e-7, torch.float64: 6e-16}
# Candidate rates of sampling, in units of the Nyquist rate.
OVERSAMPLING = (1.2, 1.3, 1.4, 1.5, 1.65, 1.85, 2.1, 2.5, 3.0, 3.6)


def complex_of(dtype):
    return torch.complex64 if dtype == torch.float32 else torch.complex128


@dataclasses.dataclass(frozen=True, eq=False)
class TermTable:
    """Form factors as terms alpha exp(-exponent tau), with the constant terms apart; numpy, for one s_max."""

    alphas: np.ndarray
    exponents: np.ndarray
    constants: np.ndarray

    @classmethod
    def from_form_factors(cls, form_factors, s_sq):
        a, b, c = (x.cpu().numpy() for x in (form_factors.a, form_factors.b, form_factors.c))
        # Terms of similar width share a pass over the grid.
        order = np.argsort(np.where(a == 0, np.inf, b), axis=1)
        a, b = np.take_along_axis(a, order, 1), np.take_along_axis(b, order, 1)
        return cls(np.ascontiguousarray(a), np.ascontiguousarray(b * s_sq / 4), c)

    @functools.cached_property
    def largest(self):
        """Largest |alpha| or constant."""
        return max(float(np.abs(x).max(initial=0.0)) for x in (self.alphas, self.constants))

    @functools.cached_property
    def widest(self):
        """Largest exponent of a term."""
        return max(float(self.exponents[self.alphas != 0].max(initial=0.0)), 0.0)

    @functools.cached_property
    def typical_factor(self):
        """Size of a form factor in the middle of the band."""
        alphas, exponents = self.with_constants()
        return float(np.sqrt((((alphas * np.exp(-0.6 * exponents)).sum(1)) ** 2).mean()))

    def with_constants(self):
        return (
            np.hstack([self.alphas, self.constants[:, None]]),
            np.hstack([self.exponents, np.zeros((len(self.constants), 1))]),
        )


class _PlanCache:
    """What belongs to a Miller plan and a form factor table, and not to the atoms' parameters."""

    def __init__(self, plan, atoms):
        # Not the plan itself: this object is kept as long as the plan lives.
        self.plan = weakref.ref(plan)
        self.indices, self.d_star_sq = plan.indices.cpu().numpy(), plan.d_star_sq.cpu().numpy()
        self.multiplicities = error_model.multiplicities(plan)
        self.s_sq = float(self.d_star_sq.max())
        self.table = TermTable.from_form_factors(atoms.form_factors, self.s_sq)
        self.basis = atoms.crystal.fractionalization.cpu().numpy()
        self.cell = cell_of(atoms.crystal)
        self.models, self.grids, self.choices, self.costs, self.factors, self.phases = {}, {}, {}, {}, {}, {}

    def model(self, dims):
        if dims not in self.models:
            grid = [0, 0, 0]
            for axis, n in zip(self.plan().axes, dims):
                grid[axis] = n
            self.models[dims] = ErrorModel(
                self.indices, self.d_star_sq, self.multiplicities, self.basis, grid, *self.table.with_constants()
            )
        return self.models[dims]

    def grid(self, dims):
        if dims not in self.grids:
            self.grids[dims] = make_grid_plan(self.plan(), dims)
        return self.grids[dims]

    def factor(self, sharpening, dtype):
        key = (sharpening, dtype)
        if key not in self.factors:
            plan = self.plan()
            unique = torch.exp(-sharpening * plan.d_star_sq / self.s_sq)
            # Every equivalent of a reflection has the same d*^2.
            self.factors[key] = unique[plan.gather[0]].to(dtype)
        return self.factors[key]

    def phase(self, dtype):
        if dtype not in self.phases:
            self.phases[dtype] = self.plan().phase.to(complex_of(dtype)).contiguous()
        return self.phases[dtype]


_CACHES = weakref.WeakKeyDictionary()


def _cache(plan, atoms):
    tables = _CACHES.setdefault(plan, {})
    form_factors = atoms.form_factors
    # The same object again, nearly always.
    last = tables.get("last")
    if last is not None and last[0]() is form_factors:
        return last[1]
    key = tuple(tuple(x.flatten().tolist()) for x in (form_factors.a, form_factors.b, form_factors.c))
    if key not in tables:
        tables[key] = _PlanCache(plan, atoms)
    tables["last"] = weakref.ref(form_factors), tables[key]
    return tables[key]


@dataclasses.dataclass(frozen=True)
class Population:
    """What the error model has to know of the atoms.

    Attributes
    ----------
    histogram : numpy.ndarray
        (n_types + 1, N_E) sums of squared weights by type and exponent, and a row for f' and f''.
    n_atoms : int
        Of all models, those with weight.
    largest : float
        Largest exponent of an atom in any direction.
    heaviest : float
        Largest weight.
    extra : float
        Largest f' or f''.
    """

    histogram: np.ndarray
    n_atoms: int
    largest: float
    heaviest: float
    extra: float


def _population(values, atoms, cache, wanted=None):
    """The :class:`Population` of (sites, u_iso, u_star, weights, fp, fdp) with one batch dimension.

    ``wanted``: of which a gradient is wanted.
    """
    _, u_iso, u_star, weights, *dispersion = values
    # The gradient of a term that may be zero: as if it were as large as a form factor.
    least = cache.table.typical_factor if wanted and (wanted[4] or wanted[5]) else 0.0
    extras = [
        value for i, value in enumerate(dispersion) if wanted and wanted[4 + i] or bool((value.detach() != 0).any())
    ]
    of = _compiled_population if u_iso.device.type == "cpu" else _torch_population
    histogram, n_atoms, largest, heaviest = of(u_iso, u_star, weights, extras, least, atoms, cache)
    if not n_atoms:
        histogram[0, error_model.N_E // 2] = 1.0
    extra = max((float(value.detach().abs().max()) for value in extras), default=0.0)
    return Population(histogram, max(n_atoms, 1), largest, heaviest, extra)


def _compiled_population(u_iso, u_star, weights, extras, least, atoms, cache):
    def array(value):
        return value.detach().numpy().astype(np.float64)

    histogram = np.zeros((len(cache.table.constants) + 1, error_model.N_E))
    use_aniso, types = atoms.use_u_aniso.numpy(), atoms.type_index.numpy()
    orthogonalization = atoms.crystal.orthogonalization.numpy()
    u_iso, weights = array(u_iso), array(weights)
    u_star = array(u_star) if use_aniso.any() else np.zeros((len(u_iso), 1, 6))
    extras = np.stack([array(x) for x in extras]) if extras else np.zeros((0, *u_iso.shape))
    n_atoms, largest, heaviest = 0, 0.0, 0.0
    for i in range(len(u_iso)):
        found = population(
            u_iso[i],
            u_star[i],
            use_aniso,
            orthogonalization,
            2 * math.pi**2 * cache.s_sq,
            weights[i],
            extras[:, i],
            least,
            types,
            error_model.E_FIRST,
            error_model.E_SCALE,
            math.log(error_model.E_GROWTH),
            histogram,
        )
        n_atoms, largest, heaviest = n_atoms + found[0], max(largest, found[1]), max(heaviest, found[2])
    return histogram, n_atoms, largest, heaviest


def _torch_population(u_iso, u_star, weights, extras, least, atoms, cache):
    n_types, n_e = len(cache.table.constants), error_model.N_E
    with torch.no_grad():
        u = u_iso.to(torch.float64)
        widest = u
        if bool(atoms.use_u_aniso.any()):
            widest = u + _cart_trace(u_star, atoms)
            u = u + _least_u(u_star, atoms)
        scale = 2 * math.pi**2 * cache.s_sq
        position = error_model.exponent_bins(u * scale).clamp(max=n_e - 1.001)
        low = position.to(torch.int64)
        high_share = position - low
        squares = weights.to(torch.float64) ** 2
        flat = (atoms.type_index * n_e + low).flatten()
        size = (n_types + 1) * n_e
        result = torch.bincount(flat, (squares * (1 - high_share)).flatten(), minlength=size)
        result += torch.bincount(flat + 1, (squares * high_share).flatten(), minlength=size)
        for value in extras:
            extra = squares * value.to(torch.float64).abs().clamp(min=least) ** 2
            result += torch.bincount((n_types * n_e + low).flatten(), extra.flatten(), minlength=size)
        return (
            result.reshape(n_types + 1, n_e).cpu().numpy(),
            int((squares > 0).sum()),
            float(widest.max()) * scale,
            float(squares.max()) ** 0.5,
        )


def _least_u(u_star, atoms):
    """Smallest eigenvalue of U_cart of the anisotropic atoms, zero for the others: (n_models, n_atoms)
    float64."""
    matrix = u_star.to(torch.float64)[..., [0, 3, 4, 3, 1, 5, 4, 5, 2]].unflatten(-1, (3, 3))
    orthogonalization = atoms.crystal.orthogonalization
    cart = orthogonalization @ matrix @ orthogonalization.T
    chosen = atoms.use_u_aniso
    result = torch.zeros(u_star.shape[:-1], dtype=torch.float64, device=u_star.device)
    cart = cart[:, chosen]
    # Eigenvalues of a symmetric 3 x 3 matrix in closed form; thousands of
    # calls of a solver take longer than the FFT.
    mean = cart.diagonal(dim1=-2, dim2=-1).mean(-1)
    rest = cart - mean[..., None, None] * torch.eye(3, dtype=cart.dtype, device=cart.device)
    size = ((rest * rest).sum((-1, -2)) / 6).sqrt().clamp(min=1e-30)
    half_det = torch.linalg.det(rest / size[..., None, None]) / 2
    angle = torch.acos(half_det.clamp(-1, 1)) / 3
    result[:, chosen] = mean + 2 * size * torch.cos(angle + 2 * math.pi / 3)
    return result


def error_orders(wanted=None):
    """Whose errors count: of F (0), or of the gradients in (sites, u_iso, u_star, weights, fp, fdp)."""
    if wanted is None:
        return (0,)
    asked = {0: any(wanted[3:]), 1: wanted[0], 2: wanted[1] or wanted[2]}
    return tuple(order for order, yes in asked.items() if yes) or (0,)


def choose_setting(values, atoms, plan, accuracy, memory, wanted=None, population=None):
    """The :class:`Population` and the :class:`DensitySetting` of these atoms: a function of their values alone, not
    of what was computed before.

    Parameters
    ----------
    values : tuple of torch.Tensor
        (sites, u_iso, u_star, weights, fp, fdp) with one batch dimension.
    wanted : tuple of bool, optional
        Of which of these a gradient is wanted: the setting is then for gradients, else for F.
    population : Population, optional
        Where it is known already.
    """
    cache = _cache(plan, atoms)
    orders = error_orders(wanted)
    found = population or _population(values, atoms, cache, wanted)
    histogram, n_atoms = found.histogram, found.n_atoms
    key = _choose(cache, plan, histogram, n_atoms / len(values[0]), accuracy, memory, orders)
    for dims, dtype in _from(cache.choices[key], plan, memory):
        model = cache.model(dims)
        index, norms = model.sharpening(histogram, accuracy, ROUNDING[dtype], orders)
        if index >= 0:
            break
    else:
        raise FFTUnsuitable(
            f"accuracy={accuracy:g} is out of the FFT's reach for these atoms within memory={memory} bytes: "
            "raise memory, or use method='direct'."
        )
    n_terms = cache.table.alphas.shape[1] + (1 if cache.table.constants.any() else 0)
    sharpening = float(error_model.SHARPENINGS[index])
    slack = engines.engine(plan.indices.device).slack
    tolerance = model.tolerance(norms, n_atoms, accuracy, max(n_terms, 1)) * slack
    typical = math.sqrt(histogram[:-1].sum() / n_atoms)
    cuts = model.cut_table(index, norms, orders)
    size = max(cache.table.largest + found.extra, cache.table.typical_factor)
    lowest = math.log(tolerance / (size * max(found.heaviest, typical)))
    return found, DensitySetting(
        cell=cache.cell,
        grid=cache.grid(dims),
        dtype=dtype,
        sharpening=sharpening,
        s_sq=cache.s_sq,
        cuts=cuts,
        tolerance=tolerance,
        typical_weight=typical,
        table=cache.table,
        factor=cache.factor(sharpening, dtype),
        phase=cache.phase(dtype),
        box=_box(cache, dims, found.largest, lowest, sharpening, cuts),
    )


def _from(chosen, plan, memory):
    """The chosen (grid, dtype), and finer ones for atoms that are further apart in B than the choice took
    them for."""
    yield chosen
    for dtype in (torch.float32, torch.float64):
        for rate in OVERSAMPLING:
            dims = grid_dims(plan, rate)
            finer = (dtype == chosen[1] and math.prod(dims) > math.prod(chosen[0])) or (
                dtype == torch.float64 and chosen[1] == torch.float32
            )
            if finer and storage(dims, dtype) <= memory:
                yield dims, dtype


def storage(dims, dtype):
    """Bytes of a grid, its transform, and the transform's working copy."""
    return 3.5 * (4 if dtype == torch.float32 else 8) * math.prod(dims)


def _box(cache, dims, largest, lowest, sharpening, cuts):
    """Points along each axis that no atom's Gaussians exceed, rounded up to eight."""
    width = max(largest + cache.table.widest - sharpening, 0.1)
    # Cuts grow with the width and with the amplitude.
    table, _, _, level_first, level_step = cuts
    column = int(min(max((lowest - level_first) / level_step, 0), table.shape[1] - 1))
    radius = math.sqrt(width * max(float(table[:, column].max()), 0.5) / cache.s_sq) / math.pi
    # Half the box is radius times the length of the reciprocal axis, in grid units.
    lengths = np.linalg.norm(cache.basis, axis=1)
    return tuple(8 * (int(2 * radius * lengths[axis] * n + 1) // 8 + 2) for axis, n in zip(cache.plan().axes, dims))


def _cart_trace(u_star, atoms):
    metric = atoms.crystal.orthogonalization.T @ atoms.crystal.orthogonalization
    packed = torch.stack(
        [metric[0, 0], metric[1, 1], metric[2, 2], 2 * metric[0, 1], 2 * metric[0, 2], 2 * metric[1, 2]]
    )
    return (u_star.detach().to(torch.float64) @ packed).clamp(min=0)


def _choose(cache, plan, histogram, n_atoms, accuracy, memory, orders):
    """Key in ``cache.choices`` of the cheapest (grid, dtype) by the cost model, for a population like this
    one."""
    bins = error_model.exponent_grid()
    population = histogram[:-1].sum(0)
    mean = float((population * bins).sum() / population.sum())
    low = float(bins[min(np.searchsorted(np.cumsum(population), 0.05 * population.sum()), len(bins) - 1)])
    constant = bool(histogram[-1].any())
    # The choice is a function of these coarse numbers only, so that it does not change from step to step.
    mean_step, low_step = round(3 * math.log2(max(mean, 0.1))), round(4 * low)
    key = (round(2 * math.log2(n_atoms)), mean_step, low_step, constant, accuracy, memory, orders)
    if key in cache.choices:
        return key
    coarse = np.zeros_like(histogram)
    share = histogram[:-1].sum(1) / histogram[:-1].sum()
    for exponent, part in ((low_step / 4, 0.1), (2 ** (mean_step / 3), 0.9)):
        place = int(min(error_model.exponent_bins(np.float64(exponent)), error_model.N_E - 1))
        coarse[:-1, place] += part * share
    coarse[-1] = histogram[-1] / histogram[:-1].sum()
    smallest = math.inf
    for dtype in (torch.float32, torch.float64) if accuracy >= SINGLE_PRECISION else (torch.float64,):
        best, seen = None, set()
        for rate in OVERSAMPLING:
            dims = grid_dims(plan, rate)
            if dims in seen:
                continue
            seen.add(dims)
            need = storage(dims, dtype)
            if need > memory and smallest < math.inf:
                break
            model = cache.model(dims)
            index, norms = model.sharpening(coarse, accuracy, ROUNDING[dtype], orders)
            if index < 0:
                continue
            smallest = min(smallest, need)
            if need > memory:
                break
            cost = estimated_cost(model, index, norms, orders, cache, dims, n_atoms, mean, accuracy)
            if best is None or cost < best[0]:
                best = (cost, dims)
            elif cost > 1.3 * best[0]:
                break
        if best is not None:
            cache.choices[key], cache.costs[key] = (best[1], dtype), best[0]
            return key
    if smallest < math.inf:
        raise FFTUnsuitable(
            f"accuracy={accuracy:g} needs a grid of {smallest / 2**20:.0f} MiB, more than memory={memory} "
            "bytes: raise memory, or use method='direct'."
        )
    raise FFTUnsuitable(f"accuracy={accuracy:g} is out of the FFT's reach for these atoms: use method='direct'.")


def estimated_time(atoms, plan, accuracy, memory):
    """Estimated time of one forward calculation with these atoms, ns on one core, and their :class:`Population`.

    Raises
    ------
    FFTUnsuitable
        As :func:`fft`.
    """
    batch = atoms.batch_shape

    def flat(value, tail=1):
        own = value.shape[value.ndim - tail :]
        return value.expand(*batch, *own).reshape(-1, *own)

    # The sites do not matter.
    with torch.no_grad():
        values = (
            None,
            flat(torch.where(atoms.use_u_iso, atoms.u_iso, 0.0)),
            flat(torch.where(atoms.use_u_aniso[:, None], atoms.u_star, 0.0), 2),
            flat(atoms.occupancies * atoms.site_weights.to(atoms.dtype)),
            flat(atoms.fp),
            flat(atoms.fdp),
        )
    cache = _cache(plan, atoms)
    found = _population(values, atoms, cache)
    n_models = len(values[1])
    key = _choose(cache, plan, found.histogram, found.n_atoms / n_models, accuracy, memory, (0,))
    return n_models * cache.costs[key] * (2 if found.histogram[-1].any() else 1), found
