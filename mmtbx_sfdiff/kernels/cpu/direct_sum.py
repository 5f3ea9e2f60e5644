"""The direct sum on the CPU: matrix products where the Debye-Waller factor separates, and kernels where it does not.

Along a column of Miller indices (p, q fixed, s running) a term is exp(quadratic in s), so the next one costs
two multiplications: ``T(s+1) = T(s) r(s)`` and ``r(s+1) = r(s) k`` with ``k = exp(-4 pi^2 U_ss)``.  No
exponential is left in the inner loop, which runs over atoms and is vectorised.  Everything is double
precision: over the longest column (restarted every 32 steps) the recurrence loses less than 1e-13.

The kernels are compiled by numba without its threading layers: numba's, torch's and MKL's OpenMP pools in one process stall
one another.  Each thread owns its columns (forward) or
its atoms (backward), so results do not depend on timing.
"""

from __future__ import annotations

import torch

import numba
import numpy as np

from ..jit import jit_sums
from ..jobs import DirectJob
from ..reference import direct_sum as reference
from ..reference.direct_sum import TWO_PI_SQ, atom_ranges, complex_of, extents, packed_pairs
from ..threads import PIECE, check, n_workers, own_threads, portions, run

_TILE = 128
_RESTART = 32
_TWO_PI_SQ = 2 * np.pi**2
# Seconds a term takes, about.
_SECONDS = 3e-9
# Terms below which one thread is as fast as several, and much faster on a busy machine.
_ENOUGH_TERMS = 1e6
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# 2^n for every n that exp() of a double can need; beyond them 0 and infinity.
_POWERS = np.concatenate([[0.0], 2.0 ** np.arange(-1022, 1024), [np.inf]])


@numba.njit(inline="always", fastmath=False)
def _exp(x, powers):
    """exp(x) to 1e-15, in a form that vectorises (Cody-Waite reduction and a polynomial)."""
    given = x
    # What is no number must not become a place in the table; the last term makes it none again.
    x = min(x, 710.0) if x > -709.0 else -709.0
    n = np.floor(x * _LOG2_E + 0.5)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = 1.6059043836821613e-10
    p = p * r + 2.08767569878681e-09
    p = p * r + 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 0.0001984126984126984
    p = p * r + 0.001388888888888889
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * powers[np.int32(n) + np.int32(1023)] + (0.0 if given == given else given)


@jit_sums
def _start(s, first, last, tp, tq, ts, step, u, p, q, t_re, t_im, r_re, r_im, powers):
    """Term and ratio of atoms first:last at (p, q, s); tp, tq, ts are rows of phase factors."""
    pp, qq, pq = p * p, q * q, 2 * p * q
    for i in range(last - first):
        j = first + i
        linear = -2 * _TWO_PI_SQ * (p * u[4, j] + q * u[5, j])
        square = -_TWO_PI_SQ * u[2, j]
        pair = -_TWO_PI_SQ * (pp * u[0, j] + qq * u[1, j] + pq * u[3, j])
        size = _exp(pair + s * (linear + s * square), powers)
        a_re = tp[0, j] * tq[0, j] - tp[1, j] * tq[1, j]
        a_im = tp[0, j] * tq[1, j] + tp[1, j] * tq[0, j]
        t_re[i] = size * (a_re * ts[0, j] - a_im * ts[1, j])
        t_im[i] = size * (a_re * ts[1, j] + a_im * ts[0, j])
        growth = _exp(linear + (2 * s + 1) * square, powers)
        r_re[i] = growth * step[0, j]
        r_im[i] = growth * step[1, j]


