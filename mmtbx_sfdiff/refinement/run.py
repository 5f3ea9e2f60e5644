"""Refinement of sites and displacement parameters against the data, in macro-cycles.

Each macro-cycle determines scales (and, for maximum likelihood, alpha and beta) of the reflections to its
resolution limit, then minimises the target with them held fixed. The limit moves from low to high resolution, so
that atoms far from their places are not caught in side minima.

A restraint (:mod:`.restraint`) holds the model to known geometry; without one bonds are held by the data alone. The free set feeds no
gradient and decides no weight and no stop. It enters, as in mmtbx, alpha and beta and some choices among scales (R of whole
resolution bins).
"""

from __future__ import annotations

import dataclasses
import math
import time

import torch

from ..bulk_solvent import DEFAULT_MASK
from ..fmodel import TARGETS
from ..likelihood import targets
from .curvature import Curvature
from .likelihood import cross_validated
from .minimize import MINIMIZERS, Evaluation, minimize
from .occupancies import rounded
from .parameters import Parameters
from .restraint import LibraryRestraint, Restraint
from .variables import Variables

_WITHOUT_GRADIENT = ("binary",)
MASK_UPDATES = ("auto", "step", "cycle")
_DAMPING = 0.5
ANISOTROPIC = ("auto", "free", "scaled")
_ATOMIC_RESOLUTION, _REFLECTIONS_PER_VARIABLE = 1.55, 1.8
# A macro-cycle of fewer reflections, for each atom, would fit noise.
_REFLECTIONS_PER_ATOM = 3.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to refine.

    Attributes
    ----------
    target : {"maximum_likelihood", "least_squares", "intensity_least_squares"}
    minimiser : {"lbfgs", "adam"}
    sites, adp : bool
        What is refined.
    cycles, steps : int
        Macro-cycles at most, and steps in each at most.
    first_d_min : float
        Resolution limit (Å) of the first macro-cycle; those up to ``resolution_cycles`` go on to the data's limit.
    resolution_cycles : int
        In how many macro-cycles the limit reaches that of the data; 1: at once.
    adp_from_cycle : int
        First macro-cycle in which displacement parameters are refined.
    least_squares_cycles : int
        So many of the macro-cycles, the last ones, by least squares.
    mask_update : {"auto", "step", "cycle"}
        With ``step``, the mask follows every step and its gradient counts; with ``cycle`` it is held fixed within
        a macro-cycle. ``auto``: step, for masks that have a gradient.
    damping : float, optional
        In each macro-cycle, shifts are held back by a spring with this share of the curvature that the data are
        expected to have for a median atom. It keeps atoms that the data hardly see from running away, and does not
        change where a converged refinement ends. None: 0.5 without a restraint of the geometry, 0 with one.
    learning_rate : float
        Of Adam, Å.
    tolerance : float
        Macro-cycles end when one lowers the target of the work set by less: for maximum likelihood in natural
        logarithms for each reflection, for least squares as a fraction.
    remove_outliers : bool
    anisotropic : {"auto", "free", "scaled"}
        Whether anisotropic atoms refine six variables each or the size of their tensor alone. ``auto``: six where the data reach 1.55 Å and
        are at least 1.8 times as many as the variables then.
    """

    target: str = "maximum_likelihood"
    minimiser: str = "lbfgs"
    sites: bool = True
    adp: bool = True
    cycles: int = 8
    steps: int = 20
    first_d_min: float = 3.0
    resolution_cycles: int = 1
    adp_from_cycle: int = 1
    least_squares_cycles: int = 0
    mask_update: str = "auto"
    damping: float | None = None
    learning_rate: float = 0.02
    tolerance: float = 0.01
    remove_outliers: bool = True
    anisotropic: str = "auto"


@dataclasses.dataclass
class History:
    """What happened: one dictionary for each macro-cycle, and one for each step."""

    cycles: list = dataclasses.field(default_factory=list)
    steps: list = dataclasses.field(default_factory=list)


def check_settings(settings):
    """Refuse impossible settings with a ValueError."""
    for name, allowed in (
        ("target", TARGETS),
        ("minimiser", MINIMIZERS),
        ("mask_update", MASK_UPDATES),
        ("anisotropic", ANISOTROPIC),
    ):
        if getattr(settings, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(settings, name)!r}.")
    for name, least in (
        ("cycles", 1),
        ("steps", 1),
        ("resolution_cycles", 1),
        ("adp_from_cycle", 1),
        ("least_squares_cycles", 0),
    ):
        if not getattr(settings, name) >= least:
            raise ValueError(f"{name} must be at least {least}, not {getattr(settings, name)!r}.")
    if settings.damping is not None and not 0 <= settings.damping < math.inf:
        raise ValueError(f"damping must not be negative, not {settings.damping!r}.")
    for name in ("first_d_min", "learning_rate", "tolerance"):
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name} must be positive, not {getattr(settings, name)!r}.")
    if not (settings.sites or settings.adp):
        raise ValueError("Nothing is refined: set sites or adp.")


def refine(
    fmodel,
    settings=Settings(),
    history=None,
    on_cycle=None,
    report=None,
    restraint=None,
    parents=None,
    parameters=None,
    place=None,
):
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
    report = report or (lambda step, fraction=None: None)
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


def resolution_schedule(reflections, n_atoms, settings, per_atom=_REFLECTIONS_PER_ATOM):
    """Resolution limits (Å) of the first macro-cycles; None stands for all data.

    Limits that leave fewer than ``per_atom`` reflections for each atom are skipped.
    """
    d_min = reflections.d_min
    limits = []
    first = max(settings.first_d_min, d_min)
    n = settings.resolution_cycles - 1
    for i in range(n):
        # Equal steps in the number of reflections would waste cycles: equal steps in 1/d.
        limit = 1 / (1 / first + (1 / d_min - 1 / first) * i / n)
        enough = int((reflections.d_spacings >= limit).sum()) >= per_atom * n_atoms
        if limit > d_min * 1.001 and enough:
            limits.append(limit)
    return limits + [None]


def next_target(history, settings):
    """Target of the next macro-cycle, or None when there is to be none.

    Refinement by ``settings.target`` ends with a macro-cycle, at full resolution and with everything refined, that
    lowers its target by less than the tolerance; the least-squares cycles asked for follow.
    """
    done, final = history.cycles, settings.least_squares_cycles
    if settings.target != "maximum_likelihood":
        final = 0
    n_final = sum(cycle["target"] != settings.target for cycle in done)
    if n_final == 0 and len(done) < settings.cycles - final and not _converged(done, settings):
        return settings.target
    return "least_squares" if n_final < final else None


def _converged(cycles, settings):
    everything = max(settings.resolution_cycles, settings.adp_from_cycle if settings.adp and settings.sites else 1)
    return len(cycles) >= everything and cycles[-1]["decrease"] < settings.tolerance


def _part(fmodel, atoms, d_min):
    """The model with those atoms and the reflections to a limit; without scales."""
    reflections = fmodel.reflections
    if d_min is not None:
        reflections = reflections.select(reflections.d_spacings >= d_min)
    return fmodel.with_(atoms=atoms, reflections=reflections, refine=())


class _Cycle:
    """One macro-cycle."""

    def __init__(
        self, fmodel, settings, number, target, history, report, restraint=None, parents=None, parameters=Parameters()
    ):
        self.restraint, self.parents, self.parameters = restraint, parents, parameters.of_cycle(number)
        self.fmodel, self.settings, self.history, self.report = fmodel, settings, history, report
        self.number, self.target = number, target
        method = fmodel.mask_options.get("method", DEFAULT_MASK)
        follows = settings.mask_update == "step" or (settings.mask_update == "auto" and method not in _WITHOUT_GRADIENT)
        self.mask_follows = follows and settings.sites
        self.taken = 0

    def run(self):
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

    def _estimate(self):
        """alpha and beta of the model as it is now."""
        fmodel = self.fmodel
        with torch.no_grad():
            self.alpha_beta = cross_validated(fmodel.reflections, fmodel.f_model(), fmodel.in_use())

    def _target(self, f_model):
        reflections, used = self.fmodel.reflections, self.fmodel.in_use()
        if self.target != "maximum_likelihood":
            return self.fmodel.target(self.target, f_model=f_model)
        return targets.maximum_likelihood(reflections, f_model, self.alpha_beta, **used)

    def _scaled(self):
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
    def _damping(self):
        if self.settings.damping is not None:
            return self.settings.damping
        return 0.0 if isinstance(self.restraint, LibraryRestraint) else _DAMPING

    @property
    def _nats(self):
        """The likelihood is a mean over reflections; the sum of squares is twice a sum of logarithms."""
        return 1 / max(1, int(self.work.sum())) if self.target == "maximum_likelihood" else 2.0

    def _curvature_of_restraint(self):
        if self.restraint is None:
            return None, None
        return tuple(None if c is None else self._nats * c for c in self.restraint.curvature(self.fmodel.atoms))

    def _tolerance(self, value):
        return self.settings.tolerance * (abs(value) if self.target != "maximum_likelihood" else 1.0)

    def _evaluate(self, variables, vector, unit):
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

    def _free(self, r_free):
        """For the record only."""
        return None if self.fmodel.reflections.r_free_flags is None else float(r_free)

    def _curvature(self):
        """Of the target, with the weight that each reflection has in it."""
        fmodel, work = self.fmodel, self.work
        reflections, scales = fmodel.reflections, fmodel.scales
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

    def _record(self, evaluation):
        steps = self.history.steps
        steps.append({"step": len(steps), "cycle": self.number, "function": self.target, **evaluation.info})
        self.taken += 1
        self.report(
            f"macro-cycle {self.number}: R-work {evaluation.info['r_work']:.4f}",
            min(1.0, self.taken / self.settings.steps),
        )

    def _close(self, first, end, last, adp, atoms, seconds, tls):
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
                "n_used": int(self.fmodel.scales.selection.sum()),
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


def _placed(atoms, place):
    if place is None:
        return atoms
    sites = place(atoms.sites_cart.detach().cpu().to(torch.float64).numpy())
    return atoms.replace(sites_cart=torch.from_numpy(sites).to(atoms.sites_cart))


def _detached(atoms):
    names = ("sites_cart", "u_iso", "u_star", "occupancies")
    return atoms.replace(**{name: getattr(atoms, name).detach() for name in names})
