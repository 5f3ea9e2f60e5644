"""What kernels found wrong with atoms: of each model, and, of the first, written down for the host."""

from __future__ import annotations

import triton
import triton.language as tl

# What was wrong: a number of an atom (bad), its displacements (after them), or all of them together.
GOOD = tl.constexpr(2147483647)
RANGE = tl.constexpr(2147483646)


@triton.jit
def verdicts(models, n_models, sums, status, limits, blocks, BLOCKS: tl.constexpr):
    """Of each of these models what was wrong first: 4 x atom + kind, RANGE for all atoms together, or GOOD.

    ``limits``: the largest mean square error over contributions, of F and its gradients (3), and the least of their
    contributions over those of F (3); what is not asked for has a limit that nothing exceeds.
    """
    lane = tl.arange(0, BLOCKS)
    real = (models[:, None] < n_models) & (lane[None, :] < blocks)
    place = models[:, None] * blocks + lane[None, :]
    code = tl.min(tl.load(status + place, mask=real, other=GOOD), 1)
    norm = tl.sum(tl.load(sums + 8 * place, mask=real, other=0.0), 1)
    wrong = code < -1
    for order in tl.static_range(3):
        own = tl.sum(tl.load(sums + 8 * place + order, mask=real, other=0.0), 1)
        error = tl.sum(tl.load(sums + 8 * place + 3 + order, mask=real, other=0.0), 1)
        wrong |= error > tl.load(limits + order) * own
        wrong |= own < tl.load(limits + 3 + order) * norm
    return tl.where((code == GOOD) & wrong, RANGE, code)


@triton.jit
def report(row, n_models, n_atoms, sums, status, limits, blocks, kinds, BLOCKS: tl.constexpr, parameters):
    """Write the first model of which something was wrong into the row of findings, unless there is one.

    ``kinds``: numbers of the row for a bad number and for results; ``parameters``: (tensor, step from model to model, numbers
    of an atom) of the six.
    """
    found = tl.full((), 2147483647, dtype=tl.int32)
    of_model = tl.full((), 0, dtype=tl.int32)
    for start in range(0, n_models, 16):
        models = start + tl.arange(0, 16)
        code = verdicts(models, n_models, sums, status, limits, blocks, BLOCKS)
        first = tl.min(tl.where((code < GOOD) & (models < n_models), models, 2147483647), 0)
        own = tl.min(tl.where(models == first, code, 2147483647), 0)
        new = (found == 2147483647) & (first < 2147483647)
        of_model = tl.where(new, first, of_model)
        found = tl.where(new, own, found)
    if (found < 2147483647) & (tl.load(row) == 0):
        number = (found % 4 == 0) & (found != RANGE)
        atom = tl.where(found == RANGE, 0, found // 4)
        tl.store(row, tl.where(number, tl.load(kinds), tl.load(kinds + 1)))
        tl.store(row + 1, of_model.to(tl.float64))
        tl.store(row + 2, atom.to(tl.float64))
        tl.store(row + 3, n_models)
        _store_number(row + 4, parameters[0] + of_model * parameters[1] + 3 * atom, 3)
        _store_number(row + 7, parameters[2] + of_model * parameters[3] + atom, 1)
        _store_number(row + 8, parameters[4] + of_model * parameters[5] + 6 * atom, 6)
        _store_number(row + 14, parameters[6] + of_model * parameters[7] + atom, 1)
        _store_number(row + 15, parameters[8] + of_model * parameters[9] + atom, 1)
        _store_number(row + 16, parameters[10] + of_model * parameters[11] + atom, 1)


@triton.jit
def _store_number(out, source, N: tl.constexpr):
    for k in tl.static_range(N):
        tl.store(out + k, tl.load(source + k).to(tl.float64))


@triton.jit
def lost_models(models, n_models, status, blocks, BLOCKS: tl.constexpr):
    """Of each of these models the first atom of which a number was bad, or GOOD."""
    lane = tl.arange(0, BLOCKS)
    real = (models[:, None] < n_models) & (lane[None, :] < blocks)
    return tl.min(tl.load(status + models[:, None] * blocks + lane[None, :], mask=real, other=GOOD), 1)
