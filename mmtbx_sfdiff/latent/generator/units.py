"""Constants and units of molecular mechanics: Å here, nm, kJ/mol and radians in OpenMM."""

from __future__ import annotations

from typing import Any

from .requirements import require

NM_PER_ANGSTROM = 0.1
GAS_CONSTANT = 8.31446261815324e-3  # kJ/mol/K
KT_300 = 300.0 * GAS_CONSTANT  # kJ/mol


def md_value(quantity: Any) -> Any:
    """A number, or an array, of an OpenMM quantity in OpenMM's own units: nm, ps, Da, e, kJ/mol, radians.

    Numbers without a unit stay what they are.

    Examples
    --------
    >>> from openmm import unit
    >>> md_value(1.5 * unit.angstrom), md_value(2.0)
    (0.15, 2.0)
    """
    unit = require("openmm").unit
    return quantity.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(quantity) else quantity
