"""One mask of an ensemble of conformers, weighted by their occupancies.

At a point x let conformer k, of occupancy w_k, have the mask m_k(x), and so the share 1 - m_k(x) of protein.  For every
threshold tau the conformers whose share exceeds it have the occupancy

    O_tau(x) = sum over k with 1 - m_k(x) > tau of w_k

and where that is at least ``full_occupancy`` they count in full, like an atom of that occupancy; below, as S(O / full):

    mask(x) = 1 - integral over tau from 0 to 1 of C(O_tau(x)) dtau,     C(o) = S(o / full_occupancy)

With the conformers in order of their share of protein, the largest first, the integral is a sum (a Choquet integral),
mask(x) = sum_k c_k m_k(x) + 1 - C(sum of all w), c_k = C(w_1 + ... + w_k) - C(w_1 + ... + w_{k-1}).  So

* the solvent keeps clear of what a tenth of the ensemble (the default) covers, however many conformers that tenth is made of;
* any number of identical conformers has the mask of one of them, and to split a conformer in two changes nothing;
* ``full_occupancy=0`` keeps clear of every conformer of positive occupancy: the smallest m_k(x);
* a conformer whose occupancy falls to zero leaves the mask smoothly.

Conformers that are equal at a point share c of all of them by their occupancies, in value and gradient.  The average of the
masks, C(o) = o, has the structure factors sum_k w_k F_k: take those where the mask of each conformer is wanted.
"""

from __future__ import annotations

from typing import Any

import torch

from ..kernels import opaque
from .operations import DifferentiableOnce, LastDerivative, operation
from .transform import side_by_side

# Bytes of working storage of a portion of points.
_PORTION = 2**22


def combined(masks: torch.Tensor, weights: torch.Tensor, full_occupancy: float) -> torch.Tensor:
    """The mask of each ensemble.

    Parameters
    ----------
    masks : torch.Tensor
        (n_ensembles, n_conformers, n_points), 0 to 1.
    weights : torch.Tensor
        (n_ensembles, n_conformers) occupancies of the conformers.
    full_occupancy : float

    Returns
    -------
    torch.Tensor
        (n_ensembles, n_points).
    """
    return apply_combined(masks, weights, full_occupancy)


def check_weights(weights: torch.Tensor) -> None:
    """Raise ValueError unless occupancies are finite and not negative, and not all zero."""
    wrong = ~((weights >= 0) & (weights <= 1e6))
    if bool(wrong.any()):
        ensemble, conformer = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"The occupancy of conformer {conformer} is {float(weights[ensemble, conformer]):g}: "
            "it must be finite and not negative."
        )


def _covered(occupancy: torch.Tensor, full: float) -> tuple[torch.Tensor, torch.Tensor]:
    """C and its derivative."""
    if full <= 0:
        return (occupancy > 0).to(occupancy.dtype), torch.zeros_like(occupancy)
    t = (occupancy / full).clamp(0, 1)
    return t * t * (3 - 2 * t), 6 * t * (1 - t) / full


def _value(masks: torch.Tensor, weights: torch.Tensor, full: float) -> torch.Tensor:
    """The combined mask (n,) of masks (n_conformers, n)."""
    ordered, order = masks.to(torch.float64).sort(0)
    covered = _covered(weights[order].cumsum(0), full)[0]
    share = covered.diff(dim=0, prepend=torch.zeros_like(covered[:1]))
    return (share * ordered).sum(0) + 1 - covered[-1]