@jit_sums
def _forward(
    first_column,
    last_column,
    columns,
    starts,
    s_of,
    offsets,
    table_p,
    table_q,
    table_s,
    step,
    u,
    kappa,
    weights,
    kinds,
    radial,
    out,
    powers,
):
    """out[row] += sum over types of radial[type, row] * sum over its atoms, for some columns."""
    # One array: whether the compiled loop over atoms adds in vectors or one by one is decided by how far apart what it
    # reads and writes lies, and must not depend on where the allocator put it.
    scratch = np.empty((5, _TILE))
    t_re, t_im, r_re, r_im, k_ratio = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    for k in range(kinds.shape[0]):
        kind = kinds[k, 0]
        for first in range(kinds[k, 1], kinds[k, 2], _TILE):
            last = min(first + _TILE, kinds[k, 2])
            n = last - first
            for i in range(n):
                k_ratio[i] = kappa[first + i]
            for c in range(first_column, last_column):
                p, q = columns[c, 0], columns[c, 1]
                tp, tq = table_p[p - offsets[0]], table_q[q - offsets[1]]
                row, end = starts[c], starts[c + 1]
                s, s_end = s_of[row], s_of[end - 1]
                since = _RESTART
                while s <= s_end:
                    if since == _RESTART:
                        _start(
                            s,
                            first,
                            last,
                            tp,
                            tq,
                            table_s[s - offsets[2]],
                            step,
                            u,
                            p,
                            q,
                            t_re,
                            t_im,
                            r_re,
                            r_im,
                            powers,
                        )
                        for i in range(n):
                            t_re[i] *= weights[first + i]
                            t_im[i] *= weights[first + i]
                        since = 0
                    total_re, total_im = 0.0, 0.0
                    for i in range(n):
                        a, b, c_re, c_im = t_re[i], t_im[i], r_re[i], r_im[i]
                        total_re += a
                        total_im += b
                        t_re[i] = a * c_re - b * c_im
                        t_im[i] = a * c_im + b * c_re
                        r_re[i] = c_re * k_ratio[i]
                        r_im[i] = c_im * k_ratio[i]
                    if s_of[row] == s:
                        out[row, 0] += radial[kind, row] * total_re
                        out[row, 1] += radial[kind, row] * total_im
                        row += 1
                    s += 1
                    since += 1


@jit_sums
def _backward(
    first_atom,
    last_atom,
    columns,
    starts,
    s_of,
    offsets,
    table_p,
    table_q,
    table_s,
    step,
    u,
    kappa,
    kinds,
    radial,
    grad,
    out,
    powers,
):
    """out[:, atom] += sums over all rows of conj(grad) * radial * term * (1, p, q, s; pp, qq, ss, ...)."""
    t_re, t_im = np.empty(_TILE), np.empty(_TILE)
    r_re, r_im = np.empty(_TILE), np.empty(_TILE)
    zero_re, zero_im, one_re, one_im, two_re = (
        np.empty(_TILE),
        np.empty(_TILE),
        np.empty(_TILE),
        np.empty(_TILE),
        np.empty(_TILE),
    )
    for k in range(kinds.shape[0]):
        kind = kinds[k, 0]
        lowest, highest = max(kinds[k, 1], first_atom), min(kinds[k, 2], last_atom)
        for first in range(lowest, highest, _TILE):
            last = min(first + _TILE, highest)
            n = last - first
            for c in range(columns.shape[0]):
                p, q = columns[c, 0], columns[c, 1]
                tp, tq = table_p[p - offsets[0]], table_q[q - offsets[1]]
                row, end = starts[c], starts[c + 1]
                s, s_end = s_of[row], s_of[end - 1]
                since = _RESTART
                for i in range(n):
                    zero_re[i] = zero_im[i] = one_re[i] = one_im[i] = two_re[i] = 0.0
                while s <= s_end:
                    if since == _RESTART:
                        _start(
                            s,
                            first,
                            last,
                            tp,
                            tq,
                            table_s[s - offsets[2]],
                            step,
                            u,
                            p,
                            q,
                            t_re,
                            t_im,
                            r_re,
                            r_im,
                            powers,
                        )
                        since = 0
                    g_re, g_im = 0.0, 0.0
                    if s_of[row] == s:
                        g_re, g_im = radial[kind, row] * grad[row, 0], radial[kind, row] * grad[row, 1]
                        row += 1
                    for i in range(n):
                        a, b, c_re, c_im = t_re[i], t_im[i], r_re[i], r_im[i]
                        x = g_re * a - g_im * b
                        y = g_re * b + g_im * a
                        zero_re[i] += x
                        zero_im[i] += y
                        one_re[i] += s * x
                        one_im[i] += s * y
                        two_re[i] += (s * s) * x
                        t_re[i] = a * c_re - b * c_im
                        t_im[i] = a * c_im + b * c_re
                        r_re[i] = c_re * kappa[first + i]
                        r_im[i] = c_im * kappa[first + i]
                    s += 1
                    since += 1
                for i in range(n):
                    j = first + i
                    out[0, j] += zero_re[i]
                    out[1, j] += p * zero_im[i]
                    out[2, j] += q * zero_im[i]
                    out[3, j] += one_im[i]
                    out[4, j] += p * p * zero_re[i]
                    out[5, j] += q * q * zero_re[i]
                    out[6, j] += two_re[i]
                    out[7, j] += 2 * p * q * zero_re[i]
                    out[8, j] += 2 * p * one_re[i]
                    out[9, j] += 2 * q * one_re[i]


