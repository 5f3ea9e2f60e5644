"""What a latent refinement has to beat: the same data, objective, schedule, B factors and number of steps,
but sites.

``sites``        without any prior
``sites_ff``     with the force field's energy
``average_ff``   the same, begun at the average of the trajectory that the generator was trained on
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ...numerics.superposition import superposed
from ...refinement.weight import WeightChoice, choose_weight
from ...reflections import Reflections
from .experiment import Experiment
from .models import CartesianModel, relax
from .optimise import Settings
from .problem import Problem, with_reflections
from .refine import Run, run_model

BASELINES = ("sites", "sites_ff", "average_ff")


def trajectory_average(frames: torch.Tensor, problem: Problem, energy: Any = None) -> torch.Tensor:
    """The average of superposed frames (n_frames, n_ff, 3), placed on the start and relaxed; (n_ff, 3)
    Å."""
    frames = torch.as_tensor(frames, device=problem.sites_cart.device)
    reference = problem.sites_cart
    heavy = problem.rows
    average = reference
    # Twice: superposed on the start, then on the first average.
    for _ in range(2):
        average = torch.stack([superposed(frame.to(torch.float64), average, heavy) for frame in frames]).mean(0)
    average = superposed(average, reference, heavy)
    # Averages of rotating groups are short: only a force field gives them their length back.
    return average if energy is None else relax(average, energy, steps=200, hold=1.0)


def run_baseline(
    name: str,
    problem: Problem,
    energy: Any = None,
    frames: torch.Tensor | None = None,
    settings: Settings = Settings(),
    weight: float | None = None,
    report: Callable[..., None] | None = None,
) -> Run:
    """One of :data:`BASELINES`.

    Parameters
    ----------
    name : str
    problem : Problem
    energy : callable
        sites (n_ff, 3) Å -> kJ/mol; not for ``sites``.
    frames : torch.Tensor
        (n_frames, n_ff, 3) Å; for ``average_ff``.
    settings : Settings
    weight : float, optional
        Of U / kT; by default :func:`baseline_weight` chooses it.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        An unknown name, or what it needs is missing.
    """
    if name not in BASELINES:
        raise ValueError(f"Unknown baseline {name!r}: choose from {', '.join(BASELINES)}.")
    if name != "sites" and energy is None:
        raise ValueError(f"The baseline {name} needs an energy.")
    if name == "average_ff" and frames is None:
        raise ValueError("The baseline average_ff needs the frames of a trajectory.")
    sites = problem.sites_cart
    if name == "average_ff" and frames is not None:
        sites = trajectory_average(frames, problem, energy)
    chosen: dict[str, Any] = {}
    if name == "sites":
        energy = None
    else:
        if weight is None:
            choice = baseline_weight(problem, sites, energy, settings)
            weight, chosen = choice.weight, {"weight_tests": choice.tests}
        chosen["weight"] = weight
    run = _refined(problem, sites, energy, settings, weight or 0.0, name, report)
    run.facts |= chosen
    return run


def _refined(
    problem: Problem,
    sites: torch.Tensor,
    energy: Any,
    settings: Settings,
    weight: float,
    label: str,
    report: Callable[..., None] | None = None,
) -> Run:
    model = CartesianModel(sites, problem.rows, problem.residue_b(), energy, weight)
    experiment = Experiment(problem.fmodel, settings.objective, settings.floor, settings.live_mask)
    return run_model(model, experiment, settings, label, report)


def baseline_weight(
    problem: Problem,
    sites_cart: torch.Tensor,
    energy: Any,
    settings: Settings = Settings(),
    steps: int = 100,
    **options: Any,
) -> WeightChoice:
    """The force field's weight for a refinement of sites, by cross-validation inside the work set.

    Parameters
    ----------
    problem, energy, settings
        Of :func:`run_baseline`.
    sites_cart : torch.Tensor
        (n_ff, 3) Å, where it begins.
    steps : int
        Of each trial.
    **options
        Of :func:`~mmtbx_sfdiff.refinement.weight.choose_weight`.

    Returns
    -------
    WeightChoice
    """
    short = dataclasses.replace(settings, steps=steps)

    def trial(reflections: Reflections, weight: float) -> float:
        part = with_reflections(problem, reflections)
        r_free = _refined(part, sites_cart, energy, short, weight, "trial").r_free
        assert r_free is not None  # of the part set aside
        return r_free

    choice: WeightChoice = choose_weight(problem.fmodel.reflections, trial, **options)
    return choice
