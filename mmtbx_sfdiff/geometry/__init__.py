"""Restraints on a model's geometry and displacement parameters: gemmi's topology, evaluated in torch."""

from .displacements import DisplacementRestraints
from .hydrogens import parents_of_hydrogens
from .library import MonomerLibrary, find_library
from .restraints import GeometryRestraints

__all__ = [
    "DisplacementRestraints",
    "GeometryRestraints",
    "MonomerLibrary",
    "find_library",
    "parents_of_hydrogens",
]
