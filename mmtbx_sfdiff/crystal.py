"""Crystal: unit cell and space-group operators as tensors, and Miller indices.

A symmetry operator (R, t) acts on fractional coordinates as ``R x + t``; acting on the other side, it takes
the row of Miller indices ``h`` to ``h R`` with the phase ``2 pi h.t``.  Lattice centring is kept apart from the
primitive operators, because it multiplies every allowed reflection by the same number.

Reference: ``cctbx.crystal.symmetry``, ``cctbx.sgtbx.space_group``.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

import numpy as np

from ._cctbx_loading import require_cctbx
from .kernels.opaque import Held


@dataclasses.dataclass(frozen=True, eq=False)
class Crystal(Held):
    """Unit cell and space group.

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
    """

    unit_cell: tuple
    hall_symbol: str
    space_group_symbol: str
    orthogonalization: torch.Tensor
    fractionalization: torch.Tensor
    reciprocal_metric: torch.Tensor
    rotations: torch.Tensor
    translations: torch.Tensor
    centring: torch.Tensor

    @classmethod
    def from_cctbx(cls, obj, device="cpu"):
        """Read the symmetry of any cctbx object.

        Parameters
        ----------
        obj : cctbx.crystal.symmetry or an object with ``crystal_symmetry()``
            xray.structure, miller.set, mmtbx.model.manager, ...
        device : torch.device or str

        Raises
        ------
        ValueError
            When the unit cell or the space group is not known.
        """
        require_cctbx("Crystal.from_cctbx")
        from cctbx import crystal as cctbx_crystal

        symmetry = obj if isinstance(obj, cctbx_crystal.symmetry) else obj.crystal_symmetry()
        if symmetry is None or symmetry.unit_cell() is None or symmetry.space_group_info() is None:
            raise ValueError("The crystal symmetry is incomplete: unit cell and space group are both needed.")
        unit_cell, info = symmetry.unit_cell(), symmetry.space_group_info()
        group = symmetry.space_group()
        hall_symbol, space_group_symbol = _symbols(info)
        rotations, translations = [], []
        for i_inv in range(group.f_inv()):
            for i_smx in range(group.n_smx()):
                op = group(0, i_inv, i_smx)
                rotations.append(op.r().as_double())
                translations.append(op.t().as_double())
        centring = [group(i, 0, 0).t().as_double() for i in range(group.n_ltr())]

        def matrix(values, shape=(3, 3)):
            return torch.tensor(np.array(values, dtype=np.float64).reshape(shape), device=device)

        fractionalization = np.array(unit_cell.fractionalization_matrix()).reshape(3, 3)
        metric = unit_cell.reciprocal_metrical_matrix()
        return cls(
            unit_cell=tuple(unit_cell.parameters()),
            hall_symbol=hall_symbol,
            space_group_symbol=space_group_symbol,
            orthogonalization=matrix(unit_cell.orthogonalization_matrix()),
            fractionalization=matrix(fractionalization),
            reciprocal_metric=matrix([[metric[i] for i in row] for row in ((0, 3, 4), (3, 1, 5), (4, 5, 2))]),
            rotations=matrix(rotations, (-1, 3, 3)).round().to(torch.int64),
            translations=matrix(translations, (-1, 3)),
            centring=matrix(centring, (-1, 3)),
        )

    def to_cctbx(self):
        """The same symmetry as a ``cctbx.crystal.symmetry``."""
        return _symmetry(self.unit_cell, self.hall_symbol)

    def to(self, device):
        """The same crystal with its tensors on another device."""
        changes = {
            f.name: getattr(self, f.name).to(device)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), torch.Tensor)
        }
        return dataclasses.replace(self, **changes)

    @property
    def device(self):
        return self.rotations.device

    @property
    def volume(self):
        """Unit-cell volume, Å^3 (float)."""
        return float(torch.det(self.orthogonalization.cpu()))

    @property
    def order_p(self):
        """Number of primitive operators (without lattice centring)."""
        return self.rotations.shape[0]

    @property
    def order_z(self):
        """Number of all operators, centring included."""
        return self.rotations.shape[0] * self.centring.shape[0]

    def is_same_as(self, other):
        """True when cell (to 1e-6 relative) and space-group operators agree."""
        return self is other or (
            self.hall_symbol == other.hall_symbol
            and (self.unit_cell == other.unit_cell or np.allclose(self.unit_cell, other.unit_cell, rtol=1e-6, atol=0))
        )

    def d_star_sq(self, miller_indices):
        """d*^2 = (2 sin(theta) / lambda)^2 of Miller indices (..., 3), in Å^-2, float64."""
        h, k, l = miller_indices.to(torch.float64).unbind(-1)
        g = self.reciprocal_metric.tolist()
        # Term by term as cctbx does it, to the last digit: bins are limited by the resolution of reflections.
        return (
            (h * h) * g[0][0]
            + (k * k) * g[1][1]
            + (l * l) * g[2][2]
            + (2 * h * k) * g[0][1]
            + (2 * h * l) * g[0][2]
            + (2 * k * l) * g[1][2]
        )

    def d_spacings(self, miller_indices):
        """Resolution of Miller indices (..., 3), in Å, float64; infinite for (0, 0, 0)."""
        return self.d_star_sq(miller_indices).rsqrt()

    def equivalent_indices(self, miller_indices):
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
        """
        indices = (
            torch.einsum("ni,gij->gnj", miller_indices.to(torch.float64), self.rotations.to(torch.float64))
            .round()
            .to(torch.int64)
        )
        shifts = torch.einsum("ni,gi->gn", miller_indices.to(torch.float64), self.translations)
        return indices, shifts - shifts.floor()

    def centring_factor(self, miller_indices):
        """Sum over the lattice translations of exp(2 pi i h.t): n_ltr, or 0 when centring forbids h.  (n,) float64."""
        turns = miller_indices.to(torch.float64) @ self.centring.T
        distance = (turns - turns.round()).abs().amax(-1)
        return torch.where(distance < 1e-6, float(self.centring.shape[0]), 0.0).to(torch.float64)

    def epsilons(self, miller_indices):
        """Statistical weights: how many primitive operators leave h where it is.  (n,) int64."""
        return self._count_fixed(miller_indices, -1)

    def centric_flags(self, miller_indices):
        """Whether an operator takes h to -h, so that its phase has two possible values.  (n,) bool."""
        return self._count_fixed(miller_indices, 1) > 0

    def _count_fixed(self, miller_indices, sign):
        """Number of operators with h R + sign h = 0.  (n,) int64."""
        # The three components of h (R + sign 1) are packed into one exact integer: they stay far below 2^16.
        digits = torch.tensor([1.0, 2.0**17, 2.0**34], dtype=torch.float64, device=self.device)
        identity = torch.eye(3, dtype=torch.float64, device=self.device)
        columns = (self.rotations.to(torch.float64) + sign * identity) @ digits
        return (miller_indices.to(torch.float64) @ columns.T == 0).sum(-1)

    def grid(self, step):
        """Numbers of grid points along a, b, c for maps that carry the space group's symmetry.

        The same grid as ``mmtbx.masks`` makes for a given ``step`` (Å): ``maptbx.crystal_gridding`` with
        ``use_space_group_symmetry``, prime factors up to 5.
        """
        return _grid(self.unit_cell, self.hall_symbol, float(step))

    def asymmetric_box(self):
        """Two corners, in fractional coordinates, of a box that holds cctbx's asymmetric unit of space."""
        from cctbx import sgtbx

        unit = sgtbx.space_group_info(group=_group(self.hall_symbol)).direct_space_asu()
        return tuple(float(v) for v in unit.box_min()), tuple(float(v) for v in unit.box_max())

    def build_miller_indices(self, d_min, anomalous=False):
        """All Miller indices of the asymmetric unit to ``d_min`` (Å), (n, 3) int64, as cctbx orders them."""
        from cctbx import miller

        indices = miller.build_set(self.to_cctbx(), anomalous_flag=anomalous, d_min=float(d_min)).indices()
        return as_miller_tensor(indices, device=self.device)

    def __repr__(self):
        cell = " ".join(f"{value:g}" for value in self.unit_cell)
        return f"Crystal({self.space_group_symbol!r}, cell {cell})"


