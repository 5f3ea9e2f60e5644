"""Scales that are given, not determined: equation 2 with numbers of the user's choice.

    F_model = scale exp(-h A^-1 B_cart A^-T h^T / 4) [F_calc + k_sol exp(-B_sol s^2/4) F_mask]

with A the orthogonalization matrix.

Reference: ``mmtbx.programs.fmodel``, whose parameters have the same names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..crystal import Crystal
from ..numerics.symmetric import FULL, PACKED

_TOLERANCE = 1e-4


def given_scales(
    crystal: Crystal,
    miller_indices: torch.Tensor,
    scale: float = 1.0,
    k_sol: float = 0.0,
    b_sol: float = 0.0,
    b_cart: Sequence[float] = (0.0,) * 6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of equation 2.

    Parameters
    ----------
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) int64.
    scale : float
    k_sol : float
        e/Å^3.
    b_sol : float
        Å^2.
    b_cart : sequence of float
        Six elements 11, 22, 33, 12, 13, 23 of a tensor in Å^2.

    Returns
    -------
    k_total, k_mask : torch.Tensor
        (n,) float64.

    Raises
    ------
    ValueError
        A tensor that does not have the symmetry of the crystal.
    """
    d_star_sq = crystal.d_star_sq(miller_indices)
    b_star = _b_star(crystal, b_cart)
    h = miller_indices.to(torch.float64)
    quadratic = torch.einsum("ni,ij,nj->n", h, b_star, h)
    return scale * (-quadratic / 4).exp(), k_sol * (-b_sol * d_star_sq / 4).exp()


def _b_star(crystal: Crystal, b_cart: Sequence[float]) -> torch.Tensor:
    """(3, 3) of the quadratic form in the indices."""
    b = torch.tensor([float(b_cart[i]) for i in FULL], dtype=torch.float64, device="cpu").reshape(3, 3)
    b = b.to(crystal.fractionalization.device)
    inverse = crystal.fractionalization
    b_star = inverse @ b @ inverse.T
    # Equivalent reflections h R must have the same factor: R B* R^T averaged over the operators is B* itself.
    rotations = crystal.rotations.to(torch.float64)
    mean = torch.einsum("gij,jk,glk->il", rotations, b_star, rotations) / len(rotations)
    matrix = crystal.orthogonalization
    allowed = matrix @ mean @ matrix.T
    if bool((allowed - b).abs().max() > _TOLERANCE * max(1.0, float(b.abs().max()))):
        nearest = " ".join(f"{float(allowed.reshape(-1)[i]):.4g}" for i in PACKED)
        raise ValueError(
            f"b_cart={' '.join(f'{float(x):g}' for x in b_cart)} does not have the symmetry of "
            f"{crystal.space_group_symbol}: the nearest tensor that has is {nearest}."
        )
    return b_star