class ColumnSum:
    """The sum of one block of atoms over all columns of a plan.

    Parameters
    ----------
    plan : MillerPlan
    turns : torch.Tensor
        (n_atoms, 3) fractional coordinates, float64, in the order of ``plan.axes``.
    u : torch.Tensor
        (6, n_atoms) fractional U* as pp, qq, ss, pq, ps, qs, float64.
    kinds : list of (int, int, int)
        (row of ``radial``, first atom, last atom + 1).
    radial : torch.Tensor
        (n_types, n_unique) form factors.
    """

    def __init__(self, plan, turns, u, kinds, radial):
        self.columns = plan.columns.numpy()
        self.starts = np.asarray(plan.column_start)
        s_of = plan.indices[:, plan.axes[2]]
        self.s_of = s_of.numpy()
        self.offsets, tables = np.zeros(3, dtype=np.int64), []
        for axis, running in enumerate((plan.columns[:, 0], plan.columns[:, 1], s_of)):
            self.offsets[axis] = int(running.min())
            n = torch.arange(int(running.min()), int(running.max()) + 1, dtype=torch.float64)
            angle = n[:, None] * turns[:, axis]
            angle = 2 * torch.pi * (angle - angle.round())
            tables.append(torch.stack([angle.cos(), angle.sin()], 1).numpy())
        self.tables = tables
        step = 2 * torch.pi * (turns[:, 2] - turns[:, 2].round())
        self.step = torch.stack([step.cos(), step.sin()]).numpy()
        self.u = u.contiguous().numpy()
        self.kappa = torch.exp(-2 * _TWO_PI_SQ * u[2]).contiguous().numpy()
        self.kinds = np.asarray(kinds, dtype=np.int64).reshape(-1, 3)
        self.radial = radial.to(torch.float64).contiguous().numpy()
        self.n_atoms, self.n_rows = turns.shape[0], len(plan.indices)

    def _common(self):
        return (self.columns, self.starts, self.s_of, self.offsets, *self.tables, self.step, self.u, self.kappa)

    @staticmethod
    def _portion(n, terms):
        """Of n pieces of work as many as are done in a moment."""
        return max(1, int(n * PIECE / max(_SECONDS * terms, 1e-9)))

    def forward(self, weights):
        """(n_unique,) complex128 sum with weights (n_atoms,) float64."""
        out = np.zeros((self.n_rows, 2))
        weights = weights.contiguous().numpy()
        # Equal numbers of rows, not of columns: a column costs what it is long.
        edges = np.searchsorted(self.starts, np.linspace(0, self.n_rows, n_workers() + 1))
        size = self._portion(len(self.columns), self.n_atoms * self.n_rows)
        _run(_forward, edges, size, *self._common(), weights, self.kinds, self.radial, out, _POWERS)
        return torch.view_as_complex(torch.from_numpy(out))

    def backward(self, grad):
        """(10, n_atoms) float64 sums for grad (n_unique,) complex128, the conjugate of dT/dE.

        Rows: Re A; Im pA, qA, sA; Re ppA, qqA, ssA, 2pqA, 2psA, 2qsA, with A = grad * form factor * term.
        """
        out = np.zeros((10, self.n_atoms))
        grad = torch.view_as_real(grad.contiguous()).numpy()
        edges = np.linspace(0, self.n_atoms, n_workers() + 1).round().astype(np.int64)
        # Whole tiles.
        size = -(-self._portion(self.n_atoms, self.n_atoms * self.n_rows) // _TILE) * _TILE
        _run(_backward, edges, size, *self._common(), self.kinds, self.radial, grad, out, _POWERS)
        return torch.from_numpy(out)


def _run(kernel, edges, size, *arguments):
    """kernel(first, last, ...) for each pair of edges, each on its own thread, in portions of ``size``."""
    parts = [(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:]) if b > a]

    def part(begin, end):
        for first, last in portions(begin, end, size):
            kernel(first, last, *arguments)

    run([lambda a=a, b=b: part(a, b) for a, b in parts])


