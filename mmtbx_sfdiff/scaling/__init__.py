"""Putting a model on the scale of the data: bulk solvent, overall scales, outliers."""

from .all_scales import update_all_scales
from .refit import refit
from .scales import Scales

__all__ = ["Scales", "refit", "update_all_scales"]
