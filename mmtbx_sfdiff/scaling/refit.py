"""F_model with scales that follow F_calc and F_mask: solved again for each, and differentiated through the solution.

What is solved for, in each resolution bin b of the work reflections, is the least-squares problem

    k_b = sum Fo |F| / sum |F|^2,      F = k_total (F_calc + k_mask F_mask),      x_b: a root of the cubic of :mod:`.bulk`

x_b is the k_mask that minimises sum (K |F|^2 - Fo^2)^2 with K eliminated, and is differentiated implicitly: two steps of
Newton's method from the root, on the graph, make its first three derivatives right.  k_b is explicit.  The scales of
:class:`~mmtbx_sfdiff.scaling.Scales` come from a search that ends elsewhere (by R, smoothed over bins), so it is their
change that follows:

    k_total k_b(F) / k_b(F0),       k_mask + x_b(F) - x_b(F0)

with F0 what they were determined from.  At F0 F_model is that of the scales, to the last digit but rounding; elsewhere it is
what a solution would have moved them to, and differences of it agree with its gradient.  Where the data's target were the
very one that k_b minimises, its gradient would be that with k_b constant (the envelope theorem); for other targets it is not.
The anisotropic and exponential scales stay as they are.
"""

from __future__ import annotations

import dataclasses

import torch

from ..numerics.amplitudes import amplitudes
from ..reflections import Reflections
from .bulk import analytical_roots
from .scales import Scales


@dataclasses.dataclass(frozen=True, eq=False)
class Solved:
    """The solution of each bin, (n_bins,): overall scale and k_mask, which is 0 where there is none."""

    overall: torch.Tensor
    solvent: torch.Tensor

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Solved:
        """The same in another dtype or on another device."""
        return Solved(*(x.to(dtype=dtype, device=device) for x in (self.overall, self.solvent)))


def refit(
    scales: Scales,
    reflections: Reflections,
    f_calc: torch.Tensor,
    f_mask: torch.Tensor,
    overall: bool = True,
    solvent: bool = True,
    reference: Solved | None = None,
) -> torch.Tensor:
    """F_model with scales that follow.

    Parameters
    ----------
    scales : Scales
    reflections : Reflections
        The ones that the scales were determined with.
    f_calc, f_mask : torch.Tensor
        (..., n) complex; each of a batch has scales of its own.
    overall, solvent : bool
        Which scales follow: the overall scale in each bin, k_mask.
    reference : Solved, optional
        :func:`solve` of the structure factors that the scales were determined from.  By default that of these: F_model is
        then what the scales make it, and only its gradient has the response.

    Returns
    -------
    torch.Tensor
        (..., n) complex; differentiable twice.

    Examples
    --------
    >>> f_calc, f_mask = fmodel.f_calc(), fmodel.f_mask()
    >>> f = refit(fmodel.scales, data, f_calc, f_mask)
    >>> float((f - fmodel.f_model()).norm() / f.norm()) < 1e-12     # at the structure factors that they were determined from
    True
    """
    if f_calc.ndim > 1 or f_mask.ndim > 1:
        shape = torch.broadcast_shapes(f_calc.shape, f_mask.shape)
        rows = zip(*(f.expand(shape).flatten(0, -2) for f in (f_calc, f_mask)))
        each = [refit(scales, reflections, a, b, overall, solvent, reference) for a, b in rows]
        return torch.stack(each).reshape(shape) if each else (f_calc + f_mask).expand(shape)
    bins, k_mask, k_total = scales.bin_index, scales.k_masks[0], scales.k_total
    other = 0 if scales.f_part2 is None else scales.f_part2
    if solvent:
        x = _solvent(scales, reflections, f_calc + other, f_mask)
        x0 = x.detach() if reference is None else reference.solvent
        # Where there is no root, here or there, nothing follows.
        k_mask = (k_mask + torch.where((x > 0) & (x0 > 0), x - x0, 0.0)[bins]).clamp(min=0)
    total = f_calc + k_mask * f_mask + other
    if overall:
        k = _overall(scales, reflections, total)
        k0 = k.detach() if reference is None else reference.overall
        k_total = k_total * torch.where(k0 > 0, k / torch.where(k0 > 0, k0, 1.0), 1.0)[bins]
    result: torch.Tensor = k_total * total
    return result


