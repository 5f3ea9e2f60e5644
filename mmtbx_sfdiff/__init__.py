"""Differentiable structure factors and bulk-solvent masks in PyTorch for cctbx and Phenix."""
from . import _runtime  # noqa: F401  (first: cctbx's and torch's native libraries load in the one order that works)

from .atoms import Atoms
from .crystal import Crystal
from .reflections import Reflections
from .structure_factors import structure_factors

__version__ = "0.1.0"

__all__ = ["Atoms", "Crystal", "Reflections", "structure_factors"]
