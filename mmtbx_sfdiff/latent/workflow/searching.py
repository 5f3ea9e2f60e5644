"""Refinement without dynamics: the elastic network's torsions by likelihood gain, then sites with a monomer library's restraints."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import gemmi

from ...atom_arrays import EIGHT_PI_SQ
from ...files.managers import model_file
from ...fmodel import FModel
from ...refinement.restraint import LibraryRestraint
from ..generator.elastic import ElasticNetwork
from ..refinement.finish import finish, polishing_limits
from ..refinement.problem import Problem, problem_of_structure
from ..refinement.refine import Run
from ..refinement.search import SearchSettings, search

SEARCH = SearchSettings()


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


def polished_by_library(
    problem: Problem, structure: Any, run: Run, restraint: LibraryRestraint, turn: bool, report: Callable[..., None]
) -> Run:
    """The run's sites refined with restraints, side chains tried in other rotamers if ``turn``."""
    begin = time.perf_counter()
    d_min = float(problem.fmodel.reflections.d_min)
    fmodel: FModel = problem.fmodel.to(dtype=torch.float64)
    atoms = fmodel.atoms.replace(
        sites_cart=run.sites_cart.to(torch.float64), u_iso=run.b.to(torch.float64) / EIGHT_PI_SQ
    )
    found, history = finish(
        fmodel.with_(atoms=atoms),
        restraint,
        polishing_limits(d_min),
        report=report,
        structure=structure if turn else None,
    )
    sites = found.atoms.sites_cart.detach()
    r_work, r_free = found.r_factors()
    last = history.steps[-1]
    turned = [move for cycle in history.cycles for move in cycle.get("side_chains", ())]
    return Run(
        "polish",
        sites,
        sites,
        found.atoms.u_iso.detach() * EIGHT_PI_SQ,
        float(last["target"]),
        float(last["target"]),
        0.0,
        r_work,
        r_free if problem.fmodel.reflections.r_free_flags is not None else None,
        history,
        {"side_chains": turned, "geometry": restraint.geometry.rms(sites)},
        time.perf_counter() - begin,
        found,
    )
