"""Sums over atoms on columns of Miller indices in plain torch operations: any device, matrix products.

The factors of a term depend on one index each, or two, so they are tables along one axis; what is left to sum over the
atoms is a matrix product for each run of columns.  Isotropic atoms of a cell in which their Debye-Waller factor
separates need no exponential beyond the tables; others take one a term.
"""

from __future__ import annotations

import weakref

import torch

from ..jobs import Columns, DirectJob
from ..products import product

# Elements of the largest temporary that still stays in a CPU core's share of the cache.
_CACHE_ELEMENTS = 2**18
TWO_PI_SQ = 2 * torch.pi**2
_PACKED = {(0, 0): 0, (1, 1): 1, (2, 2): 2, (0, 1): 3, (0, 2): 4, (1, 2): 5}


def packed_pairs(axes):
    """Where U_pp, U_qq, U_ss, U_pq, U_ps, U_qs are in a packed tensor (11, 22, 33, 12, 13, 23)."""
    p, q, s = axes
    return [_PACKED[min(a, b), max(a, b)] for a, b in ((p, p), (q, q), (s, s), (p, q), (p, s), (q, s))]


class _ColumnBlock:
    """A run of columns with similar extent, as a rectangle (n_columns, n_s)."""

    def __init__(self, plan, first, last):
        device = plan.indices.device
        self.s_first, self.s_last = min(plan.s_min[first:last]), max(plan.s_max[first:last])
        self.n_columns, self.n_s = last - first, self.s_last - self.s_first + 1
        self.p, self.q = plan.columns[first:last].unbind(-1)
        self.rows = slice(plan.column_start[first], plan.column_start[last])
        running = plan.indices[self.rows, plan.axes[2]] - self.s_first
        self.cells = (plan.column_of[self.rows] - first) * self.n_s + running
        self.s = torch.arange(self.s_first, self.s_last + 1, device=device)


_RANGES: weakref.WeakKeyDictionary[Columns, list[tuple[int, int]]] = weakref.WeakKeyDictionary()


def _ranges(plan: Columns) -> list[tuple[int, int]]:
    """First and last index along each axis, in the order of the plan's axes; looked at once for a plan."""
    found = _RANGES.get(plan)
    if found is None:
        ends = [[0, 0, 0]] * 2
        if len(plan.indices):
            indices = plan.indices[:, list(plan.axes)]
            ends = torch.stack([indices.amin(0), indices.amax(0)]).tolist()
        found = _RANGES[plan] = list(zip(*ends))
    return found


def extents(plan: Columns) -> list[int]:
    """Lengths of the one-axis tables, in the order of the plan's axes."""
    return [last - first + 1 for first, last in _ranges(plan)]


def atom_ranges(counts, memory, bytes_per_atom):
    """Yield (first, last, [(type, first, last) relative to first]) with last - first atoms in the memory."""
    size = max(1, int(memory / bytes_per_atom))
    edges = [0]
    for count in counts:
        edges.append(edges[-1] + count)
    for first in range(0, edges[-1], size):
        last = min(first + size, edges[-1])
        kinds = [
            (t, max(a, first) - first, min(b, last) - first)
            for t, (a, b) in enumerate(zip(edges[:-1], edges[1:]))
            if max(a, first) < min(b, last)
        ]
        yield first, last, kinds


def complex_of(dtype):
    """The complex dtype of a real one."""
    return torch.complex64 if dtype == torch.float32 else torch.complex128


def direct_sum(job: DirectJob) -> torch.Tensor:
    """E on the plan's unique indices, (n_models, n_unique) complex."""
    result = no_sum(job)
    for block in blocks(job):
        for columns in block.column_blocks():
            add_columns(job, block, columns, result)
    return result


def no_sum(job: DirectJob) -> torch.Tensor:
    """E of no atoms."""
    shape = len(job.sites), len(job.plan.indices)
    return torch.zeros(shape, dtype=complex_of(job.weights.dtype), device=job.sites.device)


