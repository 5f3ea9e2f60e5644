"""SFcalculator's interface over this engine: a program written against SFcalculator_torch 0.3.3 runs with the import changed.

    from mmtbx_sfdiff.interop.sfcalculator import SFcalculator, PDBParser

or, where the program cannot be edited, :func:`install` before it is imported.  Attributes have the names, types, shapes and
orders of that package (NumPy or tensors as there, float32, reflections in the order of the file); the numbers are this
package's: structure factors to a stated accuracy with the weights of special positions, the probe-shrink mask, mmtbx's
scales.  docs/sfcalculator.rst lists what differs and which is right.  Wrong labels and flags are errors here.

M. Li and D. R. Hekstra (2022), "Towards automated crystallographic structure refinement with a differentiable pipeline",
Machine Learning for Structural Biology workshop, NeurIPS.
"""

from __future__ import annotations

import sys
import types

from . import Fmodel, io, mask, symmetry, utils
from .Fmodel import SFcalculator
from .io import PDBParser

__all__ = ["PDBParser", "SFcalculator", "install"]

#: Version of the package whose interface this is.
__version__ = "0.3.3"


def install() -> types.ModuleType:
    """Put this interface under the name ``SFC_Torch``, for programs that cannot be edited; returns that module.

    To be called before the program imports ``SFC_Torch``; calling it again changes nothing.

    Raises
    ------
    RuntimeError
        When the package of that name has been imported already.

    Examples
    --------
    >>> from mmtbx_sfdiff.interop import sfcalculator
    >>> sfcalculator.install() is sfcalculator
    True
    >>> import SFC_Torch
    >>> SFC_Torch.SFcalculator is sfcalculator.SFcalculator
    True
    """
    this = sys.modules[__name__]
    present = sys.modules.get("SFC_Torch")
    if present is not None and present is not this:
        raise RuntimeError("SFC_Torch has been imported already: call install() before whatever imports it.")
    sys.modules["SFC_Torch"] = this
    for module in (Fmodel, io, mask, symmetry, utils):
        sys.modules["SFC_Torch." + module.__name__.rpartition(".")[2]] = module
    return this