@torch.no_grad()
def solve(scales: Scales, reflections: Reflections, f_calc: torch.Tensor, f_mask: torch.Tensor) -> Solved:
    """The solution of each bin for the structure factors (n,) that the scales were determined from."""
    other = 0 if scales.f_part2 is None else scales.f_part2
    total = f_calc + scales.k_masks[0] * f_mask + other
    return Solved(_overall(scales, reflections, total), _solvent(scales, reflections, f_calc + other, f_mask))


def _used(scales: Scales, reflections: Reflections) -> torch.Tensor:
    used: torch.Tensor = scales.selection & reflections.work & (reflections.f_obs > 0)
    return used


def _overall(scales: Scales, reflections: Reflections, total: torch.Tensor) -> torch.Tensor:
    """(n_bins,) the least-squares scale of k_total |total| to F_obs."""
    used, f_obs = _used(scales, reflections), reflections.f_obs / scales.f_obs_scale
    model: torch.Tensor = scales.k_total * amplitudes(total)
    product, square = (_sum(scales.bin_index, torch.where(used, x, 0.0)) for x in (f_obs * model, model.square()))
    return product / square.clamp(min=torch.finfo(model.dtype).tiny)


def _sum(bin_index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(n_bins,) sums over bins."""
    n = int(bin_index.max()) + 1
    return values.new_zeros(n).index_add(0, bin_index, values)


def _solvent(scales: Scales, reflections: Reflections, f_calc: torch.Tensor, f_mask: torch.Tensor) -> torch.Tensor:
    """(n_bins,) the analytical k_mask nearest to what the scales have, on the graph; 0 where there is none."""
    bins, used, f_obs = scales.bin_index, _used(scales, reflections), reflections.f_obs / scales.f_obs_scale
    t = scales.k_total.square()
    intensity = f_obs.square()
    u, w = (f.real.square() + f.imag.square() for f in (f_calc, f_mask))
    v = f_calc.real * f_mask.real + f_calc.imag * f_mask.imag
    # In double precision: the cubic's coefficients are differences of products of sums.
    u, v, w = (torch.where(used, x * t, 0.0).to(torch.float64) for x in (u, v, w))
    intensity = torch.where(used, intensity, 0.0).to(torch.float64)
    columns = (
        u * intensity,
        2 * v * intensity,
        w * intensity,
        intensity.square(),
        u * v,
        2 * v * v + u * w,
        3 * v * w,
        w * w,
        v * intensity,
    )
    sums = torch.stack([_sum(bins, c) for c in columns], 1)
    a2, b2, c2, y2, a3, b3, c3, d3, y3 = sums.unbind(1)
    # d3 y2 - c2^2 times the cubic of analytical_roots, which needs no division by what may be 0.
    p3, p2, p1, p0 = (
        d3 * y2 - c2 * c2,
        c3 * y2 - c2 * b2 - c2 * y3,
        b3 * y2 - c2 * a2 - y3 * b2,
        a3 * y2 - y3 * a2,
    )
    mean = _sum(bins, torch.where(used, scales.k_masks[0], 0.0)) / _sum(bins, used.to(f_obs.dtype)).clamp(min=1)
    roots = []
    for row, k in zip(sums.detach().cpu().tolist(), mean.tolist()):
        # The root nearest to what was found; none where the solvent was switched off or is absent.
        candidates = [x for x in analytical_roots(row) if x > 0]
        roots.append(min(candidates, key=lambda x: abs(x - k)) if candidates and k > 0 else 0.0)
    x = torch.tensor(roots, dtype=torch.float64, device=f_obs.device)
    there = x > 0
    for _ in range(2):
        value = ((p3 * x + p2) * x + p1) * x + p0
        slope = (3 * p3 * x + 2 * p2) * x + p1
        follows = there & (slope.detach() != 0)
        x = x - torch.where(follows, value / torch.where(follows, slope, 1.0), 0.0)
    return torch.where(there, x, 0.0).to(f_obs.dtype)
