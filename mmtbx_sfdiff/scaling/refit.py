"""F_model with scales that follow F_calc and F_mask, for gradients.

The scales of :class:`~mmtbx_sfdiff.scaling.Scales` are constants.  :func:`refit` keeps their values and adds
how they would respond: in each resolution bin the overall scale by least squares, and k_mask by the
analytical solution of :mod:`.bulk`, differentiated implicitly.  The response of the anisotropic scale is not
included.
"""

from __future__ import annotations

import torch

from .bulk import analytical_roots


def refit(scales, reflections, f_calc, f_mask, overall=True, solvent=True):
    """F_model whose gradient includes the response of the scales.

    Parameters
    ----------
    scales : Scales
    reflections : Reflections
        The ones that the scales were determined with.
    f_calc, f_mask : torch.Tensor
        (n,) complex; the scales' own, or others close to them.
    overall, solvent : bool
        Which scales respond: the overall scale in each bin, k_mask.

    Returns
    -------
    torch.Tensor
        (n,) complex.
    """
    used = scales.selection & reflections.work & (reflections.f_obs > 0)
    f_obs = reflections.f_obs / scales.f_obs_scale
    k_mask, k_total = scales.k_masks[0], scales.k_total
    other = 0 if scales.f_part2 is None else scales.f_part2
    if solvent:
        k_mask = k_mask + _response(scales, f_obs, f_calc + other, f_mask, used)
    total = f_calc + k_mask * f_mask + other
    if overall:
        model = k_total * total.abs()
        k = _sum(scales.bin_index, torch.where(used, f_obs * model, 0.0)) / _sum(
            scales.bin_index, torch.where(used, model.square(), 0.0)
        ).clamp(min=torch.finfo(model.dtype).tiny)
        k_total = k_total * (k / k.detach())[scales.bin_index]
    return k_total * total


def _sum(bin_index, values):
    """(n_bins,) sums over bins."""
    n = int(bin_index.max()) + 1
    return values.new_zeros(n).index_add(0, bin_index, values)


def _response(scales, f_obs, f_calc, f_mask, used):
    """(n,) zeros, whose gradient is that of the analytical k_mask of each bin."""
    bins = scales.bin_index
    t = scales.k_total.square()
    intensity = f_obs.square()
    u, w = (f.real.square() + f.imag.square() for f in (f_calc, f_mask))
    v = f_calc.real * f_mask.real + f_calc.imag * f_mask.imag
    u, v, w = (torch.where(used, x * t, 0.0) for x in (u, v, w))
    intensity = torch.where(used, intensity, 0.0)
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
    coefficients = (
        d3 * y2 - c2 * c2,
        c3 * y2 - c2 * b2 - c2 * y3,
        b3 * y2 - c2 * a2 - y3 * b2,
        a3 * y2 - y3 * a2,
    )
    mean = _sum(bins, torch.where(used, scales.k_masks[0], 0.0)) / _sum(bins, used.to(u.dtype)).clamp(min=1)
    roots = []
    for row, k in zip(sums.detach().to(torch.float64).cpu().tolist(), mean.tolist()):
        # The root nearest to what was found; none where the solvent was switched off or is absent.
        candidates = [x for x in analytical_roots(row) if x > 0]
        roots.append(min(candidates, key=lambda x: abs(x - k)) if candidates and k > 0 else 0.0)
    x = torch.tensor(roots, dtype=u.dtype, device=u.device)
    p3, p2, p1, p0 = coefficients
    value = ((p3 * x + p2) * x + p1) * x + p0
    slope = ((3 * p3 * x + 2 * p2) * x + p1).detach()
    follows = (x > 0) & (slope != 0)
    step = torch.where(follows, -value / torch.where(follows, slope, 1.0), 0.0)
    return (step - step.detach())[bins]
