"""Crystal: unit cell and space-group operators as tensors, and Miller indices.

A symmetry operator (R, t) acts on fractional coordinates as ``R x + t``; acting on the other side, it takes
the row of Miller indices ``h`` to ``h R`` with the phase ``2 pi h.t``.  Lattice centring is kept apart from the
primitive operators, because it multiplies every allowed reflection by the same number.

Everything is computed here and in :mod:`mmtbx_sfdiff.symmetry`, as cctbx does it; only ``from_cctbx`` and ``to_cctbx``
need cctbx.

Reference: ``cctbx.crystal.symmetry``, ``cctbx.sgtbx.space_group``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

import gemmi
import numpy as np

from ._cctbx_loading import require_cctbx
from .kernels.opaque import Held
from .numerics.tensors import number_of, tensor_of
from .symmetry import gridding, miller_sets, sites
from .symmetry.cctbx_settings import group_of_symbol, setting_of_cctbx
from .symmetry.operators import DENOMINATOR
from .symmetry.settings import Setting, setting
from .symmetry.unit_cell import UnitCell, has_symmetry, unit_cell

_DUMMY_CELL_VOLUME = 10.0  # Å^3; files without a crystal have a cell of 1 x 1 x 1 Å


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Crystal(Held):
    """Unit cell and space group.

    Parameters
    ----------
    unit_cell : sequence of float
        a, b, c (Å), alpha, beta, gamma (degrees).
    space_group : str, int, gemmi.SpaceGroup or gemmi.GroupOps
        Hermann-Mauguin symbol ("P 21 21 21", "P21", "R 3:H"), Hall symbol ("P 2ac 2ab", also with a change of basis;
        "Hall: P 2" where it could be the other), or number.
    device : torch.device or str

    Raises
    ------
    ValueError
        For six numbers that are no cell, or a symbol that is no space group.

    Attributes
    ----------
    unit_cell : tuple of float
        a, b, c (Å), alpha, beta, gamma (degrees).
    hall_symbol : str
        Hall symbol with its change of basis, so that every setting is unambiguous; the operators themselves
        where cctbx finds none, as for a primitive setting with an odd origin.
    space_group_symbol : str
        Hermann-Mauguin symbol as cctbx prints it, for people.
    orthogonalization, fractionalization : torch.Tensor
        (3, 3) float64; ``x_cart = orthogonalization @ x_frac``.
    reciprocal_metric : torch.Tensor
        (3, 3) float64, Å^-2; ``d*^2 = h @ reciprocal_metric @ h``.
    rotations : torch.Tensor
        (n_primitive, 3, 3) int64, inversion included.
    translations : torch.Tensor
        (n_primitive, 3) float64.
    centring : torch.Tensor
        (n_ltr, 3) float64 lattice translations, the zero vector first.

    Examples
    --------
    >>> import mmtbx_sfdiff as sfdiff
    >>> crystal = sfdiff.Crystal((30, 40, 50, 90, 90, 90), "P 21 21 21")
    >>> crystal
    Crystal('P 21 21 21', cell 30 40 50 90 90 90)
    >>> crystal.order_z, crystal.volume, tuple(crystal.build_miller_indices(d_min=3.0).shape)
    (4, 60000.0, (1359, 3))
    >>> h = torch.tensor([[0, 0, 2], [1, 2, 3]])
    >>> crystal.d_spacings(h), bool((crystal.d_star_sq(h).rsqrt() == crystal.d_spacings(h)).all())
    (tensor([25.0000, 11.7760], dtype=torch.float64), True)
    >>> crystal.epsilons(h), crystal.centric_flags(h), crystal.centring_factor(h)
    (tensor([2, 1]), tensor([ True, False]), tensor([1., 1.], dtype=torch.float64))
    >>> crystal.grid(step=0.6), crystal.asymmetric_box(), crystal.order_p
    ((54, 72, 90), ((0.0, 0.0, 0.0), (0.5, 0.5, 1.0)), 4)
    >>> crystal.to("cpu").is_same_as(crystal), crystal.device, crystal.to_gemmi()[1].short_name()
    (True, device(type='cpu'), 'P212121')
    >>> len(sfdiff.Crystal((30, 40, 50, 90, 90, 90), "P 2 2 2").special_sites(np.array([[0.0, 0.0, 0.2], [0.1, 0.2, 0.3]])))
    1
    """

    unit_cell: tuple[float, ...]
    hall_symbol: str
    space_group_symbol: str
    orthogonalization: torch.Tensor
    fractionalization: torch.Tensor
    reciprocal_metric: torch.Tensor
    rotations: torch.Tensor
    translations: torch.Tensor
    centring: torch.Tensor
    _setting: Setting = dataclasses.field(repr=False)

    def __init__(
        self,
        unit_cell: Sequence[float],
        space_group: str | int | gemmi.SpaceGroup | gemmi.GroupOps,
        device: torch.device | str = "cpu",
    ) -> None:
        self._fill(_cell(unit_cell), setting(space_group), device)

    def _fill(self, cell: UnitCell, group: Setting, device: torch.device | str) -> None:
        if not has_symmetry(cell.parameters, group.operators.rotations):
            raise ValueError(
                f"The cell {' '.join(f'{value:g}' for value in cell.parameters)} has not the symmetry of {group.symbol}: "
                "correct one of them."
            )
        rotations, translations, centring = group.operators.arrays()

        def matrix(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device).reshape(3, 3)

        values: dict[str, Any] = {
            "unit_cell": cell.parameters,
            "hall_symbol": group.hall_symbol,
            "space_group_symbol": group.symbol,
            "orthogonalization": matrix(cell.orthogonalization),
            "fractionalization": matrix(cell.fractionalization),
            "reciprocal_metric": matrix(cell.reciprocal_metric),
            "rotations": torch.tensor(rotations, device=device),
            "translations": torch.tensor(translations, device=device),
            "centring": torch.tensor(centring, device=device),
            "_setting": group,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_gemmi(cls, obj: Any, device: torch.device | str = "cpu") -> Crystal:
        """Read the symmetry of one of gemmi's objects.

        Parameters
        ----------
        obj : gemmi.Structure, gemmi.Mtz, gemmi.ReflnBlock, gemmi.SmallStructure or a gemmi grid
        device : torch.device or str

        Raises
        ------
        ValueError
            When the unit cell or the space group is not known.

        Examples
        --------
        >>> import gemmi, mmtbx_sfdiff as sfdiff
        >>> mtz = gemmi.Mtz()
        >>> mtz.spacegroup = gemmi.SpaceGroup("C 1 2 1")
        >>> mtz.set_cell_for_all(gemmi.UnitCell(30, 40, 50, 90, 95, 90))
        >>> sfdiff.Crystal.from_gemmi(mtz)
        Crystal('C 1 2 1', cell 30 40 50 90 95 90)
        """
        if hasattr(obj, "find_spacegroup"):
            group = obj.find_spacegroup()
        elif hasattr(obj, "spacegroup"):
            group = obj.spacegroup
        else:
            raise TypeError(
                f"Crystal.from_gemmi reads one of gemmi's objects with a unit cell, not {type(obj).__name__}."
            )
        cell = obj.unit_cell if hasattr(obj, "unit_cell") else obj.cell
        if group is None or not (cell.a > 0 and cell.volume > _DUMMY_CELL_VOLUME):
            name = getattr(obj, "spacegroup_hm", "")
            said = f" (its space group is {name!r})" if name and group is None else ""
            raise ValueError(f"The crystal symmetry is incomplete: unit cell and space group are both needed{said}.")
        return cls(cell.parameters, group, device)

    @classmethod
    def from_cctbx(cls, obj: Any, device: torch.device | str = "cpu") -> Crystal:
        """Read the symmetry of any cctbx object; its operators keep their order.

        Parameters
        ----------
        obj : cctbx.crystal.symmetry or an object with ``crystal_symmetry()``
            xray.structure, miller.set, mmtbx.model.manager, ...
        device : torch.device or str

        Raises
        ------
        ValueError
            When the unit cell or the space group is not known.
        ImportError
            Where cctbx is not installed.

        Examples
        --------
        >>> sfdiff.Crystal.from_cctbx(crystal.to_cctbx()).is_same_as(crystal)     # needs cctbx
        True
        """
        require_cctbx("Crystal.from_cctbx")
        from cctbx import crystal as cctbx_crystal

        symmetry = obj if isinstance(obj, cctbx_crystal.symmetry) else obj.crystal_symmetry()
        if symmetry is None or symmetry.unit_cell() is None or symmetry.space_group_info() is None:
            raise ValueError("The crystal symmetry is incomplete: unit cell and space group are both needed.")
        result: Crystal = cls.__new__(cls)
        group = setting_of_cctbx(symmetry.space_group_info())
        result._fill(_cell(symmetry.unit_cell().parameters()), group, device)
        return result

    def to_cctbx(self) -> Any:
        """The same symmetry as a ``cctbx.crystal.symmetry``.

        Raises
        ------
        ImportError
            Where cctbx is not installed.
        """
        require_cctbx("Crystal.to_cctbx")
        from cctbx import crystal as cctbx_crystal
        from cctbx import sgtbx

        return cctbx_crystal.symmetry(
            unit_cell=self.unit_cell,
            force_compatible_unit_cell=False,
            space_group_info=sgtbx.space_group_info(group=group_of_symbol(self.hall_symbol)),
        )

    def to_gemmi(self) -> tuple[gemmi.UnitCell, gemmi.SpaceGroup]:
        """The same symmetry as gemmi's unit cell and space group.

        Raises
        ------
        ValueError
            When gemmi does not know this setting.
        """
        rotations, translations = self._setting.operators.rotations, self._setting.operators.translations
        operators = gemmi.GroupOps([_gemmi_operator(r, t) for r, t in zip(rotations, translations)])
        operators.cen_ops = [list(centre) for centre in self._setting.operators.centring]
        group = gemmi.find_spacegroup_by_ops(operators)
        if group is None:
            raise ValueError(
                f"gemmi does not know the setting {self.space_group_symbol!r} of space group "
                f"{self._setting.number}: transform the model and the data to a conventional setting."
            )
        return gemmi.UnitCell(*self.unit_cell), group

    def to(self, device: torch.device | str) -> Crystal:
        """The same crystal with its tensors on another device."""
        result = copy.copy(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                object.__setattr__(result, field.name, value.to(device))
        return result

    @property
    def device(self) -> torch.device:
        return self.rotations.device

    @property
    def volume(self) -> float:
        """Unit-cell volume, Å^3 (float)."""
        return _cell(self.unit_cell).volume

    @property
    def order_p(self) -> int:
        """Number of primitive operators (without lattice centring)."""
        return self.rotations.shape[0]

    @property
    def order_z(self) -> int:
        """Number of all operators, centring included."""
        return self.rotations.shape[0] * self.centring.shape[0]

    def is_same_as(self, other: Crystal) -> bool:
        """True when cell (to 1e-6 relative) and space-group operators agree."""
        if self is other:
            return True
        if self.unit_cell != other.unit_cell and not np.allclose(self.unit_cell, other.unit_cell, rtol=1e-6, atol=0):
            return False
        return self.hall_symbol == other.hall_symbol or (
            self.order_z == other.order_z and self._setting.operators.key == other._setting.operators.key
        )

    def d_star_sq(self, miller_indices: torch.Tensor) -> torch.Tensor:
        """d*^2 = (2 sin(theta) / lambda)^2 of Miller indices (..., 3), in Å^-2, float64."""
        h, k, l = miller_indices.to(torch.float64).unbind(-1)
        g = self.reciprocal_metric.tolist()
        # Term by term as cctbx does it, to the last digit: bins are limited by the resolution of reflections.
        diagonal = (h * h) * g[0][0] + (k * k) * g[1][1] + (l * l) * g[2][2]
        result: torch.Tensor = diagonal + (2 * h * k) * g[0][1] + (2 * h * l) * g[0][2] + (2 * k * l) * g[1][2]
        return result

    def d_spacings(self, miller_indices: torch.Tensor) -> torch.Tensor:
        """Resolution of Miller indices (..., 3), in Å, float64; infinite for (0, 0, 0)."""
        return self.d_star_sq(miller_indices).rsqrt()

    def equivalent_indices(self, miller_indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices and phase shifts of each primitive operator.

        Parameters
        ----------
        miller_indices : torch.Tensor
            (n, 3) int64.

        Returns
        -------
        indices : torch.Tensor
            (n_primitive, n, 3) int64, ``h R``.
        shifts : torch.Tensor
            (n_primitive, n) float64, ``h.t`` in fractions of a turn, reduced to [0, 1).

        Examples
        --------
        >>> indices, shifts = crystal.equivalent_indices(torch.tensor([[1, 2, 3]]))
        >>> sorted(indices[:, 0].tolist())
        [[-1, -2, 3], [-1, 2, -3], [1, -2, -3], [1, 2, 3]]
        """
        indices = (
            torch.einsum("ni,gij->gnj", miller_indices.to(torch.float64), self.rotations.to(torch.float64))
            .round()
            .to(torch.int64)
        )
        shifts = torch.einsum("ni,gi->gn", miller_indices.to(torch.float64), self.translations)
        return indices, shifts - shifts.floor()

    def centring_factor(self, miller_indices: torch.Tensor) -> torch.Tensor:
        """Sum over the lattice translations of exp(2 pi i h.t): n_ltr, or 0 when centring forbids h.  (n,) float64."""
        turns = miller_indices.to(torch.float64) @ self.centring.T
        distance = (turns - turns.round()).abs().amax(-1)
        allowed = torch.full_like(distance, float(self.centring.shape[0]))
        return torch.where(distance < 1e-6, allowed, torch.zeros_like(allowed))

    def epsilons(self, miller_indices: torch.Tensor) -> torch.Tensor:
        """Statistical weights: how many primitive operators leave h where it is.  (n,) int64."""
        return self._count_fixed(miller_indices, -1)

    def centric_flags(self, miller_indices: torch.Tensor) -> torch.Tensor:
        """Whether an operator takes h to -h, so that its phase has two possible values.  (n,) bool."""
        return self._count_fixed(miller_indices, 1) > 0

    def _count_fixed(self, miller_indices: torch.Tensor, sign: int) -> torch.Tensor:
        """Number of operators with h R + sign h = 0.  (n,) int64."""
        # The three components of h (R + sign 1) are packed into one exact integer: they stay far below 2^16.
        digits = torch.tensor([1.0, 2.0**17, 2.0**34], dtype=torch.float64, device=self.device)
        identity = torch.eye(3, dtype=torch.float64, device=self.device)
        columns = (self.rotations.to(torch.float64) + sign * identity) @ digits
        return (miller_indices.to(torch.float64) @ columns.T == 0).sum(-1)

    def grid(self, step: float) -> tuple[int, int, int]:
        """Numbers of grid points along a, b, c for maps that carry the space group's symmetry.

        The same grid as ``mmtbx.masks`` makes for a given ``step`` (Å): ``maptbx.crystal_gridding`` with
        ``use_space_group_symmetry``, prime factors up to 5.
        """
        return gridding.grid(self.unit_cell, self._setting.operators, float(step))

    def asymmetric_box(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Two corners, in fractional coordinates, of a box that holds an asymmetric unit of space."""
        return self._setting.box

    def build_miller_indices(self, d_min: float, anomalous: bool = False) -> torch.Tensor:
        """All Miller indices of the asymmetric unit to ``d_min`` (Å), in cctbx's order.

        Parameters
        ----------
        d_min : float
            Å.
        anomalous : bool
            Both Friedel mates of acentric reflections, one after the other.

        Returns
        -------
        torch.Tensor
            (n, 3) int64; systematically absent ones are left out.

        Raises
        ------
        ValueError
            When ``d_min`` is not a positive number.
        """
        indices = miller_sets.build(_cell(self.unit_cell), self._setting, number_of(d_min, "d_min"), anomalous)
        return torch.from_numpy(np.ascontiguousarray(indices)).to(self.device)

    def special_sites(self, sites_frac: np.ndarray) -> list[sites.SpecialSite]:
        """Which of some sites (n, 3), fractional, lie within 0.5 Å of a symmetry element that leaves them where they are."""
        return sites.special_sites(_cell(self.unit_cell), self._setting.operators, sites_frac)

    def __repr__(self) -> str:
        cell = " ".join(f"{value:g}" for value in self.unit_cell)
        return f"Crystal({self.space_group_symbol!r}, cell {cell})"


_cell = unit_cell  # by another name, because Crystal has an argument of this one


def _gemmi_operator(rotation: Sequence[int], translation: Sequence[int]) -> gemmi.Op:
    operator = gemmi.Op()
    operator.rot = [[DENOMINATOR * rotation[3 * i + k] for k in range(3)] for i in range(3)]
    operator.tran = [t % DENOMINATOR for t in translation]
    return operator


def as_miller_tensor(miller_indices: Any, device: torch.device | str | None = None) -> torch.Tensor:
    """Miller indices as an (n, 3) int64 tensor.

    Parameters
    ----------
    miller_indices : torch.Tensor, array-like, flex.miller_index, miller.set or miller.array
    device : torch.device or str, optional
        Where the tensor goes; a tensor stays where it is by default.

    Raises
    ------
    ValueError
        When the shape is not (n, 3).
    TypeError
        When the values are not integers, or there are none (on "meta").
    """
    if hasattr(miller_indices, "crystal_symmetry"):  # miller.set
        miller_indices = miller_indices.indices()
    if hasattr(miller_indices, "as_vec3_double"):  # flex.miller_index
        values = miller_indices.as_vec3_double().as_double().as_numpy_array().reshape(-1, 3)
        return torch.from_numpy(values.astype(np.int64)).to(device or "cpu")
    indices = tensor_of(miller_indices)
    if indices.ndim != 2 or indices.shape[-1] != 3:
        raise ValueError(f"miller_indices must have the shape (n, 3), not {tuple(indices.shape)}.")
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"miller_indices must be integers, not {indices.dtype}; convert with .to(torch.int64).")
    if indices.is_meta and not torch.compiler.is_compiling():
        raise TypeError("miller_indices are on meta, and have no values: give them on the device of the atoms.")
    if indices.dtype != torch.int64 or (device is not None and indices.device != torch.device(device)):
        indices = indices.to(device=device or indices.device, dtype=torch.int64)
    return indices


def as_flex_miller_index(miller_indices: torch.Tensor) -> Any:
    """Miller indices (n, 3) as a ``flex.miller_index``."""
    require_cctbx("Reflections.to_cctbx")
    from cctbx.array_family import flex

    h, k, l = (
        flex.int(np.ascontiguousarray(column, dtype=np.int32)) for column in miller_indices.detach().cpu().numpy().T
    )
    return flex.miller_index(h, k, l)