def _symmetry(unit_cell, hall_symbol):
    require_cctbx("Crystal.to_cctbx")
    from cctbx import crystal as cctbx_crystal
    from cctbx import sgtbx

    return cctbx_crystal.symmetry(
        unit_cell=unit_cell,
        force_compatible_unit_cell=False,
        space_group_info=sgtbx.space_group_info(group=_group(hall_symbol)),
    )


@functools.lru_cache(maxsize=64)
def _grid(unit_cell, hall_symbol, step):
    from cctbx import maptbx

    symmetry = _symmetry(unit_cell, hall_symbol)
    gridding = maptbx.crystal_gridding(
        unit_cell=symmetry.unit_cell(),
        space_group_info=symmetry.space_group_info(),
        symmetry_flags=maptbx.use_space_group_symmetry,
        step=step,
    )
    return tuple(gridding.n_real())


def as_miller_tensor(miller_indices, device=None):
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
        When the values are not integers.
    """
    if hasattr(miller_indices, "crystal_symmetry"):  # miller.set
        miller_indices = miller_indices.indices()
    if hasattr(miller_indices, "as_vec3_double"):  # flex.miller_index
        values = miller_indices.as_vec3_double().as_double().as_numpy_array().reshape(-1, 3)
        return torch.from_numpy(values.astype(np.int64)).to(device or "cpu")
    indices = (
        miller_indices if isinstance(miller_indices, torch.Tensor) else torch.as_tensor(np.asarray(miller_indices))
    )
    if indices.ndim != 2 or indices.shape[-1] != 3:
        raise ValueError(f"miller_indices must have the shape (n, 3), not {tuple(indices.shape)}.")
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"miller_indices must be integers, not {indices.dtype}; convert with .to(torch.int64).")
    if indices.dtype != torch.int64 or (device is not None and indices.device != torch.device(device)):
        indices = indices.to(device=device or indices.device, dtype=torch.int64)
    return indices


def as_flex_miller_index(miller_indices):
    """Miller indices (n, 3) as a ``flex.miller_index``."""
    require_cctbx("Reflections.to_cctbx")
    from cctbx.array_family import flex

    h, k, l = (
        flex.int(np.ascontiguousarray(column, dtype=np.int32)) for column in miller_indices.detach().cpu().numpy().T
    )
    return flex.miller_index(h, k, l)


def _symbols(info):
    """Hall and Hermann-Mauguin symbol of a ``sgtbx.space_group_info``; the operators where cctbx finds no type."""
    try:
        return info.type().hall_symbol(), str(info)
    except RuntimeError:  # "Internal Error: Unsuitable value for rational translation vector"
        text = "; ".join(str(operator) for operator in info.group())
        return text, text


def _group(symbol):
    """The ``sgtbx.space_group`` of what :func:`_symbols` gives."""
    from cctbx import sgtbx

    if ";" not in symbol:
        return sgtbx.space_group(symbol)
    group = sgtbx.space_group()
    for operator in symbol.split("; "):
        group.expand_smx(operator)
    return group
