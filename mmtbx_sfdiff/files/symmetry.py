"""Cell and space group of a file, and in which symmetry data are read when a model's is known too.

mmtbx gives the model's symmetry priority (``crystal.select_crystal_symmetry``) and calls two cells similar
when their lengths agree to 1 % and their angles to 1 degree (``crystal.symmetry.is_similar_symmetry``).  Both
rules are kept; in addition a different setting of the same crystal is recognised and reindexed, with cctbx.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import gemmi
import numpy as np
import numpy.typing as npt

from ..rules import which_cell
from ..symmetry.reindexing import matrix_of, reindexed
from .errors import Sorry, needs_cctbx

Cell = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Symmetry:
    """A unit cell and a space group, as far as they are known.

    Attributes
    ----------
    cell : tuple of float or None
        a, b, c in Å, alpha, beta, gamma in degrees.
    ops : gemmi.GroupOps or None

    Examples
    --------
    >>> import gemmi
    >>> from mmtbx_sfdiff.files import Symmetry
    >>> symmetry = Symmetry.from_gemmi(structure.cell, structure.find_spacegroup())
    >>> symmetry.is_known, symmetry.unit_cell.volume, symmetry.name, symmetry.tabulated.number
    (True, 15000.0, 'P 21 21 21', 19)
    >>> import numpy as np
    >>> index = np.array([[0, 0, -2]])
    >>> symmetry.d_star_sq(index).round(5)
    array([0.00444])
    >>> Symmetry.from_cctbx(symmetry.to_cctbx()).operators == symmetry.operators
    True
    >>> symmetry.asu_by_cctbx(index).tolist()
    [[0, 0, 2]]
    """

    cell: Cell | None
    ops: gemmi.GroupOps | None

    @classmethod
    def from_gemmi(cls, cell: Any, group: Any) -> Symmetry:
        """From a ``gemmi.UnitCell`` and a ``gemmi.SpaceGroup`` or ``GroupOps``; None, or a cell without a volume, is unknown."""
        known = cell is not None and cell.is_crystal()
        ops = group.operations() if isinstance(group, gemmi.SpaceGroup) else group
        return cls(tuple(cell.parameters) if known else None, ops if ops is not None and len(ops) else None)

    @classmethod
    def from_cctbx(cls, symmetry: Any) -> Symmetry:
        """From a ``cctbx.crystal.symmetry``; its cell or group may be None."""
        if symmetry is None:
            return cls(None, None)
        cell, group = symmetry.unit_cell(), symmetry.space_group()
        ops = None
        if group is not None:
            ops = gemmi.GroupOps([gemmi.Op(group(i).mod_positive().as_xyz()) for i in range(group.order_z())])
        return cls(None if cell is None else tuple(cell.parameters()), ops)

    @property
    def is_known(self) -> bool:
        """Whether both are."""
        return self.cell is not None and self.ops is not None

    @property
    def unit_cell(self) -> gemmi.UnitCell:
        """The cell as gemmi's."""
        return gemmi.UnitCell(*(self.cell or ()))

    @property
    def name(self) -> str:
        """The space group's symbol, else its operators."""
        if self.ops is None:
            return "unknown"
        group = self.tabulated
        return str(group.xhm()) if group is not None else "; ".join(op.triplet() for op in self.ops)

    @property
    def tabulated(self) -> gemmi.SpaceGroup | None:
        """The entry of gemmi's table with these operators, if there is one."""
        return None if self.ops is None else gemmi.find_spacegroup_by_ops(self.ops)

    @cached_property
    def rotations(self) -> list[npt.NDArray[np.int64]]:
        """(3, 3) integers of the point group; an index vector h (a row) has the equivalents h R."""
        assert self.ops is not None
        return [np.array(op.rot, dtype=np.int64) // op.DEN for op in self.ops.sym_ops]

    @cached_property
    def point_group(self) -> frozenset[tuple[int, ...]]:
        """Rotations of the Laue class."""
        return frozenset(tuple((sign * r).ravel().tolist()) for r in self.rotations for sign in (1, -1))

    @cached_property
    def operators(self) -> frozenset[str]:
        """All operators, centring included, as triplets with translations in [0, 1)."""
        assert self.ops is not None
        return frozenset(op.wrap().triplet() for op in self.ops)

    def d_star_sq(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """(n,) 1 / d^2 in Å^-2."""
        return np.asarray(self.unit_cell.calculate_1_d2_array(np.ascontiguousarray(indices, dtype=np.int32)))

    def __str__(self) -> str:
        cell = "no cell" if self.cell is None else " ".join(f"{value:g}" for value in self.cell)
        return f"{self.name} ({cell})"

    # Through cctbx, for what only it knows.

    def to_cctbx(self) -> Any:
        """As a ``cctbx.crystal.symmetry``, with the operators in this order."""
        from cctbx import crystal, sgtbx

        group = None
        if self.ops is not None:
            group = sgtbx.space_group()
            for op in self.ops:
                group.expand_smx(sgtbx.rt_mx(op.triplet()))
        return crystal.symmetry(unit_cell=self.cell, space_group=group, assert_is_compatible_unit_cell=False)

    def asu_by_cctbx(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Representatives of equivalents, for a setting that gemmi's table lacks."""
        needs_cctbx(f"The space group {self.name}, which is not in gemmi's table,")
        from cctbx import miller
        from cctbx.array_family import flex

        result = flex.miller_index([tuple(map(int, index)) for index in indices])
        miller.map_to_asu(self.to_cctbx().space_group_info().type(), False, result)
        return np.array(list(result), dtype=np.int64).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class Agreement:
    """How data are read beside a model.

    Attributes
    ----------
    symmetry : Symmetry
        In which they are used.
    reindex : object or None
        ``cctbx.sgtbx.change_of_basis_op`` to be applied to the indices.
    messages : list of str
    also : str or None
        An operator that the user asks for, applied last.
    """

    symmetry: Symmetry
    reindex: Any
    messages: list[str]
    also: str | None = None

    @property
    def setting(self) -> str | None:
        """The operator as text."""
        return None if self.reindex is None else str(self.reindex.as_hkl())

    def changed(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The indices in the symmetry that is used, and which of them are whole numbers there."""
        if self.reindex is not None:
            from cctbx.array_family import flex

            moved = self.reindex.apply(flex.miller_index([tuple(map(int, index)) for index in indices]))
            indices = np.array(list(moved), dtype=np.int64).reshape(-1, 3)
        if self.also is None:
            return indices, np.ones(len(indices), dtype=bool)
        return reindexed(indices, self.also)

    def and_then(self, operator: str) -> Agreement:
        """With a further operator.

        Raises
        ------
        ValueError
            If it is none.
        """
        matrix_of(operator)
        return replace(
            self, also=operator, messages=[*self.messages, f"the data were reindexed with {operator}, as asked"]
        )


def reconcile(own: Symmetry, model: Symmetry | None, path: object) -> Agreement:
    """Choose the symmetry in which the data are used.

    Parameters
    ----------
    own : Symmetry
        The data file's.
    model : Symmetry or None
    path : path
        The data file, for messages.

    Returns
    -------
    Agreement

    Raises
    ------
    Sorry
        If nothing is known, or the two do not describe the same crystal.
    """
    if model is None or not model.is_known:
        if not own.is_known:
            raise Sorry(
                f"{path} has no {'unit cell' if own.cell is None else 'space group'}: give the model "
                "with it, or a crystal symmetry."
            )
        return Agreement(own, None, [])
    messages = []
    if not own.is_known:
        parts = (("unit cell", own.cell), ("space group", own.ops))
        missing = " and ".join(name for name, value in parts if value is None)
        messages.append(f"the data file has no {missing}: the model's is used")
        own = replace(own, cell=own.cell or model.cell, ops=own.ops or model.ops)
    if similar_cells(own.cell, model.cell):
        messages += _same_cell(own, model, path)
        return Agreement(model, None, messages + _cell_messages(own.cell, model.cell))
    change = _other_setting(own, model)
    if change is not None:
        operator, changed_cell = change
        messages.append(
            f"the data are in the setting {own.name} and were reindexed with {operator.as_hkl()} to the model's, {model.name}"
        )
        return Agreement(model, operator, messages + _cell_messages(changed_cell, model.cell))
    raise Sorry(
        f"The cell of the data file {path} ({_numbers(own.cell)}, {own.name}) differs from the "
        f"model's ({_numbers(model.cell)}, {model.name}) by more than 1 % or 1 degree: give the "
        "data and the model of one crystal."
    )


def similar_cells(
    one: Sequence[float] | None, other: Sequence[float] | None, lengths: float = 0.01, angles: float = 1.0
) -> bool:
    """Whether lengths agree to 1 % and angles to 1 degree."""
    return which_cell([one], other, lengths, angles) == 0


def _cell_messages(own: Cell | None, model: Cell | None) -> list[str]:
    if own is None or similar_cells(own, model, 0.001, 0.1):
        return []
    return ["the cells of the data and the model differ by more than 0.1 %: the model's is used"]


def _same_cell(own: Symmetry, model: Symmetry, path: object) -> list[str]:
    if own.operators == model.operators:
        return []
    names = f"{own.name} in the data file, {model.name} in the model"
    if own.point_group == model.point_group:
        return [f"space groups differ in centring or screw axes only ({names}): the model's is used"]
    if own.point_group <= model.point_group:
        return [f"space groups differ ({names}): the data are merged in the model's"]
    raise Sorry(
        f"The space groups do not go together ({names}, {path}): merge the data in the model's "
        "symmetry, or correct the space group of one file."
    )


def _other_setting(own: Symmetry, model: Symmetry) -> tuple[Any, Cell] | None:
    """The operator that takes the data to the model's setting of the same space group and the cell there, or None."""
    one, other = own.tabulated, model.tabulated
    if one is not None and other is not None and one.number != other.number:
        return None
    needs_cctbx(f"Reindexing data from {own} to the model's {model}")
    theirs, ours = own.to_cctbx(), model.to_cctbx()
    if theirs.space_group().type().number() != ours.space_group().type().number():
        return None
    for candidate in (_via_reference(theirs, ours), _via_minimum(theirs, ours)):
        if candidate is None:
            continue
        try:
            changed = theirs.change_basis(candidate)
        except (RuntimeError, ValueError):
            continue
        if changed.is_similar_symmetry(ours):
            return candidate, tuple(changed.unit_cell().parameters())
    return None


def _via_reference(own: Any, model: Any) -> Any:
    return model.change_of_basis_op_to_reference_setting().inverse() * own.change_of_basis_op_to_reference_setting()


def _via_minimum(own: Any, model: Any) -> Any:
    """Through the two reduced cells, for settings whose reference axes were chosen differently."""
    try:
        return model.change_of_basis_op_to_niggli_cell().inverse() * own.change_of_basis_op_to_niggli_cell()
    except (RuntimeError, ValueError):
        return None


def _numbers(cell: Cell | None) -> str:
    return " ".join(f"{value:g}" for value in cell or ())
