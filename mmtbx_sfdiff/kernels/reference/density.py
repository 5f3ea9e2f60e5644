"""Gaussians on a grid and off it again in plain torch operations: any device, no compiler, slower.

Every Gaussian's box is written out point by point, in chunks that respect the memory bound.  Boxes of one
chunk have one shape, so Gaussians are taken in order of size.  Sums are made by ``index_add_``; on a GPU that
is deterministic under ``torch.use_deterministic_algorithms(True)``.
"""

from __future__ import annotations

import math

import torch

from .gaussians import gaussian_gradients, gaussians

_CHUNK = 2**22


def splat(job):
    """The density grid, (n_p, n_q, n_s)."""
    setting = job.setting
    with torch.no_grad():
        found = gaussians(job, job.u_iso, job.u_star, job.weights, job.fp)
        amplitude = found.amplitude.flatten()
        grid = torch.zeros(setting.grid.n_points, dtype=setting.dtype, device=job.sites.device)
        for chosen, _offsets, flat, values in _chunks(grid_sites(job), found, setting):
            grid.index_add_(0, flat.flatten(), (values * amplitude[chosen, None]).to(setting.dtype).flatten())
    return grid.view(setting.grid.dims)


def gather(grid, job):
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of sum(grid * density)."""
    flat_grid, sites = grid.reshape(-1), grid_sites(job)

    def moments(found):
        result = torch.zeros((found.cut.numel(), 10), dtype=torch.float64, device=grid.device)
        for chosen, offsets, flat, values in _chunks(sites, found, job.setting):
            values = values * flat_grid[flat]
            u, v, w = offsets.unbind(-1)
            result[chosen] = torch.stack(
                [
                    (values * factor).sum(-1)
                    for factor in (torch.ones_like(u), u, v, w, u * u, v * v, w * w, u * v, u * w, v * w)
                ],
                -1,
            )
        return result.reshape(*found.cut.shape, 10)

    return gaussian_gradients(job, moments)


def values(job, splat=splat):
    """Structure factors (..., n) of one density, or of one for each model."""
    return read(torch.fft.rfftn(splat(job), dim=(-3, -2, -1)), job.setting)


def gradients(seed, job, gather=gather):
    """Gradients (sites, u_iso, u_star, weights, f' or f''), from dT/dF (..., n)."""
    setting = job.setting
    spectrum = write(seed.resolve_conj().to(setting.phase.dtype), setting)
    return gather(torch.fft.irfftn(spectrum, s=setting.grid.dims, dim=(-3, -2, -1), norm="forward"), job)


def read(transform, setting):
    """Structure factors (..., n) from the transforms of grids."""
    grid = setting.grid
    flat = transform.flatten(-3)
    total = 0
    for rows, conjugate, phase in zip(grid.rows, grid.conjugate, setting.phase):
        values = flat[..., rows.to(torch.int64)]
        total = total + torch.where(conjugate, values.conj(), values) * phase
    return total * setting.factor


def write(grad, setting):
    """Half-complex spectra (..., n_p, n_q, n_s // 2 + 1) of dT/d(grid)."""
    grid = setting.grid
    values = (grad * setting.factor)[..., None, :]
    terms = torch.where(grid.conjugate, values.conj() * setting.phase, values * setting.phase.conj())
    # Sums over the readers of each index, in a fixed order, of all models at once.
    terms = terms.flatten(-2)
    batch = terms.shape[:-1]
    terms = torch.view_as_real(terms.reshape(-1, terms.shape[-1]).T[grid.sources])
    total = torch.view_as_complex(torch.segment_reduce(terms, "sum", lengths=grid.starts.diff(), axis=0)) / 2
    spectrum = torch.zeros((math.prod(grid.spectrum_shape), total.shape[1]), dtype=total.dtype, device=grad.device)
    mates = grid.mirror >= 0
    itself = grid.mirror == grid.targets
    spectrum[grid.mirror[mates]] = total[mates].conj()
    spectrum[grid.targets] = torch.where(itself[:, None], 2 * total.real, total)
    return spectrum.T.reshape(*batch, *grid.spectrum_shape)


def grid_sites(job):
    """Sites in grid units, (n_models n_atoms, 3) float64, in the cell."""
    dims = torch.tensor(job.setting.grid.dims, dtype=torch.float64, device=job.sites.device)
    frac = job.sites.detach().reshape(-1, 3)[:, list(job.setting.grid.axes)]
    # What is nowhere is put at the origin, where its amplitude makes everything NaN.
    return (frac - frac.floor()).nan_to_num(0.0) * dims


def _chunks(sites, found, setting):
    """Yield (Gaussians, offsets (n, n_points, 3) from their centres, flat indices (n, n_points), values (n, n_points)) of
    one box shape."""
    n_terms = found.cut.shape[1]
    form, cut = found.form.detach().flatten(0, 1), found.cut.flatten()
    sites, half = sites.repeat_interleave(n_terms, 0), found.half.flatten(0, 1)
    first = torch.ceil(sites - half).to(torch.int64)
    shape = (torch.floor(sites + half).to(torch.int64) - first + 1).clamp(min=1)
    # Boxes rounded up to four points a side: few shapes, and little more to compute.
    shape = (shape + 3) // 4 * 4
    dims = torch.tensor(setting.grid.dims, device=sites.device)
    for box in torch.unique(shape, dim=0).tolist():
        rows = ((shape == torch.tensor(box, device=sites.device)).all(-1) & (cut > 0)).nonzero()[:, 0]
        steps = torch.cartesian_prod(*(torch.arange(n, device=sites.device) for n in box))
        for chosen in rows.split(max(1, _CHUNK // len(steps))):
            points = first[chosen, None] + steps
            offsets = points - sites[chosen, None]
            u, v, w = offsets.unbind(-1)
            q = form[chosen, :, None].unbind(1)
            exponent = q[0] * u * u + q[1] * v * v + q[2] * w * w + 2 * (q[3] * u * v + q[4] * u * w + q[5] * v * w)
            wrapped = points % dims
            flat = (wrapped[..., 0] * dims[1] + wrapped[..., 1]) * dims[2] + wrapped[..., 2]
            yield chosen, offsets, flat, torch.exp(-exponent) * (exponent <= cut[chosen, None])
