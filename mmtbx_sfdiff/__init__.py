"""Differentiable structure factors and bulk-solvent masks in PyTorch for cctbx."""
import boost_adaptbx.boost.python  # noqa: F401
import torch  # noqa: F401

from .atoms import Atoms
from .bulk_solvent import mask_structure_factors, solvent_mask
from .crystal import Crystal
from .reflections import Reflections
from .structure_factors import structure_factors

__all__ = ["Atoms", "Crystal", "Reflections", "mask_structure_factors", "solvent_mask", "structure_factors"]
