"""The end of a latent refinement: sites and B factors of each atom by maximum likelihood, held by a monomer library.

Decoded models have good bonds and bad contacts, and torsions alone do not bring every atom to its place: macro-cycles of
:func:`mmtbx_sfdiff.refinement.refine`, from low to high resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...fmodel import FModel
from ...geometry import DisplacementRestraints, GeometryRestraints
from ...refinement import History, refine
from ...refinement import Settings as CycleSettings
from ...refinement.restraint import LibraryRestraint, adp_weight, bond_target, first_weight
from ...refinement.settings import joined
from .turning import turn_side_chains


def library_restraint(
    structure: Any, d_min: float, library: Any = None, rows: Any = None, device: str | torch.device = "cpu"
) -> LibraryRestraint:
    """Restraints of a model as :doc:`refine` has them, for data to a resolution (Å).

    Parameters
    ----------
    structure : gemmi.Structure
    d_min : float
    library : path, optional
        Of monomers.
    rows : numpy.ndarray, optional
        The FModel's row of each of the structure's atoms.
    device : torch.device
        Where the FModel's atoms are.
    """
    geometry = GeometryRestraints.from_gemmi(structure, library, rows=rows)
    displacements = DisplacementRestraints.from_geometry(geometry).to(device)
    return LibraryRestraint(
        geometry.to(device),
        displacements,
        None,
        adp_weight(d_min),
        bond_target(d_min),
        first_weight(d_min),
    )


def resolution_limits(d_min: float, first_d_min: float, n: int) -> list[float | None]:
    """Limits (Å) from the first to that of the data in equal steps of 1/d; the last, None, stands for all data."""
    inverse = torch.linspace(1 / first_d_min, 1 / d_min, n, dtype=torch.float64)
    return [*(1 / inverse[:-1]).tolist(), None] if first_d_min > d_min else [None] * n


def polishing_limits(d_min: float, first_d_min: float = 3.5, stages: int = 4, cycles: int = 10) -> list[float | None]:
    """Those of macro-cycles that polish: some from the first limit (Å) to that of the data, the others with all."""
    first = resolution_limits(d_min, first_d_min, stages)
    return first + [None] * (cycles - len(first))


def finish(
    fmodel: FModel,
    restraint: Any,
    limits: Sequence[float | None],
    steps: int = 20,
    report: Callable[..., None] | None = None,
    parameters: Any = None,
    structure: Any = None,
) -> tuple[FModel, History]:
    """One macro-cycle at each resolution limit.

    Parameters
    ----------
    fmodel : FModel
        It is not changed.
    restraint : LibraryRestraint
        Its weight goes on from cycle to cycle.
    limits : sequence of float or None
        Å.
    steps : int
        In each, at most.
    report : callable, optional
    parameters : Parameters, optional
        See :func:`mmtbx_sfdiff.refinement.refine`.
    structure : gemmi.Structure, optional
        Of the FModel's atoms in their order: before the first macro-cycle with all data its side chains are tried in other
        rotamers (:func:`.turning.turn_side_chains`); that cycle's record has ``side_chains``.

    Returns
    -------
    FModel, History
        With all reflections and their scales; the cycles of all.
    """
    history = History()
    whole = fmodel.reflections
    settings = CycleSettings(cycles=1, steps=steps)
    turning = list(limits).index(None) if structure is not None and None in limits else None
    for number, limit in enumerate(limits):
        moves = None
        if number == turning:
            fmodel, moves = turn_side_chains(fmodel, structure, restraint, report)
        data = whole if limit is None else whole.select(whole.d_spacings >= limit)
        part, more = refine(
            fmodel.with_(reflections=data), settings, report=report, restraint=restraint, parameters=parameters
        )
        fmodel = fmodel.with_(atoms=part.atoms)
        history = joined(history, more)
        if moves is not None:
            history.cycles[-1]["side_chains"] = moves
    fmodel.update_scales()
    return fmodel, history