def add_columns(job, block, columns, result):
    """Add what a block of atoms has on a run of columns."""
    kinds = [kind for kind, _, _ in block.kinds]
    sums = block.sums(columns).flatten(2)[..., columns.cells]
    factors = job.table[kinds][:, columns.rows].to(result.dtype)
    result[:, columns.rows] += (sums * factors[:, None]).sum(0)


def no_gradients(job: DirectJob, wanted: tuple[bool, bool, bool]) -> list[torch.Tensor | None]:
    """Zeros for (sites, u, weights), each where it is wanted."""
    return [torch.zeros_like(x) if want else None for x, want in zip((job.sites, job.u, job.weights), wanted)]


def direct_sum_gradients(
    job: DirectJob, grad: torch.Tensor, wanted: tuple[bool, bool, bool]
) -> list[torch.Tensor | None]:
    """Gradients in (sites, u, weights), each where it is wanted, from dT/dE (n_models, n_unique)."""
    grads = no_gradients(job, wanted)
    grad = grad.conj().resolve_conj()
    for block in blocks(job):
        for columns in block.column_blocks():
            block.add_gradients(columns, grad[:, columns.rows], job.table, grads)
    return grads


def blocks(job):
    """Blocks of atoms, each small enough that its one-axis tables fit a third of the memory."""
    # Tables are made in double precision before they are cast.
    per_atom = len(job.sites) * sum(extents(job.plan)) * (16 + 2 * job.weights.element_size())
    for first, last, kinds in atom_ranges(job.counts, job.memory / 3, per_atom):
        yield _AtomBlock(slice(first, last), kinds, job)


