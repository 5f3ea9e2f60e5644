"""Targets, alpha and beta, sigma-A, normalized structure factors, and the Bessel functions in them."""

from .gain import alpha_beta_of_sigma_a, intensity_likelihood, llg, sigma_a
from .intensities import Intensities
from .wilson import EValues, e_values

__all__ = [
    "EValues",
    "Intensities",
    "alpha_beta_of_sigma_a",
    "e_values",
    "intensity_likelihood",
    "llg",
    "sigma_a",
]
