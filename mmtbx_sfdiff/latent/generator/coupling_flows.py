"""Nonlinear flows on top of the linear one: affine couplings (RealNVP) and rational quadratic splines on
lines and circles.

Both begin as the identity on the latent variables of a :class:`~mmtbx_sfdiff.latent.generator.flows.LinearFlow`: what
training does is measured against that, and an untrained flow is not a bad one. RealNVP: Dinh et al. 2017;
circular splines: Rezende et al. 2020 through the library normflows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .flows import LinearFlow
from .requirements import require

_LOG_2PI = math.log(2 * math.pi)


class RealNVP(nn.Module):
    """Affine couplings: half of the latent variables shift and scale the other half, in turn.

    Parameters
    ----------
    base : LinearFlow
        Not trained.
    n_blocks : int
        Each changes every variable once.
    hidden : int
        Width of the two hidden layers of each network.
    bound : float
        Logarithms of scale factors are within plus and minus this.
    seed : int
        Of the first weights.

    Examples
    --------
    >>> flow = RealNVP(LinearFlow.from_samples(x, 0.3, transform.kinds), n_blocks=2, hidden=16)
    >>> z, _ = flow.encode(x)
    >>> bool(torch.allclose(flow.decode(z)[0], x)), z.shape[1] == flow.n_latent
    (True, True)
    >>> again = RealNVP.from_state(flow.config(), flow.state_dict())
    >>> bool(torch.equal(again.encode(x)[0], z))
    True
    """

    _even: torch.Tensor
    _odd: torch.Tensor

    def __init__(
        self, base: LinearFlow, n_blocks: int = 6, hidden: int = 192, bound: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        if n_blocks < 1 or hidden < 1 or bound <= 0:
            raise ValueError("n_blocks, hidden and bound must be positive.")
        self.base = base
        self.hidden, self.bound, self.n_blocks = hidden, bound, n_blocks
        even = torch.arange(base.n_latent) % 2 == 0
        self.register_buffer("_even", torch.nonzero(even)[:, 0], persistent=False)
        self.register_buffer("_odd", torch.nonzero(~even)[:, 0], persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = nn.ModuleList()
            for n in range(2 * n_blocks):
                inside, outside = (len(part) for part in self._halves(n))
                net = nn.Sequential(
                    nn.Linear(inside, hidden),
                    nn.SiLU(),
                    nn.Linear(hidden, hidden),
                    nn.SiLU(),
                    nn.Linear(hidden, 2 * outside),
                )
                last = net[-1]
                assert isinstance(last, nn.Linear)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
                self.networks.append(net)
        self.networks.to(base.mean)

    def _halves(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (self._even, self._odd) if n % 2 == 0 else (self._odd, self._even)

    @property
    def n_latent(self) -> int:
        """Number of latent variables."""
        return self.base.n_latent

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (..., n) to latent vectors (..., n) and log_det (...)."""
        z, log_det = self.base.encode(x)
        for n, net in enumerate(self.networks):
            given, changed = self._halves(n)
            log_scale, shift = self._scale_and_shift(net, z[..., given])
            z = z.index_copy(-1, changed, z[..., changed] * torch.exp(log_scale) + shift)
            log_det = log_det + log_scale.sum(-1)
        return z, log_det

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent vectors (..., n) to features (..., n) and log_det (...)."""
        log_det = z.new_zeros(z.shape[:-1])
        for n, net in reversed(list(enumerate(self.networks))):
            given, changed = self._halves(n)
            log_scale, shift = self._scale_and_shift(net, z[..., given])
            z = z.index_copy(-1, changed, (z[..., changed] - shift) * torch.exp(-log_scale))
            log_det = log_det - log_scale.sum(-1)
        x, log_det_base = self.base.decode(z)
        return x, log_det + log_det_base

    def _scale_and_shift(self, net: nn.Module, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw, shift = net(given).chunk(2, -1)
        return self.bound * torch.tanh(raw / self.bound), shift

    def config(self) -> dict[str, Any]:
        """What :meth:`from_state` needs beside the tensors."""
        return {
            "flow": "realnvp",
            "n_blocks": self.n_blocks,
            "hidden": self.hidden,
            "bound": self.bound,
            "base": self.base.config(),
        }

    @classmethod
    def from_state(cls, config: dict[str, Any], state: dict[str, Any]) -> RealNVP:
        """A flow from the tensors of its ``state_dict``."""
        made = cls(_base(config, state), config["n_blocks"], config["hidden"], config["bound"])
        made.load_state_dict(state)
        return made


class SplineFlow(nn.Module):
    """Rational quadratic splines; torsions that go round are circles, all other features enter through a
    linear flow.

    On a circle the base density is uniform; its angle becomes a normal latent variable by the normal
    distribution function, so that the prior is the standard normal for every flow alike.

    Parameters
    ----------
    base : LinearFlow
        Of the features that are not circular, not trained.
    circular : torch.Tensor
        Indices of the features that are circles from -π to π, long.
    n_layers, n_blocks, hidden, n_bins : int
        Coupling layers; residual blocks and width of their networks; bins of a spline.
    tail : float
        Splines act on linear latent variables between plus and minus this.
    seed : int
        Of the first weights.

    Examples
    --------
    >>> flow = SplineFlow.from_samples(x, transform.kinds, 0.3, n_layers=2, hidden=16)
    >>> z, _ = flow.encode(x)
    >>> bool(torch.allclose(flow.decode(z)[0], x, atol=1e-5)), z.shape[1] == flow.n_latent
    (True, True)
    >>> again = SplineFlow.from_state(flow.config(), flow.state_dict())
    >>> bool(torch.allclose(again.encode(x)[0], z))
    True
    """

    circular: torch.Tensor
    _linear: torch.Tensor

    def __init__(
        self,
        base: LinearFlow,
        circular: torch.Tensor,
        n_layers: int = 4,
        n_blocks: int = 1,
        hidden: int = 128,
        n_bins: int = 8,
        tail: float = 5.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        normflows = require("normflows")
        circular = torch.as_tensor(circular, dtype=torch.long)
        n_linear, n = base.n_latent, base.n_latent + len(circular)
        if len(circular) and (circular.min() < 0 or circular.max() >= n or len(circular.unique()) != len(circular)):
            raise ValueError("circular must name features, each once.")
        self.base = base
        self.settings = {"n_layers": n_layers, "n_blocks": n_blocks, "hidden": hidden, "n_bins": n_bins, "tail": tail}
        rest = torch.ones(n, dtype=torch.bool)
        rest[circular] = False
        self.register_buffer("circular", circular)
        self.register_buffer("_linear", torch.nonzero(rest)[:, 0], persistent=False)
        tails = torch.full((n,), float(tail))
        tails[n_linear:] = math.pi
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(
                [
                    normflows.flows.CircularCoupledRationalQuadraticSpline(
                        n,
                        n_blocks,
                        hidden,
                        list(range(n_linear, n)),
                        num_bins=n_bins,
                        tail_bound=tails,
                        reverse_mask=bool(layer % 2),
                    )
                    for layer in range(n_layers)
                ]
            )
        self.layers.to(base.mean)

    @classmethod
    def from_samples(
        cls, x: torch.Tensor, kinds: torch.Tensor, shrink: float = 0.1, spread: float = 0.8, **settings: Any
    ) -> SplineFlow:
        """The flow with a linear base of samples, circles where torsions go round.

        Parameters
        ----------
        x : torch.Tensor
            (n_samples, n).
        kinds : torch.Tensor
            (n,), as :attr:`~mmtbx_sfdiff.latent.generator.transform.MixedTransform.kinds`.
        shrink : float
        spread : float
            A torsion is a circle when the mean of its samples on the unit circle is nearer to the centre than
            this.
        **settings
            Of :class:`SplineFlow`.
        """
        resultant = torch.stack([torch.cos(x).mean(0), torch.sin(x).mean(0)]).norm(dim=0)
        round_ = (kinds == 3) & (resultant < spread)
        return cls(
            LinearFlow.from_samples(x[:, ~round_], shrink, kinds[~round_]), torch.nonzero(round_)[:, 0], **settings
        )

    @property
    def n_latent(self) -> int:
        """Number of latent variables."""
        return self.base.n_latent + len(self.circular)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (..., n) to latent vectors (..., n) and log_det (...)."""
        linear, log_det = self.base.encode(x[..., self._linear])
        angles = x[..., self.circular]
        z = torch.cat([linear, angles - 2 * math.pi * torch.round(angles / (2 * math.pi))], -1)
        flat = z.reshape(-1, self.n_latent)
        total = flat.new_zeros(len(flat))
        for layer in self.layers:
            flat, change = layer.inverse(flat)  # type: ignore[operator]  # of normflows
            total = total + change
        z = flat.reshape(z.shape)
        inside = (z[..., self.base.n_latent :] / math.pi).clamp(-1 + 1e-6, 1 - 1e-6)
        normal = math.sqrt(2) * torch.erfinv(inside)
        log_det = log_det + total.reshape(log_det.shape) + (0.5 * normal.square() - 0.5 * _LOG_2PI).sum(-1)
        return torch.cat([z[..., : self.base.n_latent], normal], -1), log_det

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent vectors (..., n) to features (..., n) and log_det (...)."""
        normal = z[..., self.base.n_latent :]
        log_det = (0.5 * _LOG_2PI - 0.5 * normal.square()).sum(-1)
        inside = torch.cat([z[..., : self.base.n_latent], math.pi * torch.erf(normal / math.sqrt(2))], -1)
        flat = inside.reshape(-1, self.n_latent)
        total = flat.new_zeros(len(flat))
        for layer in reversed(self.layers):
            flat, change = layer.forward(flat)
            total = total + change
        flat = flat.reshape(z.shape)
        linear, log_det_base = self.base.decode(flat[..., : self.base.n_latent])
        x = torch.zeros_like(z).index_copy(-1, self._linear, linear)
        x = x.index_copy(-1, self.circular, flat[..., self.base.n_latent :])
        return x, log_det + total.reshape(log_det.shape) + log_det_base

    def config(self) -> dict[str, Any]:
        """What :meth:`from_state` needs beside the tensors."""
        return dict(self.settings, flow="spline", base=self.base.config())

    @classmethod
    def from_state(cls, config: dict[str, Any], state: dict[str, Any]) -> SplineFlow:
        """A flow from the tensors of its ``state_dict``."""
        settings = {name: value for name, value in config.items() if name not in ("flow", "base")}
        made = cls(_base(config, state), state["circular"], **settings)
        made.load_state_dict(state)
        return made


def _base(config: dict[str, Any], state: dict[str, Any]) -> LinearFlow:
    return LinearFlow.from_state(
        config["base"], {name[len("base.") :]: value for name, value in state.items() if name.startswith("base.")}
    )
