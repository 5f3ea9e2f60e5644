"""Wrong models to start from: bends, shifted loops, wrong rotamers, each with good geometry.

    bend      along soft modes of the CA atoms' network (Atilgan et al. 2001, springs to 15 Å), as hinges and domains do
    loop      a stretch of the chain turned about the line through its ends, or one end of the chain about where it begins
    rotamers  a bend, and two of five side chains in other rotamers

The deposited protein (one conformation; no waters, ligands, hydrogens) is moved by its torsions, for a bend by those that follow the mode
best, until the main chain is as wrong as asked; its geometry is minimised (monomer library, repulsion, and springs of 0.5 Å that keep
helices and turns), and it is superposed on the deposited one, as molecular replacement would place it. Any model of good geometry is
another's with other torsions; which ones are wrong here, and how, no prior knows.
"""

from __future__ import annotations

import math

import torch
from mmtbx_sfdiff.geometry import GeometryRestraints
from mmtbx_sfdiff.latent.generator.protein_torsions import MAIN_CHAIN, protein_torsions
from mmtbx_sfdiff.numerics.superposition import superposed

import gemmi
import numpy as np
import scipy.optimize

from validation.studies.latent.starts import soft_modes

KINDS = ("bend", "loop", "rotamers")
_STEPS = 60  # of a minimisation
_RIDGE, _WITHIN, _ATTEMPTS = 0.01, 0.2, 6
_LOOPS, _LARGEST_TURN = 200, 130  # tries, degrees
_HELD, _SPRING, _REACH, _APART = (
    0.15,
    0.5,
    7.0,
    4,
)  # Å: of CA atoms to where they are moved; of pairs, to this distance; residues
_TURNED, _LEAST_CONTACT = 0.4, 2.3
_DISORDERED = 2.0


def stripped(structure: gemmi.Structure) -> gemmi.Structure:
    """Protein alone, one conformation, fully occupied, isotropic, no hydrogens."""
    result = structure.clone()
    result.setup_entities()
    result.remove_ligands_and_waters()
    result.remove_hydrogens()
    result.remove_alternative_conformations()
    while len(result) > 1:
        del result[1]
    for chain in result[0]:
        for residue in reversed(list(range(len(chain)))):
            if not {a.name for a in chain[residue]}.issuperset(("N", "CA", "C")):
                del chain[residue]
        for residue in chain:
            for atom in residue:
                atom.occ, atom.aniso = 1.0, gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    result.remove_empty_chains()
    result.setup_entities()
    return result


def sites_of(structure: gemmi.Structure) -> torch.Tensor:
    """(n, 3) Å."""
    return torch.tensor([cra.atom.pos.tolist() for cra in structure[0].all()], dtype=torch.float64)


def with_sites(structure: gemmi.Structure, sites: torch.Tensor, b_iso: float | None = None) -> gemmi.Structure:
    """A copy at other sites, with one B factor if it is given."""
    result = structure.clone()
    for cra, place in zip(result[0].all(), sites.tolist()):
        cra.atom.pos = gemmi.Position(*place)
        if b_iso is not None:
            cra.atom.b_iso = b_iso
    return result


def main_chain(structure: gemmi.Structure) -> torch.Tensor:
    """(n,) bool."""
    return torch.tensor([cra.atom.name in MAIN_CHAIN for cra in structure[0].all()])


def ordered(structure: gemmi.Structure) -> torch.Tensor:
    """(n,) bool: atoms of residues whose main chain's B is at most :data:`_DISORDERED` times the median of residues.

    Where the deposited model's B is larger the data do not say where a residue is, and an end of a chain that is 10 Å from where it
    was deposited may fit them as well.
    """
    atoms, residue = list(structure[0].all()), _residues(structure)
    of = {int(number): [] for number in residue.unique()}
    for cra, number in zip(atoms, residue.tolist()):
        if cra.atom.name in MAIN_CHAIN:
            of[number].append(cra.atom.b_iso)
    b = torch.tensor([float(np.mean(of[number])) for number in sorted(of)])
    return (b <= _DISORDERED * b.median())[residue]


def rms(sites: torch.Tensor, reference: torch.Tensor, rows: torch.Tensor, fitted: torch.Tensor | None = None) -> float:
    """Å, of some rows, superposed by them or by others."""
    moved = superposed(sites, reference, rows if fitted is None else fitted)
    return float((moved - reference)[rows].square().sum(-1).mean().sqrt())


