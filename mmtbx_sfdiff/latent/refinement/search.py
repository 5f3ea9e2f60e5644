"""The search for a model that is wrong by ångströms: several refinements of the latent vector, of which the likeliest is taken.

A tenth of the work set is set apart. Every start is refined by likelihood gain, rigid bodies first, the mask following every
step. The free set has no part in it. What is caught elsewhere by then is for :mod:`.rebuild`.

Most starts see all data from the first step. With sigmaA a function of resolution what a poor model cannot say of fine detail has no
weight; but where a part of it is right, its high resolution data hold that part and show where the next one belongs, while the few
reflections at 6 Å can be fitted by moving everything: of a small protein there are fewer of them than torsions.
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


@dataclasses.dataclass(frozen=True)
class Start:
    """Where and how a refinement begins.

    Attributes
    ----------
    temperature : float
        T: the prior is T times as wide.
    rate : float
        Of the latent vector, in standard deviations a step.
    first_d_min : float, optional
        Å, of the data it begins with; all without.
    rigid : bool
        Whether rigid bodies come first.
    noise : float
        Standard deviation of what is added to the latent vector, in units of the prior at that temperature.
    """

    temperature: float = 1.0
    rate: float = 0.16
    first_d_min: float | None = None
    rigid: bool = True
    noise: float = 0.0


STARTS = (Start(2.0), Start(4.0), Start(2.0, rigid=False))


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes
    ----------
    starts : sequence of Start
    rigid_steps, steps : int
        Of each start that begins with rigid bodies; of each start.
    rigid_d_min : float
        Å, of the data for rigid bodies.
    learning_rate : float
        Of placement and B factors, in units of the latent vector's.
    fraction : float
        Of the work set, set apart.
    """

    starts: Sequence[Start] = STARTS
    rigid_steps: int = 20
    steps: int = 100
    rigid_d_min: float = 6.0
    learning_rate: float = 0.04
    fraction: float = FRACTION

    @property
    def n_steps(self) -> int:
        """Evaluations of the target with its gradient, all together."""
        rigid = sum(start.rigid for start in self.starts) * self.rigid_steps
        return rigid + len(self.starts) * self.steps


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
        Of all starts, the likeliest first; ``facts`` has ``test_gain``, nats of the reflections set apart, and
        ``start``, its number; the first one's also ``screened``, the gains (nats) of all starts.

    Raises
    ------
    ValueError
        No starts; too few reflections to set a part of them apart.
    """
    if not settings.starts:
        raise ValueError("A search needs at least one start.")
    parted = with_reflections(problem, with_test_set(problem.fmodel.reflections, settings.fraction, seed))
    with torch.no_grad():
        origin, _ = prior.encode(problem.sites_cart[None])
    found = []
    for number, start in enumerate(settings.starts):
        random = torch.Generator().manual_seed(1000 * seed + number)
        noise = torch.randn(len(origin[0]), generator=random, dtype=torch.float64).to(origin)
        model = LatentModel(
            prior,
            origin[0] + start.temperature * start.noise * noise,
            problem.rows,
            problem.residue_b(),
            problem.chain_index,
            problem.sites_cart,
            start.temperature**-2,
            start.rate / settings.learning_rate,
        )
        how = Settings(
            objective="likelihood_gain",
            steps=settings.steps,
            rigid_steps=settings.rigid_steps * start.rigid,
            rigid_d_min=settings.rigid_d_min,
            first_d_min=start.first_d_min or parted.fmodel.reflections.d_min,
            stages=4 if start.first_d_min else 1,
            learning_rate=settings.learning_rate,
            last_rate=0.2,
            refresh=10,
            live_mask=True,
        )
        run, gain = _scored(model, parted, how, f"start {number + 1}", report)
        run.facts |= {"test_gain": gain, "start": number}
        found.append(run)
    found.sort(key=lambda run: run.objective)
    found[0].facts["screened"] = {str(run.facts["start"]): -run.objective for run in found}
    return found


def _scored(model: LatentModel, problem: Problem, settings: Settings, label: str, report: Any) -> tuple[Run, float]:
    """A refinement, and the gain of the reflections set apart."""
    experiment = Experiment(problem.fmodel, settings.objective, live_mask=True)
    run = run_model(model, experiment, settings, label, report)
    with torch.no_grad():
        return run, float(experiment.gain(experiment.part.f_model(f_mask=experiment.f_mask), test=True))
