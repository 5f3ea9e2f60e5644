"""A section through two masks of the same grid, placed in Å, for a figure."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class MaskSection:
    """The same section of two masks.

    Attributes
    ----------
    ours, mmtbx : numpy.ndarray
        (n_v, n_u), 0 in the macromolecule, 1 in the solvent.
    x, y : numpy.ndarray
        (n_v + 1, n_u + 1) corners of the grid's cells in the plane of the section, Å; x is along ``axes[0]``.
    axes : tuple of str
        Cell edges along the two directions, for example ("a", "c").
    normal : str
        The third.
    position : float
        Where the section is along it, as a fraction.
    """

    ours: np.ndarray
    mmtbx: np.ndarray
    x: np.ndarray
    y: np.ndarray
    axes: tuple[str, str]
    normal: str
    position: float


def mask_section(ours: Any, mmtbx: Any, unit_cell: Any) -> MaskSection:
    """The section across the shortest cell edge that is most like the whole cell in its share of solvent.

    Parameters
    ----------
    ours, mmtbx : numpy.ndarray
        (n1, n2, n3), the whole cell.
    unit_cell : sequence of float
        Å and degrees.

    Returns
    -------
    MaskSection
    """
    edges = np.array(unit_cell[:3])
    normal = int(np.argmin(edges))
    u, v = sorted((axis for axis in range(3) if axis != normal), key=lambda axis: -edges[axis])
    shares = mmtbx.mean(axis=(u, v))
    level = int(np.argmin(np.abs(shares - mmtbx.mean())))
    planes = [np.moveaxis(mask, (v, u, normal), (0, 1, 2))[:, :, level] for mask in (ours, mmtbx)]
    angle = math.radians(unit_cell[3 + normal])
    n_v, n_u = planes[0].shape
    along_u, along_v = np.meshgrid(
        (np.arange(n_u + 1) - 0.5) / n_u * edges[u], (np.arange(n_v + 1) - 0.5) / n_v * edges[v]
    )
    return MaskSection(
        ours=planes[0],
        mmtbx=planes[1],
        x=along_u + along_v * math.cos(angle),
        y=along_v * math.sin(angle),
        axes=("abc"[u], "abc"[v]),
        normal="abc"[normal],
        position=level / ours.shape[normal],
    )
