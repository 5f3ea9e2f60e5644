"""Invertible maps between features and a latent space where the prior is the standard normal distribution.

All have one interface: ``encode(x) -> z, log_det``, ``decode(z) -> x, log_det``, ``n_latent``; log_det is the
logarithm of the volume of the result for each volume of the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

_LOG_2PI = math.log(2 * math.pi)


class LinearFlow(nn.Module):
    """A normal distribution with full covariance: z = w^(-1/2) Vᵀ (x - mean) / s.

    s are the standard deviations of the features and V w Vᵀ is their correlation matrix, shrunk toward one
    without correlations: with fewer frames than features it would be singular otherwise. Cartesian features
    of the backbone keep theirs, which hold its bond lengths and angles together.

    Parameters
    ----------
    mean, deviation : torch.Tensor
        (n,).
    axes : torch.Tensor
        (n, n), orthogonal; the columns are the principal axes.
    variance : torch.Tensor
        (n,), positive: along the axes.

    Examples
    --------
    >>> flow = LinearFlow.from_samples(x, shrink=0.3, kinds=transform.kinds)
    >>> z, log_det = flow.encode(x)
    >>> again, back = flow.decode(z)
    >>> z.shape[1] == flow.n_latent, bool(torch.allclose(again, x)), bool(torch.allclose(log_det, -back))
    (True, True, True)
    >>> same = LinearFlow.from_state(flow.config(), flow.state_dict())
    >>> bool(torch.equal(same.encode(x)[0], z))
    True
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    axes: torch.Tensor
    variance: torch.Tensor

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor, axes: torch.Tensor, variance: torch.Tensor) -> None:
        super().__init__()
        if not (variance > 0).all() or not (deviation > 0).all():
            raise ValueError("variances must be positive.")
        for name, value in (("mean", mean), ("deviation", deviation), ("axes", axes), ("variance", variance)):
            self.register_buffer(name, value.detach().clone())

    @classmethod
    def from_samples(
        cls,
        x: torch.Tensor,
        shrink: float = 0.1,
        kinds: torch.Tensor | None = None,
        floor: float = 1e-4,
        ridge: float = 0.005,
        widen: float = 1.0,
        localise: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> LinearFlow:
        """The flow with the mean and covariance of samples.

        Parameters
        ----------
        x : torch.Tensor
            (n_samples, n), at least two.
        shrink : float
            0 to 1: how far correlations are moved to zero; 1 is a diagonal covariance.
        kinds : torch.Tensor, optional
            (n,), as :attr:`~mmtbx_sfdiff.latent.generator.transform.MixedTransform.kinds`: correlations between
            Cartesian features (kind 0) are not shrunk.
        floor : float
            Standard deviations are at least so large.
        ridge : float
            Independent error with this standard deviation, Å, that is added to each Cartesian feature.
        widen : float
            Factor on all standard deviations, for frames of a run too short to have seen the whole width.
        localise : callable, optional
            Takes the covariance of the Cartesian features and damps its correlations over long distances, as
            :meth:`~mmtbx_sfdiff.latent.generator.transform.MixedTransform.localise`; applied to the extent of `shrink`.
            Needs `kinds`.

        Returns
        -------
        LinearFlow

        Raises
        ------
        ValueError
            For shrink outside its range, too few samples or ones that are not finite.
        """
        if not 0 <= shrink <= 1:
            raise ValueError(f"shrink must be between 0 and 1, not {shrink}.")
        if x.ndim != 2 or len(x) < 2:
            raise ValueError("a covariance needs at least two samples.")
        if not torch.isfinite(x).all():
            raise ValueError("samples must be finite.")
        if shrink == 0 and len(x) <= x.shape[1]:
            raise ValueError(
                f"{len(x)} samples of {x.shape[1]} features have a singular covariance: shrink must be above 0."
            )
        data = x.detach().double()
        mean = data.mean(0)
        deviation = data.std(0).clamp(min=floor)
        scaled = (data - mean) / deviation
        correlation = scaled.T @ scaled / (len(data) - 1)
        shrunk = (1 - shrink) * correlation
        shrunk.diagonal().fill_(1)
        if kinds is not None:
            cartesian = torch.nonzero(kinds == 0)[:, 0].to(x.device)
            block = cartesian[:, None], cartesian
            units = deviation[cartesian][:, None] * deviation[cartesian]
            own = correlation[block]
            if localise is not None:  # a sum of positive matrices stays one
                own = (1 - shrink) * own + shrink * localise((own * units).to(x.dtype)).double() / units
            shrunk[block] = own + torch.diag((ridge / deviation[cartesian]).square())
        correlation = shrunk
        if not widen > 0:
            raise ValueError(f"widen must be positive, not {widen}.")
        variance, axes = torch.linalg.eigh(correlation)
        deviation = widen * deviation
        return cls(*(t.to(x.dtype) for t in (mean, deviation, axes.flip(1), variance.flip(0).clamp(min=1e-10))))

    @property
    def n_latent(self) -> int:
        """Number of latent variables."""
        return len(self.mean)

    def _log_scale(self) -> torch.Tensor:
        return torch.log(self.deviation).sum() + 0.5 * torch.log(self.variance).sum()

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (..., n) to latent vectors (..., n) and log_det (...)."""
        z = ((x - self.mean) / self.deviation) @ self.axes * self.variance.rsqrt()
        return z, -self._log_scale().expand(x.shape[:-1])

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent vectors (..., n) to features (..., n) and log_det (...)."""
        x = (z * self.variance.sqrt()) @ self.axes.T * self.deviation + self.mean
        return x, self._log_scale().expand(z.shape[:-1])

    def config(self) -> dict[str, Any]:
        """What :meth:`from_state` needs beside the tensors."""
        return {"flow": "linear", "n": self.n_latent}

    @classmethod
    def from_state(cls, config: dict[str, Any], state: dict[str, Any]) -> LinearFlow:
        """A flow from the tensors of its ``state_dict``."""
        return cls(*(state[name] for name in ("mean", "deviation", "axes", "variance")))


def normal_log_density(z: torch.Tensor) -> torch.Tensor:
    """Logarithm of the standard normal density: (..., n) -> (...)"""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * _LOG_2PI)


