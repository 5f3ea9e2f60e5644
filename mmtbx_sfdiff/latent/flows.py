"""Invertible maps between features and a latent space where the prior is the standard normal distribution.

All have one interface: ``encode(x) -> z, log_det``, ``decode(z) -> x, log_det``, ``n_latent``; log_det is the logarithm of the
volume of the result for each volume of the argument.
"""

import math

import torch
from torch import nn

_LOG_2PI = math.log(2 * math.pi)


class LinearFlow(nn.Module):
    """A normal distribution with full covariance: z = w^(-1/2) Vᵀ (x - mean) / s.

    s are the standard deviations of the features and V w Vᵀ is their correlation matrix, shrunk toward the unit matrix:
    with fewer frames than features it would be singular otherwise.

    Parameters
    ----------
    mean, deviation : torch.Tensor
        (n,).
    axes : torch.Tensor
        (n, n), orthogonal; the columns are the principal axes.
    variance : torch.Tensor
        (n,), positive: along the axes.
    """

    def __init__(self, mean, deviation, axes, variance):
        super().__init__()
        if not (variance > 0).all() or not (deviation > 0).all():
            raise ValueError("variances must be positive.")
        for name, value in (("mean", mean), ("deviation", deviation), ("axes", axes), ("variance", variance)):
            self.register_buffer(name, value.detach().clone())

    @classmethod
    def from_samples(cls, x, shrink=0.1, floor=1e-4):
        """The flow with the mean and covariance of samples.

        Parameters
        ----------
        x : torch.Tensor
            (n_samples, n), at least two.
        shrink : float
            0 to 1: how far correlations are moved to zero; 1 is a diagonal covariance.
        floor : float
            Standard deviations are at least so large.

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
            raise ValueError(f"{len(x)} samples of {x.shape[1]} features have a singular covariance: shrink must be "
                             "above 0.")
        data = x.detach().double()
        mean = data.mean(0)
        deviation = data.std(0).clamp(min=floor)
        scaled = (data - mean) / deviation
        correlation = (1 - shrink) * (scaled.T @ scaled) / (len(data) - 1)
        correlation.diagonal().add_(1 - correlation.diagonal())
        variance, axes = torch.linalg.eigh(correlation)
        return cls(*(t.to(x.dtype) for t in (mean, deviation, axes.flip(1), variance.flip(0).clamp(min=1e-10))))

    @property
    def n_latent(self):
        """Number of latent variables."""
        return len(self.mean)

    def _log_scale(self):
        return torch.log(self.deviation).sum() + 0.5 * torch.log(self.variance).sum()

    def encode(self, x):
        """Features (..., n) to latent vectors (..., n) and log_det (...)."""
        z = ((x - self.mean) / self.deviation) @ self.axes * self.variance.rsqrt()
        return z, -self._log_scale().expand(x.shape[:-1])

    def decode(self, z):
        """Latent vectors (..., n) to features (..., n) and log_det (...)."""
        x = (z * self.variance.sqrt()) @ self.axes.T * self.deviation + self.mean
        return x, self._log_scale().expand(z.shape[:-1])

    def config(self):
        """What :func:`flow_from_state` needs beside the tensors."""
        return {"flow": "linear", "n": self.n_latent}

    @classmethod
    def from_state(cls, config, state):
        """A flow from the tensors of its ``state_dict``."""
        return cls(*(state[name] for name in ("mean", "deviation", "axes", "variance")))


FLOWS = {"linear": LinearFlow}


def flow_from_state(config, state):
    """A flow from its description and tensors.

    Parameters
    ----------
    config : dict
        What the flow's ``config()`` returned.
    state : dict
        Its ``state_dict()``.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        For a kind that is not known.
    """
    if config.get("flow") not in FLOWS:
        raise ValueError(f"there is no flow {config.get('flow')!r}, but {', '.join(FLOWS)}.")
    return FLOWS[config["flow"]].from_state(config, state)


def normal_log_density(z):
    """Logarithm of the standard normal density: (..., n) -> (...)"""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * _LOG_2PI)
