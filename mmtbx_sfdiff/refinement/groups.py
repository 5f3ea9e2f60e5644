"""Which atoms share a variable: residues, chains, alternative conformations.

Groups are arrays of one number for each atom, -1 for atoms that are in none.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import gemmi
import numpy as np

_BACKBONE = frozenset(
    (
        "N",
        "CA",
        "C",
        "O",
        "OXT",
        "H",
        "HA",
        "HA2",
        "HA3",
        "H1",
        "H2",
        "H3",
        "P",
        "OP1",
        "OP2",
        "OP3",
        "O1P",
        "O2P",
        "O3P",
    )
    + tuple(f"{name}{mark}" for name in ("O5", "C5", "C4", "O4", "C3", "O3", "C2", "O2", "C1") for mark in "'*")
)
_WATERS = frozenset(("HOH", "DOD", "WAT", "H2O"))
_DECIMAL = re.compile(r"-?\d+(?=\D?$)")
_LEAST_ATOMS = 20  # of a chain that has a motion of its own


@dataclasses.dataclass(frozen=True)
class AtomLabels:
    """What tells the atoms of a model apart.

    Attributes
    ----------
    names, altlocs, residue_names, chains, residues : numpy.ndarray
        (n,) str; ``residues``: number and insertion code, with the chain.
    polymer : numpy.ndarray
        (n,) bool, of a protein or nucleic acid.
    waters : numpy.ndarray
        (n,) bool.
    """

    names: np.ndarray
    altlocs: np.ndarray
    residue_names: np.ndarray
    chains: np.ndarray
    residues: np.ndarray
    polymer: np.ndarray
    waters: np.ndarray

    @classmethod
    def from_columns(
        cls,
        names: Sequence[str],
        altlocs: Sequence[str],
        residue_names: Sequence[str],
        chains: Sequence[str],
        residues: Sequence[str],
    ) -> AtomLabels:
        """Of columns (n,) of str."""
        polymer = {name: _is_polymer(name) for name in set(residue_names)}
        return cls(
            np.array([name.strip() for name in names], dtype=object),
            np.array([altloc.strip("\0 ") for altloc in altlocs], dtype=object),
            np.array(residue_names, dtype=object),
            np.array(chains, dtype=object),
            np.array([f"{c} {r}" for c, r in zip(chains, residues, strict=True)], dtype=object),
            np.array([polymer[name] for name in residue_names], dtype=bool),
            np.array([name in _WATERS for name in residue_names], dtype=bool),
        )

    @classmethod
    def from_hierarchy(cls, hierarchy: Any) -> AtomLabels:
        """Of an ``iotbx.pdb.hierarchy.root``; chains of several models are several."""
        labels = [atom.fetch_labels() for atom in hierarchy.atoms()]
        several = len({x.model_id for x in labels}) > 1
        return cls.from_columns(
            [x.name for x in labels],
            [x.altloc for x in labels],
            [x.resname.strip() for x in labels],
            [f"{x.model_id.strip()}:{x.chain_id}" if several else x.chain_id for x in labels],
            [x.resid().strip() for x in labels],
        )

    def __len__(self) -> int:
        return len(self.names)

    def main_and_side_chains(self) -> np.ndarray:
        """(n,) two groups a residue and conformer; one of a ligand, or a water."""
        return self._numbered(
            lambda i: (
                self.residues[i],
                self.residue_names[i],
                self.altlocs[i],
                bool(self.polymer[i]) and self.names[i] in _BACKBONE,
            )
        )

    def bodies(self) -> np.ndarray:
        """(n,) a group for each chain, with its ligands and waters."""
        return self._numbered(lambda i: self.chains[i])

    def polymer_chains(self) -> np.ndarray:
        """(n,) a group for each polymer of a chain of at least 20 atoms; -1 for ligands and waters."""
        counts = {chain: int(self.polymer[self.chains == chain].sum()) for chain in set(self.chains)}
        return self._numbered(
            lambda i: self.chains[i] if self.polymer[i] and counts[self.chains[i]] >= _LEAST_ATOMS else None
        )

    def spans(self, groups: np.ndarray) -> dict[int, tuple[str, int | None, int | None]]:
        """{group: (chain, first, last residue)} of groups (n,) within a chain; None for numbers that are not decimal."""
        result: dict[int, tuple[str, int | None, int | None]] = {}
        for group in sorted(set(groups.tolist()) - {-1}):
            rows = np.nonzero(groups == group)[0]
            numbers = [_DECIMAL.match(self.residues[row].rpartition(" ")[2]) for row in rows]
            known = [int(number.group()) for number in numbers if number is not None]
            whole = len(known) < len(rows)
            chain = self.chains[rows[0]]
            result[group] = (chain, None, None) if whole else (chain, min(known), max(known))
        return result

    def _numbered(self, key: Callable[[int], Hashable]) -> np.ndarray:
        numbers: dict[Hashable, int] = {}
        found = [key(i) for i in range(len(self))]
        return np.array([-1 if k is None else numbers.setdefault(k, len(numbers)) for k in found], dtype=np.int64)

    def alternatives(self) -> list[list[np.ndarray]]:
        """Rows of each conformer of every residue that has several; neighbors in a chain with the same conformers go together."""
        result: list[list[np.ndarray]] = []
        last: tuple[str, tuple[str, ...]] | None = None
        by_residue: dict[str, list[int]] = {}
        for row, residue in enumerate(self.residues):
            by_residue.setdefault(residue, []).append(row)
        for rows in by_residue.values():
            altlocs = self.altlocs[rows]
            present = tuple(sorted(set(altlocs) - {""}))
            chain = self.chains[rows[0]]
            if len(present) < 2:
                last = None
                continue
            parts = [np.array(rows)[altlocs == a] for a in present]
            joined = last == (chain, present) and bool(self.polymer[rows[0]])
            if joined:
                result[-1] = [np.concatenate(pair) for pair in zip(result[-1], parts, strict=True)]
            else:
                result.append(parts)
            last = (chain, present)
        return result

    def alone(self, among: np.ndarray) -> list[np.ndarray]:
        """Rows of each water, ligand, and conformer or atom of a polymer without an alternative, that has atoms ``among`` (n,)."""
        taken = np.zeros(len(self), dtype=bool)
        for parts in self.alternatives():
            for part in parts:
                taken[part] = True
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row in np.nonzero(among & ~taken)[0].tolist():
            side = self.names[row] in _BACKBONE if self.polymer[row] else None
            groups.setdefault((self.residues[row], self.altlocs[row], side), []).append(row)
        return [np.array(rows) for rows in groups.values()]


def _is_polymer(name: str) -> bool:
    found = gemmi.find_tabulated_residue(name)
    return bool(found.is_amino_acid() or found.is_nucleic_acid())
