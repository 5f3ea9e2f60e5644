"""Where a search is caught: what the density does not show is built anew.

A search by gradients brings a part of a wrong model into place and leaves an end, a loop or a side chain elsewhere, with barriers all
around. But a model of which half is right gives phases, and a map of what is left shows where the rest belongs:

    1  2mFo-DFc of the model: main and side chains that it does not show are weak
    2  weak side chains are moved to where the map shows them (:mod:`.side_chain_maps`)
    3  each weak place, each stretch between two of them, each end of a chain from one on is left out of the model, and grown
       anew from both sides into mFo-DFc of the rest (:mod:`.chain_growth`); the torsions of the model are fitted to it
    4  what fits the map better than what was there is refined for two macro-cycles, and taken if the work set is likelier by more
       than a limit

and again, until nothing is taken. Ends of chains that are not shown in the end get the start's torsions, unless that makes the work set
less likely by more than the limit. Nothing looks at the free set; a tenth of the work set takes its place for alpha and beta.
Resolution: the main chain has to be seen, 2.5 Å or better.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

import scipy.optimize

from ...atom_arrays import EIGHT_PI_SQ
from ...fmodel import FModel
from ...numerics.superposition import superposed
from ...refinement import History
from ...refinement.restraint import LibraryRestraint
from ...refinement.settings import joined
from ...refinement.weight import with_test_set
from ..generator.protein_torsions import protein_torsions
from ..generator.torsions import TorsionTree
from .chain_growth import Grown, grow
from .experiment import Experiment
from .finish import finish, resolution_limits
from .main_chain import Chains, Density, Residue, Stretch, stretches, weak_places
from .omit_map import model_density, omit_density
from .problem import residue_numbers
from .side_chain_maps import in_best_rotamers, side_chains_by_map
from .side_chains import Rotor
from .turning import structure_rotors

Report = Callable[..., None]

_FIRST_D_MIN, _FIRST_CYCLES = 3.0, 3  # Å, of what comes before the first map
_CHANGED = 6.0  # of an end of a chain: what torsions cost that are not the start's, in a second trial
_SHOWN = 1.8  # standard deviations; an end that is lower from its tip on is not shown: the best of thousands of places in noise has 1.3
_BESIDE = 2  # residues on each side of a stretch whose torsions are fitted, too
_FIT_STEPS = 100
_LEAST_SCORE = 3.0
_REACH = 8.0  # Å, of side chains that may have a weak one's place
_WORSE = -2.0  # nats, of a side chain just moved


@dataclasses.dataclass(frozen=True)
class RebuildSettings:
    """How much to try.

    Attributes
    ----------
    evaluations : int
        Of the target with its gradient, at most, all together.
    tries : int
        Stretches that are refined in each round, at most.
    cycles, steps : int
        Macro-cycles of a trial, and steps of each.
    least_gain, least_side_gain : float
        Nats by which the work set has to be likelier with a stretch grown anew, with other side chains.
    """

    evaluations: int = 460
    tries: int = 3
    cycles: int = 2
    steps: int = 12
    least_gain: float = 20.0
    least_side_gain: float = 5.0


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A stretch that was grown anew.

    Attributes
    ----------
    stretch : Stretch
    residues : tuple of Residue
    grown : Grown
    density : callable
        The map that it was grown into.
    """

    stretch: Stretch
    residues: tuple[Residue, ...]
    grown: Grown
    density: Density

    @property
    def gain(self) -> float:
        """How much better it fits the map than what was there, for each residue's square root: sums of noise grow like that."""
        return (self.grown.score - self.grown.before) / math.sqrt(len(self.stretch))


