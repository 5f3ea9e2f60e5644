"""mmtbx's flat solvent mask, bit for bit.

A grid point closer to an atom than its van der Waals radius is protein; one outside all radii enlarged by ``r_probe``
is solvent, reached by the centre of a probe.  Those in between become solvent when a point of the latter kind is closer
than ``r_shrink``, and protein otherwise.  All comparisons are strict, and made at grid points only, so the mask is a step
function of the atoms and has no gradient; :mod:`.probe_shrink` is its differentiable form.

Spheres are filled by rows along c: in each row the part inside a sphere is one interval, so an atom costs a few
additions a row, and one cumulative sum turns the ends of all intervals into the filled map.

Reference: ``mmtbx.masks.asu_mask``; Jiang & Brünger (1994) J. Mol. Biol. 243, 100-115.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..kernels import checks, opaque
from ..plans import Plan
from ..plans.grid_symmetry import symmetrize
from .ensemble import combined
from .mask_atoms import mask_atoms, spheres
from .mask_values import MASK_MEMORY
from .operations import each_model, operation
from .options import Ensemble, length, number
from .transform import mask_structure_factors

R_PROBE = 1.1
R_SHRINK = 0.9
FULL_OCCUPANCY = 0.1
_BYTES_PER_ROW = 200


@dataclasses.dataclass(frozen=True, eq=False)
class BinaryOptions:
    """Arguments of mmtbx's mask.

    Attributes
    ----------
    r_probe, r_shrink : float
        Å; mmtbx's ``solvent_radius``, 1.1, and ``shrink_truncation_radius``, 0.9, by default.
    radii : torch.Tensor, optional
        (..., n_atoms) van der Waals radii, Å; by default cctbx's, by element.
    include_hydrogens, include_zero_occupancy : bool
    full_occupancy : float
        Occupancy from which on a part of an ensemble counts in full.
    memory : int
        Bound in bytes on working storage beyond a few integers a grid point.

    Raises
    ------
    ValueError
        A negative length.
    """

    r_probe: float = R_PROBE
    r_shrink: float = R_SHRINK
    radii: torch.Tensor | None = None
    include_hydrogens: bool = False
    include_zero_occupancy: bool = False
    full_occupancy: float = FULL_OCCUPANCY
    memory: int = MASK_MEMORY

    def __post_init__(self) -> None:
        length("r_probe", self.r_probe)
        length("r_shrink", self.r_shrink)
        number("full_occupancy", self.full_occupancy)


class Binary:
    """mmtbx's mask: 0 or 1, without a gradient; see :class:`~.masks.Mask`."""

    name = "binary"
    options = BinaryOptions
    option_names = tuple(field.name for field in dataclasses.fields(BinaryOptions))

    def on_grid(
        self,
        atoms: Atoms,
        crystal: Crystal,
        n_real: tuple[int, int, int],
        options: BinaryOptions,
        ensemble: Ensemble | None = None,
    ) -> torch.Tensor:
        include_zero = options.include_zero_occupancy
        there = mask_atoms(atoms, options.radii, options.include_hydrogens, include_zero)
        lengths = [options.r_probe, options.r_shrink]
        lengths = [float(x.detach()) if isinstance(x, torch.Tensor) else float(x) for x in lengths]
        tensors = [x.detach() for x in there.tensors]
        with checks.naming(lambda: atoms.labels):
            masks = binary_mask(tensors, lengths, crystal.handle, list(n_real), include_zero, int(options.memory))
        if ensemble is None:
            return masks.reshape(*there.batch, *n_real)
        weights, batch = ensemble.of(there.batch, atoms.device)
        masks = combined(masks.reshape(*weights.shape, math.prod(n_real)), weights, options.full_occupancy)
        return masks.reshape(*batch, *n_real)

    def structure_factors(
        self,
        atoms: Atoms,
        plan: Plan,
        n_real: tuple[int, int, int],
        d_min: float | None,
        options: BinaryOptions,
        ensemble: Ensemble | None = None,
    ) -> torch.Tensor:
        return mask_structure_factors(self.on_grid(atoms, plan.crystal, n_real, options, ensemble), plan, d_min=d_min)


def _fake(
    atoms: Sequence[torch.Tensor], lengths: Sequence[float], crystal: int, n_real: Sequence[int], *others: object
) -> torch.Tensor:
    return atoms[0].new_empty((len(atoms[0]), *n_real))


@operation("binary_mask", fake=_fake)
def binary_mask(
    atoms: Sequence[torch.Tensor],
    lengths: Sequence[float],
    crystal: int,
    n_real: Sequence[int],
    include_zero_occupancy: bool,
    memory: int,
) -> torch.Tensor:
    """(n_models, n1, n2, n3) from the tensors of :class:`~.mask_atoms.MaskAtoms`, and r_probe and r_shrink."""
    there, (r_probe, r_shrink) = opaque.held(crystal), lengths
    for name, value in (("r_probe", r_probe), ("r_shrink", r_shrink)):
        length(name, value)
    out = _fake(atoms, lengths, crystal, n_real)
    sites_cart, rounding, occupancies, radii, candidates = atoms
    models = spheres(sites_cart, rounding, occupancies, radii, candidates, there, include_zero_occupancy)

    def one(i: int) -> None:
        mask = mask_of_spheres(models[i].sites, models[i].radii, there, tuple(n_real), r_probe, r_shrink, memory)
        out[i].copy_(mask)

    each_model(len(models), one, out.device)
    return out


