"""The compiled CPU engine: numba kernels and Fourier transforms of planes and columns.

Going forward a thread puts its share of the atoms on a slab of planes, adds up a share of the planes,
transforms them along the two axes within them, and keeps the columns that hold reflections.  Then it
transforms a share of these along the remaining axis, and reads a share of the reflections.  Going back it is
the other way round.
"""

from __future__ import annotations

import functools
import math

import torch

import numpy as np

from ..checks import BadAtom
from ..jobs import DensityJob, NotPositiveDefinite
from ..threads import n_workers, run, shares
from . import gaussian as gaussian_cpu
from . import spectrum as spectrum_cpu
from .gather import gather as gather_atoms
from .pair import scratch_size
from .splat import splat as splat_atoms

_STAR = np.array([[0, 3, 4], [3, 1, 5], [4, 5, 2]])
_PACK = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
# Seconds of work on one core that are worth another thread.
_ENOUGH = 2.5e-3
_REAL = {torch.float32: np.float32, torch.float64: np.float64}
_COMPLEX = {torch.float32: np.complex64, torch.float64: np.complex128}


def _numpy(tensor):
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float64)


class _Arrays:
    """A job as the kernels take it."""

    def __init__(self, job: DensityJob):
        setting = job.setting
        grid, table = setting.grid, setting.table
        self.dims = grid.dims
        #: Rows are longer than the grid: what is beyond its end is a copy of the beginning.
        self.row = grid.dims[2] + setting.box[2]
        n = job.n_atoms
        self.sites_grid, self.order = np.empty((n, 3)), np.empty(n, np.int64)
        keys, counts = np.empty(n, np.int64), np.zeros(gaussian_cpu.n_blocks(self.dims) + 1, np.int64)
        lost = gaussian_cpu.place_atoms(
            _numpy(job.sites), grid.axes, self.dims, keys, counts, self.sites_grid, self.order
        )
        if lost:
            raise BadAtom("sites", "are not finite numbers: correct them, or leave the atom out.", lost - 1, 0, 1)
        self.u_scale = 2 * math.pi**2 * setting.s_sq
        self.e_iso = _numpy(job.u_iso) * self.u_scale
        self.e_iso -= setting.sharpening
        self.use_aniso = job.use_aniso.numpy()
        self.packing, self.geometry = _geometry(setting.cell, grid.axes, grid.dims, setting.s_sq)
        if self.use_aniso.any():
            # take(): indexing would give another order in memory, and every kernel would be compiled for it once more.
            self.ustar = _numpy(job.u_star).take(self.packing, axis=1) * (2 * math.pi**2)
        else:
            self.ustar = np.zeros((1, 6))
        self.weights, self.fp = _numpy(job.weights), _numpy(job.fp)
        constants = np.zeros_like(table.constants) if job.dispersion else table.constants
        n_terms = 0 if job.dispersion else table.alphas.shape[1]
        self.types = (job.type_index.numpy(), table.alphas, table.exponents, constants, n_terms, job.has_constant)


@functools.lru_cache(maxsize=64)
def _geometry(cell, axes, dims, s_sq):
    """Order of packed tensor components along the grid's axes, and geometry of
    :func:`gaussian_cpu.gaussian`."""
    packing = np.array([_STAR[axes[i], axes[j]] for i, j in _PACK])
    reciprocal, real = cell.reciprocal, cell.basis.T @ cell.basis
    pairs = [(axes[i], axes[j]) for i, j in _PACK]
    steps = [1.0 / (dims[i] * dims[j]) for i, j in _PACK]
    # Rounding must not make an orthogonal cell look oblique.
    clean = [abs(real[i, j]) > 1e-10 * math.sqrt(real[i, i] * real[j, j]) for i, j in pairs]
    metric = np.array([real[i, j] * step * keep for (i, j), step, keep in zip(pairs, steps, clean)])
    outline = gaussian_cpu.outline_of(math.pi**2 * s_sq * metric)
    numbers = [
        s_sq,
        *(reciprocal[i, j] for i, j in pairs),
        *metric,
        cell.volume,
        *steps,
        math.prod(dims),
        *outline,
    ]
    return packing, np.array(numbers)


