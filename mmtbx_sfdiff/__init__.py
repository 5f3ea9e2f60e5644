"""Differentiable structure factors and bulk solvent for cctbx, in PyTorch."""

from . import _runtime  # noqa: F401  (loads the native libraries: before anything else)

__version__ = "0.1.0"
