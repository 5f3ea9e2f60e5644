"""Electron density: of a model, from structure factors, against maps; map coefficients and map files."""

from .coefficients import anomalous_difference_coefficients, map_coefficients
from .files import map_coefficient_bytes, read_map, read_map_coefficients, write_map, write_map_coefficients
from .fourier import fourier_map, fourier_transform
from .interpolation import map_values
from .model_density import density
from .targets import map_correlation, map_least_squares, residue_correlation

__all__ = [
    "anomalous_difference_coefficients",
    "density",
    "fourier_map",
    "fourier_transform",
    "map_coefficient_bytes",
    "map_coefficients",
    "map_correlation",
    "map_least_squares",
    "map_values",
    "read_map",
    "read_map_coefficients",
    "residue_correlation",
    "write_map",
    "write_map_coefficients",
]
