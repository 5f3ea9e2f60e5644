"""Gaussians on a grid and off it again on a GPU: the launches of a call, one after another, none of which the host waits for.

F takes six launches beside the transform: survey, sorting (two), Gaussians, tiles, reflections; a gradient six, and clearing
the spectrum.  There are no atomic operations, so the result is the same, bit for bit, every time.  The models of a batch are
grids behind one another, and share each launch; nothing of a model depends on the others.

Runs on a CPU under TRITON_INTERPRET=1, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref

import torch

import triton

from .. import checks, deferred
from ..atom_jobs import AtomsJob, ErrorBounds
from ..jobs import DensityGradients, DensityJob
from .atoms import BLOCK, SUMS, _gaussians, _survey
from .bins import sort_into_bins
from .constants import constant, flat, keep
from .gaussians import chain, gather_box, splat_tile
from .reflections import read_reflections, write_reflections
from .static import TILE, Static, static_of

#: Grid points of a batch.
LARGEST = 2**31 - 1
# Points of a tile, of a box and reflections that a program takes at a time.
_TILE, _LANES, _REFLECTIONS = TILE, 256, 256
_SIZES = (3, 1, 6, 1, 1, 1)
_BOUNDS: weakref.WeakKeyDictionary[ErrorBounds, dict[str, tuple[torch.Tensor, ...]]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, eq=False)
class _Tables:
    """What the survey reads: tables of the error model, what places exponents in them, and limits of their sums."""

    norms: torch.Tensor
    aliases: torch.Tensor
    exponents: torch.Tensor
    limits: torch.Tensor
    levels: torch.Tensor
    scale: torch.Tensor


def _tables(job: AtomsJob, static: Static) -> _Tables:
    """Of a job, on its device."""
    device, setting, bounds = job.residual.device, job.setting, job.bounds
    typical = setting.table.typical_factor
    if bounds is None:
        none = torch.zeros((3, static.n_types + 1, 2), dtype=torch.float64, device=device)
        endless = constant(device, *[1e200] * 3, *[-1e200] * 3)
        levels = constant(device, 0.0, setting.tolerance, setting.typical_weight, typical)
        return _Tables(none, none, constant(device, -math.inf, 1.0, 1.0, 0.0), endless, levels, none[0, 0])
    found = _BOUNDS.setdefault(bounds, {})
    if str(device) not in found:
        first, scale, growth = bounds.exponents
        found[str(device)] = (
            torch.as_tensor(bounds.norms, dtype=torch.float64).contiguous().to(device),
            torch.as_tensor(bounds.aliases, dtype=torch.float64).contiguous().to(device),
            constant(device, first, scale, growth, bounds.norms.shape[2] - 1.001),
            constant(device, *bounds.largest_errors, *bounds.least_contributions),
            constant(device, bounds.tolerance, 0.0, 0.0, typical),
            constant(device, 2 * math.pi**2 * setting.s_sq, bounds.least_extra),
        )
    return keep(_Tables(*found[str(device)]))


@dataclasses.dataclass(frozen=True, eq=False)
class _Ready:
    """Atoms after their survey."""

    job: AtomsJob
    static: Static
    tables: _Tables
    n_models: int
    n_atoms: int
    blocks: int
    block_lanes: int
    flat: tuple[torch.Tensor | int, ...]
    sites: torch.Tensor
    displacements: torch.Tensor
    bad: torch.Tensor
    keys: torch.Tensor
    sums: torch.Tensor
    status: torch.Tensor

    @property
    def launches(self) -> tuple[int]:
        return (self.n_models * self.blocks,)

    @property
    def axes(self) -> dict[str, int]:
        names = ("A0", "A1", "A2", *(f"P{i}" for i in range(6)))
        return dict(zip(names, (*self.static.axes, *self.static.packing)))


def _surveyed(job: AtomsJob, gradient: bool) -> _Ready:
    static = static_of(job.setting, job.residual.device)
    tables = _tables(job, static)
    n_models, n_atoms = job.parameters[1].shape
    blocks, device = triton.cdiv(n_atoms, BLOCK), job.residual.device
    given: list[torch.Tensor | int] = []
    for x, size in zip((job.parameters[0], job.residual, *job.parameters[1:]), (3, *_SIZES)):
        given.extend(flat(x, size))
    double = functools.partial(torch.empty, dtype=torch.float64, device=device)
    ready = _Ready(
        job, static, tables, n_models, n_atoms, blocks, triton.next_power_of_2(blocks),
        (*given[:2], *given[4:]),
        double((n_models, n_atoms, 3)),
        double((n_models, n_atoms, 10)),
        torch.empty((n_models, n_atoms), dtype=torch.int8, device=device),
        torch.empty((n_models, n_atoms), dtype=torch.int32, device=device),
        double((n_models, blocks, SUMS)),
        torch.empty((n_models, blocks), dtype=torch.int32, device=device),
    )  # fmt: skip
    _survey[ready.launches](
        *given, job.use_u_iso, job.use_u_aniso, job.site_weights, job.type_index, job.frame, tables.scale,
        constant(device, *job.limits), tables.exponents, tables.norms, tables.aliases,
        ready.sites, ready.displacements, ready.bad, ready.keys, ready.sums, ready.status,
        n_atoms, blocks, tables.norms.shape[1], tables.norms.shape[2], *static.bins,
        A0=static.axes[0], A1=static.axes[1], A2=static.axes[2],
        GRADIENT=gradient, EXTRA=job.bounds is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return ready


@dataclasses.dataclass(frozen=True, eq=False)
class _Gaussians:
    centers: torch.Tensor
    reach: torch.Tensor
    halves: torch.Tensor
    records: torch.Tensor
    extents: torch.Tensor


def _made(ready: _Ready, dispersion: bool, place: torch.Tensor | None, of_constant: bool) -> _Gaussians:
    """Gaussians of the atoms: for a splat in the order of ``place``, else for a gradient in their own."""
    static, device = ready.static, ready.sites.device
    n, dtype = ready.n_models * ready.n_atoms, ready.job.setting.dtype
    double = functools.partial(torch.empty, dtype=torch.float64, device=device)
    found = _Gaussians(
        double((n, 3)),
        torch.empty((n, 3), dtype=dtype, device=device),
        double((n, static.n_terms, 3)),
        torch.empty((n, static.n_terms, 8), dtype=dtype, device=device),
        double((ready.n_models, ready.blocks, 3)),
    )
    _gaussians[ready.launches](
        ready.sites, ready.displacements, ready.bad, ready.job.type_index, ready.keys if place is None else place,
        ready.sums, ready.tables.levels, static.terms, static.numbers, static.cuts,
        found.centers, found.reach, found.halves, found.records, found.extents, ready.status,
        ready.n_atoms, ready.blocks, *static.cuts.shape, **ready.axes,
        TERMS=static.n_terms, DISPERSION=dispersion, KEEP_ZERO=place is None, OF_CONSTANT=of_constant,
        SORTED=place is not None, BLOCKS=ready.block_lanes, BLOCK=BLOCK,
    )  # fmt: skip
    return found


def _splat(ready: _Ready, found: _Gaussians, starts: torch.Tensor) -> torch.Tensor:
    """The grids (n_models, n_p, n_q, n_s)."""
    static, dims = ready.static, ready.static.dims
    grid = torch.empty((ready.n_models, *dims), dtype=ready.job.setting.dtype, device=starts.device)
    tiles = [-(-n // t) for n, t in zip(dims, _TILE)]
    splat_tile[(ready.n_models * math.prod(tiles),)](
        grid, starts, found.centers, found.reach, found.records, found.extents, ready.blocks,
        *dims, *static.bins, *tiles, static.far,
        TERMS=static.n_terms, BLOCKS=ready.block_lanes, TX=_TILE[0], TY=_TILE[1], TZ=_TILE[2],
    )  # fmt: skip
    return grid


def _report(ready: _Ready, what: str) -> tuple[torch.Tensor, ...]:
    """Where a finding goes, and the numbers of its kinds."""
    device = ready.sites.device
    names = ("sites_cart", "u_iso", "u_star", "occupancies", "fp", "fdp")
    kinds = deferred.kinds(dict(zip(names, zip(_SIZES, ready.job.limits))), what)
    return deferred.row(device), constant(device, *kinds)


def values_of_atoms(job: AtomsJob, out_dtype: torch.dtype) -> torch.Tensor:
    """Structure factors (n_models, n) complex."""
    ready = _surveyed(job, False)
    maps = (False, True) if job.dispersion else (False,)
    out = _values(ready, out_dtype, maps, _report(ready, "structure factors"))
    deferred.send(out.device)
    return out


def _values(
    ready: _Ready, out_dtype: torch.dtype, maps: tuple[bool, ...], finding: tuple[torch.Tensor, ...] | None
) -> torch.Tensor:
    static, setting = ready.static, ready.job.setting
    n_operators, n = static.rows.shape
    out = (torch.empty if maps[0] is False else torch.zeros)(
        (ready.n_models, n), dtype=out_dtype, device=ready.sites.device
    )
    place, starts = sort_into_bins(ready.keys, static.n_bins)
    row, kinds = finding or (ready.sums, ready.sums)
    for dispersion in maps:
        grid = _splat(ready, _made(ready, dispersion, place, False), starts)
        spectrum = torch.view_as_real(torch.fft.rfftn(grid, dim=(-3, -2, -1)))
        blocks = triton.cdiv(n, _REFLECTIONS)
        read_reflections[(ready.n_models * blocks,)](
            spectrum, static.rows, static.conjugate, static.phase, static.factor, torch.view_as_real(out),
            ready.sums, ready.status, ready.tables.limits, row, kinds, ready.flat,
            n, n_operators, math.prod(setting.grid.spectrum_shape), ready.n_models, ready.n_atoms, blocks, ready.blocks,
            DISPERSION=dispersion, REPORT=finding is not None and dispersion == maps[-1],
            BLOCKS=ready.block_lanes, BLOCK=_REFLECTIONS,
        )  # fmt: skip
    return out


def gradients_of_atoms(seed: torch.Tensor, job: AtomsJob, wanted: tuple[bool, ...]) -> list[torch.Tensor | None]:
    """Gradients in the six parameters, each where it is wanted, from dT/dF (n_models, n) complex."""
    ready = _surveyed(job, True)
    results = [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if want else None
        for x, want in zip(job.parameters, wanted)
    ]
    maps = (False, True) if job.dispersion or wanted[5] else (False,)
    row, kinds = _report(ready, "gradients")
    for dispersion in maps:
        grid = _density_gradient(seed, ready, dispersion)
        _pull_back(grid, ready, dispersion, wanted, results, (row, kinds) if dispersion == maps[-1] else None)
    deferred.send(seed.device)
    return results


def _density_gradient(seed: torch.Tensor, ready: _Ready, dispersion: bool) -> torch.Tensor:
    """dT/d(grid)."""
    static, grid = ready.static, ready.job.setting.grid
    n_places = math.prod(grid.spectrum_shape)
    complex_dtype = torch.complex64 if ready.job.setting.dtype == torch.float32 else torch.complex128
    spectrum = torch.zeros((ready.n_models, *grid.spectrum_shape), dtype=complex_dtype, device=seed.device)
    seed = torch.view_as_real(seed.resolve_conj())
    if seed.stride()[1:] != (2, 1):
        seed = seed.contiguous()
    n_unique, n = len(static.targets), static.rows.shape[1]
    blocks = triton.cdiv(n_unique, _REFLECTIONS)
    write_reflections[(ready.n_models * blocks,)](
        seed, seed.stride(0) // 2 if ready.n_models > 1 else n, static.targets, static.mirror, static.starts, static.sources, static.conjugate, static.phase,
        static.factor, torch.view_as_real(spectrum), n, n_unique, n_places, blocks, static.readers,
        DISPERSION=dispersion, BLOCK=_REFLECTIONS,
    )  # fmt: skip
    return torch.fft.irfftn(spectrum, s=grid.dims, dim=(-3, -2, -1), norm="forward")


def _pull_back(
    grid: torch.Tensor,
    ready: _Ready,
    dispersion: bool,
    wanted: tuple[bool, ...],
    results: list[torch.Tensor | None],
    finding: tuple[torch.Tensor, ...] | None,
) -> None:
    """Gradients from that in the grids, into ``results``."""
    static, device, job = ready.static, grid.device, ready.job
    of_constant = wanted[5] if dispersion else wanted[4]
    found = _made(ready, dispersion, None, of_constant)
    n = ready.n_models * ready.n_atoms
    moments = torch.empty((n, static.n_terms, 10), dtype=job.setting.dtype, device=device)
    gather_box[(n * static.n_terms,)](
        grid.contiguous(), found.centers, found.halves, found.records, moments, ready.n_atoms, *static.dims,
        TERMS=static.n_terms, LANES=_LANES,
    )  # fmt: skip
    into = [results[0], results[1], results[2], results[3], results[5] if dispersion else results[4]]
    row, kinds = finding or (ready.sums, ready.sums)
    chain[ready.launches](
        moments, found.records, ready.displacements, job.type_index, static.terms, static.numbers, job.frame,
        job.use_u_iso, job.use_u_aniso, job.site_weights, *(ready.sums if x is None else x for x in into),
        ready.sums, ready.status, ready.tables.limits, row, kinds, ready.flat,
        ready.n_models, ready.n_atoms, ready.blocks, **ready.axes, TERMS=static.n_terms, DISPERSION=dispersion,
        SITES=into[0] is not None, U_ISO=into[1] is not None, U_STAR=into[2] is not None,
        OCCUPANCIES=into[3] is not None, CONSTANT=into[4] is not None, ADD=dispersion, REPORT=finding is not None,
        BLOCKS=ready.block_lanes, BLOCK=BLOCK,
    )  # fmt: skip


# The same for jobs whose setting was made for their atoms.


def as_atoms(job: DensityJob) -> AtomsJob:
    """A density's atoms, which are fractional and weighted already."""
    n, device = job.n_atoms, job.sites.device
    batch = job.weights.shape[:-1]

    def batched(x: torch.Tensor, *tail: int) -> torch.Tensor:
        return x.expand(*batch, n, *tail).reshape(batch.numel(), n, *tail).to(torch.float64)

    nothing = batched(torch.zeros((), dtype=torch.float64, device=device))
    fp = batched(job.fp)
    parameters = (
        batched(job.sites, 3), batched(job.u_iso), batched(job.u_star, 6), batched(job.weights),
        nothing if job.dispersion else fp, fp if job.dispersion else nothing,
    )  # fmt: skip
    ones = torch.ones(n, dtype=torch.float64, device=device)
    unit = torch.eye(3, dtype=torch.float64, device=device).flatten()
    limits = [checks.LIMITS[name][0] for name in ("sites_cart", "u_iso", "u_star", "occupancies", "fp", "fdp")]
    return AtomsJob(
        job.setting, None, parameters, torch.zeros_like(parameters[0]), torch.ones_like(job.use_aniso), job.use_aniso,
        ones, job.type_index, torch.cat([unit, unit]), tuple(limits),
    )  # fmt: skip


