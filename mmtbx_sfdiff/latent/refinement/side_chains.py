"""Turning side chains: rotamers by exhaustive trial against the data, where a gradient cannot get across.

For each residue every combination of its torsions on a grid of staggered (or planar) values is put into F_calc
instead of what is there. F of the few atoms that move is a direct sum, everything else of F_model (other atoms,
mask, scales) stays. The best ones slide to the nearest minimum of

    T_data + soft repulsion of other atoms

by their torsions. Everything around has adapted to the side chain that is there, so the best candidates of the whole
chain, though they may be a little worse at first, are relaxed and refined for some steps with all other atoms, as the
present model is. One replaces it if T_data + w U / kT + B restraints is lower by :data:`LEAST_GAIN` in the end. The free
set takes no part.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ...atom_arrays import EIGHT_PI_SQ
from ...atoms import Atoms
from ...geometry.terms import torsion
from ...structure_factors import structure_factors
from ..generator.prepared_model import PreparedModel
from .b_factors import AtomB
from .experiment import Experiment
from .models import CartesianModel, relax
from .placement import rotation_matrices
from .problem import Problem

LEAST_GAIN = 3.0  # nats
MAIN_CHAIN = ("N", "CA", "C", "O", "OXT", "H", "HA", "HA2", "HA3", "H1", "H2", "H3")
# Atoms beyond CB along which torsions are counted; the first quadruple is N CA CB and the first of these.
CHAINS = {
    "ARG": "CG CD NE CZ",
    "ASN": "CG OD1",
    "ASP": "CG OD1",
    "CYS": "SG",
    "GLN": "CG CD OE1",
    "GLU": "CG CD OE1",
    "HIS": "CG ND1",
    "ILE": "CG1 CD1",
    "LEU": "CG CD1",
    "LYS": "CG CD CE NZ",
    "MET": "CG SD CE",
    "PHE": "CG CD1",
    "SER": "OG",
    "THR": "OG1",
    "TRP": "CG CD1",
    "TYR": "CG CD1",
    "VAL": "CG1",
}
_STAGGERED = (-60.0, 60.0, 180.0)
# The last torsion of these turns a planar group; half a turn is enough for those that are symmetric.
_PLANAR = {"ASN": 360, "ASP": 180, "GLN": 360, "GLU": 180, "HIS": 360, "PHE": 180, "TRP": 360, "TYR": 180}
_PLANAR_STEP, _WIDE = 30.0, 20.0
_SLIDING = 12  # steps
_SLIDING_RATE = 0.08  # radians
_TAKEN = 4  # of the grid, to slide
_MARGIN, _CANDIDATES = 15.0, 12  # nats that a candidate may be worse before it is refined; of the whole chain
_RELAX_STEPS, _REFINE_STEPS, _RATE = 15, 30, 0.05
_OTHER = math.radians(30)  # a conformation that differs by less is the same
_REPULSION = 20.0  # nats Å^-2
_CONTACT, _POLAR_CONTACT = 3.3, 2.7  # Å


@dataclasses.dataclass(frozen=True)
class Rotor:
    """A residue's side chain: which atoms turn about which bonds.

    Attributes
    ----------
    residue : int
    name : str
    torsions : torch.Tensor
        (n, 4) int64, rows of all sites.
    turned : tuple of torch.Tensor
        For each torsion, the atoms beyond its bond, hydrogens too.
    grid : torch.Tensor
        (k, n) radians, the combinations to try.
    """

    residue: int
    name: str
    torsions: torch.Tensor
    turned: tuple[torch.Tensor, ...]
    grid: torch.Tensor

    def angles(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """(n,) present torsions, radians."""
        return torch.deg2rad(torsion(sites_cart[self.torsions]))

    def turn(self, difference: Any) -> float:
        """The largest of differences of torsions (n,), radians; half a turn of a symmetric group is none."""
        turns = 2 * math.pi * torch.ones_like(difference)
        if _PLANAR.get(self.name) == 180:
            turns[-1] = math.pi
        return float((difference - turns * torch.round(difference / turns)).abs().max())

    def sites(self, sites_cart: torch.Tensor, torsions: torch.Tensor) -> torch.Tensor:
        """(k, n_ff, 3) sites with those torsions (k, n), radians; differentiable in them."""
        sites = sites_cart.expand(len(torsions), -1, -1)
        for column, (quadruple, atoms) in enumerate(zip(self.torsions, self.turned)):
            a, b, c, d = (sites[:, i] for i in quadruple)
            axis = (c - b) / (c - b).norm(dim=-1, keepdim=True)
            turn = rotation_matrices(
                (torsions[:, column] - torch.deg2rad(torsion(torch.stack([a, b, c, d], -2))))[:, None] * axis
            )
            moved = c[:, None] + (sites[:, atoms] - c[:, None]) @ turn.mT
            sites = sites.index_copy(1, atoms, moved)
        return sites


def rotors(prepared: PreparedModel, device: str | torch.device = "cpu") -> list[Rotor]:
    """The :class:`Rotor` of every side chain that can turn: not in disulfides, proline, or where atoms are missing."""
    bonds = [(first.index, second.index) for first, second in prepared.topology.bonds()]
    return rotors_of(prepared.names, prepared.residue_index.tolist(), prepared.residue_names, bonds, device)


def rotors_of(
    names: Sequence[str],
    residues: Sequence[int],
    residue_names: Sequence[str],
    pairs: Iterable[tuple[int, int]],
    device: str | torch.device = "cpu",
) -> list[Rotor]:
    """The same of atoms' names and residues (n,), residues' names, and bonds."""
    atoms: dict[int, dict[str, int]] = {}
    bonds: list[list[int]] = [[] for _ in names]
    for i, residue in enumerate(residues):
        atoms.setdefault(residue, {})[names[i]] = i
    for first, second in pairs:
        bonds[first].append(second)
        bonds[second].append(first)
    found = []
    for residue, mine in sorted(atoms.items()):
        name = residue_names[residue]
        name = {"HID": "HIS", "HIE": "HIS", "HIP": "HIS"}.get(name, name)
        along = ("N", "CA", "CB", *CHAINS.get(name, "").split())
        chain = [mine[n] for n in along if n in mine]
        side = [i for n, i in mine.items() if n not in MAIN_CHAIN]
        if len(along) < 4 or len(chain) < len(along) or any(residues[j] != residue for i in side for j in bonds[i]):
            continue
        torsions = [chain[i : i + 4] for i in range(len(chain) - 3)]
        turned = [_beyond(bonds, b, c) for _, b, c, _ in torsions]
        found.append(
            Rotor(
                residue,
                name,
                torch.tensor(torsions, device=device),
                tuple(torch.tensor(t, device=device) for t in turned),
                _grid(name, len(torsions)).to(device),
            )
        )
    return found


def _beyond(bonds: list[list[int]], origin: int, first: int) -> list[int]:
    """Atoms connected to ``first`` without passing ``origin``, ``first`` left out."""
    seen, waiting = {origin, first}, [first]
    while waiting:
        for other in bonds[waiting.pop()]:
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return sorted(seen - {origin, first})


def _grid(name: str, n: int) -> torch.Tensor:
    axes: list[Sequence[float]] = [_STAGGERED] * n
    if name in _PLANAR:
        axes[-1] = [i * _PLANAR_STEP for i in range(int(_PLANAR[name] / _PLANAR_STEP))]
    if n <= 2:
        axes[0] = [a + shift for a in _STAGGERED for shift in (-_WIDE, 0.0, _WIDE)]
    return torch.tensor(list(itertools.product(*axes)), dtype=torch.float64).deg2rad()


class SideChainSearch:
    """Trial of rotamers for one model.

    Parameters
    ----------
    problem : Problem
    experiment : Experiment
        At the resolution that is to judge; its scales and mask are determined anew for each pass.
    side_chains : list of Rotor
    energy : callable
        sites (n_ff, 3) Å -> kJ/mol.
    weight : float
        Of U / kT.
    """

    def __init__(
        self, problem: Problem, experiment: Experiment, side_chains: Sequence[Rotor], energy: Any, weight: float = 1.0
    ) -> None:
        self.problem, self.experiment, self.rotors = problem, experiment, side_chains
        self.energy, self.weight = energy, weight
        rows = problem.rows
        row_of = torch.full((int(problem.sites_cart.shape[0]),), -1, dtype=torch.int64, device=rows.device)
        row_of[rows] = torch.arange(len(rows), device=rows.device)
        self.row_of = row_of
        self.form_factors = _RememberedFormFactors(problem.fmodel.atoms.form_factors)

    def run(
        self, sites_cart: torch.Tensor, b: torch.Tensor, passes: int = 1, report: Callable[..., None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, list[dict[str, Any]]]:
        """One or more passes over all residues.

        Parameters
        ----------
        sites_cart : torch.Tensor
            (n_ff, 3) Å, free of clashes.
        b : torch.Tensor
            (n,) Å²

        Returns
        -------
        sites_cart, b : torch.Tensor
        moves : list of dict
            ``residue``, ``name``, ``gain`` (nats) of each side chain that was replaced.
        """
        sites, b = sites_cart.detach().to(torch.float64), b.detach().clone()
        moves: list[dict[str, Any]] = []
        report = report or (lambda step, fraction=None: None)
        for number in range(passes):
            self.experiment.refresh(sites[self.problem.rows], b)
            sites, b, _ = self._refined(sites, b)
            candidates = []
            for place, rotor in enumerate(self.rotors):
                report(f"side chains: {len(moves)} turned", (number + 0.5 * place / len(self.rotors)) / passes)
                found = self._best(rotor, sites, b)
                if found is not None:
                    candidates.append((found[0], rotor, found[1]))
            before = len(moves)
            # What the same steps do without another rotamer.
            control = self._refined(relax(sites, self.energy, _RELAX_STEPS), b)[2] if candidates else 0.0
            for _, rotor, torsions in sorted(candidates, key=lambda item: item[0])[:_CANDIDATES]:
                trial = relax(rotor.sites(sites, torsions[None])[0], self.energy, _RELAX_STEPS)
                trial, trial_b, total = self._refined(trial, self._lower_b(rotor, b))
                if total < control - LEAST_GAIN:
                    moves.append({"residue": rotor.residue, "name": rotor.name, "gain": control - total})
                    sites, b = trial, trial_b
                    control = self._refined(relax(sites, self.energy, _RELAX_STEPS), b)[2]
            if len(moves) == before:
                break
        return sites, b, moves

    def _refined(self, sites: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """(sites, b, total) after some steps of all atoms."""
        model = CartesianModel(sites, self.problem.rows, AtomB(b, sites[self.problem.rows]), self.energy, self.weight)
        optimiser = torch.optim.Adam(model.parameter_groups(_RATE))

        def total() -> torch.Tensor:
            state = model()
            value: torch.Tensor = self.experiment(state.sites_cart, state.b).objective + state.penalty
            return value

        for _ in range(_REFINE_STEPS):
            optimiser.zero_grad(set_to_none=True)
            value = total()
            value.backward()
            if all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None):
                optimiser.step()
        with torch.no_grad():
            return model.sites.detach(), model.b_model().detach(), float(total())

    def _lower_b(self, rotor: Rotor, b: torch.Tensor) -> torch.Tensor:
        """B factors; those of a side chain not far above its main chain's.

        A side chain in the wrong place has been given a large B, with which nothing can be seen anywhere.
        """
        moving = self._moving(rotor)
        chain = self.problem.main_chain & (self.problem.residue_index[self.problem.rows] == rotor.residue)
        b = b.clone()
        if bool(chain.any()):
            b[moving] = torch.minimum(b[moving], 1.3 * b[chain].mean())
        return b

    def _moving(self, rotor: Rotor) -> torch.Tensor:
        rows = self.row_of[rotor.turned[0]]
        return rows[rows >= 0]

    @torch.no_grad()
    def _best(self, rotor: Rotor, sites: torch.Tensor, b: torch.Tensor) -> tuple[float, torch.Tensor] | None:
        """(how much worse it is, nats; torsions) of this residue's most promising other conformation, or None."""
        moving = self._moving(rotor)
        if not len(moving):
            return None
        part = self.experiment.part
        atoms = part.atoms.replace(sites_cart=sites[self.problem.rows].to(part.atoms.dtype), u_iso=_u(b, part.atoms))
        others = torch.ones(len(b), dtype=torch.bool, device=b.device)
        others[moving] = False
        rest = self._f_calc(atoms.select(others), part)
        mine = dataclasses.replace(atoms.select(moving), form_factors=self.form_factors)
        lower = mine.replace(u_iso=_u(self._lower_b(rotor, b)[moving], mine))
        score = _Score(self, part, rest, lower, moving, rotor, sites)
        now = rotor.angles(sites)[None]
        here = min(float(score(now)), float(_Score(self, part, rest, mine, moving, rotor, sites)(now)))
        values = torch.cat([score(chunk) for chunk in rotor.grid.split(32)])
        torsions, values = slide(score, rotor.grid[values.argsort()[:_TAKEN]])
        far = torch.tensor([rotor.turn(t - now[0]) > _OTHER for t in torsions], device=values.device)
        values = torch.where(far, values, torch.inf)
        k = int(values.argmin())
        worse = float(values[k]) - here
        return None if not worse < _MARGIN else (worse, torsions[k])

    @staticmethod
    def _f_calc(atoms: Atoms, part: Any) -> torch.Tensor:
        return structure_factors(
            atoms, part.reflections.crystal, part.reflections.miller_indices, method=part.method, accuracy=part.accuracy
        )


