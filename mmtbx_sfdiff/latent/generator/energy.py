"""Potential energies from OpenMM as a torch function with a gradient."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import numpy as np

from .requirements import require
from .units import NM_PER_ANGSTROM, md_value


def make_context(system: Any, integrator: Any, platform: str = "CPU", threads: int = 1) -> Any:
    """An OpenMM context whose results do not depend on timing.

    Parameters
    ----------
    system : openmm.System
    integrator : openmm.Integrator
    platform : str
        ``"CPU"``, ``"Reference"``, ``"CUDA"`` or ``"OpenCL"``.
    threads : int
        For the CPU platform.

    Returns
    -------
    openmm.Context

    Raises
    ------
    ValueError
        For a platform this OpenMM does not have.
    """
    openmm = require("openmm")
    names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if platform not in names:
        raise ValueError(f"OpenMM has no platform {platform!r} here, but {', '.join(names)}.")
    properties = {
        "CPU": {"Threads": str(threads), "DeterministicForces": "true"},
        "CUDA": {"Precision": "mixed", "DeterministicForces": "true"},
        "OpenCL": {"Precision": "mixed"},
    }.get(platform, {})
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)


class OpenMMEnergy:
    """The energy of a System at given sites, differentiable once.

    Parameters
    ----------
    system : openmm.System
        Constraints do not act: the energy is evaluated where the atoms are.
    platform : str
        ``"CPU"`` (forces in single precision), ``"Reference"`` (double precision, slow), ``"CUDA"``.
    threads : int
        Of each context, on the CPU platform.
    n_contexts : int
        Conformers evaluated at the same time.

    Examples
    --------
    >>> energy = OpenMMEnergy(system)
    >>> sites = model.sites_cart.clone().requires_grad_()
    >>> value = energy(sites)
    >>> (gradient,) = torch.autograd.grad(value, sites)
    >>> energies, gradients = energy.energy_and_gradient(model.sites_cart[None].numpy())
    >>> bool(torch.allclose(gradient, torch.from_numpy(gradients[0]))), energies.shape
    (True, (1,))
    """

    def __init__(self, system: Any, platform: str = "CPU", threads: int = 1, n_contexts: int = 1) -> None:
        if n_contexts < 1:
            raise ValueError("n_contexts must be at least 1.")
        openmm = require("openmm")
        self.n_atoms = system.getNumParticles()
        self.platform = platform
        self._contexts = [
            make_context(system, openmm.VerletIntegrator(0.001), platform, threads) for _ in range(n_contexts)
        ]
        self._pool = ThreadPoolExecutor(n_contexts) if n_contexts > 1 else None
        self._owner = os.getpid()

    def __call__(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """Potential energy.

        Parameters
        ----------
        sites_cart : torch.Tensor
            (..., n_ff, 3), Å.

        Returns
        -------
        torch.Tensor
            (...), kJ/mol, of the dtype of `sites_cart`. Infinite, with no gradient, where sites are not
            finite or OpenMM finds no number.

        Raises
        ------
        ValueError
            When the number of atoms does not fit.
        """
        if sites_cart.shape[-2:] != (self.n_atoms, 3):
            raise ValueError(f"sites_cart has shape {tuple(sites_cart.shape)}, the system {self.n_atoms} atoms.")
        energy: torch.Tensor = _Energy.apply(sites_cart, self)
        return energy

    def energy_and_gradient(self, sites_cart: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Energies and their gradients as NumPy arrays.

        Parameters
        ----------
        sites_cart : numpy.ndarray
            (n, n_ff, 3), Å.

        Returns
        -------
        energy : numpy.ndarray
            (n,) float64, kJ/mol.
        gradient : numpy.ndarray
            (n, n_ff, 3) float64, kJ/mol/Å.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("an OpenMMEnergy works only in the process that made it: make one after the fork.")
        sites = np.ascontiguousarray(sites_cart, dtype=np.float64)
        energy, gradient = np.empty(len(sites)), np.empty(sites.shape)

        def work(worker: int) -> None:
            for i in range(worker, len(sites), len(self._contexts)):
                energy[i], gradient[i] = self._one(self._contexts[worker], sites[i])

        if self._pool is None:
            work(0)
        else:
            list(self._pool.map(work, range(len(self._contexts))))
        return energy, gradient

    def _one(self, context: Any, sites: np.ndarray) -> Any:
        if not np.isfinite(sites).all() or np.abs(sites).max() > 1e6:
            return np.inf, 0.0
        openmm = require("openmm")
        try:
            context.setPositions(sites * NM_PER_ANGSTROM)
            state = context.getState(getEnergy=True, getForces=True)
        except openmm.OpenMMException:  # a NaN
            return np.inf, 0.0
        energy = md_value(state.getPotentialEnergy())
        forces = md_value(state.getForces(asNumpy=True)) * -NM_PER_ANGSTROM
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            return np.inf, 0.0
        return energy, forces


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sites_cart: torch.Tensor, bridge: Any) -> Any:
        flat = sites_cart.detach().reshape(-1, bridge.n_atoms, 3)
        energy, gradient = bridge.energy_and_gradient(flat.cpu().numpy())
        ctx.save_for_backward(torch.from_numpy(gradient).to(sites_cart).reshape(sites_cart.shape))
        return torch.from_numpy(energy).to(sites_cart).reshape(sites_cart.shape[:-2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return grad[..., None, None] * gradient, None


def log_clip(energy: Any, e_high: float, e_max: float = float("inf")) -> torch.Tensor:
    """An energy that grows only with its logarithm above `e_high` and not at all above `e_max`.

    One overlapping pair of atoms has an energy that would drown everything else in a mean over samples.

    Parameters
    ----------
    energy : torch.Tensor
        Any unit.
    e_high, e_max : float
        In the same unit.

    Returns
    -------
    torch.Tensor
        energy below `e_high`, then e_high + log(1 + energy - e_high), constant from `e_max` on.

    Raises
    ------
    ValueError
        When `e_max` is below `e_high`.

    Examples
    --------
    >>> log_clip(torch.tensor([5.0, 10.0, 1e9]), e_high=10.0, e_max=1e6).tolist()
    [5.0, 10.0, 23.81550...]
    """
    if e_max < e_high:
        raise ValueError(f"e_max ({e_max}) must not be below e_high ({e_high}).")
    clipped = torch.clamp(energy, max=e_max)
    excess = torch.clamp(clipped - e_high, min=0.0)
    return torch.where(clipped > e_high, e_high + torch.log1p(excess), clipped)
