"""Where reflections are in a discrete Fourier transform, and grids that are quick to transform.

The grid's axes are those of the :class:`MillerPlan`, (p, q, s): the contiguous one, s, is orthogonal to the
others where the cell has such an axis.  The transform of a real grid holds the half with non-negative index
along s, which is how the plan chose its unique indices.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch


@functools.lru_cache(maxsize=4096)
def fast_size(least):
    """Smallest even number of grid points >= least with no prime factor above 7 (at most one 7)."""
    n = least + least % 2
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest in (1, 7):
            return n
        n += 2


@dataclasses.dataclass(frozen=True, eq=False)
class GridPlan:
    """One grid for one Miller plan.

    Attributes
    ----------
    axes : tuple of int
    dims : tuple of int
        Grid points along each of ``axes``.
    targets, mirror : torch.Tensor
        (n_unique,) int64: where each unique index is in the flat half-complex transform, and its Friedel mate
        where that is in the same half, or -1.
    rows : torch.Tensor
        (n_primitive, n) int32: the same for every operator and reflection.
    conjugate : torch.Tensor
        (n_primitive, n) bool: take the complex conjugate of what is there.
    starts, sources : torch.Tensor
        (n_unique + 1,) and (n_primitive n,) int64: for every unique index the flat numbers of (operator,
        reflection) that read it.
    """

    axes: tuple
    dims: tuple
    targets: torch.Tensor
    mirror: torch.Tensor
    rows: torch.Tensor
    conjugate: torch.Tensor
    starts: torch.Tensor
    sources: torch.Tensor

    @property
    def n_points(self):
        return math.prod(self.dims)

    @property
    def spectrum_shape(self):
        return (*self.dims[:2], self.dims[2] // 2 + 1)

    @functools.cached_property
    def packed(self):
        """The same for a transform of which only some columns are kept: :class:`PackedPlan`."""
        return _make_packed_plan(self)


@dataclasses.dataclass(frozen=True, eq=False)
class PackedPlan:
    """A transform as an array (n_columns, n_p): the columns (q, s) with reflections, by q and s.  numpy.

    Attributes
    ----------
    columns : numpy.ndarray
        (n_columns,) int64: q n_s + s, of the full transform.
    turned : numpy.ndarray
        (n_columns,) int64: s n_q + q instead.
    n_s : int
        Largest s of a column, and one.
    rows : numpy.ndarray
        (n_primitive, n) int32, as of :class:`GridPlan`.
    targets, kinds : numpy.ndarray
        (n_targets,) places in the packed array, in order: of unique indices (kind 0), of Friedel mates that
        are in the same half (1), and of indices that are their own mates (2).
    starts, readers, reflections : numpy.ndarray
        (n_targets + 1,) and (...): for every target the flat numbers (operator, reflection) that read it, -1
        - number where the conjugate is read, and the reflections.
    bounds : numpy.ndarray
        (n_columns + 1,): first target of each column.
    """

    columns: object
    turned: object
    n_s: int
    rows: object
    targets: object
    kinds: object
    starts: object
    readers: object
    reflections: object
    bounds: object


def _make_packed_plan(grid):
    n_p = grid.dims[0]
    plane = grid.dims[1] * (grid.dims[2] // 2 + 1)
    mates = ((grid.mirror >= 0) & (grid.mirror != grid.targets)).nonzero()[:, 0]
    places = torch.cat([grid.targets, grid.mirror[mates]])
    unique = torch.cat([torch.arange(len(grid.targets)), mates])
    kinds = torch.zeros(len(places), dtype=torch.int64)
    kinds[: len(grid.targets)][grid.mirror == grid.targets] = 2
    kinds[len(grid.targets) :] = 1
    columns, column = torch.unique(places % plane, return_inverse=True)
    packed = column * n_p + places // plane
    order = torch.argsort(packed)
    lengths = (grid.starts[1:] - grid.starts[:-1])[unique[order]]
    starts = torch.cat([lengths.new_zeros(1), torch.cumsum(lengths, 0)])
    within = torch.arange(int(starts[-1])) - torch.repeat_interleave(starts[:-1], lengths)
    sources = grid.sources[torch.repeat_interleave(grid.starts[unique[order]], lengths) + within]
    readers = torch.where(grid.conjugate.flatten()[sources], -1 - sources, sources).to(torch.int32)
    reflections = (sources % grid.rows.shape[1]).to(torch.int32)
    place_of = torch.empty(n_p * plane, dtype=torch.int32)
    place_of[grid.targets] = packed[: len(grid.targets)].to(torch.int32)
    bounds = torch.searchsorted(packed[order], torch.arange(len(columns) + 1) * n_p)
    length = grid.dims[2] // 2 + 1
    q, s = columns // length, columns % length
    n_s = int(s.max()) + 1
    return PackedPlan(
        columns.numpy(),
        (s * grid.dims[1] + q).numpy(),
        n_s,
        *(
            x.numpy()
            for x in (
                place_of[grid.rows.to(torch.int64)].contiguous(),
                packed[order],
                kinds[order],
                starts,
                readers,
                reflections,
                bounds,
            )
        ),
    )


def grid_dims(plan, oversampling):
    """Grid points along the plan's axes for sampling at oversampling times the Nyquist rate."""
    extents = plan.indices.abs().amax(0).tolist() if len(plan.indices) else [0, 0, 0]
    return tuple(
        fast_size(max(math.ceil(2 * oversampling * extents[axis]), 2 * extents[axis] + 2, 4)) for axis in plan.axes
    )


def make_grid_plan(plan, dims):
    """The :class:`GridPlan` of a :class:`MillerPlan`."""
    p, q, s = (plan.indices[:, axis] for axis in plan.axes)
    n_s = dims[2] // 2 + 1
    targets = ((p % dims[0]) * dims[1] + q % dims[1]) * n_s + s
    mirror = torch.where(s == 0, (((-p) % dims[0]) * dims[1] + (-q) % dims[1]) * n_s, -1)
    gather = plan.gather.flatten()
    counts = torch.bincount(gather, minlength=len(plan.indices))
    return GridPlan(
        axes=plan.axes,
        dims=dims,
        targets=targets,
        mirror=mirror,
        rows=targets[plan.gather].to(torch.int32).contiguous(),
        # The transform has exp(-2 pi i h.x), the structure factor exp(+2 pi i h.x).
        conjugate=(plan.conjugate > 0).contiguous(),
        starts=torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)]),
        sources=torch.argsort(gather, stable=True),
    )