def direct_sum(job: DirectJob) -> torch.Tensor:
    """E on the plan's unique indices, (n_models, n_unique) complex."""
    if job.u.shape[-1] == 1:
        return _products(job)
    dtype = complex_of(job.weights.dtype)
    result = torch.zeros((len(job.sites), len(job.plan.indices)), dtype=dtype)
    for model, atoms, column_sum in _column_sums(job):
        result[model] += column_sum.forward(job.weights[model, atoms].to(torch.float64)).to(dtype)
    return result


def direct_sum_gradients(
    job: DirectJob, grad: torch.Tensor, wanted: tuple[bool, bool, bool]
) -> list[torch.Tensor | None]:
    """Gradients in (sites, u, weights), each where it is wanted, from dT/dE (n_models, n_unique)."""
    if job.u.shape[-1] == 1:
        return _product_gradients(job, grad, wanted)
    grads = [torch.zeros_like(x) if want else None for x, want in zip((job.sites, job.u, job.weights), wanted)]
    grad = grad.conj().resolve_conj()
    for model, atoms, column_sum in _column_sums(job):
        moments = column_sum.backward(grad[model].to(torch.complex128))
        _add_moments(moments, job.weights[model, atoms], model, atoms, job.plan.axes, grads)
    return grads


def _products(job):
    """The sum by matrix products, whole runs of columns to each thread."""
    n_threads, result = _n_threads(job), reference.no_sum(job)
    with own_threads():
        for block in reference.blocks(job):
            runs = list(block.column_blocks(2 * n_threads))

            def share(i, block=block, runs=runs):
                for columns in runs[i::n_threads]:
                    check()
                    reference.add_columns(job, block, columns, result)

            run([lambda i=i: share(i) for i in range(n_threads)])
    return result


def _product_gradients(job, grad, wanted):
    n_threads, grad = _n_threads(job), grad.conj().resolve_conj()
    total = reference.no_gradients(job, wanted)
    with own_threads():
        for block in reference.blocks(job):
            runs = list(block.column_blocks(2 * n_threads))

            def share(i, block=block, runs=runs):
                own = total if i == 0 else reference.no_gradients(job, wanted)
                for columns in runs[i::n_threads]:
                    check()
                    block.add_gradients(columns, grad[:, columns.rows], job.table, own)
                return own

            # In the order of the threads, so that the sum is the same every time.
            for own in run([lambda i=i: share(i) for i in range(n_threads)])[1:]:
                for mine, value in zip(total, own):
                    if mine is not None:
                        mine += value
    return total


def _n_threads(job):
    """All threads, or one for a small sum."""
    return n_workers() if job.weights.numel() * len(job.plan.indices) >= _ENOUGH_TERMS else 1


def _column_sums(job):
    """Yield (model, atoms, ColumnSum) for blocks of atoms whose tables fit half the memory."""
    plan = job.plan
    for first, last, kinds in atom_ranges(job.counts, job.memory / 2, 16 * sum(extents(plan))):
        atoms = slice(first, last)
        for model in range(len(job.sites)):
            turns = job.sites[model, atoms][:, plan.axes]
            u = job.u[model, atoms].to(torch.float64).T[packed_pairs(plan.axes)]
            yield model, atoms, ColumnSum(plan, turns, u, kinds, job.table)


def _add_moments(moments, weights, model, atoms, axes, grads):
    """Turn the sums of :meth:`ColumnSum.backward` into gradients."""
    grad_sites, grad_u, grad_weights = grads
    moments = moments.to(weights.dtype)
    if grad_weights is not None:
        grad_weights[model, atoms] += moments[0]
    if grad_sites is not None:
        for axis, moment in zip(axes, moments[1:4]):
            grad_sites[model, atoms, axis] -= 2 * torch.pi * weights * moment
    if grad_u is not None:
        for column, moment in zip(packed_pairs(axes), moments[4:]):
            grad_u[model, atoms, column] -= TWO_PI_SQ * weights * moment
