"""The compiled CPU engine: numba kernels run from a small pool of threads."""
from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from . import gaussian_cpu, spectrum_cpu
from .gather_cpu import gather as gather_atoms
from .splat_cpu import splat as splat_atoms
from .splatting import FFTUnsuitable

_STAR = np.array([[0, 3, 4], [3, 1, 5], [4, 5, 2]])
_PACK = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
# Rows run on beyond the cut to a multiple of eight points, so that the cut may be this much nearer.
SLACK = 1.0
_lock = threading.Lock()
_pool = None


def _run(calls):
    """Run functions at the same time, the last one here; results in order."""
    global _pool
    if len(calls) == 1:
        return [calls[0]()]
    with _lock:
        if _pool is None or _pool._max_workers < len(calls) - 1:
            _pool = ThreadPoolExecutor(len(calls) - 1, thread_name_prefix="sfdiff-splat")
        futures = [_pool.submit(call) for call in calls[:-1]]
    last = calls[-1]()
    return [future.result() for future in futures] + [last]


def _numpy(tensor, dtype=torch.float64):
    return tensor.detach().to(dtype).contiguous().numpy()


class _Arrays:
    """A job as the kernels take it."""

    def __init__(self, job):
        setting, atoms = job.setting, job.atoms
        grid, table = setting.grid, setting.table
        self.dims = grid.dims
        axes = grid.axes
        n = len(job.weights)
        self.sites_grid, self.order = np.empty((n, 3)), np.empty(n, np.int64)
        gaussian_cpu.place_atoms(_numpy(job.sites), axes, self.dims, self.sites_grid, self.order)
        self.u_scale = 2 * math.pi ** 2 * setting.s_sq
        self.e_iso = _numpy(job.u_iso) * self.u_scale
        self.e_iso -= setting.sharpening
        #: Packed components of a symmetric tensor in the grid's order of axes.
        self.packing = np.array([_STAR[axes[i], axes[j]] for i, j in _PACK])
        if bool(atoms.use_u_aniso.any()):
            self.ustar = np.ascontiguousarray(_numpy(job.u_star)[:, self.packing]) * (2 * math.pi ** 2)
        else:
            self.ustar = np.broadcast_to(np.zeros(6), (n, 6))
        self.use_aniso = atoms.use_u_aniso.numpy()
        self.weights = _numpy(job.weights)
        self.fp = _numpy(job.fp)
        self.constants = np.zeros_like(table.constants) if job.dispersion else table.constants
        n_terms = 0 if job.dispersion else table.alphas.shape[1]
        self.types = (atoms.type_index.numpy(), table.alphas, table.exponents, self.constants, n_terms,
                      job.has_constant)
        crystal = atoms.crystal
        reciprocal = crystal.reciprocal_metric.numpy()
        real = (crystal.orthogonalization.T @ crystal.orthogonalization).numpy()
        pairs = [(axes[i], axes[j]) for i, j in _PACK]
        steps = [1.0 / (self.dims[i] * self.dims[j]) for i, j in _PACK]
        # Rounding must not make an orthogonal cell look oblique.
        clean = [abs(real[i, j]) > 1e-10 * math.sqrt(real[i, i] * real[j, j]) for i, j in pairs]
        metric = np.array([real[i, j] * step * keep for (i, j), step, keep in zip(pairs, steps, clean)])
        self.geometry = np.array(
            [setting.s_sq, *(reciprocal[i, j] for i, j in pairs), *metric, crystal.volume, *steps,
             grid.n_points,
             *gaussian_cpu.outline_of(math.pi ** 2 * setting.s_sq * metric)])


