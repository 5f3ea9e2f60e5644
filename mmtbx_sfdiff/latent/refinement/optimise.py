"""The loop that all refinements here share: Adam, from low to high resolution, scales and mask refreshed on
the way.

A stage is a resolution limit and a number of steps. The first, of rigid bodies alone, is at very low
resolution; then everything moves while the limit goes to that of the data; then the rate decays. The free set
feeds no gradient and decides nothing; its R factor is recorded.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from ...refinement import Settings as CoordinateSettings
from ...refinement.settings import History, resolution_schedule
from ...reflections import Reflections
from .experiment import Experiment
from .objective import FLOOR, OBJECTIVES

_LEAST_REFLECTIONS = 60


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to optimise.

    Attributes
    ----------
    objective : {"floored_gaussian", "least_squares", "maximum_likelihood", "likelihood_gain"}
    floor : float
        See :mod:`.objective`.
    steps : int
        Of all stages but that of rigid bodies.
    rigid_steps : int
    rigid_d_min : float
        Å.
    first_d_min : float
        Å, of the first stage in which everything moves.
    stages : int
        In how many the limit reaches that of the data.
    annealing : float
        Fraction of the steps before it does.
    learning_rate : float
        Of the latent vector, in standard deviations a step; other variables in proportion.
    last_rate : float
        What the rate decays to, as a fraction, over the steps at full resolution.
    refresh : int
        Steps between two determinations of scales and mask.
    live_mask : bool
        Whether the mask follows every step, and its gradient counts.
    """

    objective: str = "floored_gaussian"
    floor: float = FLOOR
    steps: int = 400
    rigid_steps: int = 50
    rigid_d_min: float = 6.0
    first_d_min: float = 4.5
    stages: int = 6
    annealing: float = 0.6
    learning_rate: float = 0.05
    last_rate: float = 0.1
    refresh: int = 50
    live_mask: bool = False


def check_settings(settings: Settings) -> None:
    """Refuse impossible settings with a ValueError."""
    if settings.objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {settings.objective!r}.")
    for name, least in (("steps", 1), ("rigid_steps", 0), ("stages", 1), ("refresh", 1)):
        if not getattr(settings, name) >= least:
            raise ValueError(f"{name} must be at least {least}, not {getattr(settings, name)!r}.")
    for name in ("rigid_d_min", "first_d_min", "learning_rate", "floor"):
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name} must be positive, not {getattr(settings, name)!r}.")
    for name in ("annealing", "last_rate"):
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"{name} must be between 0 and 1, not {getattr(settings, name)!r}.")


