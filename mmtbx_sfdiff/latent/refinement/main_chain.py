"""A model's residues, in runs that peptide bonds join, and the stretches of them that a map does not show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

Density = Callable[[torch.Tensor], torch.Tensor]
"""A map in standard deviations, as a function of sites (..., 3) Å."""

_LONGEST_PEPTIDE = 2.0  # Å
_LOW, _HOLE = 0.6, 0.25  # of the median: the mean of what is weak, and its lowest atom
_MARGIN = 1  # residues on each side of a weak place
_END = 4  # residues from an end of a chain, within which what is weak may reach it
_NEXT = 3  # weak places that one stretch may hold
LONGEST = 36  # residues


@dataclasses.dataclass(frozen=True)
class Residue:
    """Rows of a residue's atoms; None where there is none.

    Attributes
    ----------
    n, ca, c : int
    o, cb : int or None
    name : str
    """

    n: int
    ca: int
    c: int
    o: int | None
    cb: int | None
    name: str

    @property
    def rows(self) -> list[int]:
        """Those of the main chain and CB."""
        return [row for row in (self.n, self.ca, self.c, self.o, self.cb) if row is not None]


class Chains:
    """A model by residues.

    Parameters
    ----------
    labels : sequence of (str, str, str, str)
        Chain, residue's number, residue's name, atom's name of each atom.
    sites_cart : torch.Tensor
        (n, 3) Å.

    Attributes
    ----------
    runs : list of list of Residue
        What peptide bonds join, from N to C.
    sites : torch.Tensor
        (n, 3) float64, on the CPU.
    """

    def __init__(self, labels: Sequence[tuple[str, str, str, str]], sites_cart: torch.Tensor) -> None:
        self.sites = sites_cart.detach().to(device="cpu", dtype=torch.float64)
        atoms: dict[tuple[str, str, str], dict[str, int]] = {}
        for row, (chain, number, residue, atom) in enumerate(labels):
            atoms.setdefault((chain, number, residue), {}).setdefault(atom, row)
        self.runs: list[list[Residue]] = []
        self._rows: dict[int, list[int]] = {}
        last: tuple[str, Residue] | None = None
        for (chain, _, name), mine in atoms.items():
            if not {"N", "CA", "C"} <= mine.keys():
                last = None
                continue
            here = Residue(mine["N"], mine["CA"], mine["C"], mine.get("O"), mine.get("CB"), name)
            self._rows[here.ca] = list(mine.values())
            if last is None or last[0] != chain or self._apart(last[1], here) > _LONGEST_PEPTIDE:
                self.runs.append([])
            self.runs[-1].append(here)
            last = chain, here

    def _apart(self, first: Residue, second: Residue) -> float:
        return float((self.sites[first.c] - self.sites[second.n]).norm())

    @property
    def residues(self) -> list[Residue]:
        """All of them."""
        return [residue for run in self.runs for residue in run]

    def rows(self, residues: Sequence[Residue]) -> torch.Tensor:
        """(k,) int64, all atoms of some residues."""
        return torch.tensor([row for r in residues for row in self._rows[r.ca]], dtype=torch.int64)

    def mask(self, rows: torch.Tensor) -> torch.Tensor:
        """(n,) bool, true for some rows."""
        found = torch.zeros(len(self.sites), dtype=torch.bool)
        found[rows] = True
        return found


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Residues first to last (both in it, from 0) of a run."""

    run: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


def is_weak(values: torch.Tensor, median: float) -> bool:
    """Whether a map does not show atoms where it has some values (n,): they are low against a median, or one of them is in a hole."""
    return float(values.mean()) < _LOW * median or float(values.min()) < _HOLE * median


def weak_places(chains: Chains, density: Density) -> list[list[bool]]:
    """Which residues of each run the map does not show: their main chain is weak against the median of residues."""
    values = [
        [density(chains.sites[[row for row in (r.n, r.ca, r.c, r.o) if row is not None]]) for r in run]
        for run in chains.runs
    ]
    median = float(torch.stack([v.mean() for run in values for v in run]).median())
    return [[is_weak(v, median) for v in run] for run in values]


def stretches(weak: Sequence[Sequence[bool]], longest: int = LONGEST) -> list[Stretch]:
    """What may be wrong: a weak place with what is beside it, all from one to the next or the one after, and ends of chains from one on.

    None is longer than ``longest``, or than half of all residues: phases come from the others.
    """
    total = sum(len(flags) for flags in weak)
    found: dict[Stretch, None] = {}
    for number, flags in enumerate(weak):
        n = len(flags)
        places: list[list[int]] = []
        for k in (k for k in range(n) if flags[k]):
            if places and k - places[-1][1] <= 2:
                places[-1][1] = k
            else:
                places.append([k, k])
        for i, (first, last) in enumerate(places):
            begins = {max(0, first - _MARGIN)} | ({0} if first < _END + _MARGIN else set())
            for _, end in places[i : i + _NEXT]:
                end = min(n - 1, end + _MARGIN)
                for begin in sorted(begins):
                    found[Stretch(number, begin, end)] = None
                    if end >= n - _END - _MARGIN:
                        found[Stretch(number, begin, n - 1)] = None
            found[Stretch(number, max(0, first - _MARGIN), n - 1)] = None
            found[Stretch(number, 0, min(n - 1, last + _MARGIN))] = None
    return [s for s in found if len(s) <= min(longest, total // 2, len(weak[s.run]) - 3)]