def rebuild(
    fmodel: FModel,
    structure: Any,
    restraint: LibraryRestraint,
    settings: RebuildSettings = RebuildSettings(),
    seed: int = 0,
    report: Report | None = None,
) -> tuple[FModel, History]:
    """Build anew what the density does not show.

    Parameters
    ----------
    fmodel : FModel
        Isotropic. It is not changed.
    structure : gemmi.Structure
        The start: of the same atoms in the same order, of good geometry; proteins without hydrogens.
    restraint : LibraryRestraint
    settings : RebuildSettings
    seed : int
        Of the reflections set apart.
    report : callable, optional
        (what is being done, fraction).

    Returns
    -------
    FModel, History
        With all reflections, scaled. Cycles that were taken have ``residues`` (first and last, as text) or ``side_chains`` (how many),
        and ``gain`` (nats).

    Raises
    ------
    ValueError
        Atoms that belong to no protein; too few reflections to set a part of them apart.
    """
    work = _Work(structure, restraint, settings, report)
    if len(work.labels) != fmodel.atoms.n_atoms:
        raise ValueError(
            f"{fmodel.atoms.n_atoms - len(work.labels)} atoms belong to no protein: they cannot be built anew."
        )
    whole = fmodel.reflections
    fmodel = fmodel.with_(reflections=with_test_set(whole, seed=seed))
    fmodel, gain = work.refined(fmodel, resolution_limits(whole.d_min, _FIRST_D_MIN, _FIRST_CYCLES))
    refused: set[Stretch] = set()
    taken = True
    while taken and work.may_go_on(2):
        fmodel, gain, taken = _side_chains(work, fmodel, gain)
        for proposal, sites in _stretches(work, fmodel, refused):
            if not work.may_go_on(2):
                break
            rows = work.chains(fmodel).rows(proposal.residues)
            trial, new = work.refined(work.moved(fmodel, sites, rows))
            if new > gain + settings.least_gain:
                work.note(residues=work.name(proposal.residues), gain=new - gain)
                fmodel, gain, taken = trial, new, True
                break
            refused.add(proposal.stretch)
    sites, rows = with_ends_of_start(work.tree(fmodel), work.chains(fmodel), model_density(fmodel), work.start)
    if len(rows) and work.may_go_on():
        trial, new = work.refined(work.moved(fmodel, sites, rows))
        if new > gain - settings.least_gain:
            fmodel = trial
    fmodel = fmodel.with_(reflections=whole)
    fmodel.update_scales()
    return fmodel, work.history


def _side_chains(work: _Work, fmodel: FModel, here: float) -> tuple[FModel, float, bool]:
    """(the model, whose gain is ``here``, refined; its gain; whether side chains were moved).

    Those that make the work set likelier as they are moved are tried together, then the best of them, or of all, alone.
    """
    chains, rotors = work.chains(fmodel), work.rotors
    control, gain = work.refined(fmodel)
    tried: set[tuple[Residue, ...]] = set()
    for reach in (0.0, _REACH):
        sites, moved = side_chains_by_map(fmodel, chains, rotors, reach)
        worth = {r: work_gain(work.moved(fmodel, *_some(chains, sites, [r], rotors))) - here for r in moved}
        order = sorted(moved, key=lambda r: -worth[r])
        for some in [r for r in order if worth[r] > _WORSE], order[:1]:
            if not some or tuple(some) in tried or not work.may_go_on(2):
                continue
            tried.add(tuple(some))
            trial, new = work.refined(work.moved(fmodel, *_some(chains, sites, some, rotors)))
            if new > gain + work.settings.least_side_gain:
                work.note(side_chains=len(some), gain=new - gain)
                return trial, new, True
    return control, gain, False