def calibrate(
    x: torch.Tensor,
    kinds: torch.Tensor | None = None,
    shrinks: Sequence[float] = (0.1, 0.3, 0.6),
    validation: float = 0.2,
    localise: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[float, float]:
    """How far correlations must be shrunk, and the distribution widened, for the end of a trajectory to be
    likely by its start.

    Parameters
    ----------
    x : torch.Tensor
        (n_samples, n), in the order of time.
    kinds : torch.Tensor, optional
        (n,), for :meth:`LinearFlow.from_samples`.
    shrinks : sequence of float
        To choose from.
    validation : float
        Fraction of the samples, the last ones, that is to be likely.
    localise : callable, optional
        For :meth:`LinearFlow.from_samples`.

    Returns
    -------
    shrink, widen : float
        For :meth:`LinearFlow.from_samples` of all samples.

    Examples
    --------
    >>> shrink, widen = calibrate(x, transform.kinds)
    >>> shrink in (0.1, 0.3, 0.6), widen >= 1
    (True, True)
    """
    n_last = max(1, round(len(x) * validation))
    first, last = x[: len(x) - n_last], x[len(x) - n_last :]
    best = None
    for shrink in shrinks:
        z, log_det = LinearFlow.from_samples(first, shrink, kinds, localise=localise).encode(last)
        widen = max(1.0, z.square().mean().sqrt().item())
        log_density = (normal_log_density(z / widen) + log_det).mean().item() - z.shape[-1] * math.log(widen)
        if best is None or log_density > best[0]:
            best = log_density, shrink, widen
    assert best is not None  # there are shrinks to choose from
    return best[1:]
