"""Cell and space group of a CIF block, under any of the names in use.

A space group is taken from its Hall or Hermann-Mauguin symbol, else from its operators, else from its number in the
International Tables (the standard setting).  Reference: the PDBx/mmCIF, core and symmetry CIF dictionaries.
"""

from __future__ import annotations

from typing import Any

import gemmi

from .symmetry import Symmetry

_CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
_HALL = (
    "_symmetry.space_group_name_Hall",
    "_space_group.name_Hall",
    "_symmetry_space_group_name_Hall",
    "_space_group_name_Hall",
)
_HM = (
    "_symmetry.space_group_name_H-M",
    "_space_group.name_H-M_full",
    "_space_group.name_H-M_alt",
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_alt",
    "_space_group_name_H-M",
)
_OPERATORS = (
    "_space_group_symop.operation_xyz",
    "_symmetry_equiv.pos_as_xyz",
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
)
_NUMBER = (
    "_symmetry.Int_Tables_number",
    "_space_group.IT_number",
    "_symmetry_Int_Tables_number",
    "_space_group_IT_number",
)


def value(block: Any, *tags: str) -> str | None:
    """The first of these items that has a value."""
    for tag in tags:
        text = block.find_value(tag)
        if text is None:
            column = block.find_loop(tag)
            text = column[0] if len(column) else None
        if text is not None and text not in ("?", "."):
            return str(gemmi.cif.as_string(text)).strip()
    return None


def cell_of_block(block: Any) -> tuple[float, ...] | None:
    """a, b, c, alpha, beta, gamma, or None where they are not all there and possible."""
    texts = [value(block, f"_cell.{name}", f"_cell_{name}") for name in _CELL]
    if None in texts[:3]:
        return None
    numbers = [gemmi.cif.as_number(text) if text is not None else 90.0 for text in texts]
    cell = gemmi.UnitCell(*numbers)
    possible = all(n > 0 for n in numbers) and all(n < 180 for n in numbers[3:]) and cell.volume > 0
    return tuple(numbers) if possible and cell.is_crystal() else None


def complete_cell(block: Any) -> tuple[bool, list[str]]:
    """Whether a part of the cell was missing, and what was made of it: cctbx makes six numbers of fewer, whichever they are.

    An angle is 90 degrees by the dictionary; without one of the lengths there is no cell.
    """
    names = [f"_cell.{name}" for name in _CELL]
    missing = [name for name in names if value(block, name) is None]
    if not missing or len(missing) == len(names) or len(block.find_loop(names[0])):
        return False, []
    if any("length" in name for name in missing):
        for name in names:
            if block.find_value(name) is not None:
                block.find([name]).erase()
        return True, []
    for name in missing:
        block.set_pair(name, "90")
    return True, [f"{name} is missing: 90 degrees were taken" for name in missing]


def group_of_block(block: Any, cell: tuple[float, ...] | None) -> gemmi.GroupOps | None:
    """The space group, or None where none is known."""
    hall = value(block, *_HALL)
    if hall:
        try:
            return gemmi.symops_from_hall(hall)
        except (RuntimeError, ValueError):
            pass  # the symbol is looked at next
    for tag in _HM:
        ops = group_from_name(value(block, tag), cell)
        if ops is not None:
            return ops
    for tag in _OPERATORS:
        triplets = [gemmi.cif.as_string(text) for text in block.find_loop(tag)]
        if triplets:
            try:
                return gemmi.GroupOps([gemmi.Op(triplet) for triplet in triplets])
            except (RuntimeError, ValueError):
                return None
    number = value(block, *_NUMBER)
    if number is not None and number.isdigit():
        group = gemmi.find_spacegroup_by_number(int(number))
        return group.operations() if group is not None else None
    return None


def group_from_name(name: str | None, cell: tuple[float, ...] | None = None) -> gemmi.GroupOps | None:
    """A Hermann-Mauguin symbol (or number) in any spelling; R 3 by the cell's angles."""
    if not name:
        return None
    alpha, gamma = (cell[3], cell[5]) if cell else (90.0, 120.0 if name.strip()[:1] in "RH" else 90.0)
    group = gemmi.find_spacegroup_by_name(name.strip(), alpha, gamma)
    if group is None and name.strip().isdigit():
        group = gemmi.find_spacegroup_by_number(int(name))
    return None if group is None else group.operations()


def symmetry_of_block(block: Any) -> Symmetry:
    """Both."""
    cell = cell_of_block(block)
    return Symmetry(cell, group_of_block(block, cell))
