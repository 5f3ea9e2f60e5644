"""Putting a model on the scale of the data: bulk solvent, overall scales, outliers."""

from .all_scales import Scales, update_all_scales
from .refit import refit

__all__ = ["Scales", "refit", "update_all_scales"]
