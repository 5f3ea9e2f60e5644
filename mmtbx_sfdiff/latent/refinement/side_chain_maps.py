"""Side chains where a map shows them: the rotamers of :mod:`.side_chains`, all that do not fit taken out together.

What is wrong holds its neighbors in wrong places. Those side chains that 2mFo-DFc does not show are left out of the model, and every
rotamer of each is tried in mFo-DFc of the rest; the one that is seen best is placed first, and what comes later keeps out of its way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...fmodel import FModel
from .main_chain import Chains, Density, Residue, is_weak
from .omit_map import bumps, model_density, omit_density, saturated
from .side_chains import Rotor, slide

_TAKEN, _STEPS = 8, 20  # of the grid, to slide uphill
_OTHER, _LEAST = math.radians(30), 1.0  # a change that is one, and what it has to gain


def weak_side_chains(chains: Chains, density: Density, rotors: dict[int, Rotor]) -> list[Residue]:
    """Residues whose side chain the map does not show, against the median of the main chain.

    Parameters
    ----------
    chains : Chains
    density : callable
    rotors : dict of int to Rotor
        By the row of CA.
    """
    main = float(torch.cat([density(chains.sites[[r.n, r.ca, r.c]]) for r in chains.residues]).median())
    turning = [residue for residue in chains.residues if residue.ca in rotors]
    return [r for r in turning if is_weak(density(chains.sites[rotors[r.ca].turned[0]]), main)]


def beside(chains: Chains, weak: Sequence[Residue], rotors: dict[int, Rotor], reach: float) -> list[Residue]:
    """Some residues, and those whose CB is within ``reach`` (Å) of one of theirs and whose side chains turn."""
    turning = [residue for residue in chains.residues if residue.ca in rotors]
    places = {residue: chains.sites[residue.ca if residue.cb is None else residue.cb] for residue in turning}
    some = torch.stack([places[residue] for residue in weak])
    return [r for r in turning if r in weak or float((some - places[r]).norm(dim=1).min()) < reach]


def side_chains_by_map(
    fmodel: FModel, chains: Chains, rotors: dict[int, Rotor], reach: float = 0.0
) -> tuple[torch.Tensor, list[Residue]]:
    """Move side chains that the map does not show to where it does.

    Parameters
    ----------
    fmodel : FModel
        Of the model, with scales.
    chains : Chains
        Of the same.
    rotors : dict of int to Rotor
        By the row of CA.
    reach : float
        Å: side chains so near a weak one are taken out with it, for they may have its place.

    Returns
    -------
    torch.Tensor, list of Residue
        (n, 3) Å; those that were moved, the clearest first.
    """
    weak = weak_side_chains(chains, model_density(fmodel), rotors)
    sites = chains.sites.clone()
    if not weak:
        return sites, []
    if reach:
        weak = beside(chains, weak, rotors, reach)
    out = chains.mask(torch.cat([rotors[residue.ca].turned[0] for residue in weak]))
    density = omit_density(fmodel, out)
    waiting = {}
    for residue in weak:
        near = sites[~(out | chains.mask(chains.rows([residue])))]
        waiting[residue] = _choices(rotors[residue.ca], sites, near, density)
    placed: list[torch.Tensor] = []
    moved = []
    while waiting:
        found = {}
        for residue, (torsions, values) in waiting.items():
            rotor = rotors[residue.ca]
            if placed:
                values = values - bumps(rotor.sites(sites, torsions)[:, rotor.turned[0]], sites[torch.cat(placed)])
            best = int(values.argmax())
            found[residue] = float(values[best]), best, float(values[best] - values[0])
        residue = max(found, key=lambda r: found[r][0])
        _, best, gain = found[residue]
        torsions, _ = waiting.pop(residue)
        rotor = rotors[residue.ca]
        if rotor.turn(torsions[best] - torsions[0]) > _OTHER and gain > _LEAST:
            sites = rotor.sites(sites, torsions[best][None])[0]
            moved.append((gain, residue))
        placed.append(rotor.turned[0])
    return sites, [residue for _, residue in sorted(moved, key=lambda item: -item[0])]


def _choices(
    rotor: Rotor, sites: torch.Tensor, others: torch.Tensor, density: Density
) -> tuple[torch.Tensor, torch.Tensor]:
    """The present torsions and the best of the grid (k, n), slid uphill, and what they are worth (k,)."""

    def worth(torsions: torch.Tensor) -> torch.Tensor:
        return _worth(rotor, sites, torsions, others, density)

    best = rotor.grid[worth(rotor.grid).argsort(descending=True)[:_TAKEN]]
    torsions, values = slide(lambda t: -worth(t), torch.cat([rotor.angles(sites)[None], best]), _STEPS)
    return torsions, -values


def _worth(
    rotor: Rotor, sites: torch.Tensor, torsions: torch.Tensor, others: torch.Tensor, density: Density
) -> torch.Tensor:
    """(k,) what the map has for a side chain with torsions (k, n), less contacts with others."""
    tried = rotor.sites(sites, torsions)[:, rotor.turned[0]]
    return saturated(density(tried)).sum(1) - bumps(tried, others)


def in_best_rotamers(
    sites: torch.Tensor, chains: Chains, residues: Sequence[Residue], density: Density, rotors: dict[int, Rotor]
) -> torch.Tensor:
    """Sites (n, 3) with the side chains of some residues, one after the other, in the rotamers of the grid that fit the map best."""
    others = sites[~chains.mask(chains.rows(residues))]
    for residue in residues:
        rotor = rotors.get(residue.ca)
        if rotor is None:
            continue
        grid = torch.cat([rotor.angles(sites)[None], rotor.grid])
        best = _worth(rotor, sites, grid, others, density).argmax()
        sites = rotor.sites(sites, grid[best][None])[0]
    return sites
