"""Which atoms take part in a solvent mask, with which radii.

mmtbx leaves out hydrogen and deuterium and atoms of zero occupancy, and gives each remaining atom the van der Waals
radius of its element; a partly occupied atom counts in full.

Reference: ``mmtbx.masks.manager._load_xrs``, ``cctbx.masks.vdw_radii_from_xray_structure``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..kernels import checks, opaque
from ..kernels.threads import own_threads
from ..plans.cache import TensorCache
from ..tables.gaussians import van_der_waals_radius

#: Å; radii, the probe's, and lengths beyond are no property of an atom or a solvent, and would take for ever.
LARGEST_LENGTH = 20.0
_OF_TYPES = TensorCache(64)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskAtoms:
    """What masks read of atoms, as tensors of n_models models; nothing has been looked at yet.

    Attributes
    ----------
    sites_cart, rounding : torch.Tensor
        (n_models, n_atoms, 3) Å, and what rounding took from the fractional sites, float64.
    occupancies : torch.Tensor
        (n_models, n_atoms).
    radii : torch.Tensor
        (n_models, n_atoms) van der Waals radii, Å, float64; NaN where an element has none.
    candidates : torch.Tensor
        (n_atoms,) bool: may take part.
    batch : tuple of int
        The shape of the models.
    """

    sites_cart: torch.Tensor
    rounding: torch.Tensor
    occupancies: torch.Tensor
    radii: torch.Tensor
    candidates: torch.Tensor
    batch: tuple[int, ...]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The five tensors, as the operations take them."""
        return self.sites_cart, self.rounding, self.occupancies, self.radii, self.candidates


@dataclasses.dataclass(frozen=True, eq=False)
class Spheres:
    """The atoms of one model that take part: ``rows`` (n,) int64 among all, or None for all of them.

    ``sites`` (n, 3) fractional, ``radii`` (n,) Å and ``occupancies`` (n,), all float64.
    """

    rows: torch.Tensor | None
    sites: torch.Tensor
    radii: torch.Tensor
    occupancies: torch.Tensor

    def among_all(self, values: torch.Tensor, n_atoms: int) -> torch.Tensor:
        """Values (n, ...) of these atoms at their places among all, zeros elsewhere."""
        if self.rows is None:
            return values
        return values.new_zeros((n_atoms, *values.shape[1:])).index_copy(0, self.rows, values)


def mask_atoms(
    atoms: Atoms,
    radii: torch.Tensor | None = None,
    include_hydrogens: bool = False,
    include_zero_occupancy: bool = False,
) -> MaskAtoms:
    """What masks read of atoms.

    Parameters
    ----------
    atoms : Atoms
    radii : torch.Tensor, optional
        (..., n_atoms) van der Waals radii in Å of all the atoms; by default cctbx's, by element.
    include_hydrogens, include_zero_occupancy : bool

    Raises
    ------
    ValueError
        Radii of the wrong shape; an element without a radius.
    """
    n = atoms.n_atoms
    if radii is None:
        radii = _of_types(atoms, "radii", lambda: vdw_radii(atoms.type_index, "\n".join(atoms.form_factors.types)))
        if not torch.compiler.is_compiling():
            _check_known(atoms, include_hydrogens, include_zero_occupancy)
    elif not isinstance(radii, torch.Tensor) or radii.shape[-1:] != (n,):
        raise ValueError(f"radii must be a tensor of the shape (..., {n}), one radius an atom.")
    elif radii.device != atoms.device:
        raise TypeError(f"radii are on {radii.device} but the atoms are on {atoms.device}: move them with .to().")
    candidates = _of_types(
        atoms,
        ("candidates", include_hydrogens),
        lambda: torch.ones_like(atoms.hydrogens) if include_hydrogens else ~atoms.hydrogens,
    )
    given = (
        (atoms.sites_cart, 2),
        (atoms._frac_residual, 2),
        (atoms.occupancies, 1),
        (radii.to(torch.float64), 1),
    )
    batch = broadcast(*(value.shape[: value.ndim - own] for value, own in given))
    n_models = math.prod(batch)
    sites, rounding, occupancies, radii = (
        value.expand(*batch, *value.shape[value.ndim - own :]).reshape(n_models, *value.shape[value.ndim - own :])
        for value, own in given
    )
    return MaskAtoms(sites, rounding, occupancies, radii, candidates, batch)