def _gradients(
    gradient: torch.Tensor, masks: torch.Tensor, weights: torch.Tensor, full: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by masks (n_conformers, n) and weights (n_conformers,)."""
    ordered, order = masks.to(torch.float64).sort(0)
    w = weights[order]
    total = w.cumsum(0)
    covered, slope = _covered(total, full)
    steps = ordered.diff(dim=0, append=torch.ones_like(ordered[:1]))
    by_weight = -(slope * steps).flip(0).cumsum(0).flip(0) * gradient
    # The first and the last conformer of those that are equal.
    number = torch.arange(len(ordered), device=masks.device)[:, None]
    equal = steps[:-1] == 0
    first = number.expand(ordered.shape).clone()
    first[1:] = torch.where(equal, 0, first[1:])
    first = first.cummax(0).values
    last = number.expand(ordered.shape).clone()
    last[:-1] = torch.where(equal, len(ordered), last[:-1])
    last = last.flip(0).cummin(0).values.flip(0)
    before = total.gather(0, first) - w.gather(0, first)
    together = (total.gather(0, last) - before).clamp(min=1e-300)
    share = w / together * (covered.gather(0, last) - _covered(before.clamp(min=0), full)[0])
    by_mask = torch.empty_like(share).scatter_(0, order, share * gradient)
    sums = torch.zeros_like(weights).index_add_(0, order.reshape(-1), by_weight.reshape(-1))
    return by_mask, sums


def _portion(masks: torch.Tensor) -> int:
    return max(1, _PORTION // (8 * max(1, masks.shape[1])))


@operation("combined_mask", fake=lambda masks, weights, full: masks.new_empty((masks.shape[0], masks.shape[2])))
def combined_mask(masks: torch.Tensor, weights: torch.Tensor, full: float) -> torch.Tensor:
    """See :func:`combined`."""
    check_weights(weights)
    out = masks.new_empty((masks.shape[0], masks.shape[2]))
    occupancies, size = weights.to(torch.float64), _portion(masks)
    for i, (values, w) in enumerate(zip(masks, occupancies)):

        def part(first: int, after: int, i: int = i, values: torch.Tensor = values, w: torch.Tensor = w) -> None:
            for start in range(first, after, size):
                some = slice(start, min(start + size, after))
                out[i, some] = _value(values[:, some], w, full)

        side_by_side(masks.device, out.shape[1], part)
    return out


@operation(
    "combined_mask_gradient",
    fake=lambda gradient, masks, weights, full: (
        masks.new_empty(masks.shape),
        weights.new_empty(weights.shape),
    ),
)
def combined_mask_gradient(
    gradient: torch.Tensor, masks: torch.Tensor, weights: torch.Tensor, full: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by masks and weights."""
    by_masks, by_weights = masks.new_empty(masks.shape), weights.new_empty(weights.shape)
    occupancies, size = weights.to(torch.float64), _portion(masks)
    for i, (values, w) in enumerate(zip(masks, occupancies)):
        sums = []

        def part(first: int, after: int, i: int = i, values: torch.Tensor = values, w: torch.Tensor = w) -> None:
            for start in range(first, after, size):
                some = slice(start, min(start + size, after))
                by_masks[i][:, some], by_weight = _gradients(gradient[i, some], values[:, some], w, full)
                sums.append((start, by_weight))

        side_by_side(masks.device, masks.shape[2], part)
        # In one order, so that the sum is the same each time.
        by_weights[i] = sum((s for _, s in sorted(sums, key=lambda pair: pair[0])), torch.zeros_like(w))
    return by_masks, by_weights


class Combined(DifferentiableOnce):
    """masks, weights, full_occupancy -> the mask of each ensemble."""

    @staticmethod
    def forward(masks: torch.Tensor, weights: torch.Tensor, full: float) -> torch.Tensor:
        return combined_mask(masks, weights, full)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.full = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return *apply_combined_gradient(gradient, *ctx.saved_tensors, ctx.full), None


class CombinedGradient(LastDerivative):
    """The gradient of :class:`Combined`."""

    @staticmethod
    def forward(
        gradient: torch.Tensor, masks: torch.Tensor, weights: torch.Tensor, full: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return combined_mask_gradient(gradient, masks, weights, full)


apply_combined = opaque.caller(Combined)
apply_combined_gradient = opaque.caller(CombinedGradient)
