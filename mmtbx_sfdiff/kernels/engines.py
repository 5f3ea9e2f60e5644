"""Which engine carries out a job on a device.

An engine for densities has three functions: ``splat(job)`` gives the grid, ``values(job)`` the structure factors, and
``gradients(seed, job)`` the gradients in (sites, u_iso, u_star, weights, f' or f'').  ``SLACK`` multiplies the truncation
that the error model allows for, by how the engine cuts its Gaussians.  Where ``BATCHED``, a job may hold several models,
of ``LARGEST`` grid points in all.
"""

from __future__ import annotations

import importlib.util

import torch

HAVE_TRITON = importlib.util.find_spec("triton") is not None


def density_engine(device):
    """The fastest engine there is for a device."""
    kind = torch.device(device).type
    if kind == "cpu":
        from .cpu import density
    elif kind == "cuda" and HAVE_TRITON:
        from .cuda import density
    else:
        from .reference import density
    return density