def splat(job: DensityJob) -> torch.Tensor:
    """The density grids, (..., n_p, n_q, n_s)."""
    ready = _surveyed(as_atoms(job), False)
    place, starts = sort_into_bins(ready.keys, ready.static.n_bins)
    grid = _splat(ready, _made(ready, job.dispersion, place, False), starts)
    return grid.reshape(*job.weights.shape[:-1], *ready.static.dims)


def gather(grid: torch.Tensor, job: DensityJob) -> DensityGradients:
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of sum(grid * density)."""
    ready = _surveyed(as_atoms(job), True)
    results: list[torch.Tensor | None] = [torch.empty_like(x) for x in ready.job.parameters]
    wanted = (True, True, True, True, not job.dispersion and job.gradient, job.dispersion and job.gradient)
    _pull_back(grid.reshape(-1, *ready.static.dims), ready, job.dispersion, wanted, results, None)
    own = (*results[:4], results[5] if job.dispersion else results[4])
    shape = job.weights.shape
    first, second, third, fourth, fifth = (x.reshape(*shape, *x.shape[2:]) for x in own if x is not None)
    return first, second, third, fourth, fifth


def values(job: DensityJob) -> torch.Tensor:
    """Structure factors (..., n) of one density, or of one for each model."""
    dtype = torch.complex64 if job.setting.dtype == torch.float32 else torch.complex128
    f = _values(_surveyed(as_atoms(job), False), dtype, (job.dispersion,), None)
    return (f / 1j if job.dispersion else f).reshape(*job.weights.shape[:-1], -1)


def gradients(seed: torch.Tensor, job: DensityJob) -> DensityGradients:
    """Gradients (sites, u_iso, u_star, weights, f' or f''), from dT/dF (..., n)."""
    ready = _surveyed(as_atoms(job), True)
    seed = seed.reshape(ready.n_models, seed.shape[-1])
    return gather(_density_gradient(seed, ready, False), job)