def stages(reflections: Reflections, settings: Settings) -> list[tuple[float | None, int]]:
    """[(limit in Å or None, steps)] of the stages in which everything moves."""
    # The schedule of the coordinate refinement; a prior makes the number of reflections for each atom of no concern.
    limits = resolution_schedule(
        reflections,
        1,
        CoordinateSettings(first_d_min=settings.first_d_min, resolution_cycles=settings.stages),
        per_atom=_LEAST_REFLECTIONS,
    )
    before = round(settings.annealing * settings.steps) if len(limits) > 1 else 0
    n = len(limits) - 1
    parts = [before * (i + 1) // n - before * i // n for i in range(n)] if n else []
    return [stage for stage in zip(limits, [*parts, settings.steps - before]) if stage[1]]


def optimise(
    model: Any,
    experiment: Experiment,
    settings: Settings = Settings(),
    history: History | None = None,
    report: Callable[..., None] | None = None,
    label: str = "refinement",
) -> History:
    """Minimise the experiment's objective plus the model's penalty.

    Parameters
    ----------
    model : LatentModel or CartesianModel
        Changed in place.
    experiment : Experiment
    settings : Settings
    history : History, optional
        To go on with.
    report : callable, optional
        Called with (what is being done, fraction done).
    label : str
        Of this run, in the history.

    Returns
    -------
    History
        ``steps``: target (objective plus penalty), objective, penalty, R factors of every step; ``cycles``:
        stages.

    Raises
    ------
    ValueError
        Impossible settings; data that no scales can be determined for.
    """
    check_settings(settings)
    history = history or History()
    plan = [(limit, steps, False) for limit, steps in stages(experiment.whole.reflections, settings)]
    reflections = experiment.whole.reflections
    rigid = int((reflections.d_spacings >= settings.rigid_d_min).sum()) >= _LEAST_REFLECTIONS
    if settings.rigid_steps and rigid and any(g["kind"] == "placement" for g in model.parameter_groups(1.0)):
        plan.insert(0, (settings.rigid_d_min, settings.rigid_steps, True))
    run = _Loop(model, experiment, settings, history, report, label, sum(steps for _, steps, _ in plan))
    for number, (limit, steps, rigid) in enumerate(plan):
        run.stage(limit, steps, rigid, last=number == len(plan) - 1)
    return history


class _Loop:
    def __init__(
        self,
        model: Any,
        experiment: Experiment,
        settings: Settings,
        history: History,
        report: Callable[..., None] | None,
        label: str,
        total: int,
    ) -> None:
        self.model, self.experiment, self.settings, self.history = model, experiment, settings, history
        self.report = report or (lambda step, fraction=None: None)
        self.label, self.total, self.taken = label, total, 0
        self.optimiser = torch.optim.Adam(model.parameter_groups(settings.learning_rate))
        self.rates = [group["lr"] for group in self.optimiser.param_groups]

    def stage(self, limit: float | None, steps: int, rigid: bool, last: bool) -> None:
        start = time.perf_counter()
        self.experiment.limit(limit)
        cycle = len(self.history.cycles) + 1
        first = None
        for step in range(steps):
            if step % self.settings.refresh == 0:
                with torch.no_grad():
                    state = self.model()
                self.experiment.refresh(state.sites_cart, state.b)
            decay = math.cos(0.5 * math.pi * step / steps) ** 2 if last else 1.0
            self._set_rates(rigid, self.settings.last_rate + (1 - self.settings.last_rate) * decay)
            info = self._step()
            first = first or info
            self.history.steps.append(
                {
                    "step": len(self.history.steps),
                    "cycle": cycle,
                    "run": self.label,
                    "function": self.settings.objective,
                    **info,
                }
            )
            self.taken += 1
            self.report(f"{self.label}: R-work {info['r_work']:.4f}", self.taken / self.total)
        assert first is not None  # a stage has steps
        part = self.experiment.part.reflections
        self.history.cycles.append(
            {
                "cycle": cycle,
                "run": self.label,
                "d_min": part.d_min,
                "n_reflections": len(part),
                "steps": steps,
                "rigid": rigid,
                "target": self.settings.objective,
                "r_work_start": first["r_work"],
                "r_work": info["r_work"],
                "r_free": info["r_free"],
                "seconds": time.perf_counter() - start,
            }
        )

    def _set_rates(self, rigid: bool, factor: float) -> None:
        for group, rate in zip(self.optimiser.param_groups, self.rates):
            group["lr"] = rate * factor * (not rigid or group["kind"] == "placement")

    def _step(self) -> dict[str, Any]:
        self.optimiser.zero_grad(set_to_none=True)
        state = self.model()
        value = self.experiment(state.sites_cart, state.b)
        total = value.objective + state.penalty
        total.backward()
        gradients = [p.grad for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
        # A step with an infinite energy would poison Adam's memory for good.
        if all(bool(torch.isfinite(g).all()) for g in gradients):
            self.optimiser.step()
        return {
            "target": float(total.detach()),
            "objective": float(value.objective.detach()),
            "penalty": float(state.penalty.detach()),
            "r_work": value.r_work,
            "r_free": value.r_free,
            **self.model.facts(),
        }
