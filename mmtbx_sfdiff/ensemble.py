"""Structure factors of an ensemble: conformers in one crystal, each with its weight.

    F = sum_k w_k F_k,      F_mask = F of one mask of all ("combined"), or sum_k w_k F_mask,k ("per_conformer")

What the backward pass needs of a mask is computed again then, so that memory does not grow with the number of conformers.

Reference: Burnley et al. (2012), eLife 1, e00311 (ensembles and their solvent).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from .atoms import Atoms
from .bulk_solvent import solvent_structure_factors
from .kernels.checks import LIMITS
from .numerics.tensors import tensor_of
from .plans import Plan

SOLVENTS = ("combined", "per_conformer")
# As an occupancy's; numbers far beyond overflow in what is made of F.
_LARGEST = LIMITS["occupancies"][0]


def checked_weights(weights: torch.Tensor | Any, atoms: Atoms, solvent: str) -> torch.Tensor:
    """Weights (n_conformers,) in the atoms' dtype and on their device.

    Raises
    ------
    ValueError
        Not one weight, from 0 to 1e6, for each conformer, which are the last batch dimension of the atoms; a solvent
        that does not exist.
    """
    if solvent not in SOLVENTS:
        raise ValueError(f"solvent must be one of {', '.join(SOLVENTS)}, not {solvent!r}.")
    weights = tensor_of(weights)
    if weights.ndim != 1 or tuple(atoms.batch_shape[-1:]) != tuple(weights.shape):
        raise ValueError(
            f"ensemble must be one weight for each conformer, the last batch dimension of the atoms: it has the shape "
            f"{tuple(weights.shape)}, and the atoms are a batch of shape {tuple(atoms.batch_shape)}."
        )
    bad = (~((weights.detach() >= 0) & (weights.detach() <= _LARGEST))).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"The weight of conformer {int(bad[0])} is {float(weights[bad[0]].detach()):g}: it must be a number from 0 to "
            f"{_LARGEST:g}, and the weights of a crystal sum to about 1."
        )
    return weights.to(dtype=atoms.dtype, device=atoms.device)


def weighted_sum(f: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum_k w_k F_k, (..., n), of structure factors (..., n_conformers, n)."""
    return (weights.unsqueeze(-1) * f).sum(-2)


def ensemble_f_mask(
    atoms: Atoms,
    plan: Plan,
    weights: torch.Tensor,
    solvent: str,
    options: dict[str, Any],
) -> torch.Tensor:
    """F of the solvent of an ensemble, (..., n) complex.

    Parameters
    ----------
    atoms : Atoms
        Of batch shape (..., n_conformers).
    weights : torch.Tensor
        (n_conformers,)
    solvent : {"combined", "per_conformer"}
    options : dict
        Of :func:`~mmtbx_sfdiff.solvent_structure_factors`.
    """
    if solvent == "combined":
        # What this keeps, two numbers a point and conformer, is little beside what it would take to make it again.
        return solvent_structure_factors(atoms, plan, ensemble=weights, **options)
    one_by_one = [
        _recomputed(lambda one: solvent_structure_factors(one, plan, **options), _conformer(atoms, k))
        for k in range(len(weights))
    ]
    return weighted_sum(torch.stack(one_by_one, -2), weights)


def _recomputed(function: Callable[[Atoms], torch.Tensor], atoms: Atoms) -> torch.Tensor:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(atoms)
    result: torch.Tensor = checkpoint(function, atoms, use_reentrant=False, preserve_rng_state=False)
    return result


def _conformer(atoms: Atoms, k: int) -> Atoms:
    """Conformer k of each ensemble."""
    one: Atoms = atoms.model(*[slice(None)] * (len(atoms.batch_shape) - 1), k)
    return one
