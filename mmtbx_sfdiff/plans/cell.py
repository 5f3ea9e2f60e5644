"""What the kernels read of a crystal."""

from __future__ import annotations

import functools

from ..kernels.jobs import Cell, MaskGrid
from .grid_symmetry import CrystalKey, operators_on_grid


def cell_of(crystal) -> Cell:
    """The unit cell as numbers."""
    return Cell(
        tuple(crystal.orthogonalization.flatten().tolist()),
        tuple(crystal.reciprocal_metric.flatten().tolist()),
        crystal.volume,
    )


def mask_grid(crystal, n_real) -> MaskGrid:
    """A grid of a mask and the operators on its points.

    Raises
    ------
    ValueError
        When the grid does not carry the symmetry.
    """
    return _mask_grid(CrystalKey(crystal, tuple(int(n) for n in n_real)))


@functools.lru_cache(maxsize=64)
def _mask_grid(key):
    crystal, n_real = key.of
    rotations, translations = operators_on_grid(crystal, n_real)
    name = crystal.hall_symbol, tuple(crystal.unit_cell), n_real
    return MaskGrid(cell_of(crystal), n_real, rotations, translations, crystal.asymmetric_box(), name)
