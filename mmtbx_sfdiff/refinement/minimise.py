"""Minimising one macro-cycle's target, by L-BFGS with a strong Wolfe line search or by Adam.

Both are PyTorch's own.
"""

from __future__ import annotations

import dataclasses

import torch

MINIMISERS = ("lbfgs", "adam")
_HISTORY = 20
_EVALUATIONS = 15  # of a line search, at most
_REMEMBERED = 4
_WINDOW = {"lbfgs": 5, "adam": 20}  # steps over which the decrease of the target is judged


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A target and what belongs to it; ``info`` is what the caller wants to know of each step."""

    value: float
    gradient: torch.Tensor
    info: object


def minimise(evaluate, vector, n_steps, name="lbfgs", learning_rate=0.02, tolerance=0.0, on_step=None):
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

    Returns
    -------
    Evaluation
        At the final vector.
    """
    seen = []

    def evaluated():
        # A line search ends at a point that it has evaluated; the next step begins there.
        for point, evaluation in seen:
            if torch.equal(point, vector):
                return evaluation
        evaluation = evaluate(vector)
        seen.append((vector.detach().clone(), evaluation))
        del seen[:-_REMEMBERED]
        return evaluation

    def closure():
        evaluation = evaluated()
        vector.grad = evaluation.gradient.clone()
        return torch.tensor(evaluation.value, dtype=torch.float64)

    first = evaluated()
    if name == "adam":
        optimiser = torch.optim.Adam([vector], lr=learning_rate)
    else:
        # PyTorch makes the first step 1 / |g|_1 long; with a curvature of 1 it should be the gradient itself.
        length = max(1.0, float(first.gradient.abs().sum()))
        optimiser = torch.optim.LBFGS(
            [vector],
            lr=length,
            max_iter=1,
            max_eval=_EVALUATIONS,
            history_size=_HISTORY,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
    lowest, best = [first.value], vector.detach().clone()
    for _ in range(n_steps):
        optimiser.step(closure)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate if name == "adam" else 1.0
        evaluation = evaluated()
        if not evaluation.value < float("inf"):
            break
        if evaluation.value < lowest[-1]:
            best = vector.detach().clone()
        lowest.append(min(lowest[-1], evaluation.value))
        if on_step is not None:
            on_step(evaluation)
        if len(lowest) > _WINDOW[name] and lowest[-1 - _WINDOW[name]] - lowest[-1] < tolerance:
            break
    with torch.no_grad():
        vector.copy_(best)
    return evaluated()
