"""Structure factors of a mask given on the grid of the whole unit cell.

    F_mask(h) = V/N sum_g mask(g) exp(+2 pi i h.x_g)

with the N grid points g at the fractional coordinates x_g, and the cell volume V: electrons, for a solvent of one
electron per Å^3.  As in mmtbx, reflections beyond 3 Å are set to zero unless asked otherwise.  The grid resolves far more
than that, so each axis is transformed for the frequencies only that are wanted of the axes before it.

Reference: ``mmtbx.masks.manager.compute_f_mask``.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from ..crystal import as_miller_tensor
from ..plans.cache import TensorCache

# mmtbx's Fmask_res_high.
F_MASK_D_MIN = 3.0
# Grid points.
_PORTION = 2**16


def mask_structure_factors(mask, crystal, miller_indices, d_min=F_MASK_D_MIN):
    """Structure factors of a mask; differentiable in the mask.

    Parameters
    ----------
    mask : torch.Tensor
        (..., n1, n2, n3) real, on the whole unit cell; point (i, j, k) is at (i/n1, j/n2, k/n3).
    crystal : Crystal
    miller_indices : torch.Tensor, flex.miller_index or miller.set
        (n, 3) integers, in any order, inside the asymmetric unit or not.
    d_min : float or None
        Structure factors with d < ``d_min`` (Å) are zero, as in mmtbx (``Fmask_res_high``, 3 Å).  None: no cut.

    Returns
    -------
    torch.Tensor
        (..., n) complex, in the precision and on the device of the mask.

    Raises
    ------
    ValueError
        A mask without three grid dimensions; an index, not cut away, that the grid cannot resolve.
    TypeError
        A mask that is not real floating point; Miller indices that are not integers.
    """
    if not isinstance(mask, torch.Tensor) or not mask.is_floating_point():
        raise TypeError("mask must be a tensor of real floating-point numbers; convert it with .to(torch.float64).")
    if mask.ndim < 3:
        raise ValueError(f"mask must have the shape (..., n1, n2, n3), not {tuple(mask.shape)}.")
    indices = as_miller_tensor(miller_indices, device=mask.device)
    grid = tuple(mask.shape[-3:])
    plan = _CACHE.get(indices, (crystal.unit_cell, grid, d_min), lambda: _make_plan(indices, crystal, grid, d_min))
    transform = _LowFrequencies.apply(mask, plan.limits).flatten(-3)
    f = torch.view_as_real(transform.index_select(-1, plan.rows)) * plan.scale.to(mask.dtype)
    f = torch.view_as_complex(f)
    return scattered(f, plan.kept, len(indices))


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """Where the structure factors are in the transform of a grid.

    Attributes
    ----------
    limits : tuple of int
        Largest |h|, |k| and |l|.
    rows : torch.Tensor
        (n_kept,) int64, places in the transform to these limits, flat.
    scale : torch.Tensor
        (n_kept, 2) float64, what makes real and imaginary parts of F of those of the transform.
    kept : torch.Tensor or None
        (n_kept,) int64, which reflections these are; None: all.
    """

    limits: tuple
    rows: torch.Tensor
    scale: torch.Tensor
    kept: torch.Tensor | None


_CACHE = TensorCache()


def checked_indices(miller_indices, crystal, grid, d_min, device):
    """The indices within the limit of resolution, (n, 3); their numbers, or None for all; and the number of all.

    Raises
    ------
    ValueError
        An index that the grid cannot resolve.
    """
    given = as_miller_tensor(miller_indices, device=device)
    # The same tensor each time, so that what is made of it is found again.
    inside, kept = _CACHE.get(
        given, ("inside", crystal.unit_cell, tuple(grid), d_min), lambda: _inside(given, crystal, grid, d_min)
    )
    return (given if kept is None else inside), kept, len(given)


def _inside(indices, crystal, grid, d_min):
    """(indices within the limit, their numbers), or None twice for all of them."""
    inside = kept = None
    if d_min is not None:
        # The margin keeps a reflection exactly at the limit, whose d is rounded.
        within = crystal.to(indices.device).d_star_sq(indices) <= (1 + 1e-10) / float(d_min) ** 2
        if not bool(within.all()):
            kept = within.nonzero()[:, 0]
            inside = indices = indices[kept]
    too_fine = (2 * indices.abs() >= torch.tensor(grid, device=indices.device)).any(-1)
    if bool(too_fine.any()):
        worst = tuple(indices[too_fine][0].tolist())
        raise ValueError(
            f"The reflection {worst} is beyond the Nyquist limit of the mask's grid {tuple(grid)}: "
            "use a smaller grid_step, or a d_min that leaves it out."
        )
    return inside, kept


def scattered(f, kept, n):
    """Structure factors (..., m) at their places among n, zeros elsewhere."""
    return f if kept is None else f.new_zeros((*f.shape[:-1], n)).index_copy(-1, kept, f)


def _make_plan(indices, crystal, grid, d_min):
    indices, kept, _ = checked_indices(indices, crystal, grid, d_min, indices.device)
    # Only l >= 0 is kept of the transform of a real map; the sign in the exponent is the opposite of torch's.
    flip = indices[:, 2] < 0
    half = torch.where(flip[:, None], -indices, indices)
    limits = half.abs().amax(0).tolist() if len(half) else [0, 0, 0]
    shape = [2 * limits[0] + 1, 2 * limits[1] + 1, limits[2] + 1]
    rows = ((half[:, 0] % shape[0]) * shape[1] + half[:, 1] % shape[1]) * shape[2] + half[:, 2]
    scale = crystal.volume / math.prod(grid)
    sign = 2 * flip.to(torch.float64) - 1
    return _Plan(tuple(limits), rows, torch.stack([torch.ones_like(sign), sign], -1) * scale, kept)


def _cut(x, dim, limit):
    """The frequencies 0..limit and -limit..-1 of a transform."""
    return torch.cat([x.narrow(dim, 0, limit + 1), x.narrow(dim, x.shape[dim] - limit, limit)], dim)


def _padded(x, dim, limit, n):
    """A transform of n with these frequencies, and no others."""
    middle = list(x.shape)
    middle[dim] = n - 2 * limit - 1
    return torch.cat([x.narrow(dim, 0, limit + 1), x.new_zeros(middle), x.narrow(dim, limit + 1, limit)], dim)


def _portion(planes):
    """How many planes of a map at a time, so that what is made of them stays in the cache."""
    if planes.device.type != "cpu":
        return len(planes)
    return max(1, _PORTION // max(1, planes.shape[-1] * planes.shape[-2]))


class _LowFrequencies(torch.autograd.Function):
    """Transform of a real map (..., n1, n2, n3) at the indices -h..h, -k..k, 0..l; negative ones behind the others."""

    @staticmethod
    def forward(ctx, mask, limits):
        ctx.limits, ctx.grid = limits, mask.shape[-3:]
        h, k, l = limits
        planes = mask.flatten(0, -3)
        planes = torch.cat(
            [
                _cut(torch.fft.fft(torch.fft.rfft(part)[..., : l + 1], dim=-2), -2, k)
                for part in planes.split(_portion(planes))
            ]
        )
        planes = planes.reshape(*mask.shape[:-2], *planes.shape[1:])
        return _cut(torch.fft.fft(planes, dim=-3), -3, h)

    @staticmethod
    def backward(ctx, gradient):
        return _FromLowFrequencies.apply(gradient, ctx.limits, ctx.grid), None


class _FromLowFrequencies(torch.autograd.Function):
    """The adjoint of :class:`_LowFrequencies`."""

    @staticmethod
    def forward(ctx, x, limits, grid):
        ctx.limits = limits
        h, k, _ = limits
        x = torch.fft.ifft(_padded(x, -3, h, grid[0]), dim=-3, norm="forward")
        # A real inverse transform counts every l > 0 twice.
        x = torch.cat([x[..., :1], x[..., 1:] / 2], -1)
        result = torch.empty(*x.shape[:-2], *grid[1:], dtype=x.real.dtype, device=x.device)
        planes = result.view(-1, *grid[1:])
        size = _portion(planes)
        for part, out in zip(x.flatten(0, -3).split(size), planes.split(size)):
            out.copy_(
                torch.fft.irfft(
                    torch.fft.ifft(_padded(part, -2, k, grid[1]), dim=-2, norm="forward"), n=grid[2], norm="forward"
                )
            )
        return result

    @staticmethod
    def backward(ctx, gradient):
        return _LowFrequencies.apply(gradient, ctx.limits), None, None