def wrong_start(
    deposited: gemmi.Structure, kind: str, target: float, seed: int, library: str | None = None
) -> tuple[torch.Tensor, dict]:
    """Sites (n, 3) Å of a start, and what is to be said of it.

    Parameters
    ----------
    deposited : gemmi.Structure
        :func:`stripped`.
    kind : str
        One of :data:`KINDS`.
    target : float
        Å, main chain; met within 20 %, or ValueError.
    seed : int
    """
    truth, main = sites_of(deposited), main_chain(deposited)
    geometry = GeometryRestraints.from_gemmi(deposited, library)
    ca = torch.tensor([i for i, cra in enumerate(deposited[0].all()) if cra.atom.name == "CA"])
    residue = _residues(deposited)
    aim = target
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, KINDS.index(kind), round(100 * target), attempt])
        moving, facts = torch.zeros(len(ca), dtype=torch.bool), {}
        if kind == "loop":
            sites, moving, facts = _turned_loop(truth, ca, residue, main, deposited, rng, aim)
        else:
            sites = _bent(deposited, truth, ca, main, rng, aim)
        pairs = _springs(truth, main, residue, moving[residue])
        sites = _minimised(sites, geometry, ca, sites[ca], pairs)
        if kind == "rotamers":
            sites, facts = _turn(deposited, sites, rng)
            sites = _minimised(sites, geometry, ca, sites[ca], pairs)
        found = rms(sites, truth, main)
        if abs(found - target) <= _WITHIN * target:
            break
        # Minimising takes part of a movement back.
        aim *= min(1.5, max(0.7, target / found))
    else:
        raise ValueError(f"No {kind} of seed {seed} makes the main chain wrong by {target:g} Å.")
    sites = superposed(sites, truth, main)
    measured = geometry.rms(sites)
    every = torch.ones_like(main)
    facts |= {
        "kind": kind,
        "seed": seed,
        "target_rms": target,
        "rms_main": rms(sites, truth, main),
        "rms_all": rms(sites, truth, every, main),
        "bond_rms": measured["bond"],
        "angle_rms": measured["angle"],
        "rotamers_wrong": wrong_rotamers(deposited, sites, truth),
    }
    return sites, facts


def wrong_rotamers(structure: gemmi.Structure, sites: torch.Tensor, reference: torch.Tensor) -> tuple[int, int]:
    """How many first side-chain torsions differ by more than 40 degrees, of how many."""
    found = protein_torsions(structure)
    first = torch.tensor([found.labels[b][3] == "CA" for b in found.tree.torsions[:, 1].tolist()]) & found.side_chain
    change = found.tree.changes(sites) - found.tree.changes(reference)
    change = torch.atan2(change.sin(), change.cos()).abs()[first]
    return int((change > math.radians(40)).sum()), int(first.sum())


def _residues(structure: gemmi.Structure) -> torch.Tensor:
    """(n,) number of the residue of each atom."""
    result, last, number = [], None, -1
    for cra in structure[0].all():
        here = cra.chain.name, str(cra.residue.seqid)
        number += here != last
        last = here
        result.append(number)
    return torch.tensor(result)


def _bent(structure, sites, ca, main, rng, target):
    """Sites whose torsions follow a random soft mode's movement of the CA atoms until the main chain is as wrong as asked."""
    frequencies, modes = soft_modes(sites[ca].numpy())
    amplitudes = rng.normal(size=len(modes)) / frequencies
    push = torch.from_numpy(np.einsum("m,mnd->nd", amplitudes, modes)).flatten()
    found = protein_torsions(structure)
    tree = found.tree
    jacobian = tree.jacobian()[ca].flatten(0, 1)
    jacobian = jacobian * ~found.side_chain
    normal = jacobian.T @ jacobian
    ridge = _RIDGE * normal.diagonal().mean() * torch.eye(tree.n_torsions, dtype=torch.float64)
    change = torch.linalg.solve(normal + ridge, jacobian.T @ push)
    change = change / change.abs().max()
    scales = torch.linspace(0, math.radians(_LARGEST_TURN), 400, dtype=torch.float64)
    for scale in scales.tolist():
        moved = tree(scale * change)
        if rms(moved, sites, main) >= target:
            return moved
    raise ValueError(f"No torsion turned by up to {_LARGEST_TURN} degrees makes the main chain wrong by {target:g} Å.")


