"""The weight of a prior (a force field's energy) against the data, by cross-validation inside the work set.

A random part of the work set is kept as a test; short refinements with different weights see neither it nor the
free set, and the weight whose model fits the test best is taken. The free set itself, which is to say at the end
how good the model is, is never looked at.

Weights are tried from the middle of a grid downhill, so that three or four of them are enough as a rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from ..reflections import Reflections

WEIGHTS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FRACTION = 0.1


@dataclasses.dataclass(frozen=True)
class WeightChoice:
    """The weight that was chosen.

    Attributes
    ----------
    weight : float
    tests : dict
        R of the test reflections for each weight that was tried.
    """

    weight: float
    tests: dict[float, float]


def with_test_set(reflections: Reflections, fraction: float = FRACTION, seed: int = 0) -> Reflections:
    """The work set alone, a random part of it in the place of the free set.

    Parameters
    ----------
    reflections : Reflections
    fraction : float
        Of the work set.
    seed : int

    Returns
    -------
    Reflections

    Raises
    ------
    ValueError
        Too few reflections for a test.
    """
    work: Reflections = reflections.select(reflections.work)
    n_test = round(fraction * len(work))
    if n_test < 20:
        raise ValueError(f"{len(work)} reflections are too few to choose a weight with a part of them: give one.")
    order = torch.randperm(len(work), generator=torch.Generator().manual_seed(seed)).to(work.f_obs.device)
    flags = torch.zeros(len(work), dtype=torch.bool, device=work.f_obs.device)
    flags[order[:n_test]] = True
    return dataclasses.replace(work, r_free_flags=flags)


def choose_weight(
    reflections: Reflections,
    trial: Callable[[Reflections, float], float],
    weights: Sequence[float] = WEIGHTS,
    first: float = 3.0,
    fraction: float = FRACTION,
    seed: int = 0,
) -> WeightChoice:
    """The best weight by cross-validation inside the work set.

    Parameters
    ----------
    reflections : Reflections
    trial : callable
        (reflections, weight) -> R of their free set after a refinement against them, a float.
    weights : sequence of float
        In ascending order.
    first : float
        Of the weights, the one to begin with.
    fraction, seed
        See :func:`with_test_set`.

    Returns
    -------
    WeightChoice
    """
    part = with_test_set(reflections, fraction, seed)
    weights = list(weights)
    tests: dict[float, float] = {}

    def test(index: int) -> float:
        weight = weights[index]
        if weight not in tests:
            tests[weight] = float(trial(part, weight))
        return tests[weight]

    here = weights.index(first)
    for step in (1, -1):
        begin = here
        while 0 <= here + step < len(weights) and test(here + step) < test(here):
            here += step
        if here != begin:
            break
    return WeightChoice(weights[here], dict(sorted(tests.items())))
