"""Settings of cctbx's space groups, their operators in their order, and back."""

from __future__ import annotations

from typing import Any

from .operators import DENOMINATOR, Operators
from .settings import Setting, setting_of_cctbx_hall


def setting_of_cctbx(info: Any) -> Setting:
    """The setting of a ``sgtbx.space_group_info``, its operators in their order."""
    group = info.group()
    scale, rest = divmod(DENOMINATOR, group.t_den())
    if rest:
        raise ValueError(f"Translations in units of 1/{group.t_den()} of the cell edges are not supported.")

    def shift(values: Any) -> tuple[int, ...]:
        return tuple(scale * t for t in values.num())

    places = [(0, inverted, i) for inverted in range(group.f_inv()) for i in range(group.n_smx())]
    parts = [group(*place) for place in places]
    operators = Operators(
        rotations=tuple(tuple(part.r().num()) for part in parts),
        translations=tuple(shift(part.t()) for part in parts),
        centring=tuple(shift(group(i, 0, 0).t()) for i in range(group.n_ltr())),
        inversion=shift(group(0, 1, 0).t()) if group.f_inv() == 2 else None,
    )
    try:
        hall_symbol = info.type().hall_symbol()
    except RuntimeError:  # "Internal Error: Unsuitable value for rational translation vector"
        text = "; ".join(str(operator) for operator in group)
        return Setting(text, text, operators, 0, "", ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    known = setting_of_cctbx_hall(hall_symbol, operators)
    if known is not None:
        return known
    box = info.direct_space_asu()
    corners = [tuple(float(value) for value in corner()) for corner in (box.box_min, box.box_max)]
    change = info.type().cb_op().c().as_xyz()
    return Setting(hall_symbol, str(info), operators, info.type().number(), change, (corners[0], corners[1]))


def group_of_symbol(symbol: str) -> Any:
    """The ``sgtbx.space_group`` of what :func:`setting_of_cctbx` gives."""
    from cctbx import sgtbx

    if ";" not in symbol:
        return sgtbx.space_group(symbol)
    group = sgtbx.space_group()
    for operator in symbol.split("; "):
        group.expand_smx(operator)
    return group
