"""What masks are asked for beyond atoms and a grid: numbers that are checked where they are given, and ensembles."""

from __future__ import annotations

import dataclasses
import math

import torch

from .mask_atoms import LARGEST_LENGTH


def length(name: str, value: float | torch.Tensor) -> None:
    """Raise ValueError unless it is one length; the value of a tensor is looked at where it is used."""
    if isinstance(value, torch.Tensor):
        if value.ndim:
            raise ValueError(f"{name} must be one number, not a tensor of the shape {tuple(value.shape)}.")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be a real number, not {value.dtype}.")
        return
    if not 0 <= float(value) <= LARGEST_LENGTH:
        raise ValueError(
            f"{name} must be one number that is not negative and at most {LARGEST_LENGTH:g} Å, not {value!r}."
        )


def number(name: str, value: float) -> None:
    """Raise ValueError unless it is a number that is not negative."""
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be a number that is not negative, not {value!r}.")


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """Occupancies of conformers, (..., n_conformers): the last dimension of the models."""

    weights: torch.Tensor

    def of(self, batch: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Weights (n_ensembles, n_conformers) for models of this shape, and the shape of the ensembles.

        Raises
        ------
        ValueError
            No dimension of conformers, none of them, or not as many as there are weights.
        """
        shape = tuple(self.weights.shape)
        fits = len(shape) <= len(batch) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(batch)))
        if not batch or not shape or shape[-1] != batch[-1] or not fits:
            raise ValueError(
                f"ensemble must be the occupancies of the conformers, (..., n_conformers): it has the shape {shape}, the "
                f"atoms are models of the shape {batch}."
            )
        if not batch[-1]:
            raise ValueError("ensemble is of no conformers: there is no mask of nothing.")
        weights = self.weights.to(device).expand(batch).reshape(math.prod(batch[:-1]), batch[-1])
        return weights, batch[:-1]
