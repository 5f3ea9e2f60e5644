"""The stages of a latent refinement in a working folder: preparation, dynamics, training, refinement, report.

Each takes a :class:`.context.Context` and returns its record; one that is finished is not repeated, one that was interrupted goes on.
"""

from .context import Context
from .refining import refine
from .reporting import report
from .sampling import md, prep, train

__all__ = ["Context", "md", "prep", "refine", "report", "train"]