class _AtomBlock:
    """One-axis tables of some atoms, and what is summed with them."""

    def __init__(self, atoms, kinds, job: DirectJob):
        sites, u, plan, metric = job.sites, job.u, job.plan, job.metric
        self.atoms, self.kinds, self.plan, self.memory = atoms, kinds, plan, job.memory
        self.weights = job.weights[:, atoms]
        self.dtype = job.weights.dtype
        self.complex_dtype = complex_of(self.dtype)
        self.n_models, self.n_atoms = self.weights.shape
        self.isotropic = u.shape[-1] == 1
        p, q, s = plan.axes
        u = u[:, atoms].to(torch.float64)
        if self.isotropic:
            u_pp, u_qq, u_ss, u_pq = (u[..., 0] * metric[a, b] for a, b in ((p, p), (q, q), (s, s), (p, q)))
            u_ps = u_qs = torch.zeros_like(u_pp)
            self.metric = metric
            # Rounding leaves 1e-20 where a right angle means zero.
            self.oblique = bool(metric[p, q].abs() > 1e-10 * (metric[p, p] * metric[q, q]).sqrt())
        else:
            u_pp, u_qq, u_ss, u_pq, u_ps, u_qs = (u[..., i] for i in packed_pairs(plan.axes))
        turns = sites[:, atoms]
        separable = self.isotropic and not self.oblique
        of_p, of_q, of_s = _ranges(plan)
        self.offset_p, self.table_p = self._one_axis(turns[..., p], of_p, u_pp if separable else None)
        self.offset_q, self.table_q = self._one_axis(turns[..., q], of_q, u_qq if separable else None)
        self.offset_s, self.table_s = self._one_axis(turns[..., s], of_s, u_ss if self.isotropic else None)
        self.u_pp, self.u_qq, self.u_ss, self.u_pq, self.u_ps, self.u_qs = (
            x.to(self.dtype) for x in (u_pp, u_qq, u_ss, u_pq, u_ps, u_qs)
        )

    def _one_axis(self, turns, ends, u):
        """First n and exp(2 pi i n x) exp(-2 pi^2 u n^2) for the range of n: (n_models, n_range, n_atoms)."""
        first, last = ends
        n = torch.arange(first, last + 1, dtype=torch.float64, device=turns.device)
        angle = n[:, None] * turns[:, None, :]
        # Only the fraction of a turn matters, and it survives rounding to single precision.
        angle = (2 * torch.pi * (angle - angle.round())).to(self.dtype)
        real, imag = angle.cos(), angle.sin()
        if u is not None:
            decay = torch.exp((-TWO_PI_SQ * n[:, None] ** 2 * u[:, None, :]).to(self.dtype))
            real, imag = real * decay, imag * decay
        return first, torch.complex(real, imag)

    def column_blocks(self, at_least=1):
        """Runs of columns such that the temporaries of one fit a third of the memory, and a CPU's cache; ``at_least`` so
        many of them where there are as many columns."""
        plan = self.plan
        n_columns = len(plan.columns)
        budget = self.memory / 3 / (2 * self.weights.element_size())
        if not self.weights.is_cuda:
            budget = min(budget, 8 * _CACHE_ELEMENTS)
        longest_run, first = -(-n_columns // at_least), 0
        while first < n_columns:
            # Columns are sorted by extent, so the first estimates the rest; the loop below makes it a bound.
            last = first + 1
            longest = plan.s_max[first] - plan.s_min[first] + 1
            while last < min(n_columns, first + longest_run):
                low, high = min(plan.s_min[first], plan.s_min[last]), plan.s_max[last]
                longest = max(longest, high - low + 1)
                per_column = self.n_models * self.n_atoms * (4 if self.isotropic else 3 * longest)
                per_column += 4 * self.n_models * longest
                if (last - first + 1) * per_column > budget:
                    break
                last += 1
            yield _ColumnBlock(plan, first, last)
            first = last

    def _pair_factors(self, columns):
        """exp(2 pi i (p x + q y)) and the Debye-Waller factor of p and q, (n_models, n_columns, n_atoms)."""
        result = self.table_p[:, columns.p - self.offset_p]
        result *= self.table_q[:, columns.q - self.offset_q]
        if self.isotropic and self.oblique:
            result *= self._pair_exponent(columns).exp_()
        return result

    def _pair_exponent(self, columns):
        p, q = (x.to(self.dtype)[:, None] for x in (columns.p, columns.q))
        exponent = p * p * self.u_pp[:, None] + q * q * self.u_qq[:, None] + (2 * p * q) * self.u_pq[:, None]
        return exponent.mul_(-TWO_PI_SQ)

    def _single_factors(self, columns):
        """exp(2 pi i s z), with its Debye-Waller factor when isotropic: (n_models, n_s, n_atoms)."""
        return self.table_s[:, columns.s_first - self.offset_s : columns.s_last + 1 - self.offset_s]

    def _weighted_singles(self, columns):
        """Real and imaginary part of exp(2 pi i s z) DWF: 2 x (n_models, n_columns, n_atoms, n_s)."""
        p, q = (x.to(self.dtype)[:, None] for x in (columns.p, columns.q))
        linear = (p * self.u_ps[:, None] + q * self.u_qs[:, None]).mul_(-2 * TWO_PI_SQ)
        quadratic = (-TWO_PI_SQ * self.u_ss)[:, None].expand_as(linear)
        coefficients = torch.stack([self._pair_exponent(columns), linear, quadratic], -1)
        s = columns.s.to(self.dtype)
        exponents = product(coefficients, torch.stack([torch.ones_like(s), s, s * s]))
        decay = exponents.exp_()
        singles = self._single_factors(columns).transpose(1, 2)[:, None]
        return decay * singles.real, decay.mul_(singles.imag)

    def sums(self, columns):
        """Sums over the atoms of each of ``kinds``: (n_kinds, n_models, n_columns, n_s)."""
        pairs = self._pair_factors(columns)
        result = pairs.new_empty((len(self.kinds), self.n_models, columns.n_columns, columns.n_s))
        if self.isotropic:
            singles = self._single_factors(columns) * self.weights[:, None]
            for number, (_, a, b) in enumerate(self.kinds):
                product(pairs[..., a:b], singles[..., a:b].transpose(1, 2), out=result[number])
            return result
        real, imag = self._weighted_singles(columns)
        # (re, im) of the pair factors as two rows against each part.
        rows = torch.view_as_real(pairs * self.weights[:, None]).transpose(-1, -2)
        for number, (_, a, b) in enumerate(self.kinds):
            by_real, by_imag = (product(rows[..., a:b], part[:, :, a:b]) for part in (real, imag))
            result[number] = torch.complex(by_real[:, :, 0] - by_imag[:, :, 1], by_real[:, :, 1] + by_imag[:, :, 0])
        return result

    def add_gradients(self, columns, grad, table, grads):
        """Add dT/d(sites, u, weights) of one run of columns; grad is conj(dT/dE) on its rows."""
        grad_sites, grad_u, grad_weights = grads
        powers = (
            [0]
            + [1] * (grad_sites is not None or (grad_u is not None and not self.isotropic))
            + [2] * (grad_u is not None)
        )
        s = columns.s.to(self.dtype)
        pairs = self._pair_factors(columns)
        moments = {}
        dense = torch.zeros(
            (self.n_models, columns.n_columns * columns.n_s), dtype=self.complex_dtype, device=grad.device
        )
        parts = None if self.isotropic else self._weighted_singles(columns)
        singles = self._single_factors(columns)
        for power in powers:
            moments[power] = torch.empty_like(pairs)
        for kind, a, b in self.kinds:
            dense[:, columns.cells] = grad * table[kind, columns.rows]
            spread = torch.stack(
                [dense.view(self.n_models, columns.n_columns, columns.n_s) * s**power for power in powers], 2
            )
            if self.isotropic:
                made = product(spread.flatten(1, 2), singles[..., a:b])
                made = made.view(self.n_models, columns.n_columns, len(powers), b - a)
            else:
                two = torch.view_as_real(spread).transpose(-1, -2).flatten(2, 3)
                by_real, by_imag = (product(two, part[:, :, a:b].transpose(-1, -2)) for part in parts)
                by_real, by_imag = (x.unflatten(2, (len(powers), 2)) for x in (by_real, by_imag))
                made = torch.complex(
                    by_real[:, :, :, 0] - by_imag[:, :, :, 1], by_real[:, :, :, 1] + by_imag[:, :, :, 0]
                )
            for i, power in enumerate(powers):
                moments[power][..., a:b] = made[:, :, i]
        for power in powers:
            moments[power] *= pairs
        p, q = columns.p.to(self.dtype), columns.q.to(self.dtype)

        def over_columns(rows, values):
            return product(torch.stack(rows), values)

        one = torch.ones_like(p)
        if grad_weights is not None:
            grad_weights[:, self.atoms] += moments[0].real.sum(1)
        if grad_sites is not None:
            axis_p, axis_q, axis_s = self.plan.axes
            scale = -2 * torch.pi * self.weights
            by_pq = over_columns([p, q], moments[0].imag)
            grad_sites[:, self.atoms, axis_p] += scale * by_pq[:, 0]
            grad_sites[:, self.atoms, axis_q] += scale * by_pq[:, 1]
            grad_sites[:, self.atoms, axis_s] += scale * moments[1].imag.sum(1)
        if grad_u is not None:
            axis_p, axis_q, axis_s = self.plan.axes
            scale = -TWO_PI_SQ * self.weights
            if self.isotropic:
                g = self.metric.to(self.dtype)
                quadratic = g[axis_p, axis_p] * p * p + g[axis_q, axis_q] * q * q + 2 * g[axis_p, axis_q] * p * q
                total = over_columns([quadratic], moments[0].real)[:, 0]
                total = total + g[axis_s, axis_s] * moments[2].real.sum(1)
                grad_u[:, self.atoms, 0] += scale * total
            else:
                zero = over_columns([p * p, q * q, 2 * p * q], moments[0].real)
                first = over_columns([2 * p, 2 * q], moments[1].real)
                second = over_columns([one], moments[2].real)
                values = (zero[:, 0], zero[:, 1], second[:, 0], zero[:, 2], first[:, 0], first[:, 1])
                for column, value in zip(packed_pairs(self.plan.axes), values):
                    grad_u[:, self.atoms, column] += scale * value
