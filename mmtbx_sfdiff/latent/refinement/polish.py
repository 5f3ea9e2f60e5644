"""The last stage: sites themselves with a force field's energy, and a B factor for each atom.

A decoded model still has contacts that are too close. It is relaxed within springs, and then refined by maximum
likelihood with U / kT as the prior, once more from lower resolution to the limit of the data. Before that and
halfway, side chains are tried in other rotamers, if they are given.

The likelihood, unlike the objective of a model that is far from the truth, knows from the free reflections how
large the model's errors are; an error estimated from the work set alone shrinks as noise is fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ...refinement import History
from ...refinement.weight import WeightChoice, choose_weight
from ...reflections import Reflections
from .b_factors import AtomB
from .experiment import Experiment
from .models import CartesianModel, relax
from .optimise import Settings
from .problem import Problem, with_reflections
from .refine import Run, run_model
from .side_chains import SideChainSearch

OBJECTIVE = "maximum_likelihood"
RELAX_STEPS = 60
FIRST_D_MIN = 3.5


def polish(
    problem: Problem,
    all_sites_cart: torch.Tensor,
    b: torch.Tensor,
    energy: Any = None,
    settings: Settings = Settings(),
    steps: int = 200,
    weight: float | None = None,
    relax_steps: int = RELAX_STEPS,
    first_d_min: float = FIRST_D_MIN,
    report: Callable[..., None] | None = None,
    label: str = "polish",
    rotors: Any = None,
    objective: str = OBJECTIVE,
) -> Run:
    """Polish a model.

    Parameters
    ----------
    problem : Problem
    all_sites_cart : torch.Tensor
        (n_ff, 3) Å
    b : torch.Tensor
        (n,) Å²
    energy : callable, optional
        sites (n_ff, 3) Å -> kJ/mol. Without it only B factors are restrained.
    settings : Settings
        Rate and refreshing are used.
    steps : int
    weight : float, optional
        Of U / kT; by default :func:`polish_weight` chooses it.
    relax_steps : int
    first_d_min : float
        Å, where refinement of sites begins: side chains that the generator could not turn still have to find
        their places.
    rotors : list of Rotor, optional
        Side chains that are tried in other rotamers (:mod:`.side_chains`); needs an energy.
    objective : str
        See :mod:`.objective`.

    Returns
    -------
    Run
        ``facts``: ``weight``, ``weight_tests`` if it was chosen, ``side_chains`` that were turned.
    """
    settings = _settings(settings, steps, objective, first_d_min)
    sites = all_sites_cart if energy is None or not relax_steps else relax(all_sites_cart, energy, relax_steps)
    chosen: dict[str, Any] = {}
    if energy is not None:
        if weight is None:
            choice = polish_weight(problem, sites, b, energy, settings)
            weight, chosen = choice.weight, {"weight_tests": choice.tests}
        chosen["weight"] = weight
    experiment = Experiment(problem.fmodel, settings.objective, settings.floor)

    def refined(sites: torch.Tensor, b: torch.Tensor, settings: Settings, history: History | None = None) -> Run:
        model = CartesianModel(sites, problem.rows, AtomB(b, sites[problem.rows]), energy, weight or 0.0)
        run = run_model(model, experiment, settings, label, report, history)
        run.facts |= chosen
        return run

    if not rotors or energy is None:
        return refined(sites, b, settings)
    history: History | None = None
    moves: list[dict[str, Any]] = []
    seconds = 0.0
    for part in (steps // 2, steps - steps // 2):
        experiment.limit(None)
        sites, b, turned = SideChainSearch(problem, experiment, rotors, energy, weight or 0.0).run(
            sites, b, report=report
        )
        moves += turned
        run = refined(sites, b, dataclasses.replace(settings, steps=max(1, part)), history)
        sites, b, history, seconds = run.all_sites_cart, run.b, run.history, seconds + run.seconds
    run.facts["side_chains"] = moves
    run.seconds = seconds
    return run


def _settings(settings: Settings, steps: int, objective: str, first_d_min: float = FIRST_D_MIN) -> Settings:
    return dataclasses.replace(
        settings, objective=objective, steps=steps, stages=4, first_d_min=first_d_min, annealing=0.5, rigid_steps=0
    )


def polish_b(
    problem: Problem,
    all_sites_cart: torch.Tensor,
    b: torch.Tensor,
    settings: Settings = Settings(),
    steps: int = 200,
    objective: str = OBJECTIVE,
) -> Run:
    """The same of B factors alone; a Run."""

    class Fixed(CartesianModel):
        def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
            return [group for group in super().parameter_groups(rate) if group["kind"] == "b"]

    settings = _settings(settings, steps, objective)
    model = Fixed(all_sites_cart, problem.rows, AtomB(b, all_sites_cart[problem.rows]))
    return run_model(model, Experiment(problem.fmodel, objective, settings.floor), settings, "B factors")


def polish_weight(
    problem: Problem,
    all_sites_cart: torch.Tensor,
    b: torch.Tensor,
    energy: Any,
    settings: Settings = Settings(),
    steps: int = 100,
    **options: Any,
) -> WeightChoice:
    """The force field's weight for :func:`polish`, by cross-validation inside the work set.

    Parameters
    ----------
    problem, all_sites_cart, b, energy, settings
        Of :func:`polish`; sites that were relaxed.
    steps : int
        Of each trial.
    **options
        Of :func:`~mmtbx_sfdiff.refinement.weight.choose_weight`.

    Returns
    -------
    WeightChoice
    """

    def trial(reflections: Reflections, weight: float) -> float:
        part = with_reflections(problem, reflections)
        r_free = polish(part, all_sites_cart, b, energy, settings, steps, weight, relax_steps=0).r_free
        assert r_free is not None  # of the part set aside
        return r_free

    choice: WeightChoice = choose_weight(problem.fmodel.reflections, trial, **options)
    return choice
