"""A stretch of main chain grown residue by residue into a map, from what is in its place beside it.

Bonds, angles and peptide planes are the start's; what is sought are phi and psi. Every residue is tried at all pairs of a grid, the best
of a few dozen chains (a beam) are kept and slid uphill by their last torsions, and where the chain goes on at the other end of the
stretch, it has to meet it. As in automated model building (Terwilliger 2003, Acta Cryst. D59, 38; Cowtan 2006, Acta Cryst. D62, 1002);
here it proposes torsions, and the data decide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from ...geometry.terms import angle, distance, torsion
from .main_chain import Density, Residue
from .omit_map import saturated

_GRID = 15.0  # degrees
_PHI = (-165.0, -40.0, 45.0, 80.0)  # of residues with a side chain, two ranges, degrees
_BEAM, _SIMILAR = 60, 0.6  # chains kept; Å, of which one is dropped
_SLIDES, _RATE, _LAST = 5, 0.08, 3  # steps, radians, residues
_FINAL, _FINAL_BEAM, _FINAL_RATE = 40, 8, 0.05
_CLOSURE, _CLOSURE_END = 0.5, 4.0  # per Å^2, while growing and at the end
_REACH = 3.7  # Å a residue
_NEAREST = 3.8  # Å, of CA atoms that are not neighbors
_CLASH = 6.0
# Where phi and psi are (degrees), how wide, and what it costs: helices, strands, polyproline, left-handed.
_WELLS = ((-63, -42, 18, 0.0), (-115, 132, 30, 0.0), (-68, 145, 22, 0.0), (57, 42, 18, 2.0), (-90, 0, 25, 0.7))
_FORBIDDEN = 4.0
_WIDTH = math.radians(20)  # of torsions about the start's


@dataclasses.dataclass(frozen=True)
class Grown:
    """A stretch that was grown.

    Attributes
    ----------
    rows : torch.Tensor
        (k,) int64
    sites_cart : torch.Tensor
        (k, 3) Å
    score, before : float
        Sum of the map at these atoms, less what unusual torsions cost, and the same of what was there.
    gap : float
        Å, root mean square distance from the residue that it has to meet; 0 where there is none.
    order : tuple of Residue
        As they were grown.
    is_end : bool
        Whether there is none to meet.
    """

    rows: torch.Tensor
    sites_cart: torch.Tensor
    score: float
    before: float
    gap: float
    order: tuple[Residue, ...]
    is_end: bool


def place(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, length: float, bend: float, turn: torch.Tensor
) -> torch.Tensor:
    """(..., 3) Å: the atom bonded to c, at an angle (radians) with b and a torsion (radians) with a (Parsons et al. 2005)."""
    bc = torch.nn.functional.normalize(c - b, dim=-1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, bc), dim=-1)
    across = torch.linalg.cross(normal, bc)
    turn = turn[..., None]
    placed: torch.Tensor = c + length * (
        -math.cos(bend) * bc + math.sin(bend) * (turn.cos() * across + turn.sin() * normal)
    )
    return placed


def _frame(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) columns: axes of three atoms."""
    x = torch.nn.functional.normalize(c - b, dim=-1)
    z = torch.nn.functional.normalize(torch.linalg.cross(x, a - b), dim=-1)
    return torch.stack([x, torch.linalg.cross(z, x), z], -1)