def splat(job):
    """The density grid, (n_p, n_q, n_s)."""
    setting, arrays = job.setting, _Arrays(job)
    grid = torch.zeros(arrays.dims, dtype=setting.dtype)
    flat = grid.numpy().reshape(-1)
    size = gaussian_cpu.scratch_size(setting.box)
    n_threads = max(1, min(torch.get_num_threads(), arrays.dims[0] // 4, len(arrays.order) // 64))
    bounds = _slabs(arrays.sites_grid[:, 0], arrays.dims[0], n_threads)

    def call(first, last):
        def run():
            return splat_atoms(
                flat, arrays.dims, (first, last), arrays.order, arrays.sites_grid, arrays.e_iso, arrays.ustar,
                arrays.use_aniso, arrays.weights, arrays.fp, arrays.types, arrays.geometry, setting.tolerance,
                setting.cuts, setting.box, np.empty(size, flat.dtype), np.empty(32))
        return run

    _check(_run([call(a, b) for a, b in zip(bounds, bounds[1:]) if a < b]), job)
    return grid


def _slabs(x, n, n_threads):
    """Bounds of slabs with the same number of atoms."""
    if n_threads == 1:
        return [0, n]
    inner = np.partition(x, [len(x) * i // n_threads for i in range(1, n_threads)])
    return [0, *(int(inner[len(x) * i // n_threads]) for i in range(1, n_threads)), n]


def _check(codes, job):
    bad = [code for code in codes if code != 0]
    if not bad:
        return
    if min(bad) < 0:
        raise RuntimeError("An atom is wider than the box it was given: please report this structure.")
    i = bad[0] - 1
    label = job.atoms.labels[i].strip()
    raise FFTUnsuitable(
    f"The displacement parameters of atom {i} ({label}) are not positive definite enough for the FFT: "
    "raise them, or use method='direct'.")


def read(transform, setting):
    """Structure factors (n,) from the transform of the grid."""
    grid = setting.grid
    n = setting.factor.shape[0]
    result = torch.empty(n, dtype=transform.dtype)
    arguments = [x.numpy() for x in (transform.reshape(-1), grid.rows,
                         grid.conjugate, setting.phase, setting.factor)]
    out = result.numpy()
    _run([lambda a=a, b=b: spectrum_cpu.read_reflections(*arguments, a, b, out) for a, b in _ranges(n)])
    return result


def _ranges(n, least=2048):
    n_threads = max(1, min(torch.get_num_threads(), n // least))
    edges = [n * i // n_threads for i in range(n_threads + 1)]
    return list(zip(edges, edges[1:]))


def write(grad, setting):
    """Half-complex spectrum of dT/d(grid)."""
    grid = setting.grid
    spectrum = torch.zeros(grid.spectrum_shape, dtype=setting.phase.dtype)
    arguments = [x.numpy() for x in (spectrum.reshape(-1), grid.targets, grid.mirror, grid.starts,
                         grid.sources, grid.conjugate, setting.phase, setting.factor, grad.contiguous())]
    _run([lambda a=a, b=b: spectrum_cpu.write_reflections(*arguments, a, b)
         for a, b in _ranges(len(grid.targets))])
    return spectrum


def gather(grid, job):
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of one density."""
    setting, arrays = job.setting, _Arrays(job)
    n = len(arrays.order)
    flat = grid.contiguous().numpy().reshape(-1)
    size = gaussian_cpu.scratch_size(setting.box)
    grad_sites, grad_e, grad_ustar = np.zeros((n, 3)), np.zeros(n), np.zeros((n, 6))
    grad_weights, grad_fp = np.zeros(n), np.zeros(n)
    factor = setting.table.typical_factor if job.gradient else 0.0

    def call(first, last):
        def run():
            return gather_atoms(
    flat,
    arrays.dims,
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
    factor,
    setting.cuts,
    setting.box,
    np.empty(
        size,
        flat.dtype),
        np.empty(32),
        grad_sites,
        grad_e,
        grad_ustar,
        grad_weights,
         grad_fp)
        return run

    _check(_run([call(a, b) for a, b in _ranges(n, 64)]), job)
    sites = np.empty((n, 3))
    for i, axis in enumerate(setting.grid.axes):
        sites[:, axis] = grad_sites[:, i] * arrays.dims[i]
    u_star = np.empty((n, 6))
    u_star[:, arrays.packing] = grad_ustar * (2 * math.pi ** 2)
    return tuple(map(torch.from_numpy, (sites, grad_e * arrays.u_scale, u_star, grad_weights, grad_fp)))
