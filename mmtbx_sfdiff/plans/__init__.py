"""What follows from a crystal and its Miller indices, or a grid: made once, passed on."""

from .crystal_plan import Plan, plan, plan_of

__all__ = ["Plan", "plan", "plan_of"]