def _some(
    chains: Chains, sites: torch.Tensor, residues: Sequence[Residue], rotors: dict[int, Rotor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sites with the side chains of some residues from others; their rows."""
    rows = torch.cat([rotors[residue.ca].turned[0] for residue in residues])
    result = chains.sites.clone()
    result[rows] = sites[rows]
    return result, rows


def _stretches(work: _Work, fmodel: FModel, refused: Collection[Stretch]) -> list[tuple[Proposal, torch.Tensor]]:
    """The best stretches grown anew, with sites of the whole model."""
    chains = work.chains(fmodel)
    found = [
        p
        for p in proposals(fmodel, chains, work.start, refused, work.report)
        if p.grown.score > p.grown.before + _LEAST_SCORE
    ]
    best: dict[Stretch, Proposal] = {}
    for proposal in sorted(found, key=lambda p: -p.gain):
        best.setdefault(proposal.stretch, proposal)
    tree = work.tree(fmodel)
    return [
        (p, in_best_rotamers(built(tree, chains, p, work.start), chains, p.residues, p.density, work.rotors))
        for p in list(best.values())[: work.settings.tries]
    ]


def proposals(
    fmodel: FModel,
    chains: Chains,
    start: torch.Tensor,
    refused: Collection[Stretch] = (),
    report: Report | None = None,
) -> list[Proposal]:
    """Weak stretches of a model grown anew, from each side.

    Parameters
    ----------
    fmodel : FModel
        With scales.
    chains : Chains
        Of the same atoms.
    start : torch.Tensor
        (n, 3) Å, see :func:`.chain_growth.grow`.
    refused : collection of Stretch
        That are not tried.
    """
    wanted = [s for s in stretches(weak_places(chains, model_density(fmodel))) if s not in refused]
    found = []
    for number, stretch in enumerate(wanted):
        if report is not None:
            report("growing", number / len(wanted))
        run = chains.runs[stretch.run]
        inside = run[stretch.first : stretch.last + 1]
        density = omit_density(fmodel, chains.mask(chains.rows(inside)))
        before = run[stretch.first - 1] if stretch.first else None
        after = run[stretch.last + 1] if stretch.last + 1 < len(run) else None
        own = {r.ca for r in (*inside, before, after) if r is not None}
        others = chains.sites[[r.ca for r in chains.residues if r.ca not in own]]
        for anchor, order, forward, meets in ((before, inside, True, after), (after, inside[::-1], False, before)):
            if anchor is None:
                continue
            for changed in (0.0, _CHANGED) if meets is None else (0.0,):
                grown = grow(chains.sites, start, anchor, order, forward, density, meets, others, changed)
                found.append(Proposal(stretch, tuple(inside), grown, density))
    return found


def unseen_end(proposal: Proposal) -> list[Residue]:
    """Residues of an end of a chain, from the tip on, that the map does not show where they were grown."""
    grown, found = proposal.grown, []
    if not grown.is_end:
        return []
    values = proposal.density(grown.sites_cart)
    place = {row: k for k, row in enumerate(grown.rows.tolist())}
    for residue in reversed(grown.order):
        if float(values[[place[row] for row in residue.rows if row in place]].mean()) > _SHOWN:
            break
        found.append(residue)
    return found


def built(tree: TorsionTree, chains: Chains, proposal: Proposal, start: torch.Tensor) -> torch.Tensor:
    """The model with a stretch as it was grown, by its torsions and those of a few residues beside it.

    Parameters
    ----------
    tree : TorsionTree
        Of the model.
    chains : Chains
    proposal : Proposal
    start : torch.Tensor
        (n, 3) Å: beyond what the map shows its torsions are the best guess.

    Returns
    -------
    torch.Tensor
        (n, 3) Å.
    """
    grown, run = proposal.grown, chains.runs[proposal.stretch.run]
    target = chains.sites.clone()
    target[grown.rows] = grown.sites_cart
    near = run[max(0, proposal.stretch.first - _BESIDE) : proposal.stretch.last + 1 + _BESIDE]
    unseen = unseen_end(proposal)
    free, as_before = _between(tree, near), _between(tree, unseen)
    begin = torch.where(as_before, tree.changes(start), tree.changes(target))[free]
    weight = torch.zeros(len(target), dtype=torch.float64)
    weight[[row for residue in chains.residues for row in residue.rows]] = 1.0
    kept = (weight > 0) & ~chains.mask(chains.rows(near))
    weight[[row for residue in unseen for row in residue.rows]] = 0.0
    places = free.nonzero()[:, 0]

    def sites_at(values: torch.Tensor) -> torch.Tensor:
        sites: torch.Tensor = tree(torch.zeros(len(free), dtype=torch.float64).index_put((places,), values))
        return sites

    def evaluate(x: Any) -> tuple[float, Any]:
        values = torch.from_numpy(x).requires_grad_(True)
        sites = sites_at(values)
        goal = superposed(target, sites.detach(), kept)
        value = (weight * (sites - goal).square().sum(-1)).sum()
        (gradient,) = torch.autograd.grad(value, values)
        return float(value.detach()), gradient.numpy()

    best = scipy.optimize.minimize(
        evaluate, begin.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": _FIT_STEPS}
    )
    moved = superposed(sites_at(torch.from_numpy(best.x)), chains.sites, kept)
    result, rows = chains.sites.clone(), chains.rows(near)
    result[rows] = moved[rows]
    return result


def with_ends_of_start(
    tree: TorsionTree, chains: Chains, density: Density, start: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model with the start's torsions in ends of chains that the map does not show: where data say nothing they are the best guess.

    Parameters
    ----------
    tree : TorsionTree
        Of the model.
    chains : Chains
    density : callable
        2mFo-DFc of the model.
    start : torch.Tensor
        (n, 3) Å.

    Returns
    -------
    torch.Tensor, torch.Tensor
        (n, 3) Å; the rows of atoms of those ends, none where all are shown.
    """
    ends: list[Residue] = []
    turned = torch.zeros(tree.n_torsions, dtype=torch.bool)
    for run, flags in zip(chains.runs, weak_places(chains, density)):
        for way in (1, -1):
            n = next((k for k, weak in enumerate(flags[::way]) if not weak), 0)
            if n:  # of a run that is not shown at all nothing says where it is
                ends += run[::way][:n]
                turned |= _between(tree, run[::way][: n + 1])
    if not ends:
        return chains.sites, torch.zeros(0, dtype=torch.int64)
    rows = chains.rows(ends)
    kept = chains.mask(chains.rows(chains.residues)) & ~chains.mask(rows)
    sites = superposed(tree(torch.where(turned, tree.changes(start), 0.0)), chains.sites, kept)
    result = chains.sites.clone()
    result[rows] = sites[rows]
    return result, rows


def _between(tree: TorsionTree, residues: Sequence[Residue]) -> torch.Tensor:
    """(m,) bool: torsions about bonds of the main chain of some residues."""
    atoms = {row for r in residues for row in (r.n, r.ca, r.c)}
    return torch.tensor([b in atoms and c in atoms for b, c in tree.torsions[:, 1:3].tolist()], dtype=torch.bool)


def taken_of(history: History) -> list[dict[str, Any]]:
    """What was taken: ``residues`` or ``side_chains``, and ``gain`` (nats), of a history of :func:`rebuild`."""
    names = ("residues", "side_chains", "gain")
    return [{name: cycle[name] for name in names if name in cycle} for cycle in history.cycles if "gain" in cycle]


def work_gain(fmodel: FModel) -> float:
    """Likelihood gain of the work set, nats, with scales and sigmaA of the model."""
    experiment = Experiment(fmodel, "likelihood_gain")
    sites, b = fmodel.atoms.sites_cart, fmodel.atoms.u_iso * EIGHT_PI_SQ
    experiment.refresh(sites, b)
    with torch.no_grad():
        return -float(experiment(sites, b).objective)


class _Work:
    """What stays the same while a model is rebuilt, and what was done."""

    def __init__(
        self, structure: Any, restraint: LibraryRestraint, settings: RebuildSettings, report: Report | None
    ) -> None:
        self.restraint, self.settings, self.report = restraint, settings, report
        found = protein_torsions(structure)
        self.labels, self.start, self._tree = found.labels, found.tree.reference, found.tree
        numbers = residue_numbers(list(structure[0].all()))
        by_residue = {rotor.residue: rotor for rotor in structure_rotors(structure)}
        here = Chains(self.labels, self.start)
        self.rotors: dict[int, Rotor] = {
            r.ca: by_residue[numbers[r.ca]] for r in here.residues if numbers[r.ca] in by_residue
        }
        self.history = History()

    def may_go_on(self, trials: int = 1) -> bool:
        """Whether there is time for so many trials more: the last one is that of the ends."""
        steps = trials * self.settings.cycles * self.settings.steps
        return len(self.history.steps) + steps <= self.settings.evaluations

    def chains(self, fmodel: FModel) -> Chains:
        return Chains(self.labels, fmodel.atoms.sites_cart)

    def tree(self, fmodel: FModel) -> TorsionTree:
        """Torsions of the model as it is."""
        own = self._tree
        sites = fmodel.atoms.sites_cart.detach().to(self.start)
        return TorsionTree(sites, own.torsions, own.moved, own.chain_index, own.fitted)

    def name(self, residues: Sequence[Residue]) -> str:
        first, last = (self.labels[residues[k].ca] for k in (0, -1))
        return f"{first[0]} {first[1]}-{last[1]}"

    def refined(self, fmodel: FModel, limits: Sequence[float | None] | None = None) -> tuple[FModel, float]:
        """The model after some macro-cycles, and its gain."""
        limits = [None] * self.settings.cycles if limits is None else limits
        fmodel, history = finish(fmodel, self.restraint, limits, self.settings.steps, self.report)
        self.history = joined(self.history, history)
        return fmodel, work_gain(fmodel)

    def moved(self, fmodel: FModel, sites: torch.Tensor, rows: torch.Tensor) -> FModel:
        """The model at other sites; what was wrong had large B factors: some rows begin with the median of the others."""
        atoms = fmodel.atoms
        u_iso = atoms.u_iso.detach().clone()
        rest = torch.ones_like(u_iso, dtype=torch.bool)
        rest[rows.to(u_iso.device)] = False
        u_iso[~rest] = u_iso[rest].median()
        return fmodel.with_(atoms=atoms.replace(sites_cart=sites.to(atoms.sites_cart), u_iso=u_iso))

    def note(self, **facts: Any) -> None:
        """Of the cycle that was last."""
        self.history.cycles[-1].update(facts)
