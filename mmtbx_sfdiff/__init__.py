"""Differentiable structure factors and bulk-solvent masks in PyTorch for cctbx."""
import boost_adaptbx.boost.python  # noqa: F401
import torch  # noqa: F401

from .atoms import Atoms
from .crystal import Crystal
from .reflections import Reflections
from .structure_factors import structure_factors

__all__ = ["Atoms", "Crystal", "Reflections", "structure_factors"]
