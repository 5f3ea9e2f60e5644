"""Differentiable structure factors and bulk-solvent masks in PyTorch for cctbx."""
from . import _runtime  # noqa: F401  (loads the native libraries: before anything else)
from .atoms import Atoms
from .bulk_solvent import mask_structure_factors, solvent_mask
from .crystal import Crystal
from .reflections import Reflections
from .structure_factors import structure_factors

__all__ = ["Atoms", "Crystal", "Reflections", "mask_structure_factors", "solvent_mask", "structure_factors"]
__version__ = "0.1.0"
