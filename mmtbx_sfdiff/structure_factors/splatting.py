"""What the FFT asks of an engine that puts atoms on a grid, the choice of one, and what it costs.

An engine has three functions: ``splat(job)`` gives the grid, ``values(job)`` the structure factors, and
``gradients(seed, job)`` the gradients in (sites, u_iso, u_star, weights, f' or f'').  ``SLACK`` multiplies
the truncation that the error model allows for, by how the engine cuts its Gaussians.  Where ``BATCHED``, a job
may hold several models, of ``LARGEST`` grid points in all.
"""
from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math

import numpy as np
import torch


class FFTUnsuitable(ValueError):
    """The FFT cannot do what is asked; direct summation can."""


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """The atoms of one density: tensors (n_atoms, ...) of one model, or (n_models, n_atoms, ...).

    ``fp`` is a constant term added to the form factor, or all of it when ``dispersion``; ``gradient`` says
    whether its gradient is wanted, so that zero terms are kept.
    """

    atoms: object
    setting: object
    sites: torch.Tensor
    u_iso: torch.Tensor
    u_star: torch.Tensor
    weights: torch.Tensor
    fp: torch.Tensor
    dispersion: bool
    gradient: bool

    @property
    def has_constant(self):
        return bool(self.dispersion or self.gradient or self.setting.table.constants.any()
                    or (self.fp != 0).any())


HAVE_NUMBA = importlib.util.find_spec("numba") is not None
_HAVE_TRITON = importlib.util.find_spec("triton") is not None


def engine(device):
    """The fastest engine there is for a device."""
    kind = torch.device(device).type
    if kind == "cpu" and HAVE_NUMBA:
        from . import engine_cpu
        return engine_cpu
    if kind == "cuda" and _HAVE_TRITON:
        from . import splat_cuda
        return splat_cuda
    from . import splat_torch
    return splat_torch


def own_threads(device):
    """For compiled kernels on the CPU: keep torch's pool out of their way, see :mod:`.workers`."""
    if HAVE_NUMBA and torch.device(device).type == "cpu":
        from . import workers
        return workers.own_threads()
    return contextlib.nullcontext()


# Measured, ns on one core, for values and for gradients: a block of eight points under a pair of Gaussians, a
# column of blocks of one plane, an atom and pair, a grid point's transform.
_COSTS = {False: (1.7, 8.0, 300.0, 4.0), True: (3.0, 30.0, 400.0, 7.0)}


def cost(model, index, norms, orders, cache, dims, n_atoms, mean_exponent, accuracy):
    """Estimated time of the values (``orders`` (0,)) or the gradients of one model, ns on one core."""
    from .error_model import SHARPENINGS

    block, column, pair, point = _COSTS[orders != (0,)]
    table, width_first, width_step, level_first, level_step = model.cut_table(index, norms, orders)
    level = math.log(model.tolerance(norms, 1.0, accuracy, 2) / 3.0)
    j = int(np.clip((level - level_first) / level_step, 0, table.shape[1] - 1))
    lengths = np.linalg.norm(cache.basis, axis=1)
    axes = cache.plan().axes
    total = 0.0
    exponents = np.median(cache.table.exponents, axis=0) if cache.table.exponents.size else np.zeros(0)
    if cache.table.constants.any() or not len(exponents):
        exponents = np.append(exponents, 0.0)
    exponents = np.sort(exponents)
    for first in range(0, len(exponents), 2):
        width = max(float(exponents[first:first + 2].max()) + mean_exponent - SHARPENINGS[index], 0.05)
        i = int(np.clip((math.log(width) - width_first) / width_step, 0, table.shape[0] - 1))
        radius = math.sqrt(width * max(table[i, j], 0.5) / cache.s_sq) / math.pi
        half = [radius * lengths[axis] * n for axis, n in zip(axes, dims)]
        columns = 2 * half[2] / 8 + 0.6
        total += pair + columns * (2 * half[0] * column + block * math.pi * half[0] * half[1])
    return n_atoms * total + math.prod(dims) * point
