"""Bulk-solvent masks and their structure factors."""

from __future__ import annotations

from .masks import DEFAULT_MASK, MASKS, Mask, solvent_fraction, solvent_mask, solvent_structure_factors
from .probe_shrink import probe_shrink_defaults
from .transform import F_MASK_D_MIN, mask_structure_factors

__all__ = [
    "DEFAULT_MASK",
    "F_MASK_D_MIN",
    "MASKS",
    "Mask",
    "mask_structure_factors",
    "probe_shrink_defaults",
    "solvent_fraction",
    "solvent_mask",
    "solvent_structure_factors",
]