def _splat_share(job, arrays, first, last):
    """The atoms order[first:last] on a slab of their own: (slab, its first plane, the planes used)."""
    setting, (nx, ny, _) = job.setting, arrays.dims
    order = arrays.order[first:last]
    x = arrays.sites_grid[order, 0]
    reach = setting.box[0] // 2 + 1
    first_plane, n_planes = int(x.min()) - reach, int(x.max()) - int(x.min()) + 2 * reach + 1
    if n_planes >= nx:
        first_plane, n_planes = 0, nx
    slab = np.zeros((n_planes, ny, arrays.row), _REAL[setting.dtype])
    work = np.empty(32)
    _check(
        splat_atoms(
            slab.reshape(-1),
            (*arrays.dims, arrays.row),
            first_plane,
            order,
            arrays.sites_grid,
            arrays.e_iso,
            arrays.ustar,
            arrays.use_aniso,
            arrays.weights,
            arrays.fp,
            arrays.types,
            arrays.geometry,
            setting.tolerance,
            setting.cuts,
            setting.box,
            np.empty(scratch_size(setting.box), slab.dtype),
            work,
        )
    )
    return slab, first_plane, (int(work[0]), int(work[1]))


def _planes(job, arrays, slabs, first, last):
    """Planes first:last of the density."""
    planes = np.zeros((last - first, *arrays.dims[1:]), _REAL[job.setting.dtype])
    for slab, first_plane, used in slabs:
        spectrum_cpu.merge(slab, first_plane, used, arrays.dims[0], first, planes)
    return planes


def _check(code):
    if code == 0:
        return
    if code < 0:
        raise ValueError(
            "The weights or displacement parameters of an atom are beyond what this calculation was set up for: its "
            "Gaussians are wider than the box they were given."
        )
    raise NotPositiveDefinite(code - 1)


