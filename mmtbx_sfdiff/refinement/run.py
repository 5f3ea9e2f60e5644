"""Refinement of sites and displacement parameters against the data, in macro-cycles.

Each macro-cycle determines scales (and, for maximum likelihood, alpha and beta) of the reflections to its
resolution limit, then minimises the target with them held fixed. The limit moves from low to high resolution, so
that atoms far from their places are not caught in side minima.

A restraint (:mod:`.restraint`) holds the model to known geometry; without one bonds are held by the data alone. The free set feeds no
gradient and decides no weight and no stop. It enters, as in mmtbx, alpha and beta and some choices among scales (R of whole
resolution bins).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import numpy as np

from ..atoms import Atoms
from ..bulk_solvent import DEFAULT_MASK
from ..fmodel import FModel
from ..likelihood import targets
from .curvature import Curvature
from .likelihood import cross_validated
from .minimize import Evaluation, minimize
from .occupancies import rounded
from .parameters import Parameters
from .restraint import LibraryRestraint, Restraint
from .settings import History, Settings, check_settings, next_target, resolution_schedule
from .variables import Variables

_WITHOUT_GRADIENT = ("binary",)
_DAMPING = 0.5
_ATOMIC_RESOLUTION, _REFLECTIONS_PER_VARIABLE = 1.55, 1.8
Placer = Callable[[np.ndarray], np.ndarray]


def refine(
    fmodel: FModel,
    settings: Settings = Settings(),
    history: History | None = None,
    on_cycle: Callable[[FModel, History], None] | None = None,
    report: Callable[[str, float | None], None] | None = None,
    restraint: Any = None,
    parents: torch.Tensor | None = None,
    parameters: Parameters | None = None,
    place: Placer | None = None,
) -> tuple[FModel, History]:
    """Refine a model against its data.

    Parameters
    ----------
    fmodel : FModel
        It is not changed.
    settings : Settings
    history : History, optional
        Of an earlier run whose last macro-cycle ended with this model; the run goes on from there.
    on_cycle : callable, optional
        Called with (the FModel, History) after each macro-cycle.
    report : callable, optional
        Called with (what is being done, fraction of the macro-cycle that is done).
    restraint : callable, optional
        Sites (n_atoms, 3) Å -> -ln of a prior, nats, such as :class:`mmtbx_sfdiff.latent.refinement.restraint.ForceFieldRestraint`;
        its ``update(sites_cart)`` is called as each macro-cycle begins.
    parents : torch.Tensor, optional
        Of :class:`~.variables.Variables`.
    parameters : Parameters, optional
        Which atoms share variables, and which occupancies are refined; by default none do and none are.
    place : callable, optional
        Sites (n_atoms, 3) Å -> the same with hydrogens in place, both numpy.ndarray; called as each macro-cycle begins, and at the end.

    Returns
    -------
    FModel, History
        With scales of all reflections determined.

    Raises
    ------
    ValueError
        Impossible settings; data that no scales can be determined for; a least-squares target without sigmas.
    """
    check_settings(settings)
    report = report or _silent
    history = history or History()
    parameters = parameters or Parameters()
    atoms = parameters.prepared(fmodel.atoms)
    if restraint is not None and not isinstance(restraint, Restraint):
        restraint = Restraint(restraint)
    if restraint is not None:
        restraint.resume(history.cycles)
    schedule = resolution_schedule(fmodel.reflections, atoms.n_atoms, settings)
    while (target := next_target(history, settings)) is not None:
        number = len(history.cycles) + 1
        d_min = schedule[min(number, len(schedule)) - 1]
        current = _part(fmodel, _placed(atoms, place), d_min)
        atoms = _Cycle(current, settings, number, target, history, report, restraint, parents, parameters).run()
        if on_cycle is not None:
            on_cycle(_part(fmodel, atoms, None), history)
    report("scales", None)
    result = fmodel.with_(atoms=rounded(_placed(atoms, place), parameters.alternatives))
    result.update_scales(remove_outliers=settings.remove_outliers)
    return result, history


def _silent(step: str, fraction: float | None) -> None:
    pass


def _part(fmodel: FModel, atoms: Atoms, d_min: float | None) -> FModel:
    """The model with those atoms and the reflections to a limit; without scales."""
    reflections = fmodel.reflections
    if d_min is not None:
        reflections = reflections.select(reflections.d_spacings >= d_min)
    return fmodel.with_(atoms=atoms, reflections=reflections, refine=())


class _Cycle:
    """One macro-cycle."""

    def __init__(
        self,
        fmodel: FModel,
        settings: Settings,
        number: int,
        target: str,
        history: History,
        report: Callable[[str, float | None], None],
        restraint: Restraint | None = None,
        parents: torch.Tensor | None = None,
        parameters: Parameters = Parameters(),
    ) -> None:
        self.restraint, self.parents, self.parameters = restraint, parents, parameters.of_cycle(number)
        self.fmodel, self.settings, self.history, self.report = fmodel, settings, history, report
        self.number, self.target = number, target
        method = fmodel.mask_options.get("method", DEFAULT_MASK)
        follows = settings.mask_update == "step" or (settings.mask_update == "auto" and method not in _WITHOUT_GRADIENT)
        self.mask_follows = follows and settings.sites
        self.taken = 0

    def run(self) -> Atoms:
        start = time.perf_counter()
        settings, fmodel = self.settings, self.fmodel
        self.report(f"macro-cycle {self.number}: scales", None)
        scales = fmodel.update_scales(remove_outliers=settings.remove_outliers)
        self.work = scales.selection & fmodel.reflections.work
        if self.restraint is not None:
            self.restraint.update(fmodel.atoms)
        if self.target == "maximum_likelihood":
            self._estimate()
        with torch.no_grad():
            self.f_mask = None if self.mask_follows else fmodel.f_mask(mates=True)
            # alpha and beta belong to the model as it is now.
            curvature = self._curvature()
        adp = settings.adp and (self.number >= settings.adp_from_cycle or not settings.sites)
        self.adp = adp
        variables = Variables(fmodel.atoms, settings.sites, adp, self.parents, self._scaled(), self.parameters)
        unit = variables.precondition(curvature, self._curvature_of_restraint())
        vector = variables.vector()
        first = self._evaluate(variables, vector, unit)
        if self.number == 1 and not self.history.steps:
            self._record(first)
        end = minimize(
            lambda v: self._evaluate(variables, v, unit),
            vector,
            settings.steps,
            settings.minimiser,
            settings.learning_rate,
            self._tolerance(first.value * unit) / unit / 10,
            self._record,
            variables.longest,
        )
        last = end.info["target"]
        with torch.no_grad():
            atoms = _detached(variables(vector))
        self._close(first, end, last, adp, atoms, time.perf_counter() - start, variables.tls_groups(vector))
        return atoms

    def _estimate(self) -> None:
        """alpha and beta of the model as it is now."""
        fmodel = self.fmodel
        with torch.no_grad():
            self.alpha_beta = cross_validated(fmodel.reflections, fmodel.f_model(), fmodel.in_use())

    def _target(self, f_model: torch.Tensor) -> torch.Tensor:
        reflections, used = self.fmodel.reflections, self.fmodel.in_use()
        if self.target != "maximum_likelihood":
            return self.fmodel.target(self.target, f_model=f_model)
        return targets.maximum_likelihood(reflections, f_model, self.alpha_beta, **used)

    def _scaled(self) -> bool:
        """Whether anisotropic atoms keep the shape of their tensors."""
        if self.parameters.anisotropic is not None:
            return False
        if self.settings.anisotropic != "auto":
            return self.settings.anisotropic == "scaled"
        atoms = self.fmodel.atoms
        n_variables = 4 * atoms.n_atoms + 5 * int(atoms.use_u_aniso.sum())
        reflections = self.fmodel.reflections
        enough = int(self.work.sum()) >= _REFLECTIONS_PER_VARIABLE * n_variables
        return not (enough and reflections.d_min <= _ATOMIC_RESOLUTION)

    @property
    def _damping(self) -> float:
        if self.settings.damping is not None:
            return self.settings.damping
        return 0.0 if isinstance(self.restraint, LibraryRestraint) else _DAMPING

    @property
    def _nats(self) -> float:
        """The likelihood is a mean over reflections; the sum of squares is twice a sum of logarithms."""
        return 1 / max(1, int(self.work.sum())) if self.target == "maximum_likelihood" else 2.0

    def _curvature_of_restraint(self) -> tuple[torch.Tensor | None, ...]:
        if self.restraint is None:
            return None, None
        return tuple(None if c is None else self._nats * c for c in self.restraint.curvature(self.fmodel.atoms))

    def _tolerance(self, value: float) -> float:
        return self.settings.tolerance * (abs(value) if self.target != "maximum_likelihood" else 1.0)

    def _evaluate(self, variables: Variables, vector: torch.Tensor, unit: float) -> Evaluation:
        fmodel = self.fmodel
        fmodel.atoms = variables(vector)
        f_model = fmodel.f_model(f_mask=self.f_mask)
        value = self._target(f_model)
        held = None
        if self.restraint is not None:
            held = self._nats * self.restraint.energy(fmodel.atoms, self.settings.sites, self.adp)
            value = value + held
        (gradient,) = torch.autograd.grad(value / unit, vector)
        value = value.detach()
        with torch.no_grad():
            penalty, gradient_of_penalty = variables.damping(vector, self._damping)
            gradient += gradient_of_penalty
            r_work, r_free = targets.r_factors(fmodel.reflections, f_model, **fmodel.in_use())
        info = {"target": float(value), "r_work": float(r_work), "r_free": self._free(r_free)}
        if held is not None:
            info["restraint"] = float(held.detach())
        return Evaluation(float(value) / unit + penalty, gradient, info)

    def _free(self, r_free: torch.Tensor) -> float | None:
        """For the record only."""
        return None if self.fmodel.reflections.r_free_flags is None else float(r_free)

    def _curvature(self) -> Curvature:
        """Of the target, with the weight that each reflection has in it."""
        fmodel, work = self.fmodel, self.work
        reflections, scales = fmodel.reflections, fmodel.known_scales()
        k = scales.k_total[work].to(torch.float64)
        if self.target != "maximum_likelihood":
            if reflections.sigmas is None:
                raise ValueError(
                    "The least-squares target needs the standard deviations of f_obs, and there are "
                    "none: use the maximum-likelihood target."
                )
            sigmas = reflections.sigmas[work].to(torch.float64) / scales.f_obs_scale
            weights = torch.where(sigmas > 0, 2 / sigmas.square(), 0.0)
        else:
            ab = self.alpha_beta
            spread = (ab.epsilons * ab.beta)[work].to(torch.float64).clamp(min=1e-3)
            weights = 2 * ab.alpha[work].to(torch.float64).square() / spread / max(1, int(work.sum()))
        d_star_sq = reflections.crystal.d_star_sq(reflections.miller_indices[work])
        return Curvature(reflections.crystal, d_star_sq, weights * k.square())

    def _record(self, evaluation: Evaluation) -> None:
        steps = self.history.steps
        steps.append({"step": len(steps), "cycle": self.number, "function": self.target, **evaluation.info})
        self.taken += 1
        self.report(
            f"macro-cycle {self.number}: R-work {evaluation.info['r_work']:.4f}",
            min(1.0, self.taken / self.settings.steps),
        )

    def _close(
        self,
        first: Evaluation,
        end: Evaluation,
        last: float,
        adp: bool,
        atoms: Atoms,
        seconds: float,
        tls: list[dict[str, Any]],
    ) -> None:
        reflections = self.fmodel.reflections
        before = first.info["target"]
        decrease = before - last
        if self.target != "maximum_likelihood":
            decrease /= abs(before) or 1.0
        parameters = ["sites"] * self.settings.sites + ["adp"] * adp
        parameters += ["occupancies"] * bool(self.parameters.alternatives or self.parameters.alone)
        self.history.cycles.append(
            {
                "cycle": self.number,
                "d_min": reflections.d_min,
                "n_reflections": len(reflections),
                "n_used": int(self.fmodel.selection.sum()),
                "target": self.target,
                "refined": parameters,
                "mask_gradient": self.mask_follows,
                "steps": self.taken,
                "target_start": before,
                "target_end": last,
                "decrease": decrease,
                "r_work_start": first.info["r_work"],
                "r_free_start": first.info["r_free"],
                "r_work": end.info["r_work"],
                "r_free": end.info["r_free"],
                "seconds": seconds,
            }
            | ({"tls": tls} if tls else {})
            | ({} if self.restraint is None else self.restraint.close(atoms))
        )


def _placed(atoms: Atoms, place: Placer | None) -> Atoms:
    if place is None:
        return atoms
    sites = place(atoms.sites_cart.detach().cpu().to(torch.float64).numpy())
    placed: Atoms = atoms.replace(sites_cart=torch.from_numpy(sites).to(atoms.sites_cart))
    return placed


def _detached(atoms: Atoms) -> Atoms:
    names = ("sites_cart", "u_iso", "u_star", "occupancies")
    detached: Atoms = atoms.replace(**{name: getattr(atoms, name).detach() for name in names})
    return detached
