"""The targets of a refinement under their public name; they are written in :mod:`mmtbx_sfdiff.likelihood.targets`."""

from .likelihood.gain import intensity_likelihood
from .likelihood.targets import (
    intensity_least_squares,
    least_squares,
    maximum_likelihood,
    normalized_least_squares,
    r_factors,
)

__all__ = [
    "intensity_least_squares",
    "intensity_likelihood",
    "least_squares",
    "maximum_likelihood",
    "normalized_least_squares",
    "r_factors",
]
