"""Differentiable structure factors and bulk-solvent masks in PyTorch for cctbx and Phenix."""

from . import _runtime

with _runtime.without_collecting():
    from . import targets
    from .atoms import Atoms
    from .bulk_solvent import mask_structure_factors, solvent_mask, solvent_structure_factors
    from .crystal import Crystal
    from .fmodel import FModel
    from .likelihood import e_values, llg, sigma_a
    from .plans import plan
    from .real_space import density
    from .reflections import Reflections
    from .scaling import Scales, update_all_scales
    from .structure_factors import structure_factors
    from .versions import __version__

_PLUGIN = ("register", "takeover", "unregister")

__all__ = [
    "Atoms",
    "Crystal",
    "FModel",
    "GeometryRestraints",
    "Reflections",
    "Scales",
    "density",
    "e_values",
    "llg",
    "mask_structure_factors",
    "plan",
    "register",
    "sigma_a",
    "solvent_mask",
    "solvent_structure_factors",
    "structure_factors",
    "takeover",
    "targets",
    "unregister",
    "update_all_scales",
]


def __getattr__(name):
    # Loaded when first used: the registry imports most of mmtbx, which tensors do not need.
    if name in _PLUGIN:
        from .cctbx_backend import registry

        return getattr(registry, name)
    if name == "GeometryRestraints":  # gemmi and SciPy, likewise
        from .geometry import GeometryRestraints

        return GeometryRestraints
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
