"""Refinement of sites and displacement parameters against the data."""

from .run import History, Settings, refine

__all__ = ["History", "Settings", "refine"]
