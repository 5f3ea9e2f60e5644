"""Putting a model on the scale of the data: bulk solvent, overall scales, outliers."""
from .all_scales import Scales, update_all_scales

__all__ = ["Scales", "update_all_scales"]
