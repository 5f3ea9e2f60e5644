"""The soft probe-shrink mask on a GPU, as Triton kernels; see :mod:`~mmtbx_sfdiff.bulk_solvent.probe_shrink` for what is computed.

The fine grid of the whole cell is cut into tiles, and a program owns a tile: it goes through the images of atoms in the
bins around it, in a fixed order, and writes E once.  V is the weighted sum of E over a ball at every coarse point, and
its transpose is, at the fine points of each parity, such a sum over coarse ones.  Going back, a program owns an image and
walks over its box.  There are no atomic additions, so the result is the same, bit for bit, every time.  The models of a
batch are grids behind one another, and share each launch.

Runs on a CPU under TRITON_INTERPRET=1, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch

import triton
import triton.language as tl

from ..jobs import MaskJob
from ..reference.probe_shrink import sound
from .bins import bin_numbers, bin_range, period, periods_within, sort_into_bins

# Points of a tile of the fine grid, and of a coarse block or a box, that one program takes at a time.
_TILE = (8, 8, 8)
_BLOCK = 256
# Width of the bins that images are sorted into, Å.
_BIN = 2.5
#: Fine grid points of a batch.
LARGEST = 2**31 - 1


@triton.jit
def _step(distance_sq, radius, half_inverse_width):
    """t of S(t)."""
    t = 0.5 + (distance_sq / radius - radius) * half_inverse_width
    return tl.minimum(tl.maximum(t, 0.0), 1.0)


@triton.jit
def _accessibility(
    field,
    starts,
    position,
    radius,
    cover,
    geometry,
    reach,
    n_x,
    n_y,
    n_z,
    bins_x,
    bins_y,
    bins_z,
    tiles_x,
    tiles_y,
    tiles_z,
    far,
    TX: tl.constexpr,
    TY: tl.constexpr,
    TZ: tl.constexpr,
):
    tile = tl.program_id(0)
    model = tile // (tiles_x * tiles_y * tiles_z)
    x0 = tile // (tiles_y * tiles_z) % tiles_x * TX
    y0 = tile // tiles_z % tiles_y * TY
    z0 = tile % tiles_z * TZ
    lane = tl.arange(0, TX * TY * TZ)
    l_x, l_y, l_z = lane // (TY * TZ), lane // TZ % TY, lane % TZ
    g_xx, g_yy, g_zz = tl.load(geometry), tl.load(geometry + 1), tl.load(geometry + 2)
    g_xy, g_xz, g_yz = tl.load(geometry + 3), tl.load(geometry + 4), tl.load(geometry + 5)
    half_inverse_width = tl.load(geometry + 6)
    e_x, e_y, e_z = tl.load(reach), tl.load(reach + 1), tl.load(reach + 2)
    lo_x, hi_x = bin_range(x0, TX, e_x, bins_x, n_x)
    lo_y, hi_y = bin_range(y0, TY, e_y, bins_y, n_y)
    lo_z, hi_z = bin_range(z0, TZ, e_z, bins_z, n_z)
    total = tl.full((TX * TY * TZ,), 1.0, dtype=field.dtype.element_ty)
    for b_x in range(lo_x, hi_x + 1):
        cell_x = period(b_x, bins_x, far)
        for b_y in range(lo_y, hi_y + 1):
            cell_y = period(b_y, bins_y, far)
            row = ((model * bins_x + b_x - cell_x * bins_x) * bins_y + b_y - cell_y * bins_y) * bins_z
            for cell_z in range(period(lo_z, bins_z, far), period(hi_z, bins_z, far) + 1):
                first = tl.load(starts + row + tl.maximum(lo_z - cell_z * bins_z, 0))
                last = tl.load(starts + row + tl.minimum(hi_z - cell_z * bins_z, bins_z - 1) + 1)
                for i in range(first, last):
                    r = tl.load(radius + i)
                    c_x = (tl.load(position + 3 * i) + (cell_x * n_x - x0)).to(total.dtype)
                    c_y = (tl.load(position + 3 * i + 1) + (cell_y * n_y - y0)).to(total.dtype)
                    c_z = (tl.load(position + 3 * i + 2) + (cell_z * n_z - z0)).to(total.dtype)
                    if (
                        (r > 0)
                        & (c_x > -e_x)
                        & (c_x < TX - 1 + e_x)
                        & (c_y > -e_y)
                        & (c_y < TY - 1 + e_y)
                        & (c_z > -e_z)
                        & (c_z < TZ - 1 + e_z)
                    ):
                        u, v, w = l_x - c_x, l_y - c_y, l_z - c_z
                        d = (
                            g_xx * u * u
                            + g_yy * v * v
                            + g_zz * w * w
                            + 2 * (g_xy * u * v + g_xz * u * w + g_yz * v * w)
                        )
                        t = _step(d, r, half_inverse_width)
                        total *= 1 - tl.load(cover + i) * (1 - t * t * (3 - 2 * t))
    x, y, z = x0 + l_x, y0 + l_y, z0 + l_z
    place = ((model * n_x + x) * n_y + y) * n_z + z
    tl.store(field + place, total, mask=(x < n_x) & (y < n_y) & (z < n_z))


@triton.jit
def _ball_sum(field, out, steps, weights, n_steps, total, m_x, m_y, m_z, fine, BLOCK: tl.constexpr):
    """At each coarse point the weighted sum of the fine points around it; steps are residues, 0 <= step < n."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < total
    n_x, n_y, n_z = m_x * fine, m_y * fine, m_z * fine
    model = point // (m_x * m_y * m_z)
    x, y, z = point // (m_y * m_z) % m_x * fine, point // m_z % m_y * fine, point % m_z * fine
    result = tl.zeros((BLOCK,), dtype=out.dtype.element_ty)
    for k in range(n_steps):
        i, j, l = x + tl.load(steps + 3 * k), y + tl.load(steps + 3 * k + 1), z + tl.load(steps + 3 * k + 2)
        i, j, l = tl.where(i < n_x, i, i - n_x), tl.where(j < n_y, j, j - n_y), tl.where(l < n_z, l, l - n_z)
        place = ((model * n_x + i) * n_y + j) * n_z + l
        result += tl.load(weights + k) * tl.load(field + place, mask=inside, other=0.0)
    tl.store(out + point, result, mask=inside)


