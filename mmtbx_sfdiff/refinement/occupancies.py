"""Occupancies as variables: of alternatives, which sum to one, and of groups by themselves.

The occupancies of alternatives are a softmax, so that their sum is one for any variables; that of a group by itself is a logistic
function, between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import numpy as np

_LEAST = 0.02  # at the start, for a derivative
_ALONE_LEAST = 0.01


class OccupancyVariables:
    """Occupancies of groups of atoms as a function of one vector.

    Parameters
    ----------
    alternatives : sequence of sequences of numpy.ndarray
        For each set of alternatives the rows of each of them.
    alone : sequence of numpy.ndarray
        Rows of groups by themselves.
    occupancies : torch.Tensor
        (n_atoms,) at the start; a group begins with the mean of its atoms.

    Attributes
    ----------
    n : int
        Length of the vector: one for each alternative and each group.
    """

    def __init__(
        self, alternatives: Sequence[Sequence[np.ndarray]], alone: Sequence[np.ndarray], occupancies: torch.Tensor
    ) -> None:
        start = occupancies.detach().to(torch.float64)
        device = start.device
        members = [rows for parts in alternatives for rows in parts] + list(alone)
        self.n = len(members)
        self._start = start
        self.rows = torch.from_numpy(np.concatenate(members) if members else np.zeros(0, dtype=np.int64)).to(device)
        sizes = torch.tensor([len(rows) for rows in members], dtype=torch.int64, device=device)
        self.member = torch.repeat_interleave(torch.arange(self.n, device=device), sizes)
        means = torch.zeros(self.n, dtype=torch.float64, device=device)
        means = means.index_add(0, self.member, start[self.rows]) / sizes.clamp(min=1)
        sets = [k for k, parts in enumerate(alternatives) for _ in parts]
        self._n_sets, self._n_alternatives = len(alternatives), len(sets)
        self._set = torch.tensor(sets, dtype=torch.int64, device=device)
        self._logs = means[: len(sets)].clamp(min=_LEAST).log()
        self._logits = torch.logit(means[len(sets) :].clamp(_ALONE_LEAST, 1 - _ALONE_LEAST))

    def values(self, vector: torch.Tensor) -> torch.Tensor:
        """(n,) occupancy of each alternative, then of each group by itself."""
        power = (self._logs + vector[: self._n_alternatives]).exp()
        total = power.new_zeros(self._n_sets).index_add(0, self._set, power)
        return torch.cat([power / total[self._set], torch.sigmoid(self._logits + vector[self._n_alternatives :])])

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        """(n_atoms,) occupancies of all atoms, with the gradient."""
        return self._start.index_put((self.rows,), self.values(vector)[self.member])

    def curvature(self, of_occupancies: torch.Tensor) -> torch.Tensor:
        """(n,) expected second derivatives, from those in each atom's occupancy (n_atoms,)."""
        q = self.values(torch.zeros(self.n, dtype=torch.float64, device=self._start.device))
        each = q.new_zeros(self.n).index_add(0, self.member, of_occupancies[self.rows].to(q))
        return each * (q * (1 - q)).square()


def rounded(atoms: Any, alternatives: Sequence[Sequence[np.ndarray]], digits: int = 2) -> Any:
    """The atoms with the occupancies of alternatives as files hold them, still summing to one: the largest takes what rounding leaves."""
    occupancies = atoms.occupancies.detach().clone()
    for parts in alternatives:
        values = [round(float(occupancies[int(rows[0])]), digits) for rows in parts]
        largest = max(range(len(values)), key=values.__getitem__)
        values[largest] = round(1 - sum(v for k, v in enumerate(values) if k != largest), digits)
        for value, rows in zip(values, parts, strict=True):
            occupancies[torch.from_numpy(rows).to(occupancies.device)] = value
    return atoms.replace(occupancies=occupancies)
