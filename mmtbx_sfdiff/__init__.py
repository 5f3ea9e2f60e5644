"""Differentiable structure factors and bulk solvent for cctbx."""
import boost_adaptbx.boost.python  # noqa: F401  (cctbx's libraries must be loaded before torch's)
import torch  # noqa: F401
