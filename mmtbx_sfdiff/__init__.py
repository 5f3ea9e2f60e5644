"""Differentiable structure factors and bulk-solvent masks in PyTorch for cctbx."""
from . import _runtime  # noqa: F401  (loads the native libraries: before anything else)
from .atoms import Atoms
from .crystal import Crystal
from .reflections import Reflections
from .structure_factors import structure_factors

__all__ = ["Atoms", "Crystal", "Reflections", "structure_factors"]
__version__ = "0.1.0"
