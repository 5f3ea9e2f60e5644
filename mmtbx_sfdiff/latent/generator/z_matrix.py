"""By which atoms each atom is placed: the references of internal coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def build_z_matrix(
    cart_index: Sequence[int], bonds: Sequence[tuple[int, int]], elements: Sequence[str], residues: Sequence[int]
) -> torch.Tensor:
    """References for every atom that is not Cartesian.

    Parameters
    ----------
    cart_index : sequence of int
    bonds : sequence of (int, int)
    elements : sequence of str
    residues : sequence of int
        Of each atom; bonds between side chains of different residues are not followed.

    Returns
    -------
    torch.Tensor
        (k, 4) long, in an order in which references come first.

    Raises
    ------
    ValueError
        When an atom is not connected to a Cartesian one.
    """
    n = len(elements)
    cart = set(cart_index)
    neighbours: list[list[int]] = [[] for _ in range(n)]
    for i, j in bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    heavy_first = {i: (elements[i] == "H", i) for i in range(n)}
    for i in range(n):
        neighbours[i].sort(key=heavy_first.__getitem__)
    rank = dict.fromkeys(cart, 0)  # when an atom was placed
    rows = []
    while len(rank) < n:
        level = max(rank.values()) + 1
        found = []
        for atom in sorted((i for i in range(n) if i not in rank), key=heavy_first.__getitem__):
            parents = [
                p
                for p in neighbours[atom]
                if rank.get(p, level) < level
                and (residues[p] == residues[atom] or p in cart or not _is_bridge(p, atom, elements))
            ]
            if not parents:
                continue
            references = _references(
                atom, min(parents, key=lambda p: (rank[p], residues[p] != residues[atom], p)), neighbours, rank
            )
            if references is not None:
                found.append((atom, *references))
                rank[atom] = level  # a sibling of the next one
        if not found:
            lost = next(i for i in range(n) if i not in rank)
            raise ValueError(f"atom {lost} ({elements[lost]}) is not connected to the backbone by bonds.")
        rows += found
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 4)


def _is_bridge(i: int, j: int, elements: Sequence[str]) -> bool:
    return elements[i] == "S" and elements[j] == "S"


def _references(
    atom: Any, parent: int, neighbours: list[list[int]], rank: dict[int, int]
) -> tuple[int, int, int] | None:
    """(parent, angle reference, torsion reference) of atoms that are placed, or None."""
    placed = [i for i in neighbours[parent] if i != atom and i in rank]
    placed.sort(key=lambda i: rank[i])  # stable: heavy ones first
    if len(placed) >= 2:
        return parent, placed[0], placed[1]  # a sibling, or both neighbours in the chain
    for near in placed:
        beyond = sorted((i for i in neighbours[near] if i != parent and i in rank), key=lambda i: rank[i])
        if beyond:
            return parent, near, beyond[0]
    return None
