"""Jobs of an engine that takes atoms as they are given: :class:`~.engines.AtomsEngine`; beside those of :mod:`.jobs`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

import numpy as np

from .jobs import DensitySetting, MaskGrid


@dataclasses.dataclass(frozen=True, eq=False)
class ErrorBounds:
    """What has to be true of atoms for a setting that was made without looking at them; arrays as ``ErrorModel`` has them.

    Attributes
    ----------
    norms, aliases : numpy.ndarray
        (3, n_types + 1, n_exponents) mean squares of an atom's contributions to F and its two gradients, and of their errors.
    exponents : tuple of float
        First tabulated exponent, scale, and logarithm of the growth.
    tolerance : float
        Times the root of the mean contribution of an atom: what leaving off may cost a term.
    largest_errors, least_contributions : tuple of float
        Of F and its two gradients: errors over contributions, and contributions over those to F.
    least_extra : float
        What f' or f'' of an atom counts for at least.
    """

    norms: np.ndarray
    aliases: np.ndarray
    exponents: tuple[float, float, float]
    tolerance: float
    largest_errors: tuple[float, float, float]
    least_contributions: tuple[float, float, float]
    least_extra: float


@dataclasses.dataclass(frozen=True, eq=False)
class AtomsJob:
    """Atoms as they are given, for an engine that does everything on its device and looks at nothing.

    Attributes
    ----------
    setting : DensitySetting
    bounds : ErrorBounds or None
        None: the setting is right for these atoms.
    parameters : tuple of torch.Tensor
        sites (n_models, n_atoms, 3), u_iso, u_star, occupancies, f', f'', in the dtype of what is asked for.
    residual : torch.Tensor
        (n_models, n_atoms, 3) float64, added to the fractional sites.
    use_u_iso, use_u_aniso, site_weights, type_index : torch.Tensor
        (n_atoms,)
    frame : torch.Tensor
        (18,) float64: what makes sites fractional, and what makes them Cartesian, row by row.
    limits : tuple of float
        Largest size of each parameter.
    dispersion : bool
        Whether there may be an f''.
    """

    setting: DensitySetting
    bounds: ErrorBounds | None
    parameters: tuple[torch.Tensor, ...]
    residual: torch.Tensor
    use_u_iso: torch.Tensor
    use_u_aniso: torch.Tensor
    site_weights: torch.Tensor
    type_index: torch.Tensor
    frame: torch.Tensor
    limits: tuple[float, ...]
    dispersion: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class SpheresJob:
    """Masks of atoms as they are given, for an engine that does everything on its device and looks at nothing.

    Attributes
    ----------
    grid : MaskGrid
    fine : int
    reach : float
        Radius of the ball, Å.
    ball : callable
        B(d) of distances, Å.
    lengths : tuple of float
        r_probe, r_shrink and softness, Å; with ``fine`` they say what the ball is.
    volume : float
        v, Å^3.
    dtype : torch.dtype
        Of E and V.
    sites_cart, rounding, occupancies, radii, candidates : torch.Tensor
        (n_models, n_atoms, ...) and (n_atoms,) bool.
    frame : torch.Tensor
        (9,) float64, what makes sites fractional.
    full_occupancy, smallest_radius : float
    include_zero_occupancy : bool
    limits : tuple of float
        Of sites, occupancies and radii.
    """

    grid: MaskGrid
    fine: int
    reach: float
    ball: Callable[[np.ndarray], np.ndarray]
    lengths: tuple[float, float, float]
    volume: float
    dtype: torch.dtype
    sites_cart: torch.Tensor
    rounding: torch.Tensor
    occupancies: torch.Tensor
    radii: torch.Tensor
    candidates: torch.Tensor
    frame: torch.Tensor
    full_occupancy: float
    smallest_radius: float
    include_zero_occupancy: bool
    limits: tuple[float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class MapReflections:
    """Where reflections are in the half-complex transform of a map on the whole cell: F = factor T, or its conjugate.

    Attributes
    ----------
    dims : tuple of int
    rows : torch.Tensor
        (n,) places in the flat transform.
    conjugate : torch.Tensor
        (n,) bool.
    factor : torch.Tensor
        (n,) float64, 0 where a reflection is left out.
    targets, mirror : torch.Tensor
        (n_targets,) places that are read, and their Friedel mates in the same half, or -1; no mate is a target of another.
    starts, sources : torch.Tensor
        (n_targets + 1,) and (n,): the reflections that read each.
    """

    dims: tuple[int, int, int]
    rows: torch.Tensor
    conjugate: torch.Tensor
    factor: torch.Tensor
    targets: torch.Tensor
    mirror: torch.Tensor
    starts: torch.Tensor
    sources: torch.Tensor