def _n_threads(arrays, gradient=False):
    """Threads for which there is enough to do."""
    work = (1.3e-6 * len(arrays.order) + 4e-9 * math.prod(arrays.dims)) * (2 if gradient else 1)
    return max(1, min(n_workers(), 1 + int(work / _ENOUGH), arrays.dims[0] // 8, len(arrays.order)))


def splat(job):
    """The density grid, (n_p, n_q, n_s)."""
    arrays = _Arrays(job)
    slabs = run(
        [
            lambda a=a, b=b: _splat_share(job, arrays, a, b)
            for a, b in shares(len(arrays.order), _n_threads(arrays))
            if a < b
        ]
    )
    return torch.from_numpy(_planes(job, arrays, slabs, 0, arrays.dims[0]))


def values(job):
    """Structure factors (n,) of one density."""
    setting, arrays = job.setting, _Arrays(job)
    plan, n_p = setting.grid.packed, arrays.dims[0]
    n_threads = _n_threads(arrays)
    slabs = [None] * n_threads
    packed = np.empty((len(plan.columns), n_p), _COMPLEX[setting.dtype])
    transform = np.empty_like(packed)
    result = np.empty(setting.factor.shape[0], packed.dtype)

    def atoms(number, first, last):
        slabs[number] = _splat_share(job, arrays, first, last)

    def planes(first, last):
        half = torch.fft.rfft2(torch.from_numpy(_planes(job, arrays, slabs, first, last)))
        spectrum_cpu.pack(half.numpy().reshape(last - first, -1), plan.columns, first, packed)

    def columns(first, last):
        torch.fft.fft(torch.from_numpy(packed[first:last]), out=torch.from_numpy(transform[first:last]))

    def reflections(first, last):
        spectrum_cpu.read_reflections(
            transform.reshape(-1),
            plan.rows,
            setting.grid.conjugate.numpy(),
            setting.phase.numpy(),
            setting.factor.numpy(),
            first,
            last,
            result,
        )

    run(
        [lambda i=i, a=a, b=b: atoms(i, a, b) for i, (a, b) in enumerate(shares(len(arrays.order), n_threads))],
        [lambda a=a, b=b: planes(a, b) for a, b in shares(n_p, n_threads)],
        [lambda a=a, b=b: columns(a, b) for a, b in shares(len(plan.columns), n_threads)],
        [lambda a=a, b=b: reflections(a, b) for a, b in shares(len(result), n_threads)],
    )
    return torch.from_numpy(result)


def gradients(seed, job):
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of one density, from dT/dF (n,)."""
    setting, arrays = job.setting, _Arrays(job)
    plan, n_p = setting.grid.packed, arrays.dims[0]
    n_q, n_s = arrays.dims[1:]
    packed = np.empty((len(plan.columns), n_p), _COMPLEX[setting.dtype])
    grid = np.empty((n_p, n_q, arrays.row), _REAL[setting.dtype])
    seed = seed.resolve_conj().to(setting.phase.dtype).contiguous().numpy()

    def columns(first, last):
        spectrum = np.zeros((last - first, n_p), packed.dtype)
        spectrum_cpu.write_reflections(
            spectrum.reshape(-1),
            plan.targets - first * n_p,
            plan.kinds,
            plan.starts,
            plan.readers,
            plan.reflections,
            setting.phase.numpy().reshape(-1),
            setting.factor.numpy(),
            seed,
            plan.bounds[first],
            plan.bounds[last],
        )
        torch.fft.ifft(torch.from_numpy(spectrum), norm="forward", out=torch.from_numpy(packed[first:last]))

    def planes(first, last):
        # Along q only where s is within the band, with q contiguous; then along s.
        spectrum = np.zeros((last - first, plan.n_s, n_q), packed.dtype)
        spectrum_cpu.unpack(packed, plan.turned, first, spectrum.reshape(last - first, -1))
        half = torch.fft.ifft(torch.from_numpy(spectrum), norm="forward").numpy()
        spectrum = np.empty((last - first, n_q, n_s // 2 + 1), packed.dtype)
        spectrum_cpu.turn_back(half, spectrum)
        slab = torch.fft.irfft(torch.from_numpy(spectrum), n=n_s, norm="forward")
        grid[first:last, :, :n_s] = slab.numpy()
        spectrum_cpu.unfold(grid[first:last], n_s)

    gathered = _Gathered(job, arrays, grid)
    n_threads = _n_threads(arrays, gradient=True)
    run(
        [lambda a=a, b=b: columns(a, b) for a, b in shares(len(plan.columns), n_threads)],
        [lambda a=a, b=b: planes(a, b) for a, b in shares(n_p, n_threads)],
        [lambda a=a, b=b: gathered.add(a, b) for a, b in shares(len(arrays.order), n_threads)],
    )
    return gathered.gradients()


def gather(grid, job):
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of sum(grid * density)."""
    arrays = _Arrays(job)
    rows = np.empty((*arrays.dims[:2], arrays.row), _REAL[job.setting.dtype])
    rows[:, :, : arrays.dims[2]] = grid.detach().numpy()
    gathered = _Gathered(job, arrays, rows)
    n_threads = _n_threads(arrays, gradient=True)
    run(
        [lambda a=a, b=b: spectrum_cpu.unfold(rows[a:b], arrays.dims[2]) for a, b in shares(len(rows), n_threads)],
        [lambda a=a, b=b: gathered.add(a, b) for a, b in shares(len(arrays.order), n_threads)],
    )
    return gathered.gradients()


class _Gathered:
    """Sums over a grid (n_p, n_q, row) under each atom, and the gradients that they make."""

    def __init__(self, job, arrays, grid):
        self.job, self.arrays, self.grid = job, arrays, grid
        n = len(arrays.order)
        self.sites, self.e, self.ustar = np.zeros((n, 3)), np.zeros(n), np.zeros((n, 6))
        self.weights, self.fp = np.zeros(n), np.zeros(n)
        self.factor = job.setting.table.typical_factor if job.gradient else 0.0

    def add(self, first, last):
        """The atoms order[first:last]."""
        setting, arrays = self.job.setting, self.arrays
        _check(
            gather_atoms(
                self.grid.reshape(-1),
                (*arrays.dims, arrays.row),
                first,
                last,
                arrays.order,
                arrays.sites_grid,
                arrays.e_iso,
                arrays.ustar,
                arrays.use_aniso,
                arrays.weights,
                arrays.fp,
                arrays.types,
                arrays.geometry,
                setting.tolerance,
                setting.typical_weight,
                self.factor,
                setting.cuts,
                setting.box,
                np.empty(scratch_size(setting.box), self.grid.dtype),
                np.empty(32),
                self.sites,
                self.e,
                self.ustar,
                self.weights,
                self.fp,
            )
        )

    def gradients(self):
        """(sites, u_iso, u_star, weights, f' or f'')."""
        arrays = self.arrays
        sites, u_star = np.empty_like(self.sites), np.empty_like(self.ustar)
        for i, axis in enumerate(self.job.setting.grid.axes):
            sites[:, axis] = self.sites[:, i] * arrays.dims[i]
        u_star[:, arrays.packing] = self.ustar * (2 * math.pi**2)
        return tuple(map(torch.from_numpy, (sites, self.e * arrays.u_scale, u_star, self.weights, self.fp)))
