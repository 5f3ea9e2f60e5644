"""The probe-shrink mask in PyTorch alone, for any device; the numbers of :mod:`~mmtbx_sfdiff.kernels.cpu.soft_mask`, on the whole cell.

The accessibility is summed as logarithms, atom by atom in portions that keep to ``memory``; V is a convolution, by FFT.
"""

from __future__ import annotations

import math

import torch

import numpy as np

from ..jobs import MaskJob

# Of a portion of distances: vectors, indices, and what their gradient keeps.
_BYTES_PER_DISTANCE = 160
_TINY = 1e-100


class FineGrid:
    """Fine grid points around atoms in the whole cell, in portions."""

    def __init__(self, job: MaskJob):
        grid, fine, device = job.grid, job.fine, job.device
        self.n_coarse, self.fine, self.memory, self.device = grid.n_real, fine, job.memory, device
        self.n_real = tuple(int(n) * fine for n in grid.n_real)
        n = torch.tensor(self.n_real, dtype=torch.float64, device=device)
        self.basis = torch.from_numpy(grid.cell.basis).to(device) / n
        self.extent = torch.from_numpy(grid.cell.reciprocal_lengths).to(device) * n
        self.rotations, self.translations = (torch.from_numpy(x).to(device) for x in grid.fractional_operators)
        self.n = n
        self.voxel = grid.cell.volume / float(np.prod(self.n_real))

    def steps(self, reach, margin=0.0):
        """Steps as long as ``reach`` Å, (n, 3) int64, and lengths; ``margin`` in grid steps around the sphere's box."""
        half = torch.ceil(self.extent * reach + margin).to(torch.int64).tolist()
        axes = [torch.arange(-h, h + 1, device=self.device) for h in half]
        steps = torch.cartesian_prod(*axes)
        return steps, (steps.to(torch.float64) @ self.basis.T).norm(dim=-1)

    def portions(self, sites, reach):
        """Slices of atoms, and for each operator a function from their sites to (places, distances, which atom)."""
        diagonal = float(self.basis.norm(dim=0).sum())
        steps, lengths = self.steps(reach, 1.0)
        steps = steps[lengths <= reach + diagonal]
        size = max(1, int(self.memory // (_BYTES_PER_DISTANCE * len(steps))))
        n = torch.tensor(self.n_real, device=self.device)
        for rotation, shift in zip(self.rotations, self.translations):
            for first in range(0, len(sites), size):
                part = slice(first, min(first + size, len(sites)))

                def distances(sites, rotation=rotation, shift=shift):
                    position = (sites @ rotation.T + shift) * self.n
                    origin = position.detach().round()
                    vectors = (steps + (origin - position)[:, None]) @ self.basis.T
                    points = (origin.to(torch.int64)[:, None] + steps) % n
                    places = (points[..., 0] * n[1] + points[..., 1]) * n[2] + points[..., 2]
                    return places, vectors.square().sum(-1)

                yield part, distances


def sound(sites, radii, cover):
    """The same, with atoms of which no mask can be made at the origin and of a cover that makes the mask NaN around it."""
    bad = ~(torch.isfinite(sites).all(-1) & (sites.abs() < 1e12).all(-1) & (radii.abs() < 1e3) & torch.isfinite(cover))
    return torch.where(bad[:, None], 0.0, sites), torch.where(bad, 2.0, radii), torch.where(bad, math.nan, cover)


def _reach(radii, width):
    return float((radii * (radii + width)).max().sqrt())


def _ball(grid, reach):
    """Steps of the fine grid not longer than ``reach`` Å, and their lengths."""
    steps, lengths = grid.steps(reach)
    kept = lengths <= reach
    return steps[kept], lengths[kept].cpu().numpy()


class SoftMask:
    """One model's mask; V is given on the whole coarse grid, (N,)."""

    def __init__(self, job: MaskJob):
        self.grid, self.dtype, self.fine = FineGrid(job), job.dtype, job.fine
        self.ball_steps, self.ball_lengths = _ball(self.grid, job.reach)

    def weights(self, function):
        """A function of the distance at the fine grid's steps, times the volume of a step."""
        return torch.from_numpy(function(self.ball_lengths) * self.grid.voxel).to(self.grid.device)

    def _kernel(self, weights):
        """Transform of the kernel on the fine grid; real, because the ball is centric."""
        grid = self.grid
        n = torch.tensor(grid.n_real, device=grid.device)
        points = self.ball_steps % n
        places = (points[:, 0] * n[1] + points[:, 1]) * n[2] + points[:, 2]
        values = torch.zeros(int(np.prod(grid.n_real)), dtype=torch.float64, device=grid.device)
        values.index_add_(0, places, weights.to(torch.float64))
        return torch.fft.rfftn(values.reshape(grid.n_real)).real

    def _factor(self, distance_sq, radii, cover, width):
        # An atom without a radius counts for nothing, and nothing is near it.
        radii = torch.where(radii > 0, radii, 1.0)[:, None]
        t = (0.5 + (distance_sq / radii - radii) / (2 * width)).clamp(0, 1)
        return 1 - cover[:, None] * (1 - t * t * (3 - 2 * t))

    def _accessibility(self, sites, radii, cover, width):
        grid = self.grid
        logarithm = torch.zeros(int(np.prod(grid.n_real)), dtype=torch.float64, device=sites.device)
        if len(sites):
            for part, distances in grid.portions(sites, _reach(radii, width)):
                places, d = distances(sites[part])
                near = d < (radii * (radii + width))[part, None]
                factor = self._factor(d, radii[part], cover[part], width)[near].clamp(min=_TINY)
                logarithm.index_add_(0, places[near], factor.log())
        return logarithm.exp_()

    #: E is not handed over: it takes less time than its transform.
    field_size = 0

    def forward(self, sites, radii, cover, width, weights, field=None):
        with torch.no_grad():
            grid = self.grid
            sites, radii, cover = sound(sites, radii, cover)
            field = torch.fft.rfftn(self._accessibility(sites, radii, cover, width).reshape(grid.n_real))
            f = self.fine
            return [
                torch.fft.irfftn(field * self._kernel(array), s=grid.n_real)[::f, ::f, ::f].reshape(-1).to(self.dtype)
                for array in weights
            ]

    def backward(self, gradient, sites, radii, cover, width, weights, sites_only=False, field=None):
        grid = self.grid
        sites, radii, cover = sound(sites, radii, cover)
        f = self.fine
        field = self._accessibility(sites, radii, cover, width)
        dense = torch.zeros(grid.n_real, dtype=torch.float64, device=sites.device)
        dense[::f, ::f, ::f] = gradient.to(torch.float64).reshape(grid.n_coarse)
        dense = torch.fft.irfftn(torch.fft.rfftn(dense) * self._kernel(weights), s=grid.n_real).reshape(-1)
        dense *= field
        leaves = [values.detach().clone().requires_grad_() for values in (sites, radii, cover)]
        width = torch.tensor(width, dtype=torch.float64, device=sites.device, requires_grad=True)
        total = [torch.zeros_like(values) for values in (*leaves, width)]
        if len(sites):
            for part, distances in grid.portions(sites, _reach(radii, float(width.detach()))):
                with torch.enable_grad():
                    inputs = [values[part].detach().requires_grad_() for values in leaves] + [width]
                    places, d = distances(inputs[0])
                    near = (d < (inputs[1] * (inputs[1] + width))[:, None]).detach()
                    factor = self._factor(d, *inputs[1:])[near].clamp(min=_TINY)
                    found = torch.autograd.grad(factor.log(), inputs, dense[places[near]])
                for i in range(3):
                    total[i][part] += found[i]
                total[3] += found[3]
        return total

    def to_cell(self, values, out=None):
        values = values.reshape(self.grid.n_coarse)
        return values if out is None else out.copy_(values)

    def from_cell(self, gradient):
        return gradient.reshape(-1)


class HardMask:
    """psi on the whole coarse grid, (N,), and its gradient; see :mod:`~mmtbx_sfdiff.kernels.cpu.hard_mask`."""

    def __init__(self, job: MaskJob):
        self.grid, self.dtype, self.fine = FineGrid(job), job.dtype, job.fine
        self.ball_steps, self.ball_lengths = _ball(self.grid, job.reach)

    def _field(self, sites, radii, top):
        grid = self.grid
        sites, radii, cover = sound(sites, radii, torch.zeros_like(radii))
        field = torch.full((int(np.prod(grid.n_real)),), top, dtype=torch.float64, device=sites.device)
        for part, distances in grid.portions(sites, float(radii.max()) + top) if len(sites) else ():
            places, d = distances(sites[part])
            value = d.sqrt() - radii[part, None]
            # What is further off than the top changes nothing: no selection, whose size a GPU would be waited for.
            field.scatter_reduce_(0, places.flatten(), value.clamp(max=top).flatten(), "amin")
        # An atom of which no mask can be made makes all of it NaN.
        return field + cover.sum()

    def psi(self, sites, radii, low, top):
        with torch.no_grad():
            grid = self.grid
            field = self._field(sites, radii, top)
            n = torch.tensor(grid.n_real, device=sites.device)
            axes = [torch.arange(0, m, self.fine, device=sites.device) for m in grid.n_real]
            points = torch.cartesian_prod(*axes)
            source = (points[:, 0] * n[1] + points[:, 1]) * n[2] + points[:, 2]
            best = field[source]
            active = ((best < 0) & (best > low)).nonzero()[:, 0]
            points, deciding = points[active], source[active]
            highest = torch.full_like(deciding, low, dtype=best.dtype)
            order = np.argsort(self.ball_lengths, kind="stable")
            for number in order[1:]:
                moved = (points + self.ball_steps[number]) % n
                places = (moved[:, 0] * n[1] + moved[:, 1]) * n[2] + moved[:, 2]
                value = field[places]
                lowered = value - float(self.ball_lengths[number])
                better = (value >= 0) & (lowered > highest)
                highest, deciding = torch.where(better, lowered, highest), torch.where(better, places, deciding)
            best[active], source[active] = highest, deciding
            return best.to(self.dtype), source

    def pull_back(self, gradient, source, sites, radii, top):
        field = self._field(sites, radii, top)
        grid = self.grid
        weights = torch.zeros_like(field).index_add_(0, source, gradient.to(torch.float64))
        leaves = [values.detach().clone().requires_grad_() for values in (sites, radii)]
        total = [torch.zeros_like(values) for values in leaves]
        for part, distances in grid.portions(sites, float(radii.max()) + top) if len(sites) else ():
            with torch.enable_grad():
                inputs = [values[part].detach().requires_grad_() for values in leaves]
                places, d = distances(inputs[0])
                value = d.clamp(min=1e-24).sqrt() - inputs[1][:, None]
                nearest = ((weights[places] != 0) & (value < field[places] + 1e-10)).detach()
                found = torch.autograd.grad(value, inputs, torch.where(nearest, weights[places], 0.0))
            taken = torch.zeros_like(weights).scatter_reduce_(
                0, places.flatten(), nearest.flatten().to(weights), "amax"
            )
            weights = torch.where(taken > 0, 0.0, weights)
            for i in range(2):
                total[i][part] += found[i]
        return total

    def to_cell(self, values, out=None):
        values = values.reshape(self.grid.n_coarse)
        return values if out is None else out.copy_(values)

    def from_cell(self, gradient):
        return gradient.reshape(-1)
