"""The soft probe-shrink mask on a GPU: the launches of a call, one after another, none of which the host waits for.

A mask takes six launches: spheres, sorting (two), arranging, E, and V with the mask; its gradient five.  There are no atomic
operations, so the result is the same, bit for bit, every time.  The models of a batch are grids behind one another, and share
each launch.

Runs on a CPU under TRITON_INTERPRET=1, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch

import numpy as np
import triton

from .. import deferred
from ..atom_jobs import SpheresJob
from ..jobs import MaskJob
from . import mask_kernels
from .bins import bin_numbers, periods_within, sort_into_bins
from .constants import constant, flat, keep
from .static import TILE

# Points of a tile of the fine grid, and of a coarse block or a box, that one program takes at a time; atoms of a block.
_TILE, _BLOCK, _ATOMS = TILE, 256, 128
# Width of the bins that images are sorted into, Å.
_BIN = 2.5
# Å: no sphere with its step reaches further.
_REACH = 50.0
#: Fine grid points of a batch.
LARGEST = 2**31 - 1


class _Grid:
    """What does not depend on the atoms: the fine grid, the bins, the operators, the steps within the ball."""

    def __init__(self, grid, fine, reach, device):
        self.n_coarse, self.n_real = grid.n_real, tuple(n * fine for n in grid.n_real)
        n = torch.tensor(self.n_real, dtype=torch.float64)
        basis = torch.from_numpy(grid.cell.basis) / n
        gram = basis.T @ basis
        self.gram = gram.contiguous().to(device)
        self.form = [float(gram[i, j]) for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
        spacing = torch.from_numpy(grid.cell.reciprocal_lengths)
        #: Half the extent of a sphere of radius 1 Å, fine grid steps.
        self.extent = (spacing * n).tolist()
        self.bins = bin_numbers(spacing, _BIN)
        self.far = periods_within([e * _REACH for e in self.extent], TILE, self.n_real)
        rotations, translations = grid.fractional_operators
        operators = np.concatenate([rotations.reshape(-1, 9), translations], 1)
        self.operators = torch.from_numpy(np.ascontiguousarray(operators, dtype=np.float64)).to(device)
        self.voxel = grid.cell.volume / math.prod(self.n_real)
        half = [math.ceil(e * reach) for e in self.extent]
        steps = torch.cartesian_prod(*(torch.arange(-h, h + 1) for h in half))
        lengths = (steps.to(torch.float64) @ basis.T).norm(dim=-1)
        steps, self.lengths = steps[lengths <= reach], lengths[lengths <= reach].numpy()
        self.steps = (steps % torch.tensor(self.n_real)).to(device, torch.int32).contiguous()
        # A fine point f Q + p takes from the coarse points from which a step leads to it: steps by parities p.
        parity = steps % fine
        number = (parity[:, 0] * fine + parity[:, 1]) * fine + parity[:, 2]
        order = torch.argsort(number, stable=True)
        back = ((parity - steps) // fine)[order] % torch.tensor(self.n_coarse)
        starts = torch.zeros(fine**3 + 1, dtype=torch.int32)
        starts[1:] = torch.bincount(number, minlength=fine**3).cumsum(0)
        self.back, self.back_starts = back.to(device, torch.int32).contiguous(), starts.to(device)
        self.back_order = order
        self.device = device

    def geometry(self, width, dtype):
        """Of the distance and the step, as the kernels read it."""
        return constant(self.device, *self.form, 0.5 / width, dtype=dtype)


@functools.lru_cache(maxsize=16)
def _grid_of(grid, fine, reach, device):
    return _Grid(grid, fine, reach, device)


class _Ball:
    """The ball's weights on a grid: for V, for its transpose, and their sum."""

    def __init__(self, grid, values, dtype):
        weights = torch.from_numpy(values * grid.voxel)
        self.grid, self.free = grid, float(weights.sum())  # which keeps its number
        self.weights = weights.to(grid.device, dtype)
        self.back = weights[grid.back_order].to(grid.device, dtype)


_BALLS: dict[tuple, _Ball] = {}


def _ball_of(job, grid):
    key = id(grid), job.lengths[1:], job.dtype
    if key not in _BALLS:
        while len(_BALLS) >= 16:
            _BALLS.pop(next(iter(_BALLS)))
        _BALLS[key] = _Ball(grid, job.ball(grid.lengths), job.dtype)
    return _BALLS[key]


