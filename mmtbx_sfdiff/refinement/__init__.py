"""Refinement of sites and displacement parameters against the data."""

from .run import refine
from .settings import History, Settings

__all__ = ["History", "Settings", "refine"]