class _RememberedFormFactors:
    """Form factors of the reflections that were asked for last; one side chain after another asks for the same."""

    def __init__(self, form_factors: Any) -> None:
        self._form_factors = form_factors
        self._last: tuple[Any, Any] = (None, None)

    def __call__(self, d_star_sq: Any) -> torch.Tensor:
        if self._last[0] is not d_star_sq:
            self._last = d_star_sq, self._form_factors(d_star_sq)
        values: torch.Tensor = self._last[1]
        return values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._form_factors, name)


class _Score:
    """T_data plus repulsion for torsions of one residue, (k,) nats."""

    def __init__(
        self,
        search: SideChainSearch,
        part: Any,
        rest: torch.Tensor,
        atoms: Atoms,
        moving: torch.Tensor,
        rotor: Rotor,
        sites: torch.Tensor,
    ) -> None:
        self.search, self.part, self.rest, self.atoms, self.rotor, self.sites = search, part, rest, atoms, rotor, sites
        problem = search.problem
        self.rows = problem.rows[moving]
        residue = problem.residue_index[problem.rows]
        # CB and the residue's own main chain are bonded or nearly so to what moves.
        away = problem.rows[residue != rotor.residue]
        elements = search.problem.fmodel.atoms.elements
        polar = torch.tensor([e.strip().upper() in ("N", "O") for e in elements], device=self.rows.device)
        self.away = away
        both = polar[moving][:, None] & polar[residue != rotor.residue][None]
        self.reach = torch.where(both, _POLAR_CONTACT, _CONTACT).to(sites)

    def __call__(self, torsions: torch.Tensor) -> torch.Tensor:
        sites = self.rotor.sites(self.sites, torsions)[:, self.rows]
        atoms = self.atoms.replace(sites_cart=sites.to(self.atoms.dtype))
        part, experiment = self.part, self.search.experiment
        f = structure_factors(atoms, part.reflections.crystal, part.reflections.miller_indices, method="direct")
        f_model = part.scales.f_model(self.rest + f.to(self.rest.dtype), experiment.f_mask)
        data = experiment.objective_of(f_model)
        gap = (self.reach - torch.cdist(sites, self.sites[self.away].expand(len(sites), -1, -1))).clamp(min=0)
        return data.to(torch.float64) + 0.5 * _REPULSION * gap.square().sum((-1, -2))


@torch.no_grad()
def slide(
    function: Callable[[torch.Tensor], torch.Tensor], torsions: torch.Tensor, steps: int = _SLIDING
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest minima of a function (k, n) -> (k,) of torsions: torsions (k, n) radians and their values (k,)."""
    torsions = torsions.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([torsions], lr=_SLIDING_RATE)
    with torch.enable_grad():
        for step in range(steps):
            optimiser.zero_grad(set_to_none=True)
            function(torsions).sum().backward()
            optimiser.param_groups[0]["lr"] = _SLIDING_RATE * (1 - step / steps)
            optimiser.step()
    torsions = torsions.detach()
    return torsions, function(torsions)


def _u(b: torch.Tensor, atoms: Atoms) -> torch.Tensor:
    return (b / EIGHT_PI_SQ).to(atoms.dtype)
