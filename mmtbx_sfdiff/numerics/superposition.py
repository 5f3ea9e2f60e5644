"""The rigid-body movement that brings sites closest to others (Kabsch 1976, Acta Cryst. A32, 922)."""

from __future__ import annotations

import torch


def best_rotation(mobile: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotation and centers under which ``(mobile - center) @ rotation.mT + new_center`` is closest to a target.

    Parameters
    ----------
    mobile : torch.Tensor
        (..., n, 3) Å, n at least 3.
    target : torch.Tensor
        (n, 3) Å, or (..., n, 3).

    Returns
    -------
    rotation : torch.Tensor
        (..., 3, 3) float64, proper; none of the results has a gradient.
    center, new_center : torch.Tensor
        (..., 3) float64, Å.

    Raises
    ------
    ValueError
        Fewer than three sites, or sets of different size.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    >>> turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    >>> rotation, center, new_center = best_rotation(x, x @ turn.T + 5)
    >>> torch.allclose(rotation, turn.double())
    True
    """
    if mobile.shape[-2:] != target.shape[-2:] or mobile.shape[-1] != 3 or mobile.shape[-2] < 3:
        raise ValueError(
            f"Superposition needs two sets of the same three or more sites, not {tuple(mobile.shape)} "
            f"and {tuple(target.shape)}."
        )
    mobile, target = mobile.detach().to(torch.float64), target.detach().to(torch.float64)
    center, new_center = mobile.mean(-2), target.mean(-2)
    u, _, vh = torch.linalg.svd((mobile - center[..., None, :]).mT @ (target - new_center[..., None, :]))
    sign = torch.ones_like(center)
    sign[..., 2] = torch.det(u @ vh).sign()
    return ((u * sign[..., None, :]) @ vh).mT, center, new_center


def superposed(mobile: torch.Tensor, target: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Sites moved rigidly onto a target, fitted on some rows (default: all); (..., n, 3) Å, in the dtype given.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    >>> torch.allclose(superposed(x + 5, x), x, atol=1e-6)
    True
    """
    every = slice(None) if rows is None else rows
    rotation, center, new_center = best_rotation(mobile[..., every, :], target[..., every, :])
    moved = (mobile.to(torch.float64) - center[..., None, :]) @ rotation.mT + new_center[..., None, :]
    return moved.to(mobile.dtype)


def followed_rotation(mobile: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`best_rotation`, differentiable once in the mobile sites.

    With Q the rotation, H = sum (x - c) (y - d)^T and S = Q H, which is symmetric where Q is best, a change dH turns Q by the
    vector w of (tr S - S) w = -vee(A - A^T), A = Q dH. (Where S has two eigenvalues of sum 0 the best rotation is not defined, nor is
    its derivative.)

    Examples
    --------
    >>> x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]], dtype=torch.float64, requires_grad=True)
    >>> rotation, center, new_center = followed_rotation(x, torch.tensor([[0.0, 1, 0], [0, 0, 0], [2, 1, 0]]))
    >>> rotation.requires_grad, bool(center.requires_grad)
    (True, True)
    """
    rotation, _, new_center = best_rotation(mobile, target)
    center = mobile.to(torch.float64).mean(-2)
    away = target.detach().to(torch.float64) - new_center[..., None, :]
    # x_i y_i^T turned: sum over atoms of (Q x) y^T.
    turned = rotation @ ((mobile.to(torch.float64) - center[..., None, :]).mT @ away)
    symmetric = turned.detach()
    symmetric = 0.5 * (symmetric + symmetric.mT)
    identity = torch.eye(3, dtype=torch.float64, device=mobile.device)
    trace = symmetric.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    skew = turned - turned.mT
    skew = skew - skew.detach()  # zero, with the derivative
    vee = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)
    turn = -torch.linalg.solve(trace * identity - symmetric, vee)
    x, y, z = turn.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*turn.shape[:-1], 3, 3)
    return (identity + cross) @ rotation, center, new_center
