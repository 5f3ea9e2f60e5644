"""What a method is: its public function, the two computations behind it, and the table of those by name."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..plans import Plan
from .scatterers import Gradients, Scatterers

DEFAULT_MEMORY = 256 * 2**20


class Method(Protocol):
    """A method's public function: an entry of ``METHODS``.

    Examples
    --------
    >>> from mmtbx_sfdiff.structure_factors import METHODS
    >>> sorted(METHODS), METHODS["direct"](atoms, crystal, data.miller_indices).shape
    (['direct', 'fft'], torch.Size([881]))
    """

    def __call__(
        self,
        atoms: Atoms,
        plan: Plan | Crystal,
        miller_indices: Any = None,
        accuracy: float = 1e-4,
        memory: int = DEFAULT_MEMORY,
    ) -> torch.Tensor:
        """F (..., n) of atoms (..., n_atoms) on a plan, or on a crystal and indices."""
        ...


class Values(Protocol):
    """F (n_models, n) of scatterers."""

    def __call__(self, scatterers: Scatterers, plan: Plan, accuracy: float, memory: int) -> torch.Tensor: ...


class ParameterGradients(Protocol):
    """Gradients in (sites, u_iso, u_star, weights, fp, fdp), each where it is wanted, from dT/dF (n_models, n)."""

    def __call__(
        self,
        scatterers: Scatterers,
        plan: Plan,
        accuracy: float,
        memory: int,
        grad: torch.Tensor,
        wanted: tuple[bool, ...],
    ) -> Gradients: ...


@dataclasses.dataclass(frozen=True)
class Machine:
    """How a method computes: both get one batch dimension, at least one model, atom and reflection, and good numbers."""

    values: Values
    gradients: ParameterGradients


_machines: dict[str, Machine] = {}


def register(name: str, machine: Machine) -> None:
    """Make a method known by name to the operations."""
    _machines[name] = machine


def machine(name: str) -> Machine:
    """The machine registered under a method's name."""
    return _machines[name]
