"""The last stage: sites themselves with a force field's energy, and a B factor for each atom.

A decoded model still has contacts that are too close. It is relaxed within springs, and then refined against
the same objective with U / kT as the prior, once more from lower resolution to the limit of the data.
"""

from __future__ import annotations

import dataclasses

from .b_factors import AtomB
from .experiment import Experiment
from .models import CartesianModel, relax
from .optimise import Settings
from .refine import run_model

RELAX_STEPS = 60
FIRST_D_MIN = 3.5


def polish(
    problem,
    all_sites_cart,
    b,
    energy=None,
    settings=Settings(),
    steps=200,
    weight=1.0,
    relax_steps=RELAX_STEPS,
    first_d_min=FIRST_D_MIN,
    report=None,
    label="polish",
):
    """Polish a model.

    Parameters
    ----------
    problem : Problem
    all_sites_cart : torch.Tensor
        (n_all, 3) Å
    b : torch.Tensor
        (n,) Å²
    energy : callable, optional
        sites (n_all, 3) Å -> kJ/mol. Without it only B factors are restrained.
    settings : Settings
        Objective, rate and refreshing are used.
    steps : int
    weight : float
        Of U / kT.
    relax_steps : int
    first_d_min : float
        Å, where refinement of sites begins: side chains that the generator could not turn still have to find
        their places.

    Returns
    -------
    Run
    """
    settings = dataclasses.replace(
        settings, steps=steps, stages=4, first_d_min=first_d_min, annealing=0.5, rigid_steps=0
    )
    sites = (
        all_sites_cart if energy is None or not relax_steps else relax(all_sites_cart, energy, relax_steps)
    )
    model = CartesianModel(sites, problem.rows, AtomB(b, sites[problem.rows]), energy, weight)
    experiment = Experiment(problem.fmodel, settings.objective, settings.floor)
    return run_model(model, experiment, settings, label, report)
