"""Gaussians on a grid and off it again in plain torch operations: any device, no compiler, slower.

Every Gaussian's box is written out point by point, in chunks that respect the memory bound.  Boxes of one
chunk have one shape, so Gaussians are taken in order of size.  Sums are made by ``index_add_``; on a GPU that
is deterministic under ``torch.use_deterministic_algorithms(True)``.
"""
from __future__ import annotations

import torch

from .gaussians import gaussians, half_lengths

# Gaussians end where they are cut, and the two terms of an atom add up.
SLACK = 0.5
_CHUNK = 2 ** 22


def splat(job):
    """The density grid, (n_p, n_q, n_s)."""
    setting = job.setting
    with torch.no_grad():
        atom, form, amplitude, cut = gaussians(job, job.u_iso, job.u_star, job.weights, job.fp)
        sites = _grid_sites(job)[atom]
        grid = torch.zeros(setting.grid.n_points, dtype=setting.dtype, device=job.sites.device)
        for chosen, offsets, flat in _chunks(sites, form, cut, setting):
            values = _values(form[chosen], offsets, cut[chosen]) * amplitude[chosen, None]
            grid.index_add_(0, flat.flatten(), values.to(setting.dtype).flatten())
    return grid.view(setting.grid.dims)


def gather(grid, job):
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of sum(grid * density)."""
    setting = job.setting
    parameters = job.u_iso, job.u_star, job.weights, job.fp
    leaves = [x.detach().to(torch.float64).requires_grad_(True) for x in parameters]
    with torch.enable_grad():
        atom, form, amplitude, cut = gaussians(job, *leaves, keep_zero=True)
    sites = _grid_sites(job)[atom]
    flat_grid = grid.reshape(-1)
    total = torch.zeros_like(amplitude)
    first = torch.zeros((len(atom), 3), dtype=torch.float64, device=grid.device)
    second = torch.zeros((len(atom), 3, 3), dtype=torch.float64, device=grid.device)
    with torch.no_grad():
        for chosen, offsets, flat in _chunks(sites, form, cut, setting):
            values = _values(form[chosen], offsets, cut[chosen]) * flat_grid[flat]
            total[chosen] = values.sum(-1)
            first[chosen] = torch.einsum("nv,nvi->ni", values, offsets)
            second[chosen] = torch.einsum("nv,nvi,nvj->nij", values, offsets, offsets)
        dims = torch.tensor(setting.grid.dims, dtype=torch.float64, device=grid.device)
        by_site = 2 * amplitude[:, None] * torch.einsum("nij,nj->ni", form, first) * dims
        along = torch.zeros_like(job.sites).index_add_(0, atom, by_site)
        grad_sites = torch.empty_like(along)
        grad_sites[:, list(setting.grid.axes)] = along
    seeds = [total, -amplitude.detach()[:, None, None] * second]
    grads = torch.autograd.grad([amplitude, form], leaves, seeds, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads)]
    return grad_sites, *grads


def values(job, splat=splat):
    """Structure factors (n,) of one density."""
    return read(torch.fft.rfftn(splat(job)), job.setting)


def gradients(seed, job, gather=gather):
    """Gradients (sites, u_iso, u_star, weights, f' or f'') of one density, from dT/dF (n,)."""
    setting = job.setting
    spectrum = write(seed.resolve_conj().to(setting.phase.dtype), setting)
    return gather(torch.fft.irfftn(spectrum, s=setting.grid.dims, norm="forward"), job)


def read(transform, setting):
    """Structure factors (n,) from the transform of the grid."""
    grid = setting.grid
    flat = transform.reshape(-1)
    total = 0
    for rows, conjugate, phase in zip(grid.rows, grid.conjugate, setting.phase):
        values = flat[rows.to(torch.int64)]
        total = total + torch.where(conjugate, values.conj(), values) * phase
    return total * setting.factor


def write(grad, setting):
    """Half-complex spectrum of dT/d(grid)."""
    grid = setting.grid
    values = grad * setting.factor
    terms = torch.where(grid.conjugate, values.conj() * setting.phase, values * setting.phase.conj())
    # Sums over the readers of each index, in a fixed order.
    running = torch.cat([terms.new_zeros(1), terms.flatten()[grid.sources]])
    lengths = grid.starts[1:] - grid.starts[:-1]
    total = torch.segment_reduce(torch.view_as_real(running[1:]).contiguous(), "sum", lengths=lengths, axis=0)
    total = torch.view_as_complex(total) / 2
    spectrum = torch.zeros(grid.spectrum_shape, dtype=terms.dtype, device=grad.device)
    flat = spectrum.view(-1)
    mates = grid.mirror >= 0
    itself = grid.mirror == grid.targets
    flat[grid.mirror[mates]] = total[mates].conj()
    flat[grid.targets] = torch.where(itself, 2 * total.real, total)
    return spectrum


def _grid_sites(job):
    """Sites in grid units, (n_atoms, 3) float64."""
    dims = torch.tensor(job.setting.grid.dims, dtype=torch.float64, device=job.sites.device)
    frac = job.sites.detach()[:, list(job.setting.grid.axes)]
    return (frac - frac.floor()) * dims


def _values(form, offsets, cut):
    exponent = torch.einsum("nvi,nij,nvj->nv", offsets, form, offsets)
    return torch.exp(-exponent) * (exponent <= cut[:, None])


def _chunks(sites, form, cut, setting):
    """Yield (Gaussians, offsets (n, n_points, 3) from their centres, flat indices (n, n_points)) of one box
    shape."""
    half = half_lengths(form, cut)
    first = torch.ceil(sites - half).to(torch.int64)
    shape = (torch.floor(sites + half).to(torch.int64) - first + 1).clamp(min=1)
    # Boxes rounded up to four points a side: few shapes, and little more to compute.
    shape = (shape + 3) // 4 * 4
    dims = torch.tensor(setting.grid.dims, device=sites.device)
    for box in torch.unique(shape, dim=0).tolist():
        rows = (shape == torch.tensor(box, device=sites.device)).all(-1).nonzero()[:, 0]
        steps = torch.cartesian_prod(*(torch.arange(n, device=sites.device) for n in box))
        size = max(1, _CHUNK // len(steps))
        for chosen in rows.split(size):
            points = first[chosen, None] + steps
            offsets = points - sites[chosen, None]
            wrapped = points % dims
            flat = (wrapped[..., 0] * dims[1] + wrapped[..., 1]) * dims[2] + wrapped[..., 2]
            yield chosen, offsets, flat
