"""The search for a model that is wrong by ångströms: many short refinements of the latent vector, few long ones.

A tenth of the work set is set apart. Every start, a latent vector with its temperature T (the prior is T times as wide), is refined from
low resolution to a middle one by likelihood gain, with rigid bodies first and the mask following every step; those under which the
reflections set apart are likeliest go on to the limit of the data, where the prior weighs little, and the likeliest of them is taken. The
free set has no part in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...refinement.weight import FRACTION, with_test_set
from .experiment import Experiment
from .models import LatentModel
from .optimise import Settings
from .problem import Problem, with_reflections
from .refine import Run, run_model

# (temperature, standard deviation of the noise that the start gets, in units of the prior at that temperature)
STARTS = ((1.0, 0.0), (2.0, 0.0), (1.0, 0.7), (2.0, 0.5), (1.0, 0.7), (2.0, 0.5))


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes
    ----------
    starts : tuple of (float, float)
        Temperature and noise of each.
    rigid_steps, short_steps, long_steps : int
        Of each start; of each start in the first round; of those that go on.
    middle_d_min : float
        Å, where the first round ends.
    first_d_min : float
        Å, where it begins.
    kept : int
        How many go on.
    learning_rate : float
        Of the latent vector, in standard deviations a step.
    fraction : float
        Of the work set, set apart.
    release : float
        Factor of the prior's weight in the second round, from 0 to 1: what data to high resolution ask of stiff torsions and of side
        chains the prior is not to forbid.
    """

    starts: Sequence[tuple[float, float]] = STARTS
    rigid_steps: int = 20
    short_steps: int = 60
    long_steps: int = 160
    middle_d_min: float = 3.5
    first_d_min: float = 6.0
    kept: int = 2
    learning_rate: float = 0.08
    fraction: float = FRACTION
    release: float = 1 / 16

    @property
    def n_steps(self) -> int:
        """Evaluations of the target with its gradient, all together."""
        return len(self.starts) * (self.rigid_steps + self.short_steps) + self.kept * self.long_steps


def search(
    problem: Problem,
    prior: Any,
    settings: SearchSettings = SearchSettings(),
    seed: int = 0,
    report: Callable[..., None] | None = None,
) -> list[Run]:
    """Refine the latent vector from several starts.

    Parameters
    ----------
    problem : Problem
    prior : object
        With ``n_latent``, ``encode`` and ``decode``: :class:`~mmtbx_sfdiff.latent.ElasticNetwork`,
        :class:`~mmtbx_sfdiff.latent.BoltzmannGenerator`.
    settings : SearchSettings
    seed : int
        Of the reflections set apart, and of the noise.
    report : callable, optional
        (what is being done, fraction).

    Returns
    -------
    list of Run
        Those that went to the limit of the data, the best first; ``facts`` has ``test_gain``, nats of the reflections set apart, and
        ``start``, its number; the best one's also ``screened``, the gains of all starts.

    Raises
    ------
    ValueError
        No starts; a release that is no fraction; too few reflections to set a part of them apart.
    """
    if not settings.starts or settings.kept < 1:
        raise ValueError("A search needs at least one start, and one that goes on.")
    if not 0 <= settings.release <= 1:
        raise ValueError(f"release must be between 0 and 1, not {settings.release!r}.")
    parted = with_reflections(problem, with_test_set(problem.fmodel.reflections, settings.fraction, seed))
    reflections = parted.fmodel.reflections
    middle = with_reflections(parted, reflections.select(reflections.d_spacings >= settings.middle_d_min))
    short = Settings(
        objective="likelihood_gain",
        steps=settings.short_steps,
        rigid_steps=settings.rigid_steps,
        rigid_d_min=settings.first_d_min,
        first_d_min=settings.first_d_min,
        stages=3,
        learning_rate=settings.learning_rate,
        last_rate=0.5,
        refresh=20,
        live_mask=True,
    )
    long = dataclasses.replace(
        short,
        steps=settings.long_steps,
        rigid_steps=0,
        first_d_min=settings.middle_d_min,
        stages=4,
        last_rate=0.1,
        refresh=40,
    )
    with torch.no_grad():
        origin, _ = prior.encode(problem.sites_cart[None])
    found = []
    for number, (temperature, noise) in enumerate(settings.starts):
        random = torch.Generator().manual_seed(1000 * seed + number)
        z = origin[0] + temperature * noise * torch.randn(len(origin[0]), generator=random, dtype=torch.float64).to(
            origin
        )
        model = LatentModel(
            prior,
            z,
            problem.rows,
            problem.residue_b(),
            problem.chain_index,
            problem.sites_cart,
            temperature**-2,
            temperature,
        )
        run, gain = _scored(model, middle, short, f"start {number + 1}", report)
        found.append((gain, number, model))
    found.sort(key=lambda item: -item[0])
    runs = []
    for _, number, model in found[: settings.kept]:
        model.prior_weight = model.prior_weight * settings.release
        run, gain = _scored(model, parted, long, f"start {number + 1}, all data", report)
        run.facts |= {"test_gain": gain, "start": number}
        runs.append(run)
    runs.sort(key=lambda run: -run.facts["test_gain"])
    runs[0].facts["screened"] = {str(number): gain for gain, number, _ in found}
    return runs


def _scored(model: LatentModel, problem: Problem, settings: Settings, label: str, report: Any) -> tuple[Run, float]:
    """A refinement, and the gain of the reflections set apart."""
    experiment = Experiment(problem.fmodel, settings.objective, live_mask=True)
    run = run_model(model, experiment, settings, label, report)
    with torch.no_grad():
        return run, float(experiment.gain(experiment.part.f_model(f_mask=experiment.f_mask), test=True))
