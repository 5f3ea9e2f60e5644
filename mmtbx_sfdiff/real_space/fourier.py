"""Maps from structure factors, and back.

    rho(r) = 1/V sum_h F(h) exp(-2 pi i h.r),      F(h) = V/N sum_r rho(r) exp(2 pi i h.r)

Structure factors of the asymmetric unit are spread over reciprocal space by F(hR) = F(h) exp(-2 pi i h.t) and F(-h) = F(h)*, so
that the map is real.

Reference: ``cctbx.miller.array.fft_map``, ``cctbx.maptbx.structure_factors.to_map``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch

from ..crystal import Crystal, as_miller_tensor
from ..numerics.precision import full_precision

Grid = tuple[int, int, int]
_LARGEST_GRID = 2**31 - 1


def checked_grid(grid: Sequence[int]) -> Grid:
    """Three positive integers.

    Raises
    ------
    ValueError
    """
    try:
        sizes = tuple(operator.index(n) for n in grid)
    except TypeError:
        sizes = ()
    if len(sizes) != 3 or min(sizes) < 1 or math.prod(sizes) > _LARGEST_GRID:
        raise ValueError(f"grid must be three positive integers, whose product is below 2^31, not {grid!r}.")
    return sizes[0], sizes[1], sizes[2]


@full_precision
def fourier_map(crystal: Crystal, miller_indices: torch.Tensor, f: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The map of structure factors on the whole cell, e/Å^3 if they are in electrons.

    Parameters
    ----------
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) integers, one of each set of equivalents; where both mates of a Friedel pair are given, the mean of F(h) and
        F(-h)* is taken.
    f : torch.Tensor
        (..., n) complex.
    grid : tuple of int
        Points along a, b, c: more than twice the largest index along each.

    Returns
    -------
    torch.Tensor
        (..., n1, n2, n3) real, differentiable in ``f``.

    Raises
    ------
    ValueError
        A grid too coarse for the indices; another number of structure factors than of indices.

    Examples
    --------
    >>> f = sfdiff.structure_factors(atoms, crystal, data.miller_indices)
    >>> rho = fourier_map(crystal, data.miller_indices, f, (24, 32, 36))
    >>> rho.shape, rho.dtype
    (torch.Size([24, 32, 36]), torch.float64)
    """
    grid = checked_grid(grid)
    indices = as_miller_tensor(miller_indices, device=f.device)
    if f.shape[-1:] != indices.shape[:1]:
        raise ValueError(f"f must have one value for each of the {len(indices)} indices, not shape {tuple(f.shape)}.")
    equivalent, shifts = crystal.equivalent_indices(indices)
    sizes = torch.tensor(grid, device=f.device)
    if len(indices) and bool((2 * equivalent.abs().amax((0, 1)) >= sizes).any()):
        need = (2 * equivalent.abs().amax((0, 1)) + 1).tolist()
        raise ValueError(f"The grid {grid} is too coarse for these structure factors: it needs at least {tuple(need)}.")
    # Each place of the grid once: equivalents that coincide have the same value, and mates are averaged.
    turns = torch.polar(torch.ones_like(shifts), -2 * torch.pi * shifts).to(f.dtype)
    rows = torch.arange(len(indices), device=f.device).expand(len(equivalent), -1).reshape(-1)
    places = torch.cat([_places(equivalent, grid), _places(-equivalent, grid)]).reshape(2, -1)
    unique, inverse, counts = torch.unique(places.reshape(-1), return_inverse=True, return_counts=True)
    values = f[..., rows] * turns.reshape(-1)
    both = torch.cat([values, values.conj().resolve_conj()], -1)
    sums = both.new_zeros(*f.shape[:-1], len(unique)).index_add(-1, inverse, both)
    spectrum = f.new_zeros(*f.shape[:-1], grid[0] * grid[1] * grid[2])
    spectrum = spectrum.index_copy(-1, unique, sums / counts)
    if not f.numel():  # of which no library makes a transform
        return f.real.sum() + spectrum.real.reshape(*f.shape[:-1], *grid)
    rho: torch.Tensor = torch.fft.fftn(spectrum.reshape(*f.shape[:-1], *grid), dim=(-3, -2, -1)).real
    return rho / crystal.volume


@full_precision
def fourier_transform(crystal: Crystal, rho: torch.Tensor, miller_indices: torch.Tensor) -> torch.Tensor:
    """Structure factors of a map of the whole cell, (..., n) complex, differentiable.

    Parameters
    ----------
    crystal : Crystal
    rho : torch.Tensor
        (..., n1, n2, n3) real.
    miller_indices : torch.Tensor
        (n, 3) integers.

    Raises
    ------
    ValueError
        Indices that the grid cannot tell from others.

    Examples
    --------
    >>> f = sfdiff.structure_factors(atoms, crystal, data.miller_indices)
    >>> rho = fourier_map(crystal, data.miller_indices, f, (24, 32, 36))
    >>> bool(torch.allclose(fourier_transform(crystal, rho, data.miller_indices), f))
    True
    """
    grid = checked_grid(tuple(rho.shape[-3:]))
    indices = as_miller_tensor(miller_indices, device=rho.device)
    largest = indices.abs().amax(0).tolist() if len(indices) else (0, 0, 0)
    if any(2 * h >= n for h, n in zip(largest, grid) if h):
        raise ValueError(f"The grid {grid} cannot tell indices as high as {tuple(largest)} from others: make it finer.")
    if not rho.numel():  # of which no library makes a transform
        zeros = rho.new_zeros((*rho.shape[:-3], len(indices)))
        return torch.complex(rho.sum() + zeros, zeros)
    spectrum: torch.Tensor = torch.fft.ifftn(rho, dim=(-3, -2, -1)) * crystal.volume
    return spectrum.reshape(*rho.shape[:-3], -1)[..., _places(indices, grid)]


def _places(indices: torch.Tensor, grid: Grid) -> torch.Tensor:
    h, k, l = (indices % torch.tensor(grid, device=indices.device)).unbind(-1)
    places: torch.Tensor = (h * grid[1] + k) * grid[2] + l
    return places
