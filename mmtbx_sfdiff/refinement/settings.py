"""What a refinement is asked to do, what happened in it, and which macro-cycle comes next."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..fmodel import TARGETS
from ..reflections import Reflections
from .minimize import MINIMIZERS

MASK_UPDATES = ("auto", "step", "cycle")
ANISOTROPIC = ("auto", "free", "scaled")
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

    cycles: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def check_settings(settings: Settings) -> None:
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


def joined(history: History, more: History) -> History:
    """A history and one that goes on from its end, as one."""
    n, m = len(history.cycles), len(history.steps)
    cycles = [cycle | {"cycle": cycle["cycle"] + n} for cycle in more.cycles]
    steps = [step | {"cycle": step["cycle"] + n, "step": step["step"] + m} for step in more.steps]
    return History(cycles=history.cycles + cycles, steps=history.steps + steps)


def resolution_schedule(
    reflections: Reflections, n_atoms: int, settings: Settings, per_atom: float = _REFLECTIONS_PER_ATOM
) -> list[float | None]:
    """Resolution limits (Å) of the first macro-cycles; None stands for all data.

    Limits that leave fewer than ``per_atom`` reflections for each atom are skipped.
    """
    d_min = reflections.d_min
    limits: list[float | None] = []
    first = max(settings.first_d_min, d_min)
    n = settings.resolution_cycles - 1
    for i in range(n):
        # Equal steps in the number of reflections would waste cycles: equal steps in 1/d.
        limit = 1 / (1 / first + (1 / d_min - 1 / first) * i / n)
        enough = int((reflections.d_spacings >= limit).sum()) >= per_atom * n_atoms
        if limit > d_min * 1.001 and enough:
            limits.append(limit)
    return limits + [None]


def next_target(history: History, settings: Settings) -> str | None:
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


def _converged(cycles: list[dict[str, Any]], settings: Settings) -> bool:
    everything = max(settings.resolution_cycles, settings.adp_from_cycle if settings.adp and settings.sites else 1)
    return len(cycles) >= everything and cycles[-1]["decrease"] < settings.tolerance
