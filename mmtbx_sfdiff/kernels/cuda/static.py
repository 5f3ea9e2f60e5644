"""What does not change from call to call, put on the device once for each setting: tables, geometry, places of reflections."""

from __future__ import annotations

import math
import weakref

import torch

import numpy as np

from ..jobs import DensitySetting
from .bins import bin_numbers, periods_within
from .constants import keep

#: Points of a tile along each axis.
TILE = (8, 8, 8)
#: Width of the bins that atoms are sorted into, Å.
BIN = 3.0
# A Gaussian may reach over so many cells, or points.
_CELLS, _ALWAYS = 8, 512
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
_TABLES: weakref.WeakKeyDictionary[DensitySetting, dict[str, Static]] = weakref.WeakKeyDictionary()


class Static:
    """Of one setting on one device.

    Attributes
    ----------
    axes, dims, bins, tiles : tuple of int
    far : int
        A bound on how many cells away from a tile its atoms' bins are.
    terms : torch.Tensor
        (n_types, n_terms, 2) float64, alpha and exponent; the last term is the constant one.
    numbers : torch.Tensor
        float64: reciprocal metric packed along the grid's axes (6), grid points (3), s_max^2, sharpening, the four numbers
        that place the table of cuts, the largest half of a box along each axis (3), pi: a literal in a kernel is single precision.
    cuts : torch.Tensor
        (n_widths, n_levels) float64.
    rows, conjugate, phase, factor : torch.Tensor
        int32 and int8 (n_primitive, n), real (n_primitive, n, 2) and (n,): how reflections are read.
    targets, mirror, starts, sources : torch.Tensor
        int32: how they are written.
    """

    def __init__(self, setting: DensitySetting, device: torch.device) -> None:
        grid, table = setting.grid, setting.table
        self.axes, self.dims = grid.axes, grid.dims
        spacing = setting.cell.reciprocal_lengths[list(grid.axes)]
        self.bins = bin_numbers(spacing, BIN)
        self.n_bins = math.prod(self.bins)
        self.tiles = tuple(-(-n // t) for n, t in zip(self.dims, TILE))
        largest = [max(_CELLS * n, _ALWAYS) / 2 for n in self.dims]
        self.far = periods_within(largest, TILE, self.dims)
        alphas = np.hstack([table.alphas, table.constants[:, None]])
        exponents = np.hstack([table.exponents, np.zeros((len(table.constants), 1))])
        self.n_types, self.n_terms = alphas.shape
        packing = [PAIRS.index((min(p), max(p))) for p in ((grid.axes[i], grid.axes[j]) for i, j in PAIRS)]
        #: Where an element along the grid's axes is among those along the cell's.
        self.packing = packing
        reciprocal = setting.cell.reciprocal
        metric = [reciprocal[i, j] for i, j in PAIRS]
        cuts, *places = setting.cuts

        def there(values, dtype=None):
            return torch.as_tensor(values).to(device=device, dtype=dtype).contiguous()

        self.terms = there(np.stack([alphas, exponents], -1), torch.float64)
        numbers = [
            *(metric[p] for p in packing),
            *self.dims,
            setting.s_sq,
            setting.sharpening,
            *places,
            *largest,
            math.pi,
        ]
        self.numbers = there(np.array(numbers, dtype=np.float64))
        self.cuts = there(cuts, torch.float64)
        if not setting.phase.is_complex():
            return  # a density alone
        self.rows, self.conjugate = there(grid.rows, torch.int32), there(grid.conjugate, torch.int8)
        self.phase = there(torch.view_as_real(setting.phase.resolve_conj().contiguous()), setting.dtype)
        self.factor = there(setting.factor, setting.dtype)
        self.targets, self.mirror = there(grid.targets, torch.int32), there(grid.mirror, torch.int32)
        self.starts, self.sources = there(grid.starts, torch.int32), there(grid.sources, torch.int32)
        self.readers = int(grid.starts.diff().max()) if len(grid.starts) > 1 else 0


def static_of(setting: DensitySetting, device: torch.device) -> Static:
    """The tables of a setting, made once as long as it lives."""
    found = _TABLES.setdefault(setting, {})
    if str(device) not in found:
        found[str(device)] = Static(setting, device)
    return keep(found[str(device)])
