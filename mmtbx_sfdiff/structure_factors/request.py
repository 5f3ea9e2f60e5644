"""The arguments of an operation, looked up by their handles and checked, and its results, checked too."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from ..crystal import Crystal
from ..kernels import checks, deferred, opaque
from ..plans import Plan, plan_of
from .methods import Machine, machine
from .scatterers import PARAMETERS, Scatterers


def crystal_and_plan(crystal: int, place: int, indices: torch.Tensor, device: torch.device) -> tuple[Crystal, Plan]:
    """What the handles of the atoms' crystal, and of a plan or a crystal, stand for.

    Raises
    ------
    ValueError
        Atoms of another crystal than the plan's.
    """
    own: Crystal = opaque.held(crystal)
    given: Plan | Crystal = opaque.held(place)
    other = given.crystal if isinstance(given, Plan) else given
    if not own.is_same_as(other):
        raise ValueError(f"The atoms belong to {own!r}, not to {other!r}.")
    return own, given.to(device) if isinstance(given, Plan) else plan_of(own, indices)


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """The arguments of an operation, looked up and checked."""

    scatterers: Scatterers
    plan: Plan
    machine: Machine
    accuracy: float
    memory: int
    bad: torch.Tensor | None

    @classmethod
    def make(
        cls,
        parameters: Sequence[torch.Tensor],
        shared: Sequence[torch.Tensor],
        crystal: int,
        form_factors: int,
        place: int,
        method: str,
        accuracy: float,
        memory: int,
    ) -> Request:
        *parameters, residual = parameters
        *shared, indices = shared
        named = dict(zip(PARAMETERS, parameters))
        checks.check_same("the atoms", named, (torch.float32, torch.float64))
        bad = checks.note_numbers(named)
        if bad is not None:
            parameters = checks.harmless(named)
            residual = residual.nan_to_num(0.0, 0.0, 0.0)
        own, plan = crystal_and_plan(crystal, place, indices, residual.device)
        scatterers = Scatterers.make(parameters, residual, shared, own, opaque.held(form_factors))
        return cls(scatterers, plan, machine(method), accuracy, memory, bad)

    @property
    def empty(self) -> bool:
        return 0 in (*self.scatterers.weights.shape, len(self.plan))

    def zeros(self) -> torch.Tensor:
        """F of no models, no atoms, no reflections."""
        s = self.scatterers
        return torch.zeros((s.n_models, len(self.plan)), dtype=s.complex_dtype, device=s.device)

    def answer(
        self, name: str, results: Sequence[torch.Tensor], seed: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Results (n_models, ...), NaN for models of which a number was bad, where nobody could wait to know."""
        bad = self.bad
        if bad is None:
            return list(results)
        found = [torch.where(bad.reshape(-1, *[1] * (x.ndim - 1)), math.nan, x) for x in results]
        if found:
            # Another reason for what is not finite is written down as well; and what the host knows by now is said.
            deferred.not_finite(name, found[0], seed)
        checks.look(bad.device)
        return found

    def directions(self, tensors: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
        """Six tensors a direction, as the kernels take them."""
        n = len(PARAMETERS)
        return [self.scatterers.direction(tensors[i : i + n]) for i in range(0, len(tensors), n)]


def check_result(s: Scatterers, results: Sequence[torch.Tensor], seed: torch.Tensor | None = None) -> None:
    """Raise where numbers overflowed on the way, unless they were none to begin with.

    Raises
    ------
    BadAtom
        The atom with the largest displacement parameters.
    """
    if deferred.is_deferred(s.device) or _finite(results) or (seed is not None and not _finite([seed])):
        return
    size = s.u_iso.abs() + s.u_star.abs().sum(-1)
    model, atom = divmod(int(size.argmax()), s.n_atoms)
    raise checks.BadAtom(
        "the displacement parameters",
        "are so large that numbers overflow: correct them, or leave the atom out.",
        atom,
        model,
        s.n_models,
    )


def _finite(values: Sequence[torch.Tensor]) -> bool:
    """Whether all are; one pass where they are."""
    total = checks.square_sum(values)
    return (total is not None and math.isfinite(total)) or all(bool(torch.isfinite(x).all()) for x in values)
