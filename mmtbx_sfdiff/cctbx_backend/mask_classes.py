"""Stand-ins for the C++ classes that mmtbx makes solvent masks with, computing with this package.

:class:`AtomMask` is ``mmtbx.masks.atom_mask``, the mask of the asymmetric unit; :class:`AroundAtoms` is
``cctbx.masks.around_atoms``, a mask without symmetry.  :func:`.registry.takeover` puts them into ``mmtbx.masks``.
Both give cctbx's masks, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch

import mmtbx.masks
import numpy as np
from cctbx import crystal as cctbx_crystal
from cctbx.array_family import flex

from ..bulk_solvent import mask_structure_factors
from ..bulk_solvent.binary import fill_spheres, mask_of_spheres
from ..crystal import as_miller_tensor
from .conversion import as_flex_complex, as_flex_double, crystal_of
from .usage import count_call

_MEMORY = 256 * 2**20
_CPP_ATOM_MASK = mmtbx.masks.atom_mask


class AtomMask:
    """A probe-shrink mask on a grid of the unit cell; see ``mmtbx.masks.atom_mask`` for the names.

    Parameters
    ----------
    unit_cell : cctbx.uctbx.unit_cell
    space_group, group : cctbx.sgtbx.space_group
        By either name, as in the two constructors of the original.
    gridding_n_real : tuple of int, optional
    resolution, grid_step_factor : float, optional
        Instead of the grid: its step is ``resolution / grid_step_factor``.
    solvent_radius, shrink_truncation_radius : float
        Å.
    """

    def __init__(
        self,
        unit_cell: Any,
        space_group: Any = None,
        gridding_n_real: Any = None,
        solvent_radius: Any = 1.11,
        shrink_truncation_radius: Any = 0.9,
        group: Any = None,
        resolution: Any = None,
        grid_step_factor: float = 4.0,
    ) -> None:
        space_group = group if space_group is None else space_group
        self._symmetry = cctbx_crystal.symmetry(
            unit_cell=unit_cell,
            space_group=space_group,
            assert_is_compatible_unit_cell=False,
            force_compatible_unit_cell=False,
        )
        self.solvent_radius = solvent_radius
        self.shrink_truncation_radius = shrink_truncation_radius
        arguments: tuple[Any, ...] = (unit_cell, space_group)
        if gridding_n_real is None:
            # How the step becomes a grid is the original's affair; making one computes no mask.
            arguments += (resolution, grid_step_factor)
            gridding_n_real = _CPP_ATOM_MASK(*arguments, solvent_radius, shrink_truncation_radius).grid_size()
        else:
            arguments += (gridding_n_real,)
        self._arguments = (*arguments, solvent_radius, shrink_truncation_radius)
        self._n_real = tuple(int(n) for n in gridding_n_real)
        self._original: Any = None
        self._mask: Any = None
        self._computed: tuple[Any, Any, Any] | None = None

    def grid_size(self) -> Any:
        return self._n_real

    def compute(self, sites_frac: Any, atom_radii: Any, shells: Any = ()) -> None:
        """Make the mask of these spheres; one of several radial shells is left to the original."""
        self._computed = (sites_frac, atom_radii, shells)
        if len(shells):
            self._compute_original()
            return
        count_call("masks")
        self._mask = mask_of_spheres(
            *_spheres(sites_frac, atom_radii),
            crystal_of(self._symmetry),
            self._n_real,
            float(self.solvent_radius),
            float(self.shrink_truncation_radius),
            _MEMORY,
        ).to(torch.float64)

    def _compute_original(self) -> None:
        self._original = _CPP_ATOM_MASK(*self._arguments)
        if self._computed is not None:
            sites_frac, atom_radii, shells = self._computed
            self._original.compute(sites_frac, atom_radii, *([shells] if len(shells) else []))

    def __getattr__(self, name: str) -> Any:
        # What nobody in cctbx's programs asks for, such as debug_fft_time.
        if name.startswith("_") or not hasattr(_CPP_ATOM_MASK, name):
            raise AttributeError(f"atom_mask has no attribute {name!r}")
        if self._original is None:
            self._compute_original()
        return getattr(self._original, name)

    def structure_factors(self, indices: Any, layer: int = 0) -> Any:
        if self._original is not None:
            return self._original.structure_factors(indices, layer)
        crystal = crystal_of(self._symmetry)
        return as_flex_complex(mask_structure_factors(self._mask, crystal, as_miller_tensor(indices), d_min=None))

    def mask_data_whole_uc(self, layer: int = 0) -> Any:
        """The map as the original gives it: order_z in the solvent of one asymmetric unit, zero in the others.

        Which asymmetric unit that is, the original knows; without symmetry it is the mask.
        """
        if self._symmetry.space_group().order_z() > 1 and self._original is None:
            self._compute_original()
        if self._original is not None:
            return self._original.mask_data_whole_uc(layer)
        # With the room that cctbx's real-to-complex transform leaves at the end of each row.
        n3 = self._n_real[2]
        padded = torch.nn.functional.pad(self._mask, (0, 2 * (n3 // 2 + 1) - n3))
        data = as_flex_double(padded)
        data.reshape(flex.grid(tuple(padded.shape)).set_focus(self._n_real))
        return data

    @property
    def contact_surface_fraction(self) -> Any:
        """Share of the cell that is solvent."""
        if self._original is not None:
            return self._original.contact_surface_fraction
        return float(self._mask.mean())

    def layer_volume_fractions(self) -> Any:
        if self._original is not None:
            return self._original.layer_volume_fractions()
        return (self.contact_surface_fraction,)


class AroundAtoms:
    """A probe-shrink mask of some atoms in a cell without symmetry; see ``cctbx.masks.around_atoms``.

    Parameters
    ----------
    unit_cell : cctbx.uctbx.unit_cell
    space_group_order_z : int
        How many such masks fill the cell; used for the fractions only.
    sites_frac : flex.vec3_double
    atom_radii : flex.double
        Å.
    gridding_n_real : tuple of int
    solvent_radius, shrink_truncation_radius : float
        Å.
    explicit_distance, debug : bool
        Ways to compute of the original, which do not change the result.
    """

    def __init__(
        self,
        unit_cell: Any,
        space_group_order_z: Any,
        sites_frac: Any,
        atom_radii: Any,
        gridding_n_real: Any,
        solvent_radius: Any,
        shrink_truncation_radius: Any,
        explicit_distance: Any = False,
        debug: Any = False,
    ) -> None:
        count_call("masks")
        self.solvent_radius, self.shrink_truncation_radius = solvent_radius, shrink_truncation_radius
        crystal = crystal_of(cctbx_crystal.symmetry(unit_cell=unit_cell, space_group_symbol="P1"))
        n_real = tuple(int(n) for n in gridding_n_real)
        sites, radii = _spheres(sites_frac, atom_radii)
        mask = mask_of_spheres(
            sites, radii, crystal, n_real, float(solvent_radius), float(shrink_truncation_radius), _MEMORY
        )
        near = fill_spheres(sites, radii + float(solvent_radius), crystal, n_real, _MEMORY)
        self.data = flex.int(np.ascontiguousarray(mask.numpy(), dtype=np.int32))
        self.contact_surface_fraction = max(0.0, 1 - space_group_order_z * float((~mask).double().mean()))
        self.accessible_surface_fraction = max(0.0, 1 - space_group_order_z * float(near.double().mean()))


def bulk_solvent_class() -> type:
    """``mmtbx.masks.bulk_solvent`` with :class:`AroundAtoms` for a base; its own methods are unchanged."""
    original = mmtbx.masks.bulk_solvent
    names = {name: value for name, value in original.__dict__.items() if name not in ("__dict__", "__weakref__")}
    return type(original.__name__, (AroundAtoms,), names)


def _spheres(sites_frac: Any, atom_radii: Any) -> tuple[torch.Tensor, torch.Tensor]:
    # Lists of tuples are good enough for the originals.
    sites = flex.vec3_double(sites_frac).as_double().as_numpy_array().reshape(-1, 3)
    return torch.from_numpy(sites), torch.from_numpy(flex.double(atom_radii).as_numpy_array())