class _Step:
    """What carries a chain from one residue to the next: three atoms, and two that hang on them."""

    def __init__(self, x: torch.Tensor, start: torch.Tensor, last: Residue, new: Residue, forward: bool) -> None:
        rows = [last.n, last.ca, last.c, new.n, new.ca, new.c]
        rows = rows if forward else [last.c, last.ca, last.n, new.c, new.ca, new.n]
        chain = [start[i] for i in rows]
        self.forward, self.new, self.last = forward, new, last
        self.lengths = [float(distance(torch.stack(chain[i + 2 : i + 4]))) for i in range(3)]
        self.bends = [math.radians(float(angle(torch.stack(chain[i + 1 : i + 4])))) for i in range(3)]
        turns = [math.radians(float(torsion(torch.stack(chain[i : i + 4])))) for i in range(3)]
        self.omega = turns[1]
        self.expected = turns[0], turns[2]
        now = [math.radians(float(torsion(torch.stack([x[i] for i in rows[k : k + 4]])))) for k in (0, 2)]
        self.first, self.third = now
        # The oxygen of the peptide between the two, and the new residue's CB.
        carbon, nitrogen = (last, new) if forward else (new, last)
        self.o_row = carbon.o
        frame = _frame(start[carbon.ca], start[carbon.c], start[nitrogen.n])
        self.o = None if carbon.o is None else frame.mT @ (start[carbon.o] - start[carbon.c])
        frame = _frame(start[new.n], start[new.ca], start[new.c])
        self.cb = None if new.cb is None else frame.mT @ (start[new.cb] - start[new.ca])
        self.rows = [new.n, new.ca, new.c] if forward else [new.c, new.ca, new.n]
        self.rows += [row for row in (self.o_row, new.cb) if row is not None]

    def __call__(self, before: torch.Tensor, first: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
        """(..., 3 to 5, 3) Å: the atoms of :attr:`rows`, the three of the chain first, after (..., 3, 3) those of the last residue."""
        a, b, c = before.unbind(-2)
        d = place(a, b, c, self.lengths[0], self.bends[0], first)
        e = place(b, c, d, self.lengths[1], self.bends[1], torch.full_like(first, self.omega))
        f = place(c, d, e, self.lengths[2], self.bends[2], third)
        atoms = [d, e, f]
        if self.o is not None:
            # forward: b CA, c C of the last, d N of the new; backward: e CA, d C of the new, c N of the last.
            ca, carbon, nitrogen = (b, c, d) if self.forward else (e, d, c)
            atoms.append(carbon + _frame(ca, carbon, nitrogen) @ self.o)
        if self.cb is not None:
            n, ca, carbon = (d, e, f) if self.forward else (f, e, d)
            atoms.append(ca + _frame(n, ca, carbon) @ self.cb)
        return torch.stack(atoms, -2)

    def grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(m,) radians each: all pairs of the first and the third torsion."""
        every = torch.arange(-180.0, 180.0, _GRID, dtype=torch.float64)

        def phi(residue: Residue, now: float) -> torch.Tensor:
            if residue.name == "PRO":
                return torch.tensor([math.degrees(now)], dtype=torch.float64)
            if residue.name == "GLY":
                return every
            low, high, left, right = _PHI
            return every[((every >= low) & (every <= high)) | ((every >= left) & (every <= right))]

        if self.forward:
            first, third = every, phi(self.new, self.expected[1])
        else:
            first, third = phi(self.last, self.expected[0]), every
        pairs = torch.cartesian_prod(first, third)
        return pairs[:, 0].deg2rad(), pairs[:, 1].deg2rad()


def usual(phi: torch.Tensor, psi: torch.Tensor, name: str) -> torch.Tensor:
    """(...,) what a pair of torsions (radians) costs: 0 in helices and strands, to 4 where no residue is."""
    if name == "GLY":
        return torch.zeros_like(phi)
    best = torch.full_like(phi, -_FORBIDDEN)
    for phi0, psi0, width, cost in _WELLS:
        d1, d2 = phi - math.radians(phi0), psi - math.radians(psi0)
        # 1 - cos has the period of an angle.
        here = -(2 - d1.cos() - d2.cos()) / math.radians(width) ** 2 - cost
        best = torch.logaddexp(best, here)
    return -best


def grow(
    sites_cart: torch.Tensor,
    start: torch.Tensor,
    anchor: Residue,
    stretch: Sequence[Residue],
    forward: bool,
    density: Density,
    meets: Residue | None = None,
    others: torch.Tensor | None = None,
    changed: float = 0.0,
    beam: int = _BEAM,
) -> Grown:
    """Grow a stretch from the residue beside it.

    Parameters
    ----------
    sites_cart : torch.Tensor
        (n, 3) Å, the model.
    start : torch.Tensor
        (n, 3) Å, the model whose bonds and angles are taken, and near whose torsions others are expected.
    anchor : Residue
        What it grows from.
    stretch : sequence of Residue
        In the order in which they are grown.
    forward : bool
        From N to C.
    density : callable
        (..., 3) Å -> (...,) of a map without the stretch, in standard deviations, differentiable.
    meets : Residue, optional
        Where the chain goes on.
    others : torch.Tensor, optional
        (m, 3) Å: CA atoms that the stretch has to keep away from.
    changed : float
        What torsions cost that are not the start's.
    beam : int

    Returns
    -------
    Grown
    """
    x = sites_cart.detach().to(torch.float64)
    order = [anchor, *stretch, *([meets] if meets is not None else [])]
    steps = [_Step(x, start, last, new, forward) for last, new in zip(order, order[1:])]
    chain = (anchor.n, anchor.ca, anchor.c) if forward else (anchor.c, anchor.ca, anchor.n)
    begin = x[list(chain)]
    goal = None
    if meets is not None:
        goal = x[[meets.n, meets.ca, meets.c] if forward else [meets.c, meets.ca, meets.n]]
    builder = _Builder(steps, begin, goal, density, others, changed)
    torsions = x.new_zeros(1, 0, 2)
    for k in range(len(steps)):
        torsions = builder.extend(torsions, k, beam)
    expected = x.new_tensor([[step.expected for step in steps]])
    torsions = torch.cat([torsions[:_FINAL_BEAM], expected])
    torsions = builder.slide(torsions, 0, _FINAL, _FINAL_RATE, _CLOSURE_END)
    with torch.no_grad():
        values = builder.value(torsions, _CLOSURE_END)
        best = int(values.argmax())
        atoms = builder.atoms(torsions[best : best + 1])
        n = len(stretch)
        rows = [row for step in steps[:n] for row in step.rows]
        sites = torch.cat([part[0] for part in atoms[:n]])
        now = x.new_tensor([[[step.first, step.third] for step in steps]])
        score = float(builder.score(torsions[best : best + 1], atoms))
        before = float(builder.score(now, [x[None, step.rows] for step in steps]))
        gap = 0.0 if goal is None else float((atoms[-1][0, :3] - goal).square().sum(-1).mean().sqrt())
    return Grown(torch.tensor(rows), sites, score, before, gap, tuple(stretch), goal is None)


class _Builder:
    """Chains of some steps from three atoms, as torsions (b, steps, 2), and what they are worth."""

    def __init__(
        self,
        steps: list[_Step],
        begin: torch.Tensor,
        goal: torch.Tensor | None,
        density: Density,
        others: torch.Tensor | None,
        changed: float,
    ) -> None:
        self.steps, self.begin, self.goal, self.density, self.others = steps, begin, goal, density, others
        self.changed = changed
        self.n = len(steps) - (goal is not None)  # those that are grown; the last is only to be met

    def atoms(self, torsions: torch.Tensor, first: int = 0, before: torch.Tensor | None = None) -> list[torch.Tensor]:
        """[(b, 3 to 5, 3)] of steps from the first on, ``before`` it (b, 3, 3)."""
        here = self.begin.expand(len(torsions), 3, 3) if before is None else before
        result = []
        for k in range(first, torsions.shape[1]):
            new = self.steps[k](here, torsions[:, k, 0], torsions[:, k, 1])
            result.append(new)
            here = new[:, :3]
        return result

    def score(self, torsions: torch.Tensor, atoms: list[torch.Tensor], first: int = 0) -> torch.Tensor:
        """(b,) the map at the atoms that are grown, less what torsions cost, of steps from the first on."""
        grown = atoms[: max(0, self.n - first)]
        total = self._map(torch.cat(grown, 1)).sum(1) if grown else torch.zeros(len(torsions), dtype=torch.float64)
        for k in range(max(0, first - 1), torsions.shape[1] - 1):
            total = total - self._cost(torsions[:, k], torsions[:, k + 1], k)
        return total

    def _map(self, sites: torch.Tensor) -> torch.Tensor:
        return saturated(self.density(sites))

    def _cost(self, here: torch.Tensor, after: torch.Tensor, k: int) -> torch.Tensor:
        """What the torsions of the residue that step k has placed cost: its third one and the first of the next step."""
        a, b = here[..., 1], after[..., 0]
        x, y = self.steps[k].expected[1], self.steps[k + 1].expected[0]
        phi, psi = (a, b) if self.steps[k].forward else (b, a)
        near = -(2 - (a - x).cos() - (b - y).cos()) / _WIDTH**2
        return -torch.logaddexp(near, -self.changed - usual(phi, psi, self.steps[k].new.name))

    def value(
        self,
        torsions: torch.Tensor,
        closure: float,
        first: int = 0,
        before: torch.Tensor | None = None,
        earlier: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(b,) the score, less what is in the way of meeting the goal, and contacts, of steps from the first on.

        ``before`` them there are (b, 3, 3) atoms, and ``earlier`` (b, first, 3) CA atoms.
        """
        atoms = self.atoms(torsions, first, before)
        total = self.score(torsions, atoms, first)
        grown = [part[:, 1] for part in atoms[: max(0, self.n - first)]]
        if grown:
            total = total - self._contacts(torch.stack(grown, 1), earlier)
        if self.goal is not None and torsions.shape[1] == len(self.steps):
            total = total - closure * (atoms[-1][:, :3] - self.goal).square().sum((-1, -2))
        return total

    def _contacts(self, ca: torch.Tensor, earlier: torch.Tensor | None) -> torch.Tensor:
        """(b,) what CA atoms (b, k, 3) cost that are too near others, those ``earlier`` in the chain among them."""
        every = ca if earlier is None else torch.cat([earlier, ca], 1)
        k, n = ca.shape[1], every.shape[1]
        number = torch.arange(n)
        apart = number[n - k :, None] - number[None] > 1  # each pair once
        near = torch.where(apart, torch.cdist(ca, every), _NEAREST)
        total = (_NEAREST - near).clamp(min=0).square().sum((-1, -2))
        return _CLASH * (total + self._others(ca.reshape(-1, 3)).reshape(len(ca), k).sum(1))

    def _others(self, ca: torch.Tensor) -> torch.Tensor:
        if self.others is None or not len(self.others):
            return torch.zeros(len(ca), dtype=torch.float64)
        return (_NEAREST - torch.cdist(ca, self.others)).clamp(min=0).square().sum(-1)

    def extend(self, torsions: torch.Tensor, k: int, beam: int) -> torch.Tensor:
        """The best chains of one residue more."""
        step = self.steps[k]
        with torch.no_grad():
            first, third = step.grid()
            m, b = len(first), len(torsions)
            atoms = self.atoms(torsions)
            before = atoms[-1][:, :3] if atoms else self.begin.expand(b, 3, 3)
            so_far = self.value(torsions, 0.0) if k else torch.zeros(b, dtype=torch.float64)
            new = step(before[:, None].expand(b, m, 3, 3), first.expand(b, m), third.expand(b, m))  # (b, m, atoms, 3)
            gain = self._map(new).sum(-1) if k < self.n else torch.zeros(b, m, dtype=torch.float64)
            total = so_far[:, None] + gain
            if k:
                pair = torch.stack([first, third], -1)
                total = total - self._cost(torsions[:, -1][:, None].expand(b, m, 2), pair.expand(b, m, 2), k - 1)
            ca = new[:, :, 1]
            if k < self.n:
                if k > 1:
                    near = torch.cdist(ca, torch.stack([part[:, 1] for part in atoms[:-1]], 1))
                    total = total - _CLASH * (_NEAREST - near).clamp(min=0).square().sum(-1)
                total = total - _CLASH * self._others(ca.reshape(-1, 3)).reshape(b, m)
            if self.goal is not None:
                if k == len(self.steps) - 1:
                    total = total - _CLOSURE * (new[:, :, :3] - self.goal).square().sum((-1, -2))
                else:
                    left = len(self.steps) - 1 - k
                    far = (ca - self.goal[1]).norm(dim=-1) - _REACH * left
                    total = total - 2 * far.clamp(min=0).square()
            flat = total.flatten()
            top = flat.topk(min(len(flat), 8 * beam)).indices
            ends = new.reshape(b * m, -1, 3)[top][:, 1:3].flatten(1)
            kept = _different(ends, beam)
            top = top[kept]
            pairs = torch.stack([first[top % m], third[top % m]], -1)
            torsions = torch.cat([torsions[top // m], pairs[:, None]], 1)
        return self.slide(torsions, max(0, k + 1 - _LAST), _SLIDES, _RATE, _CLOSURE)

    def slide(self, torsions: torch.Tensor, first: int, steps: int, rate: float, closure: float) -> torch.Tensor:
        """Chains uphill by the torsions from a step on."""
        fixed = torsions[:, :first]
        moving = torsions[:, first:].clone().requires_grad_(True)
        free = torch.ones_like(moving)
        for k, step in enumerate(self.steps[first : torsions.shape[1]]):
            # phi of proline is in a ring.
            if (step.new if step.forward else step.last).name == "PRO":
                free[:, k, int(step.forward)] = 0
        before = earlier = None
        if first:
            with torch.no_grad():
                atoms = self.atoms(fixed)
                before, earlier = atoms[-1][:, :3], torch.stack([part[:, 1] for part in atoms], 1)
        optimiser = torch.optim.Adam([moving], lr=rate)
        with torch.enable_grad():
            for number in range(steps):
                optimiser.zero_grad(set_to_none=True)
                (-self.value(torch.cat([fixed, moving], 1), closure, first, before, earlier).sum()).backward()
                assert moving.grad is not None
                moving.grad.mul_(free)
                optimiser.param_groups[0]["lr"] = rate * (1 - 0.8 * number / steps)
                optimiser.step()
        result = torch.cat([fixed, moving.detach()], 1)
        with torch.no_grad():
            return result[self.value(result, closure).argsort(descending=True)]


def _different(ends: torch.Tensor, most: int) -> torch.Tensor:
    """Rows, the best first, such that none is near an earlier one."""
    d = torch.cdist(ends, ends) / math.sqrt(ends.shape[-1] / 3)
    kept: list[int] = []
    left = torch.ones(len(ends), dtype=torch.bool)
    for i in range(len(ends)):
        if left[i]:
            kept.append(i)
            if len(kept) == most:
                break
            left &= d[i] > _SIMILAR
    return torch.tensor(kept)