@triton.jit
def _ball_spread(gradient, field, out, starts, steps, weights, total, m_x, m_y, m_z, fine, BLOCK: tl.constexpr):
    """E dT/dE at the fine points of one parity, where 0 < E < 1; elsewhere E does not change with the atoms."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    parity = tl.program_id(1)
    inside = point < total
    model = point // (m_x * m_y * m_z)
    x, y, z = point // (m_y * m_z) % m_x, point // m_z % m_y, point % m_z
    f_x, f_y, f_z = x * fine + parity // (fine * fine), y * fine + parity // fine % fine, z * fine + parity % fine
    place = ((model * m_x * fine + f_x) * m_y * fine + f_y) * m_z * fine + f_z
    value = tl.load(field + place, mask=inside, other=0.0)
    changing = inside & (value > 0) & (value < 1)
    result = tl.zeros((BLOCK,), dtype=out.dtype.element_ty)
    if tl.max(changing.to(tl.int32)) > 0:
        for k in range(tl.load(starts + parity), tl.load(starts + parity + 1)):
            i, j, l = x + tl.load(steps + 3 * k), y + tl.load(steps + 3 * k + 1), z + tl.load(steps + 3 * k + 2)
            i, j, l = tl.where(i < m_x, i, i - m_x), tl.where(j < m_y, j, j - m_y), tl.where(l < m_z, l, l - m_z)
            source = ((model * m_x + i) * m_y + j) * m_z + l
            result += tl.load(weights + k) * tl.load(gradient + source, mask=changing, other=0.0)
    tl.store(out + place, result * value, mask=inside)


@triton.jit
def _attribute(
    by_field,
    out,
    models,
    position,
    radius,
    cover,
    geometry,
    extent,
    width,
    n_x,
    n_y,
    n_z,
    LY: tl.constexpr,
    LZ: tl.constexpr,
):
    """Of one image: sums that make its gradients by position, radius, cover and width.  A box has at most LY LZ rows."""
    i = tl.program_id(0)
    model = tl.load(models + i)
    g_xx, g_yy, g_zz = tl.load(geometry), tl.load(geometry + 1), tl.load(geometry + 2)
    g_xy, g_xz, g_yz = tl.load(geometry + 3), tl.load(geometry + 4), tl.load(geometry + 5)
    half_inverse_width = tl.load(geometry + 6)
    r, cover_i = tl.load(radius + i), tl.load(cover + i)
    c_x, c_y, c_z = tl.load(position + 3 * i), tl.load(position + 3 * i + 1), tl.load(position + 3 * i + 2)
    reach = tl.sqrt((r * (r + tl.load(width))).to(tl.float64)) * 1.000001
    h_x, h_y, h_z = reach * tl.load(extent), reach * tl.load(extent + 1), reach * tl.load(extent + 2)
    x0, y0, z0 = tl.ceil(c_x - h_x).to(tl.int32), tl.ceil(c_y - h_y).to(tl.int32), tl.ceil(c_z - h_z).to(tl.int32)
    x1, y1, z1 = tl.floor(c_x + h_x).to(tl.int32), tl.floor(c_y + h_y).to(tl.int32), tl.floor(c_z + h_z).to(tl.int32)
    lane = tl.arange(0, LY * LZ)
    y, z = y0 + lane // LZ, z0 + lane % LZ
    inside = (y <= y1) & (z <= z1)
    zero = tl.zeros((LY * LZ,), dtype=by_field.dtype.element_ty)
    v, w = (y - c_y).to(zero.dtype), (z - c_z).to(zero.dtype)
    # The box may begin below the origin, and in a small cell it laps over itself.
    row = model * n_x
    y, z = (y % n_y + n_y) % n_y, (z % n_z + n_z) % n_z
    s_u, s_v, s_w, s_r, s_c, s_width = zero, zero, zero, zero, zero, zero
    # An atom without a radius counts for nothing.
    for x in range(x0, tl.where(r > 0, x1 + 1, x0)):
        u = (x - c_x).to(zero.dtype)
        d = g_xx * u * u + g_yy * v * v + g_zz * w * w + 2 * (g_xy * u * v + g_xz * u * w + g_yz * v * w)
        t = _step(d, r, half_inverse_width)
        near = inside & (t < 1)
        value = tl.load(by_field + ((row + (x % n_x + n_x) % n_x) * n_y + y) * n_z + z, mask=near, other=0.0)
        below = 1 - t * t * (3 - 2 * t)
        factor = 1 - cover_i * below
        # Where the factor is 0, so is E, and with it this.
        value = tl.where(near & (factor > 0), value / tl.where(factor > 0, factor, 1.0), 0.0)
        by_t = value * cover_i * 6 * t * (1 - t) * half_inverse_width
        by_d = by_t / r
        s_u += by_d * u
        s_v += by_d * v
        s_w += by_d * w
        s_r -= by_t * (d / (r * r) + 1)
        s_c -= value * below
        s_width -= by_t * (d / r - r) * 2 * half_inverse_width
    tl.store(out + 6 * i, tl.sum(s_u))
    tl.store(out + 6 * i + 1, tl.sum(s_v))
    tl.store(out + 6 * i + 2, tl.sum(s_w))
    tl.store(out + 6 * i + 3, tl.sum(s_r))
    tl.store(out + 6 * i + 4, tl.sum(s_c))
    tl.store(out + 6 * i + 5, tl.sum(s_width))


class _Grid:
    """What does not depend on the atoms: the fine grid, the bins, the operators, the steps within the ball."""

    def __init__(self, grid, fine, reach, device):
        self.n_coarse, self.n_real = grid.n_real, tuple(n * fine for n in grid.n_real)
        n = torch.tensor(self.n_real, dtype=torch.float64)
        basis = torch.from_numpy(grid.cell.basis) / n
        gram = basis.T @ basis
        self.gram = gram.to(device)
        self.form = torch.stack([gram[0, 0], gram[1, 1], gram[2, 2], gram[0, 1], gram[0, 2], gram[1, 2]]).to(device)
        spacing = torch.from_numpy(grid.cell.reciprocal_lengths)
        #: Half the extent of a sphere of radius 1 Å, fine grid steps.
        self.extent = spacing * n
        self.bins = bin_numbers(spacing, _BIN)
        self.n, self.extent_there = n.to(device), self.extent.to(device)
        self.rotations, self.translations = (torch.from_numpy(x).to(device) for x in grid.fractional_operators)
        self.voxel = grid.cell.volume / math.prod(self.n_real)
        half = torch.ceil(self.extent * reach).to(torch.int64).tolist()
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


@functools.lru_cache(maxsize=16)
def _grid_of(grid, fine, reach, device):
    return _Grid(grid, fine, reach, device)


@dataclasses.dataclass(frozen=True)
class _Images:
    """Images of the atoms, sorted by bins: where each came from, positions in fine grid steps, what kernels need of each.

    ``reach`` is the largest distance at which an atom matters, Å.
    """

    order: torch.Tensor
    atom: torch.Tensor
    starts: torch.Tensor
    position: torch.Tensor
    model: torch.Tensor
    radius: torch.Tensor
    cover: torch.Tensor
    geometry: torch.Tensor
    reach: float


class SoftMask:
    """The masks of a batch; V is given on the whole coarse grids, (n_models N,)."""

    def __init__(self, job: MaskJob):
        self.dtype, self.fine, self.kept, self.device = job.dtype, job.fine, job.kept, job.device
        self.n_models, self.models = job.n_models, job.models
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
        """Images of the atoms in the cell, sorted by bins; where each bin begins."""
        grid, n_atoms = self.grid, max(1, len(sites))
        sites, radii, cover = sound(sites, radii, cover)
        position = torch.einsum("gij,nj->gni", grid.rotations, sites) + grid.translations[:, None]
        position = position - position.floor()
        order, starts = sort_into_bins(
            position.flatten(0, 1), self.models.repeat(len(position)), self.n_models, grid.bins
        )
        atom = order % n_atoms
        reach = float((radii * (radii + width)).max().sqrt()) + 1e-6 if len(radii) else 0.0
        geometry = torch.cat([grid.form, grid.form.new_tensor([0.5 / width])]).to(self.dtype)
        return _Images(
            order,
            atom,
            starts,
            (position.flatten(0, 1)[order] * grid.n).contiguous(),
            self.models[atom].to(torch.int32),
            radii[atom].to(self.dtype),
            cover[atom].to(self.dtype),
            geometry,
            reach,
        )

    def _accessibility(self, images, field=None):
        grid = self.grid
        if field is None:
            field = torch.empty(self.n_models * math.prod(grid.n_real), dtype=self.dtype, device=self.device)
        extent = grid.extent * images.reach
        far = periods_within(extent, _TILE, grid.n_real)
        tiles = [-(-n // t) for n, t in zip(grid.n_real, _TILE)]
        _accessibility[(self.n_models * math.prod(tiles),)](
            field,
            images.starts,
            images.position,
            images.radius,
            images.cover,
            images.geometry,
            extent.to(self.device),
            *grid.n_real,
            *grid.bins,
            *tiles,
            far,
            TX=_TILE[0],
            TY=_TILE[1],
            TZ=_TILE[2],
        )
        return field

    @torch.no_grad()
    def forward(self, sites, radii, cover, width, weights, field=None):
        """Weighted sums of E around each coarse point, for each array of weights; E into ``field``."""
        grid = self.grid
        images = self._images(sites, radii, cover, width)
        field = self._accessibility(images, field)
        results = []
        for array in weights:
            out = torch.empty(self.n_points, dtype=self.dtype, device=self.device)
            _ball_sum[(triton.cdiv(self.n_points, _BLOCK),)](
                field,
                out,
                grid.steps,
                array.to(self.device, self.dtype),
                len(grid.steps),
                self.n_points,
                *grid.n_coarse,
                self.fine,
                BLOCK=_BLOCK,
            )
            results.append(out)
        return results

    @torch.no_grad()
    def backward(self, gradient, sites, radii, cover, width, weights, sites_only=False, field=None):
        """Gradients by sites, radii, cover and width from that by V; ``field`` is E where it is known."""
        grid, n_atoms = self.grid, len(radii)
        if not n_atoms:
            return [torch.zeros_like(x) for x in (sites, radii, cover)] + [sites.new_zeros(())]
        images = self._images(sites, radii, cover, width)
        if field is None:
            field = self._accessibility(images)
        by_field = torch.empty_like(field)
        _ball_spread[(triton.cdiv(self.n_points, _BLOCK), self.fine**3)](
            gradient.to(self.dtype).contiguous(),
            field,
            by_field,
            grid.back_starts,
            grid.back,
            weights[grid.back_order].to(self.device, self.dtype),
            self.n_points,
            *grid.n_coarse,
            self.fine,
            BLOCK=_BLOCK,
        )
        sums = torch.empty((len(images.order), 6), dtype=self.dtype, device=self.device)
        lanes = [triton.next_power_of_2(2 * math.ceil(float(e) * images.reach) + 1) for e in grid.extent[1:]]
        _attribute[(len(images.order),)](
            by_field,
            sums,
            images.model,
            images.position,
            images.radius,
            images.cover,
            images.geometry,
            grid.extent_there,
            images.geometry.new_tensor([width]),
            *grid.n_real,
            LY=lanes[0],
            LZ=lanes[1],
        )
        by_image = torch.empty_like(sums, dtype=torch.float64)
        by_image[images.order] = sums.to(torch.float64)
        by_image = by_image.reshape(-1, n_atoms, 6)
        by_position = -2 * (by_image[..., :3] @ grid.gram) * grid.n
        by_sites = torch.einsum("gni,gij->nj", by_position, grid.rotations)
        return [by_sites, by_image[..., 3].sum(0), by_image[..., 4].sum(0), by_image[..., 5].sum()]

    def to_cell(self, values, out=None):
        values = values.reshape(self.n_models, *self.grid.n_coarse)
        return values if out is None else out.copy_(values.reshape(out.shape))

    def from_cell(self, gradient):
        return gradient.reshape(-1)