@dataclasses.dataclass(frozen=True, eq=False)
class _Spheres:
    """Images of atoms in fine grid steps, (n_models, n_operators n_atoms, 3), their bins, and what kernels need of each."""

    n_models: int
    n_atoms: int
    blocks: int
    given: dict[str, tuple]
    numbers: torch.Tensor
    position: torch.Tensor
    keys: torch.Tensor
    radius: torch.Tensor
    cover: torch.Tensor
    extents: torch.Tensor
    status: torch.Tensor

    @property
    def lanes(self):
        return triton.next_power_of_2(self.blocks)

    @property
    def n_images(self):
        return self.keys.shape[1]


def _spheres(job, grid):
    n_models, n_atoms = job.occupancies.shape
    device, n_operators = job.sites_cart.device, len(grid.operators)
    blocks = triton.cdiv(n_atoms, _ATOMS)
    given = {
        name: flat(getattr(job, name), size)
        for name, size in (("sites_cart", 3), ("rounding", 3), ("occupancies", 1), ("radii", 1))
    }
    r_probe, _, width = job.lengths
    numbers = constant(device, *grid.n_real, r_probe, width, job.smallest_radius, job.full_occupancy, *job.limits)
    images = n_operators * n_atoms
    found = _Spheres(
        n_models, n_atoms, blocks, given, numbers,
        torch.empty((n_models, images, 3), dtype=torch.float64, device=device),
        torch.empty((n_models, images), dtype=torch.int32, device=device),
        torch.empty((n_models, n_atoms), dtype=job.dtype, device=device),
        torch.empty((n_models, n_atoms), dtype=job.dtype, device=device),
        torch.empty((n_models, blocks), dtype=torch.float64, device=device),
        torch.empty((n_models, blocks), dtype=torch.int32, device=device),
    )  # fmt: skip
    mask_kernels.spheres[(n_models * blocks,)](
        *given["sites_cart"], *given["rounding"], *given["occupancies"], *given["radii"], job.candidates, job.frame,
        grid.operators, numbers, found.position, found.keys, found.radius, found.cover, found.extents, found.status,
        n_atoms, blocks, n_operators, *grid.bins,
        ZERO_COUNTS=job.include_zero_occupancy, FULL=job.full_occupancy > 0, BLOCK=_ATOMS,
    )  # fmt: skip
    return found


