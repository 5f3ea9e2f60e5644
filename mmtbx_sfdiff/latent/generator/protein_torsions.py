"""The torsions of a protein from its atoms' names and distances: phi, psi, and those of side chains.

Peptide bonds and rings do not turn (hence neither does phi of proline), nor does the last bond to a lone atom. Bonds are taken
between atoms that are near enough; one between two sulfurs is not followed, so that a disulfide's two halves move apart when a
torsion between them turns: springs hold them.
"""

from __future__ import annotations

import dataclasses

import torch

import gemmi
import numpy as np

from .torsions import TorsionTree

MAIN_CHAIN = ("N", "CA", "C", "O", "OXT")
_LONGEST_BOND = 2.0  # Å


@dataclasses.dataclass(frozen=True, eq=False)
class ProteinTorsions:
    """What :func:`protein_torsions` finds.

    Attributes
    ----------
    tree : TorsionTree
    side_chain : torch.Tensor
        (m,) bool
    main_chain : torch.Tensor
        (n,) bool
    labels : tuple of (str, str, str, str)
        Chain, residue number with insertion code, residue name, atom name of each of the n atoms.
    """

    tree: TorsionTree
    side_chain: torch.Tensor
    main_chain: torch.Tensor
    labels: tuple[tuple[str, str, str, str], ...]


def protein_torsions(structure: gemmi.Structure) -> ProteinTorsions:
    """Torsions of the first model's proteins, one conformation, without hydrogens.

    Raises
    ------
    ValueError
        No amino acid with N, CA and C.
    """
    labels, sites, residues = [], [], []
    for chain in structure[0]:
        for number, residue in enumerate(chain.first_conformer()):
            names = {atom.name for atom in residue.first_conformer()}
            if not names.issuperset(("N", "CA", "C")):
                continue
            for atom in residue.first_conformer():
                if not atom.is_hydrogen():
                    labels.append((chain.name, str(residue.seqid), residue.name, atom.name))
                    sites.append(atom.pos.tolist())
                    residues.append((chain.name, number))
    if not labels:
        raise ValueError("The model has no amino acid with N, CA and C: there is no protein that could move.")
    x = np.array(sites)
    names_of = [label[3] for label in labels]
    neighbors = _bonds(x, names_of, residues)
    root_of, order, above = _walk(neighbors, names_of)
    below = _below(order, above)
    torsions, moved, side = [], [], []
    for c in order:
        b = above[c]
        if b < 0 or not _turns(b, c, names_of, residues, neighbors, below[c]):
            continue
        far = [i for i in neighbors[b] if i != c and (above[b] == i or above[i] == b)]
        near = [i for i in neighbors[c] if above[i] == c]
        if not far or not near:
            continue
        first = above[b] if above[b] >= 0 else min(far)
        torsions.append((first, b, c, min(near)))
        moved.append(below[c] - {c})
        side.append(not {names_of[b], names_of[c]} <= set(MAIN_CHAIN))
    mask = torch.zeros(len(torsions), len(labels), dtype=torch.bool)
    for row, atoms in enumerate(moved):
        mask[row, sorted(atoms)] = True
    main = torch.tensor([name in MAIN_CHAIN for name in names_of])
    tree = TorsionTree(
        torch.from_numpy(x),
        torch.tensor(torsions, dtype=torch.int64).reshape(-1, 4),
        mask,
        torch.tensor(np.unique(root_of, return_inverse=True)[1].astype(np.int64)),
        main,
    )
    return ProteinTorsions(tree, torch.tensor(side, dtype=torch.bool), main, tuple(labels))


def _bonds(x: np.ndarray, names: list[str], residues: list[tuple[str, int]]) -> list[list[int]]:
    near = np.linalg.norm(x[:, None] - x[None], axis=-1) < _LONGEST_BOND
    neighbors: list[list[int]] = [[] for _ in names]
    for i, j in zip(*np.nonzero(np.triu(near, 1))):
        same = residues[i] == residues[j]
        # Between residues there are peptide bonds alone: contacts that are too near are none.
        if same or {names[i], names[j]} == {"C", "N"}:
            neighbors[i].append(int(j))
            neighbors[j].append(int(i))
    _join(neighbors, x, names, residues)
    return neighbors


def _join(neighbors: list[list[int]], x: np.ndarray, names: list[str], residues: list[tuple[str, int]]) -> None:
    """Tie what hangs on no CA (beyond an atom that the model lacks, or a bond that is too long) to the nearest atom of its residue."""
    of: dict[tuple[str, int], list[int]] = {}
    for i, residue in enumerate(residues):
        of.setdefault(residue, []).append(i)
    for mine in of.values():
        joined: set[int] = set()
        waiting = [i for i in mine if names[i] == "CA"] or mine[:1]
        while len(joined) < len(mine):
            while waiting:
                i = waiting.pop()
                if i not in joined:
                    joined.add(i)
                    waiting += [j for j in neighbors[i] if residues[j] == residues[i]]
            loose = [i for i in mine if i not in joined]
            if loose:
                here = sorted(joined)
                apart = np.linalg.norm(x[loose][:, None] - x[here][None], axis=-1)
                a, b = divmod(int(apart.argmin()), len(here))
                neighbors[loose[a]].append(here[b])
                neighbors[here[b]].append(loose[a])
                waiting = [loose[a]]


def _walk(neighbors: list[list[int]], names: list[str]) -> tuple[list[int], list[int], list[int]]:
    """(number of the molecule of each atom, atoms so that each comes after the one it hangs on, that one or -1)"""
    n = len(neighbors)
    root, above, order = [-1] * n, [-1] * n, []
    for first in range(n):
        if root[first] >= 0:
            continue
        root[first], waiting = first, [first]
        while waiting:
            i = waiting.pop(0)
            order.append(i)
            # The main chain first: through it a molecule hangs together.
            for j in sorted(neighbors[i], key=lambda k: (names[k] not in MAIN_CHAIN, k)):
                if root[j] < 0:
                    root[j], above[j] = first, i
                    waiting.append(j)
    return root, order, above


def _below(order: list[int], above: list[int]) -> list[set[int]]:
    below: list[set[int]] = [{i} for i in range(len(above))]
    for i in reversed(order):
        if above[i] >= 0:
            below[above[i]] |= below[i]
    return below


def _turns(
    b: int, c: int, names: list[str], residues: list[tuple[str, int]], neighbors: list[list[int]], beyond: set[int]
) -> bool:
    """Whether the bond turns: no peptide bond, no ring, something beyond that moves."""
    if {names[b], names[c]} == {"C", "N"} and residues[b] != residues[c]:
        return False
    if len(beyond) < 2:
        return False
    # A ring leads from what is beyond back to what is not by another bond.
    return not any(j not in beyond and (i, j) != (c, b) for i in beyond for j in neighbors[i])
