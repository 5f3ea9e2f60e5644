"""Displacement tensors: packed and full, Cartesian and fractional; gradients flow.

A symmetric tensor is packed as 11, 22, 33, 12, 13, 23.  ``u_cart = A u_star A^T`` with the orthogonalization matrix A.

Reference: ``cctbx.adptbx``.
"""

from __future__ import annotations

import torch

from .crystal import Crystal
from .numerics import symmetric


def full(tensors: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) of packed (..., 6)."""
    square: torch.Tensor = symmetric.full(tensors)
    return square


def packed(tensors: torch.Tensor) -> torch.Tensor:
    """(..., 6) of symmetric (..., 3, 3); what is packed already is left as it is."""
    if tensors.shape[-1] == 6:
        return tensors
    six: torch.Tensor = symmetric.packed(tensors)
    return six


def u_cart_as_u_star(u_cart: torch.Tensor, crystal: Crystal) -> torch.Tensor:
    """Fractional U* (..., 6) of Cartesian U (..., 6), Å^2.

    Examples
    --------
    >>> import torch, mmtbx_sfdiff as sfdiff
    >>> from mmtbx_sfdiff.displacements import u_cart_as_u_star
    >>> crystal = sfdiff.Crystal((10, 20, 40, 90, 90, 90), "P 1")
    >>> u_cart_as_u_star(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]).double(), crystal)[:3].tolist()
    [0.010000000000000002, 0.0025000000000000005, 0.0006250000000000001]
    """
    return _transformed(crystal.fractionalization, u_cart)


def u_star_as_u_cart(u_star: torch.Tensor, crystal: Crystal) -> torch.Tensor:
    """Cartesian U (..., 6), Å^2, of fractional U* (..., 6)."""
    return _transformed(crystal.orthogonalization, u_star)


def _transformed(matrix: torch.Tensor, tensors: torch.Tensor) -> torch.Tensor:
    matrix = matrix.to(tensors)
    return packed(matrix @ full(tensors) @ matrix.T)
