"""Refinement in the latent space of a generator: several starts, the best of them by the work set.

Each start is a latent vector: that of the placed model, the same scaled towards the origin (a starting model
is often outside the typical set, which has norm sqrt(n)), the origin, and scaled ones with noise. All are
optimised in the same way; the one with the lowest target is taken: objective of the work set plus penalty,
never an R factor of the free set.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...atom_arrays import EIGHT_PI_SQ
from ...fmodel import FModel
from ...refinement import History
from .experiment import Experiment
from .models import LatentModel
from .optimise import Settings, check_settings, optimise
from .problem import Problem

# (scale of the encoded model, standard deviation of the noise)
STARTS = ((1.0, 0.0), (0.7, 0.0), (0.4, 0.0), (0.0, 0.0), (0.7, 0.5), (0.4, 0.7), (0.0, 0.5), (1.0, 0.5))


@dataclasses.dataclass(eq=False)
class Run:
    """One optimisation.

    Attributes
    ----------
    label : str
    sites_cart : torch.Tensor
        (n, 3) Å, of the atoms that the data see.
    all_sites_cart : torch.Tensor
        (n_ff, 3) Å
    b : torch.Tensor
        (n,) Å²
    target, objective, penalty : float
        At the end, of the work set at full resolution.
    r_work, r_free : float
        Against all data, with scales and outliers determined.
    history : History
    facts : dict
    seconds : float
    z : torch.Tensor or None
    fmodel : FModel
    """

    label: str
    sites_cart: torch.Tensor
    all_sites_cart: torch.Tensor
    b: torch.Tensor
    target: float
    objective: float
    penalty: float
    r_work: float
    r_free: float | None
    history: History
    facts: dict[str, Any]
    seconds: float
    fmodel: object
    z: torch.Tensor | None = None

    def model_in(self, fmodel: FModel) -> FModel:
        """Another FModel of the same atoms with this run's sites and B factors, in its precision."""
        atoms = fmodel.atoms
        sites, u_iso = (
            self.sites_cart.to(atoms.sites_cart),
            (self.b.to(torch.float64) / EIGHT_PI_SQ).to(atoms.sites_cart),
        )
        return fmodel.with_(atoms=atoms.replace(sites_cart=sites, u_iso=u_iso))

    def summary(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        names = ("label", "target", "objective", "penalty", "r_work", "r_free", "facts", "seconds")
        return {name: getattr(self, name) for name in names}


def run_model(
    model: Any,
    experiment: Experiment,
    settings: Settings,
    label: str,
    report: Callable[..., None] | None = None,
    history: History | None = None,
) -> Run:
    """Optimise a model and measure the result.

    Returns
    -------
    Run
    """
    start = time.perf_counter()
    history = optimise(model, experiment, settings, history, report, label)
    with torch.no_grad():
        state = model()
        experiment.limit(None)
        experiment.refresh(state.sites_cart, state.b)
        value = experiment(state.sites_cart, state.b)
        fmodel = experiment.finished(state.sites_cart, state.b)
    r_work, r_free = fmodel.r_factors()
    objective, penalty = float(value.objective), float(state.penalty)
    z = getattr(model, "z", None)
    return Run(
        label,
        state.sites_cart.detach(),
        state.all_sites_cart.detach(),
        state.b.detach(),
        objective + penalty,
        objective,
        penalty,
        r_work,
        r_free if experiment.has_free else None,
        history,
        model.facts(),
        time.perf_counter() - start,
        fmodel,
        None if z is None else z.detach().clone(),
    )


def encode_start(problem: Problem, generator: Any) -> torch.Tensor:
    """(n_latent,) latent vector of the placed model."""
    with torch.no_grad():
        z: torch.Tensor = generator.encode(problem.sites_cart[None])[0]
    if not bool(torch.isfinite(z).all()):
        raise ValueError(
            "The starting model has no finite latent vector: it lies outside of what the generator was trained on."
        )
    return z[0]


def refine_latent(
    problem: Problem,
    generator: Any,
    settings: Settings = Settings(),
    starts: Sequence[tuple[float, float]] = STARTS[:4],
    seed: int = 0,
    prior_weight: float = 1.0,
    report: Callable[..., None] | None = None,
    on_run: Any = None,
) -> list[Run]:
    """Refine from several starts.

    Parameters
    ----------
    problem : Problem
    generator : object
        See :class:`~mmtbx_sfdiff.latent.refinement.models.LatentModel`.
    settings : Settings
    starts : sequence of (float, float)
        Scale of the encoded model and noise.
    seed : int
        Of the noise.
    prior_weight : float
    report : callable, optional
        (what is being done, fraction).
    on_run : callable, optional
        Called with each Run as it ends.

    Returns
    -------
    list of Run
        All of them, the best first.

    Raises
    ------
    ValueError
        No starts; impossible settings; a starting model that cannot be encoded.
    """
    check_settings(settings)
    if not starts:
        raise ValueError("At least one start is needed.")
    z0 = encode_start(problem, generator)
    experiment = Experiment(problem.fmodel, settings.objective, settings.floor, settings.live_mask)
    runs = []
    for number, (scale, noise) in enumerate(starts):
        random = torch.Generator().manual_seed(seed * 1000 + number)
        z = scale * z0
        if noise:
            z = z + noise * torch.randn(z.shape, generator=random, dtype=torch.float64).to(z)
        model = LatentModel(
            generator,
            z,
            problem.rows,
            problem.residue_b(),
            problem.chain_index,
            problem.sites_cart,
            prior_weight,
        )
        run = run_model(
            model,
            experiment,
            settings,
            f"start {number + 1}: {scale:g} z" + (f", noise {noise:g}" if noise else ""),
            report,
        )
        run.facts["z_norm_start"] = float(z.norm()) / z.numel() ** 0.5
        runs.append(run)
        if on_run is not None:
            on_run(run)
    return sorted(runs, key=lambda run: run.target)