def _turned_loop(sites, ca, residue, main, structure, rng, target):
    """(sites with a stretch turned until the main chain is as wrong as asked, (n_residues,) bool which, facts)"""
    chain_of = [cra.chain.name for cra in structure[0].all() if cra.atom.name == "CA"]
    for _ in range(_LOOPS):
        n = len(chain_of)
        length = int(rng.integers(6, max(8, n // 2)))
        first = int(rng.integers(0, n - length))
        last = first + length - 1
        if chain_of[first] != chain_of[last]:
            continue
        begins = first == 0 or chain_of[first - 1] != chain_of[first]
        ends = last == n - 1 or chain_of[last + 1] != chain_of[last]
        pivot = sites[ca[last if begins else first]]
        axis = torch.from_numpy(rng.normal(size=3)) if begins or ends else sites[ca[last]] - pivot
        axis = axis / axis.norm()
        moving = torch.zeros(n, dtype=torch.bool)
        moving[first : last + 1] = True

        def turned(angle, rows=moving[residue], pivot=pivot, axis=axis):
            arm = sites[rows] - pivot
            moved = sites.clone()
            moved[rows] = (
                arm * math.cos(angle)
                + torch.linalg.cross(axis.expand_as(arm), arm) * math.sin(angle)
                + (arm @ axis)[:, None] * axis * (1 - math.cos(angle))
                + pivot
            )
            return moved

        high = math.radians(_LARGEST_TURN)
        if rms(turned(high), sites, main) < 1.1 * target:
            continue
        low = 0.0
        for _ in range(20):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if rms(turned(middle), sites, main) > target else (middle, high)
        return turned(high), moving, {"residues": [first, last], "turn": math.degrees(high)}
    raise ValueError(f"No stretch makes the main chain wrong by {target:g} Å.")


def _springs(sites: torch.Tensor, main: torch.Tensor, residue: torch.Tensor, group: torch.Tensor) -> list[torch.Tensor]:
    """[i, j, d]: pairs of the main chain that keep their distance."""
    near = torch.cdist(sites, sites) < _REACH
    near &= main[:, None] & main[None] & (group[:, None] == group[None])
    near &= (residue[:, None] - residue[None]).abs() <= _APART
    i, j = near.triu(1).nonzero().T
    return [i, j, (sites[i] - sites[j]).norm(dim=-1)]


def _minimised(sites, geometry, ca, goal, pairs, steps=_STEPS):
    """Sites of good geometry near a goal of the CA atoms."""
    i, j, ideal = pairs
    geometry.update_contacts(sites)
    shape = sites.shape

    def evaluate(x):
        x = torch.from_numpy(x).reshape(shape).requires_grad_(True)
        d = (x[i] - x[j]).norm(dim=-1)
        value = 0.5 * geometry(x) + 0.5 * ((d - ideal) / _SPRING).square().sum()
        value = value + 0.5 * ((x[ca] - goal) / _HELD).square().sum()
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient.numpy().ravel()

    start = sites.clone()
    found = scipy.optimize.minimize(
        evaluate, start.numpy().ravel(), jac=True, method="L-BFGS-B", options={"maxiter": steps}
    )
    return torch.from_numpy(found.x).reshape(shape)


def _turn(structure: gemmi.Structure, sites: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, dict]:
    """Side chains turned by 120 degrees about CA-CB where nothing is in the way."""
    found = protein_torsions(with_sites(structure, sites))
    residue = _residues(structure)
    done = 0
    names = [label[3] for label in found.labels]
    for row, (_, b, c, _) in enumerate(found.tree.torsions.tolist()):
        if not found.side_chain[row] or (names[b], names[c]) != ("CA", "CB") or rng.random() > _TURNED:
            continue
        mine = found.tree.moved[row]
        others = residue != residue[b]
        for turn in rng.permutation([1, -1]):
            axis = (sites[c] - sites[b]) / (sites[c] - sites[b]).norm()
            angle = turn * 2 * math.pi / 3
            arm = sites[mine] - sites[c]
            moved = (
                arm * math.cos(angle)
                + torch.linalg.cross(axis.expand_as(arm), arm) * math.sin(angle)
                + (arm @ axis)[:, None] * axis * (1 - math.cos(angle))
            ) + sites[c]
            if torch.cdist(moved, sites[others]).min() > _LEAST_CONTACT:
                sites = sites.clone()
                sites[mine] = moved
                done += 1
                break
    return sites, {"turned": done}
