"""Refinement without dynamics: the elastic network's torsions by likelihood gain, what the density does not show built anew, then sites
with a monomer library's restraints."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import gemmi

from ...atom_arrays import EIGHT_PI_SQ
from ...files.managers import model_file
from ...fmodel import FModel
from ...refinement import History
from ...refinement.restraint import LibraryRestraint
from ..generator.elastic import ElasticNetwork
from ..refinement.finish import finish, polishing_limits
from ..refinement.problem import Problem, problem_of_structure
from ..refinement.rebuild import rebuild, taken_of, work_gain
from ..refinement.refine import Run
from ..refinement.search import SearchSettings, search

SEARCH = SearchSettings()
_ACCURACY = 1e-4  # of structure factors, after the search
REBUILD_D_MIN = 2.5  # Å, the worst data that show a main chain well enough


def structure_of(entry: Any, problem: Problem) -> Any:
    """gemmi.Structure of the problem's atoms in their order.

    Parameters
    ----------
    entry : Entry
        Of those atoms.
    """
    text = model_file(entry, problem.fmodel.atoms, ".cif").decode()
    structure = gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())
    structure.setup_entities()
    return structure


def found_by_search(problem: Problem, structure: Any, rms: float, seed: int, report: Callable[..., None]) -> Run:
    """The search's best run.

    Parameters
    ----------
    rms : float
        Å, of the elastic network.
    """
    prior = ElasticNetwork.from_gemmi(structure, rms=rms).to(problem.sites_cart.device)
    fmodel = problem.fmodel
    n = fmodel.atoms.n_atoms
    if len(prior.labels) != n:
        raise ValueError(
            f"The elastic network is of proteins: {n - len(prior.labels)} of {n} atoms belong to none. Use prior=generator."
        )
    atoms = fmodel.atoms.replace(u_iso=(problem.b_start / EIGHT_PI_SQ).to(fmodel.atoms.dtype))
    run = search(problem_of_structure(structure, fmodel.with_(atoms=atoms)), prior, SEARCH, seed, report)[0]
    run.label = f"search, start {run.facts['start'] + 1} of {len(SEARCH.starts)}"
    return run


def rebuilt_by_density(
    problem: Problem, structure: Any, run: Run, restraint: LibraryRestraint, seed: int, report: Callable[..., None]
) -> Run:
    """The run's model, what the density does not show built anew; ``facts`` has ``built``, what was taken."""
    begin = time.perf_counter()
    found, history = rebuild(_model_of(problem, run), structure, restraint, seed=seed, report=report)
    return _run("rebuilt", problem, found, history, -work_gain(found), {"built": taken_of(history)}, begin)


def polished_by_library(
    problem: Problem, structure: Any, run: Run, restraint: LibraryRestraint, turn: bool, report: Callable[..., None]
) -> Run:
    """The run's sites refined with restraints, side chains tried in other rotamers if ``turn``."""
    begin = time.perf_counter()
    limits = polishing_limits(float(problem.fmodel.reflections.d_min))
    found, history = finish(
        _model_of(problem, run), restraint, limits, report=report, structure=structure if turn else None
    )
    turned = [move for cycle in history.cycles for move in cycle.get("side_chains", ())]
    facts = {"side_chains": turned, "geometry": restraint.geometry.rms(found.atoms.sites_cart.detach())}
    return _run("polish", problem, found, history, float(history.steps[-1]["target"]), facts, begin)


def _model_of(problem: Problem, run: Run) -> FModel:
    """In double precision."""
    double, fmodel = torch.float64, problem.fmodel
    precise = fmodel.with_(
        atoms=fmodel.atoms.to(double), reflections=fmodel.reflections.to(dtype=double), accuracy=_ACCURACY
    )
    return run.model_in(precise)


def _run(
    label: str, problem: Problem, found: FModel, history: History, target: float, facts: dict[str, Any], begin: float
) -> Run:
    sites = found.atoms.sites_cart.detach()
    r_work, r_free = found.r_factors()
    return Run(
        label,
        sites,
        sites,
        found.atoms.u_iso.detach() * EIGHT_PI_SQ,
        target,
        target,
        0.0,
        r_work,
        r_free if problem.fmodel.reflections.r_free_flags is not None else None,
        history,
        facts,
        time.perf_counter() - begin,
        found,
    )