def mask_of_spheres(sites, radii, crystal, n_real, r_probe, r_shrink, memory):
    """The mask (n1, n2, n3) bool of sites (n, 3) float64, fractional, and radii (n,), Å, under the crystal's symmetry."""
    near = symmetrize(fill_spheres(sites, radii + r_probe, crystal, n_real, memory), crystal, torch.logical_or)
    solvent = ~near
    if r_shrink == 0:
        return solvent
    core = symmetrize(fill_spheres(sites, radii, crystal, n_real, memory), crystal, torch.logical_or)
    return _dilate(solvent, crystal, r_shrink) & ~core


def fill_spheres(sites, radii, crystal, n_real, memory):
    """Grid points strictly inside any sphere, or any lattice translation of it.

    Parameters
    ----------
    sites : torch.Tensor
        (n, 3) float64, fractional.
    radii : torch.Tensor
        (n,) float64, Å.

    Returns
    -------
    torch.Tensor
        (n1, n2, n3) bool.
    """
    n1, n2, n3 = n_real
    device = sites.device
    ends = torch.zeros((n1 * n2 * (n3 + 1),), dtype=torch.int32, device=device)
    if len(sites):
        basis = crystal.orthogonalization.to(device) / torch.tensor(n_real, device=device)
        along = basis[:, 2] / basis[:, 2].norm()
        step = basis[:, 2].norm()
        # Half the extent of a sphere of radius 1 along each axis, in grid steps.
        extent = crystal.reciprocal_metric.to(device).diagonal().sqrt() * torch.tensor(n_real, device=device)
        half = [int(torch.ceil(radii.max() * extent[axis])) for axis in (0, 1)]
        offsets = [torch.arange(-h, h + 2, device=device) for h in half]
        size = max(1, memory // (_BYTES_PER_ROW * len(offsets[0]) * len(offsets[1])))
        position = sites * torch.tensor(n_real, device=device)
        for first in range(0, len(sites), size):
            _add_interval_ends(
                ends, position[first : first + size], radii[first : first + size], offsets, basis, along, step, n_real
            )
    counts = ends.reshape(n1, n2, n3 + 1)
    return torch.cumsum(counts, -1, dtype=torch.int32)[..., :n3] > 0


def _add_interval_ends(ends, position, radii, offsets, basis, along, step, n_real):
    """Add +1 where a row enters a sphere and -1 where it leaves it; rows of n3 + 1 integers."""
    n1, n2, n3 = n_real
    origin = position.floor()
    i = origin[:, 0, None] + offsets[0]
    j = origin[:, 1, None] + offsets[1]
    # Vector from the atom to the row's point k = origin, split into parts along and across the row.
    across = basis - along[:, None] * (along @ basis)
    di, dj = i - position[:, 0, None], j - position[:, 1, None]
    dk = origin[:, 2] - position[:, 2]
    gram = across.T @ across
    distance_sq = (
        (gram[0, 0] * di**2)[:, :, None]
        + (gram[1, 1] * dj**2)[:, None, :]
        + (2 * gram[0, 1]) * di[:, :, None] * dj[:, None, :]
    )
    left = (radii**2)[:, None, None] - distance_sq
    atom, a, b = (left > 0).nonzero(as_tuple=True)
    half = left[atom, a, b].sqrt()
    projection = along @ basis
    centre = -(di[atom, a] * projection[0] + dj[atom, b] * projection[1] + dk[atom] * projection[2])
    # Strictly inside: first > (centre - half) / step, last < (centre + half) / step.
    first = torch.floor((centre - half) / step).to(torch.int64) + 1
    after = torch.ceil((centre + half) / step).to(torch.int64)
    length = (after - first).clamp(min=0)
    row = (i[atom, a].to(torch.int64) % n1 * n2 + j[atom, b].to(torch.int64) % n2) * (n3 + 1)
    start = (first + origin[atom, 2].to(torch.int64)) % n3
    turns, length = torch.div(length, n3, rounding_mode="floor"), length % n3
    end = start + length
    wrapped = (end > n3).to(torch.int32)
    one = torch.ones_like(wrapped)
    ends.index_add_(0, row + start, one)
    ends.index_add_(0, row + torch.where(end > n3, end - n3, end), -one)
    # An interval that passes the end of the row begins again at 0; one longer than the row covers it all.
    again = wrapped + turns.to(torch.int32)
    chosen = again.nonzero()[:, 0]
    ends.index_add_(0, row[chosen], again[chosen])


def _dilate(solvent, crystal, radius):
    """Points with a point of ``solvent`` strictly closer than ``radius``, or in it."""
    n_real = solvent.shape
    device = solvent.device
    basis = crystal.orthogonalization.cpu()
    extent = crystal.reciprocal_metric.cpu().diagonal().sqrt() * torch.tensor(n_real) * radius
    half = [int(torch.ceil(e)) for e in extent]
    axes = [torch.arange(-h, h + 1, dtype=torch.float64) for h in half]
    offsets = torch.cartesian_prod(*axes)
    vectors = (offsets / torch.tensor(n_real)) @ basis.T
    offsets = offsets[(vectors**2).sum(-1) < radius * radius].to(torch.int64)
    ranges = [torch.arange(-h, n + h, device=device) % n for h, n in zip(half, n_real)]
    padded = solvent[ranges[0]][:, ranges[1]][:, :, ranges[2]]
    result = solvent.clone()
    for offset in offsets.tolist():
        window = tuple(slice(o + h, o + h + n) for o, h, n in zip(offset, half, n_real))
        result |= padded[window]
    return result
