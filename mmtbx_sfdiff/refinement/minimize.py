"""Minimising one macro-cycle's target, by L-BFGS or by Adam.

L-BFGS (Nocedal & Wright, Numerical Optimization, algorithm 7.4) with a line search that backtracks by Armijo's condition: with a
curvature of about 1 in every variable its first step is nearly always taken, so that a step costs one evaluation.
Adam is PyTorch's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

MINIMIZERS = ("lbfgs", "adam")
_HISTORY = 20
_TRIALS = 10  # of a line search, at most
_SUFFICIENT = 1e-4
_WINDOW = {"lbfgs": 5, "adam": 20}  # steps over which the decrease of the target is judged


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A target and what belongs to it; ``info`` is what the caller wants to know of each step."""

    value: float
    gradient: torch.Tensor
    info: Any


def minimize(
    evaluate: Callable[[torch.Tensor], Evaluation],
    vector: torch.Tensor,
    n_steps: int,
    name: str = "lbfgs",
    learning_rate: float = 0.02,
    tolerance: float = 0.0,
    on_step: Callable[[Evaluation], None] | None = None,
    longest: Callable[[torch.Tensor], float] | None = None,
) -> Evaluation:
    """Move a vector downhill.

    Parameters
    ----------
    evaluate : callable
        vector -> Evaluation; its curvature should be about 1 in every variable.
    vector : torch.Tensor
        (n,) leaf; changed in place.
    n_steps : int
    name : {"lbfgs", "adam"}
    learning_rate : float
        Of Adam: length of a step in each variable.
    tolerance : float
        Stop when the last steps (five of L-BFGS, twenty of Adam) lowered the target by less.
    on_step : callable, optional
        Called with the Evaluation after each step.
    longest : callable, optional
        Direction (n,) -> the largest multiple of it that a step may be.

    Returns
    -------
    Evaluation
        At the final vector.
    """
    steps = _adam if name == "adam" else _lbfgs
    first = best = evaluate(vector)
    lowest, there = [first.value], vector.detach().clone()
    if first.value == first.value:  # not nan
        for evaluation in steps(evaluate, vector, first, n_steps, learning_rate, longest or (lambda direction: 1.0)):
            if not evaluation.value < float("inf"):
                break
            if evaluation.value < lowest[-1]:
                best, there = evaluation, vector.detach().clone()
            lowest.append(min(lowest[-1], evaluation.value))
            if on_step is not None:
                on_step(evaluation)
            if len(lowest) > _WINDOW[name] and lowest[-1 - _WINDOW[name]] - lowest[-1] < tolerance:
                break
    with torch.no_grad():
        vector.copy_(there)
    return best


def _lbfgs(
    evaluate: Callable[[torch.Tensor], Evaluation],
    vector: torch.Tensor,
    here: Evaluation,
    n_steps: int,
    learning_rate: float,
    longest: Callable[[torch.Tensor], float],
) -> Iterator[Evaluation]:
    """Yield the Evaluation after each step; ends where no step lowers the target."""
    shifts: list[torch.Tensor] = []
    changes: list[torch.Tensor] = []
    for _ in range(n_steps):
        direction = _direction(here.gradient, shifts, changes)
        slope = float(here.gradient @ direction)
        if not slope < 0:
            shifts, changes = [], []
            direction = -here.gradient
            slope = float(here.gradient @ direction)
            if not slope < 0:
                return
        start, length = vector.detach().clone(), min(1.0, longest(direction))
        for _ in range(_TRIALS):
            with torch.no_grad():
                vector.copy_(start + length * direction)
            new = evaluate(vector)
            if new.value <= here.value + _SUFFICIENT * length * slope:
                break
            # The minimum of the parabola through what is known, within limits.
            curvature = new.value - here.value - slope * length
            better = -slope * length / (2 * curvature) if curvature > 0 else 0.5
            length *= min(0.5, max(0.1, better)) if better == better else 0.1
        else:
            with torch.no_grad():
                vector.copy_(start)
            if not shifts:
                return
            shifts, changes = [], []  # once more along the gradient itself
            continue
        shift, change = length * direction, new.gradient - here.gradient
        if float(shift @ change) > 1e-10 * float(shift @ shift):
            shifts, changes = [*shifts, shift][-_HISTORY:], [*changes, change][-_HISTORY:]
        here = new
        yield here


def _direction(gradient: torch.Tensor, shifts: list[torch.Tensor], changes: list[torch.Tensor]) -> torch.Tensor:
    direction = gradient.clone()
    alphas: list[float] = []
    for s, y in zip(reversed(shifts), reversed(changes)):
        alphas.append(float(s @ direction) / float(s @ y))
        direction -= alphas[-1] * y
    if shifts:
        direction *= min(10.0, max(0.1, float(shifts[-1] @ changes[-1]) / float(changes[-1] @ changes[-1])))
    for s, y, alpha in zip(shifts, changes, reversed(alphas)):
        direction += s * (alpha - float(y @ direction) / float(s @ y))
    return -direction


def _adam(
    evaluate: Callable[[torch.Tensor], Evaluation],
    vector: torch.Tensor,
    here: Evaluation,
    n_steps: int,
    learning_rate: float,
    longest: Callable[[torch.Tensor], float],
) -> Iterator[Evaluation]:
    optimiser = torch.optim.Adam([vector], lr=learning_rate)
    for _ in range(n_steps):
        vector.grad = here.gradient.clone()
        optimiser.step()
        here = evaluate(vector)
        yield here