def _accessibility(spheres, grid, geometry, field):
    """E on the fine grids, into ``field``."""
    place, starts = sort_into_bins(spheres.keys, math.prod(grid.bins))
    total = spheres.keys.numel()
    centers = torch.empty((total, 3), dtype=torch.float64, device=place.device)
    records = torch.empty((total, 2), dtype=spheres.radius.dtype, device=place.device)
    mask_kernels.arrange[(triton.cdiv(total, _BLOCK),)](
        spheres.position, spheres.radius, spheres.cover, place, centers, records,
        spheres.n_atoms, spheres.n_images, total, BLOCK=_BLOCK,
    )  # fmt: skip
    tiles = [-(-n // t) for n, t in zip(grid.n_real, _TILE)]
    mask_kernels.accessibility[(spheres.n_models * math.prod(tiles),)](
        field, starts, centers, records, geometry, constant(place.device, *grid.extent), spheres.extents,
        spheres.blocks, *grid.n_real, *grid.bins, *tiles, grid.far,
        BLOCKS=spheres.lanes, TX=_TILE[0], TY=_TILE[1], TZ=_TILE[2],
    )  # fmt: skip


def _ball_sum(spheres, grid, field, weights, fine, volumes, masks, shape, row, kind):
    """V, and masks, each where there is a tensor for it."""
    given, total = spheres.given, spheres.n_models * math.prod(grid.n_coarse)
    mask_kernels.ball_sum[(triton.cdiv(total, _BLOCK),)](
        field, field if volumes is None else volumes, field if masks is None else masks, grid.steps, weights, shape,
        spheres.status, row, kind, *given["sites_cart"], *given["occupancies"], *given["radii"],
        len(grid.steps), total, *grid.n_coarse, fine, spheres.n_models, spheres.blocks,
        VOLUMES=volumes is not None, MASKS=masks is not None, BLOCKS=spheres.lanes, BLOCK=_BLOCK,
    )  # fmt: skip


def _pulled_back(spheres, grid, field, by_volume, back_weights, geometry, width, fine, dtype):
    """Sums of every image."""
    by_field, total = torch.empty_like(field), spheres.n_models * math.prod(grid.n_coarse)
    mask_kernels.ball_spread[(triton.cdiv(total, _BLOCK), fine**3)](
        by_volume, field, by_field, grid.back_starts, grid.back, back_weights, total, *grid.n_coarse, fine, BLOCK=_BLOCK
    )
    sums = torch.empty((spheres.keys.numel(), 6), dtype=dtype, device=field.device)
    mask_kernels.attribute[(len(sums),)](
        by_field, sums, spheres.position, spheres.radius, spheres.cover, geometry,
        constant(field.device, *grid.extent), constant(field.device, width, dtype=dtype),
        spheres.n_atoms, spheres.n_images, *grid.n_real, LANES=_BLOCK,
    )  # fmt: skip
    return sums


def _of_images(spheres, grid, sums, job, results, given):
    """Gradients of atoms, into ``results``: sites, occupancies, radii, and with ``given`` cover and width."""
    sites, *others = results
    others = [sites if x is None else x for x in others]
    mask_kernels.of_images[(spheres.n_models * spheres.blocks,)](
        sums, *spheres.given["occupancies"], job.candidates, spheres.status, job.frame, grid.operators, spheres.numbers,
        grid.gram, sites, *others, spheres.n_atoms, spheres.blocks, len(grid.operators),
        ZERO_COUNTS=job.include_zero_occupancy, FULL=job.full_occupancy > 0,
        ALL=results[1] is not None, GIVEN=given, BLOCK=_ATOMS, BLOCKS=spheres.lanes,
    )  # fmt: skip


def _prepared(job):
    grid = _grid_of(job.grid, job.fine, job.reach, job.sites_cart.device)
    ball = keep(_ball_of(job, keep(grid)))
    most = -math.expm1(-ball.free / job.volume)
    shape = constant(grid.device, -1 / job.volume, -1 / most)
    return grid, ball, shape, grid.geometry(job.lengths[2], job.dtype)


def _kind(job):
    sites, occupancies, radii = job.limits
    return {"sites_cart": (3, sites), "occupancies": (1, occupancies), "radii": (1, -radii)}


def masks_of_atoms(job: SpheresJob, out: torch.Tensor, volumes: torch.Tensor, field: torch.Tensor) -> None:
    """The masks of a batch into ``out`` (n_models, n_points); V and E are kept where their tensors are not empty."""
    grid, ball, shape, geometry = _prepared(job)
    spheres = _spheres(job, grid)
    if not field.numel():
        field = torch.empty(spheres.n_models * math.prod(grid.n_real), dtype=job.dtype, device=grid.device)
    _accessibility(spheres, grid, geometry, field)
    kind = constant(grid.device, deferred.kinds(_kind(job), "mask")[0])
    row = deferred.row(grid.device)
    _ball_sum(spheres, grid, field, ball.weights, job.fine, volumes if volumes.numel() else None, out, shape, row, kind)
    deferred.send(grid.device)


def mask_gradients_of_atoms(
    gradient: torch.Tensor,
    job: SpheresJob,
    volumes: torch.Tensor,
    field: torch.Tensor,
    results: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
) -> None:
    """Gradients by sites_cart and, where there are tensors for them, occupancies and radii, from that by the masks.

    ``volumes`` and ``field`` are what was kept; what is empty is worked out again.
    """
    grid, ball, shape, geometry = _prepared(job)
    spheres = _spheres(job, grid)
    if not field.numel():
        field = torch.empty(spheres.n_models * math.prod(grid.n_real), dtype=job.dtype, device=grid.device)
        _accessibility(spheres, grid, geometry, field)
    if not volumes.numel():
        volumes = torch.empty(spheres.n_models * math.prod(grid.n_coarse), dtype=job.dtype, device=grid.device)
        _ball_sum(spheres, grid, field, ball.weights, job.fine, volumes, None, shape, shape, shape)
    by_volume = torch.empty(volumes.numel(), dtype=job.dtype, device=grid.device)
    total = by_volume.numel()
    mask_kernels.by_volumes[(triton.cdiv(total, _BLOCK),)](
        gradient.contiguous(), volumes, by_volume, shape, total, BLOCK=_BLOCK
    )
    sums = _pulled_back(spheres, grid, field, by_volume, ball.back, geometry, job.lengths[2], job.fine, job.dtype)
    _of_images(spheres, grid, sums, job, (*results, None, None), False)


class SoftMask:
    """The masks of a batch, for atoms that were chosen and weighted already; V is given on the coarse grids, (n_models N,)."""

    def __init__(self, job: MaskJob):
        self.dtype, self.fine, self.kept, self.device = job.dtype, job.fine, job.kept, job.device
        self.n_models, self.models = job.n_models, job.models
        self.job = job
        self.grid = _grid_of(job.grid, job.fine, job.reach, job.device)
        if self.n_models * math.prod(self.grid.n_real) > LARGEST:
            raise ValueError(f"The fine grid {self.grid.n_real} of a mask is too large: use a larger grid_step.")

    @property
    def field_size(self):
        """Numbers of E that :meth:`forward` can hand over to :meth:`backward`, 0 where they are more than the job keeps."""
        size = self.n_models * math.prod(self.grid.n_real)
        return size if size * self.dtype.itemsize <= self.kept else 0

    @property
    def n_points(self):
        """Coarse points of all models."""
        return self.n_models * math.prod(self.grid.n_coarse)

    def weights(self, function):
        """A function of the distance at the fine grid's steps, times the volume of a step."""
        return torch.from_numpy(function(self.grid.lengths) * self.grid.voxel)

    def _images(self, sites, radii, cover, width):
        """(:class:`SpheresJob`, spheres, row of each atom): models may have different numbers of atoms; each gets the most."""
        n = len(radii)
        models = torch.zeros(n, dtype=torch.int64, device=self.device) if self.models is None else self.models
        counts = torch.bincount(models, minlength=self.n_models)
        most = max(1, int(counts.max())) if n else 1
        rows = models * most + torch.arange(n, device=self.device) - (counts.cumsum(0) - counts)[models]

        def spread(values, tail=()):
            whole = values.new_zeros((self.n_models * most, *tail), dtype=torch.float64)
            return whole.index_copy_(0, rows, values.to(torch.float64)).view(self.n_models, most, *tail)

        sites, radii, cover = spread(sites, (3,)), spread(radii), spread(cover)
        ones = torch.ones_like(radii)
        unit = torch.eye(3, dtype=torch.float64, device=self.device)
        job = SpheresJob(
            self.job.grid, self.fine, self.job.reach, np.zeros_like, (0.0, 0.0, float(width)), 1.0, self.dtype, sites,
            torch.zeros_like(sites), ones, radii, torch.ones(most, dtype=torch.bool, device=self.device), unit.flatten(),
            0.0, 0.0, False, (1e6, 1e6, _REACH / 2),
        )  # fmt: skip
        found = _spheres(job, self.grid)
        found.cover.copy_(cover)
        return job, found, rows

    @torch.no_grad()
    def forward(self, sites, radii, cover, width, weights, field=None):
        """Weighted sums of E around each coarse point, for each array of weights; E into ``field``."""
        grid = self.grid
        _, spheres, _ = self._images(sites, radii, cover, width)
        if field is None:
            field = torch.empty(self.n_models * math.prod(grid.n_real), dtype=self.dtype, device=self.device)
        _accessibility(spheres, grid, grid.geometry(width, self.dtype), field)
        results = []
        for array in weights:
            out = torch.empty(self.n_points, dtype=self.dtype, device=self.device)
            array = array.to(self.device, self.dtype)
            _ball_sum(spheres, grid, field, array, self.fine, out, None, grid.gram, grid.gram, grid.gram)
            results.append(out)
        return results

    @torch.no_grad()
    def backward(self, gradient, sites, radii, cover, width, weights, sites_only=False, field=None):
        """Gradients by sites, radii, cover and width from that by V; ``field`` is E where it is known."""
        grid = self.grid
        if not len(radii):
            return [torch.zeros_like(x) for x in (sites, radii, cover)] + [sites.new_zeros(())]
        job, spheres, rows = self._images(sites, radii, cover, width)
        geometry = grid.geometry(width, self.dtype)
        if field is None:
            field = torch.empty(self.n_models * math.prod(grid.n_real), dtype=self.dtype, device=self.device)
            _accessibility(spheres, grid, geometry, field)
        back = weights[grid.back_order].to(self.device, self.dtype)
        by_volume = gradient.to(self.dtype).contiguous()
        sums = _pulled_back(spheres, grid, field, by_volume, back, geometry, float(width), self.fine, self.dtype)
        found = [torch.zeros_like(x) for x in (job.sites_cart, *[job.radii] * 4)]
        _of_images(spheres, grid, sums, job, found, True)
        by_sites, _, by_radii, by_cover, by_width = (x.flatten(0, 1).index_select(0, rows) for x in found)
        return [by_sites, by_radii, by_cover, by_width.sum()]

    def to_cell(self, values, out=None):
        values = values.reshape(self.n_models, *self.grid.n_coarse)
        return values if out is None else out.copy_(values.reshape(out.shape))

    def from_cell(self, gradient):
        return gradient.reshape(-1)
