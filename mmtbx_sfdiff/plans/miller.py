"""How symmetry acts on the Miller indices of a direct summation, worked out once per Miller set.

Instead of moving the atoms by every operator, the indices are moved:
``F(h) = sum_G exp(2 pi i h.t_G) E(h R_G)`` with
``E(h) = sum_j w_j f_j exp(-2 pi^2 h U_j h) exp(2 pi i h.x_j)`` over the atoms of the asymmetric unit
alone.  For real weights ``E(-h)`` is the conjugate of
``E(h)``, so E is needed on one half of reciprocal space, each index once.

Those indices are laid out in columns along one axis of the reciprocal lattice, so that E becomes a matrix
product over the atoms: (two-axis phase factors, columns x atoms) times (one-axis phase factors, atoms x
position in the column).
"""

from __future__ import annotations

import dataclasses

import torch

from ..crystal import Crystal


@dataclasses.dataclass(frozen=True, eq=False)
class MillerPlan:
    """The unique half-space indices of a Miller set under a crystal's operators, in columns.

    Attributes
    ----------
    axes : tuple of int
        (p, q, s): the columns run along axis s; p and q number them.
    separable : bool
        True when the reciprocal axis s is orthogonal to p and q, so that an isotropic Debye-Waller factor is
        a product of a factor of (p, q) and a factor of s.
    indices : torch.Tensor
        (n_unique, 3) int64 in the order h, k, l; grouped by column, columns by increasing length.
    columns : torch.Tensor
        (n_columns, 2) int64, the indices p and q of each column.
    column_of : torch.Tensor
        (n_unique,) int64.
    column_start : list of int
        First row of ``indices`` of each column, and n_unique at the end.
    s_min, s_max : list of int
        Range of the running index in each column.
    gather, conjugate : torch.Tensor
        (n_primitive, n) int64 rows of ``indices`` for ``h R``, and the sign of the imaginary part (float64,
        -1 or 1).
    phase : torch.Tensor
        (n_primitive, n) complex128, exp(2 pi i h.t) times the centring factor.
    d_star_sq : torch.Tensor
        (n_unique,) float64, Å^-2.
    """

    axes: tuple[int, int, int]
    separable: bool
    indices: torch.Tensor
    columns: torch.Tensor
    column_of: torch.Tensor
    column_start: list[int]
    s_min: list[int]
    s_max: list[int]
    gather: torch.Tensor
    conjugate: torch.Tensor
    phase: torch.Tensor
    d_star_sq: torch.Tensor


def _column_axes(crystal: Crystal, extent: list[int], prefer: str) -> tuple[tuple[int, int, int], bool]:
    """(p, q, s) and whether s is orthogonal to the others; where that is preferred, the longest such."""
    metric = crystal.reciprocal_metric.cpu()
    scale = metric.diagonal().sqrt()
    cosine = (metric / (scale[:, None] * scale[None, :])).abs() > 1e-10

    def orthogonal(s: int) -> bool:
        return not any(cosine[s, other] for other in range(3) if other != s)

    s = max(range(3), key=lambda axis: (prefer == "separable" and orthogonal(axis), extent[axis], axis))
    p, q = (axis for axis in range(3) if axis != s)
    return (p, q, s), orthogonal(s)


def make_miller_plan(crystal: Crystal, miller_indices: torch.Tensor, prefer: str = "separable") -> MillerPlan:
    """The :class:`MillerPlan` of (n, 3) int64 indices.

    ``prefer`` is what decides on the axis of the columns: "separable" for isotropic atoms, "longest" for
    anisotropic ones, of which each column costs something before its first term.
    """
    equivalent, shifts = crystal.equivalent_indices(miller_indices)
    n_ops, n = shifts.shape
    flat = equivalent.reshape(-1, 3)
    extent = flat.abs().amax(0).tolist() if n else [0, 0, 0]
    axes, separable = _column_axes(crystal, extent, prefer)
    p, q, s = (flat[:, axis] for axis in axes)
    negative = (s < 0) | ((s == 0) & ((q < 0) | ((q == 0) & (p < 0))))
    sign = torch.where(negative, -1, 1)
    size_q, size_s = 2 * extent[axes[1]] + 1, extent[axes[2]] + 1
    keys = ((sign * p + extent[axes[0]]) * size_q + (sign * q + extent[axes[1]])) * size_s + sign * s
    keys, inverse = torch.unique(keys, return_inverse=True)

    column_keys, column_of, lengths = torch.unique_consecutive(keys // size_s, return_inverse=True, return_counts=True)
    running = keys % size_s
    last = torch.cumsum(lengths, 0) - 1
    s_max, s_min = running[last], running[last - lengths + 1]
    # Columns of similar extent follow one another: a block of them is then nearly a full rectangle.
    order = torch.argsort(s_max * size_s + s_min, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rows = torch.argsort(rank[column_of] * size_s + running, stable=True)
    position = torch.empty_like(rows)
    position[rows] = torch.arange(len(rows), device=rows.device)

    column_keys = column_keys[order]
    columns = torch.stack([column_keys // size_q - extent[axes[0]], column_keys % size_q - extent[axes[1]]], -1)
    column_of = rank[column_of][rows]
    indices = torch.empty((len(rows), 3), dtype=torch.int64, device=flat.device)
    indices[:, axes[0]], indices[:, axes[1]] = columns[column_of, 0], columns[column_of, 1]
    indices[:, axes[2]] = running[rows]
    starts = torch.cat([torch.zeros(1, dtype=torch.int64, device=rows.device), torch.cumsum(lengths[order], 0)])
    factor = crystal.centring_factor(miller_indices)
    return MillerPlan(
        axes=axes,
        separable=separable,
        indices=indices,
        columns=columns,
        column_of=column_of,
        column_start=starts.tolist(),
        s_min=s_min[order].tolist(),
        s_max=s_max[order].tolist(),
        gather=position[inverse].reshape(n_ops, n),
        conjugate=sign.reshape(n_ops, n).to(torch.float64),
        phase=torch.polar(factor.expand(n_ops, n), 2 * torch.pi * shifts),
        d_star_sq=crystal.d_star_sq(indices),
    )
