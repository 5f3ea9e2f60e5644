"""Which space group, and which of its settings, a symbol means.

A table written from cctbx (``tables/space_group_settings.csv``) says of each setting how it is changed to the reference
setting of its group: that decides which Miller indices stand for their equivalents, and in which order.

Reference: ``cctbx.sgtbx.space_group_type``, ``cctbx.sgtbx.space_group_info``.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from fractions import Fraction
from importlib import resources

import gemmi

from .operators import DENOMINATOR, Operators, operators_from_hall, operators_from_list

Corner = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A space group in one setting.

    Attributes
    ----------
    hall_symbol : str
        As cctbx prints it: the reference setting's, with a change of basis where this is another one.
    symbol : str
        Hermann-Mauguin symbol for people, as cctbx prints it.
    operators : Operators
    number : int
        1 to 230.
    to_reference : str
        Change of basis of coordinates to the reference setting, "x,y,z" there.
    box : tuple
        Two corners, in fractional coordinates, of a box that holds an asymmetric unit.
    """

    hall_symbol: str
    symbol: str
    operators: Operators
    number: int
    to_reference: str
    box: tuple[Corner, Corner]


def setting(space_group: str | int | gemmi.SpaceGroup | gemmi.GroupOps) -> Setting:
    """The setting that a symbol names.

    Parameters
    ----------
    space_group : str, int, gemmi.SpaceGroup or gemmi.GroupOps
        Hermann-Mauguin symbol ("P 21 21 21", "P21", "R 3:H"), Hall symbol ("P 2ac 2ab", also with a change of basis),
        or number.  What can be read as both, such as "P 2", is the former; "Hall: P 2" is the latter.

    Raises
    ------
    ValueError
        For what is no space group, or one in a setting that has no Hall symbol in the table.

    Examples
    --------
    >>> from mmtbx_sfdiff.symmetry.settings import setting
    >>> setting("P21").hall_symbol, setting(19).symbol
    (' P 2yb', 'P 21 21 21')
    """
    if isinstance(space_group, gemmi.SpaceGroup):
        return _tabulated(space_group.hall)
    if isinstance(space_group, gemmi.GroupOps):
        return _of_operators(operators_from_list(list(space_group)[1:]))
    if isinstance(space_group, bool) or not isinstance(space_group, str | int):
        raise TypeError(f"A space group is a symbol, a number or gemmi's object, not {type(space_group).__name__}.")
    found = None
    if isinstance(space_group, int):
        if 1 <= space_group <= 230:
            found = gemmi.find_spacegroup_by_number(space_group)
    else:
        name = space_group.strip()
        if name.lower().startswith("hall:"):
            return _from_hall(name[5:])
        found = gemmi.find_spacegroup_by_name(name) if name else None
        if found is None:
            return _from_hall(name)
    if found is None:
        raise ValueError(f"{space_group!r} is not a space group: give a Hermann-Mauguin or a Hall symbol, or 1 to 230.")
    return _tabulated(found.hall)


@functools.lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, str]]:
    file = resources.files(__package__.rpartition(".")[0]) / "tables" / "space_group_settings.csv"
    return {row["hall"]: row for row in csv.DictReader(file.read_text().splitlines())}


def _tabulated(hall: str) -> Setting:
    return _row(hall, operators_from_hall(hall))


def _row(hall: str, operators: Operators) -> Setting:
    row = _table()[hall]
    corners = [tuple(float(Fraction(v)) for v in row[name].split()) for name in ("box_min", "box_max")]
    return Setting(
        hall_symbol=row["cctbx_hall"],
        symbol=row["cctbx_symbol"],
        operators=operators,
        number=int(row["number"]),
        to_reference=row["to_reference"],
        box=(corners[0], corners[1]),
    )


@functools.lru_cache(maxsize=1)
def _by_cctbx_hall() -> dict[str, str]:
    return {row["cctbx_hall"].strip(): hall for hall, row in _table().items()}


def setting_of_cctbx_hall(hall_symbol: str, operators: Operators) -> Setting | None:
    """The setting with cctbx's symbol for it and these operators; None where it is not in the table."""
    hall = _by_cctbx_hall().get(hall_symbol.strip())
    return None if hall is None else _row(hall, operators)


@functools.lru_cache(maxsize=1)
def _by_operators() -> dict[frozenset[tuple[int, ...]], str]:
    return {operators_from_hall(hall).key: hall for hall in reversed(list(_table()))}


def _of_operators(operators: Operators) -> Setting:
    hall = _by_operators().get(operators.key)
    if hall is None:
        raise ValueError(
            "These operators are none of the tabulated settings of a space group: give a Hall symbol with a change of "
            "basis, or read the crystal with Crystal.from_cctbx."
        )
    return _row(hall, operators)


def _from_hall(symbol: str) -> Setting:
    try:
        operators = operators_from_hall(symbol)
    except ValueError:
        raise ValueError(
            f"{symbol!r} is not a space group: give a Hermann-Mauguin or a Hall symbol, or a number from 1 to 230."
        ) from None
    if symbol.strip() in _table():
        return _row(symbol.strip(), operators)
    known_by = setting_of_cctbx_hall(symbol, operators)
    if known_by is not None:
        return known_by
    hall = _by_operators().get(operators.key)
    if hall is not None:
        return _row(hall, operators)
    base, _, change = symbol.strip().rpartition("(")
    known = _from_hall(base)
    # The symbol's change leads from the base's coordinates to these: back, and on to the reference setting.
    back = _operator(change.rstrip(" )")).inverse()
    to_reference = gemmi.Op(known.to_reference) * back
    return Setting(
        hall_symbol=" " + symbol.strip() if not symbol.strip().startswith("-") else symbol.strip(),
        symbol=f"{known.symbol} ({change.rstrip(' )')})",
        operators=operators,
        number=known.number,
        to_reference=to_reference.triplet(),
        box=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    )


def _operator(change: str) -> gemmi.Op:
    """The change of basis in the brackets of a Hall symbol, an operator or three translations in twelfths."""
    try:
        shifts = [int(word) for word in change.replace(",", " ").split()]
    except ValueError:
        return gemmi.Op(change)
    operator = gemmi.Op()
    operator.tran = [shift * DENOMINATOR // 12 for shift in shifts]
    return operator