def _of_types(atoms: Atoms, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What follows from the atoms' types, worked out once as long as they do not change."""
    index = atoms.type_index
    if not opaque.lasting() or index.is_inference():
        return make()
    return _OF_TYPES.get(index, (key, atoms.form_factors.types), make)


def broadcast(*shapes: torch.Size) -> tuple[int, ...]:
    """The common shape; like ``torch.broadcast_shapes``, of which the first call imports sympy."""
    result = [1] * max(len(shape) for shape in shapes)
    for shape in shapes:
        for i, size in enumerate(reversed(shape), 1):
            if size != 1:
                if result[-i] not in (1, size):
                    raise ValueError(f"The batches {', '.join(str(tuple(s)) for s in shapes)} do not fit together.")
                result[-i] = size
    return tuple(result)


@opaque.operation("vdw_radii", fake=lambda type_index, types: torch.empty_like(type_index, dtype=torch.float64))
def vdw_radii(type_index: torch.Tensor, types: str) -> torch.Tensor:
    """Van der Waals radii (n_atoms,) of scattering types, one a line; NaN where there is none."""
    of_type = torch.tensor(_radii_of_types(types), dtype=torch.float64, device=type_index.device)
    # See Atoms.from_types.
    return of_type.index_select(0, type_index)


def _radii_of_types(types: str) -> list[float]:
    radii = [van_der_waals_radius(name) for name in types.split("\n") if types]
    return [math.nan if radius is None else radius for radius in radii]


def _check_known(atoms: Atoms, include_hydrogens: bool, include_zero_occupancy: bool) -> None:
    """Raise ValueError, with the elements' names, where an atom that takes part has no radius."""
    if not any(map(math.isnan, _radii_of_types("\n".join(atoms.form_factors.types)))):
        return
    chosen = torch.ones_like(atoms.hydrogens) if include_hydrogens else ~atoms.hydrogens
    if not include_zero_occupancy:
        chosen = chosen & (atoms.occupancies.detach() > 0).reshape(-1, atoms.n_atoms).any(0)
    atoms.vdw_radii(chosen.nonzero()[:, 0])


def spheres(
    sites_cart: torch.Tensor,
    rounding: torch.Tensor,
    occupancies: torch.Tensor,
    radii: torch.Tensor,
    candidates: torch.Tensor,
    crystal: Crystal,
    include_zero_occupancy: bool,
) -> list[Spheres]:
    """The atoms that take part in each model's mask.

    Raises
    ------
    BadAtom
        A number that is not finite, or too large; a negative radius, or none.
    """
    known = {"sites_cart": sites_cart, "occupancies": occupancies}
    checks.check_numbers(known)
    if not len(sites_cart):
        return []
    part = candidates[None] if include_zero_occupancy else candidates & (occupancies > 0)
    _check_radii(radii, part.expand(len(radii), -1))
    with own_threads(sites_cart.device):
        sites = sites_cart.to(torch.float64) @ crystal.fractionalization.T + rounding
        occupancies = occupancies.to(torch.float64)
        found = []
        for i, chosen in enumerate(part.expand(len(sites), -1)):
            if bool(chosen.all()):
                found.append(Spheres(None, sites[i], radii[i], occupancies[i]))
            else:
                rows = chosen.nonzero()[:, 0]
                found.append(Spheres(rows, sites[i][rows], radii[i][rows], occupancies[i][rows]))
    return found


def _check_radii(radii: torch.Tensor, part: torch.Tensor) -> None:
    """Raise BadAtom unless all radii are between 0 and the largest, of the atoms that take part."""
    if radii.device.type == "cpu":
        known = radii.detach().numpy()
        if known.size and known.min() >= 0 and known.max() <= LARGEST_LENGTH:
            return
    wrong = ~((radii >= 0) & (radii <= LARGEST_LENGTH)) & part
    if bool(wrong.any()):
        model, atom = wrong.nonzero()[0].tolist()
        raise checks.bad_radius(float(radii[model, atom]), LARGEST_LENGTH, atom, model, len(radii))
