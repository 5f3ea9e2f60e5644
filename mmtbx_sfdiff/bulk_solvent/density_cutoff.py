"""The density-cutoff solvent mask, equations 5-8.

    map     = FFT(F_protein)                                                                       (5)
    cutoff  = percentile(map, solvent fraction)                                                    (6)
    mask    = sigmoid((cutoff - map) * 50)                                                         (7)
    F_mask  = inverse FFT(mask)                                                                    (8)

The map is brought to mean 0 and standard deviation 1 first, each model of a batch by itself.

A percentile is the value of one or two grid points, and back-propagating through it would give those two points the
whole gradient.  The true derivative of the level that encloses a given volume is the average of the map's derivative
over the iso-surface at that level; here it is taken over all grid points near the level, with Gaussian weights, while
the value stays the percentile.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import Any

import torch

from ..atoms import Atoms
from ..crystal import Crystal, as_miller_tensor
from ..kernels import opaque
from ..kernels.opaque import constant_result
from ..plans import Plan, plan, plan_of
from ..structure_factors import structure_factors
from .cutoff import apply_cutoff
from .ensemble import combined
from .mask_atoms import broadcast
from .mask_values import MASK_MEMORY
from .options import Ensemble, number
from .transform import mask_structure_factors

STEEPNESS = 50.0
FULL_OCCUPANCY = 0.1
# Of an atom other than hydrogen, Å^3, with its share of what the probe cannot reach.
VOLUME_PER_ATOM = 18.4


@dataclasses.dataclass(frozen=True, eq=False)
class DensityCutoffOptions:
    """Arguments of the mask of equations 5-7.

    Attributes
    ----------
    d_min : float, optional
        F_protein is taken on all reflections to this resolution, Å; by default as far as the grid samples three times,
        1.8 Å on a 0.6 Å grid.
    f_protein : tuple (miller_indices, values), optional
        F_protein, when it is already known, on a complete set of unique indices: (n, 3) integers and (..., n) complex.
        The index (0, 0, 0) does not matter.
    solvent_fraction : float or torch.Tensor, optional
        Share of the cell below the cutoff, (...); it counts as a constant in the gradient.  By default
        :func:`estimated_solvent_fraction`.
    steepness : float
        The factor of equation 7, per standard deviation of the map.
    surface_width : float
        Standard deviation of the Gaussian weights of the gradient of the cutoff, in those of the map.
    voxel_average : bool
        Take the average of equation 7 over each voxel instead of its value at the grid point.  The sigmoid is steeper
        than any bearable grid, and sampled at points it follows the atoms in jumps; its average follows them smoothly.
        Both tend to the same mask on a fine grid.
    full_occupancy : float
        Occupancy from which on a part of an ensemble counts in full.
    memory : int
        Passed on to what computes F_protein.

    Raises
    ------
    ValueError
        ``d_min`` and ``f_protein`` together; numbers that are not positive.
    """

    d_min: float | None = None
    f_protein: tuple[Any, torch.Tensor] | None = None
    solvent_fraction: float | torch.Tensor | None = None
    steepness: float = STEEPNESS
    surface_width: float = 0.03
    voxel_average: bool = True
    full_occupancy: float = FULL_OCCUPANCY
    memory: int = MASK_MEMORY

    def __post_init__(self) -> None:
        if self.f_protein is not None and self.d_min is not None:
            raise ValueError("Give d_min or f_protein, not both: the reflections of f_protein are taken as they are.")
        number("full_occupancy", self.full_occupancy)
        for name in ("steepness", "surface_width"):
            number(name, getattr(self, name))


class DensityCutoff:
    """The mask of equations 5-7; differentiable in everything that F_protein is; see :class:`~.masks.Mask`."""

    name = "density_cutoff"
    options = DensityCutoffOptions
    option_names = tuple(field.name for field in dataclasses.fields(DensityCutoffOptions))

    def on_grid(
        self,
        atoms: Atoms,
        crystal: Crystal,
        n_real: tuple[int, int, int],
        options: DensityCutoffOptions,
        ensemble: Ensemble | None = None,
    ) -> torch.Tensor:
        if options.f_protein is None:
            there = _plan_to(crystal, n_real, None if options.d_min is None else float(options.d_min))
            values = structure_factors(atoms, there, memory=options.memory)
        else:
            indices, values = options.f_protein
            there = plan_of(crystal, as_miller_tensor(indices, device=atoms.device))
            if values.shape[-1:] != (len(there),):
                raise ValueError(f"f_protein has {len(there)} indices, but values of shape {tuple(values.shape)}.")
        fraction = options.solvent_fraction
        if fraction is None:
            fraction = estimated_solvent_fraction(atoms)
        elif not isinstance(fraction, torch.Tensor):
            fraction = torch.full((), float(fraction), dtype=torch.float64, device=atoms.device)
        fraction = fraction.to(dtype=torch.float64, device=atoms.device).detach()
        batch = broadcast(values.shape[:-1], fraction.shape)
        n_models = math.prod(batch)
        masks = apply_cutoff(
            values.expand(*batch, len(there)).reshape(n_models, len(there)),
            fraction.expand(batch).reshape(n_models),
            there.handle,
            list(n_real),
            float(options.steepness),
            float(options.surface_width),
            bool(options.voxel_average),
        )[0]
        if ensemble is not None:
            weights, batch = ensemble.of(batch, atoms.device)
            masks = combined(masks.reshape(*weights.shape, math.prod(n_real)), weights, options.full_occupancy)
        return masks.reshape(*batch, *n_real)

    def structure_factors(
        self,
        atoms: Atoms,
        plan: Plan,
        n_real: tuple[int, int, int],
        d_min: float | None,
        options: DensityCutoffOptions,
        ensemble: Ensemble | None = None,
    ) -> torch.Tensor:
        return mask_structure_factors(self.on_grid(atoms, plan.crystal, n_real, options, ensemble), plan, d_min=d_min)


def estimated_solvent_fraction(atoms: Atoms) -> torch.Tensor:
    """Share of the cell that the atoms' number leaves to the solvent, (...) float64.

    One minus 18.4 Å^3 for each atom that is not a hydrogen, in proportion to its occupancy, and between 1 % and 99 %.
    It does not depend on where the atoms are: a fraction read off a mask would jump with them, and the gradient of the
    density-cutoff mask would be wrong.  It agrees with the fraction of mmtbx's mask with a standard deviation of 0.035
    over 57 deposited entries of 50 to 4,400 atoms, to which the volume was fitted.
    """
    counted = atoms.occupancies.detach() * torch.where(atoms.hydrogens, 0.0, atoms.site_weights)
    protein = VOLUME_PER_ATOM * counted.sum(-1) * (atoms.crystal.order_z / _volume(atoms.crystal.handle))
    return (1 - protein).clamp(0.01, 0.99)


@constant_result
def _volume(crystal: int) -> float:
    volume: float = opaque.held(crystal).volume
    return volume


def _plan_to(crystal: Crystal, n_real: tuple[int, int, int], d_min: float | None) -> Plan:
    """All reflections of a crystal to a resolution, by default three times the widest spacing of a grid."""
    key = crystal.unit_cell, crystal.hall_symbol, crystal.device.type, crystal.device.index, n_real, d_min
    _make_plan(crystal.handle, key)
    # Looked up where torch.compile sees it: it cannot trace with the tensors of what it takes for a constant.
    return _PLANS[key]


@constant_result
def _make_plan(handle: int, key: tuple[Any, ...]) -> bool:
    """Have the plan among those kept, so that what is derived from it is found again."""
    crystal, (*_, n_real, d_min) = opaque.held(handle), key
    with _lock:
        if key in _PLANS:
            return True
    if d_min is None:
        edges = crystal.orthogonalization.norm(dim=0).tolist()
        d_min = 3 * max(edge / n for edge, n in zip(edges, n_real))
    made = plan(crystal, crystal.build_miller_indices(d_min))
    with _lock:
        _PLANS[key] = made
        while len(_PLANS) > _MOST_PLANS:
            _PLANS.pop(next(iter(_PLANS)))
    return True


_PLANS: dict[tuple[Any, ...], Plan] = {}
_MOST_PLANS, _lock = 16, threading.Lock()
