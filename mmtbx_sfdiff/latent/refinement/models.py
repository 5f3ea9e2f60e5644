"""What is refined: a latent vector with a placement, or sites themselves; each with B factors and a prior.

Both give sites and B factors of the atoms that the data see, and -ln of their prior, which is added to the
objective:

    latent     |z|^2 / 2                          z -> sites by a generator, then one rigid-body movement for each chain
    Cartesian  w U(sites) / kT, or nothing        U: a force field's energy, kJ/mol
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from ...refinement.minimize import Evaluation, minimize
from ..generator.units import KT_300
from .placement import Placement


@dataclasses.dataclass(frozen=True)
class State:
    """A model at one step.

    Attributes
    ----------
    sites_cart : torch.Tensor
        (n, 3) Å, of the atoms that the data see.
    b : torch.Tensor
        (n,) Å².
    penalty : torch.Tensor
        Scalar, nats.
    all_sites_cart : torch.Tensor
        (n_ff, 3) Å, with the force field's hydrogens, in the crystal.
    """

    sites_cart: torch.Tensor
    b: torch.Tensor
    penalty: torch.Tensor
    all_sites_cart: torch.Tensor


class LatentModel(torch.nn.Module):
    """Latent vector, placement, B factors.

    Parameters
    ----------
    generator : object
        With ``n_latent``, ``encode(sites_cart) -> (z, log_det)`` and ``decode(z) -> (sites_cart, log_det)``;
        sites (n_ff, 3) Å.
    z : torch.Tensor
        (n_latent,) where it begins.
    rows : torch.Tensor
        (n,) int64, rows of the generator's sites that the data see.
    b_model : torch.nn.Module
        From :mod:`.b_factors`.
    chain_index : torch.Tensor
        (n_ff,) int64.
    target : torch.Tensor
        (n_ff, 3) Å, the placed model on which the decoded sites are superposed first.
    prior_weight : float
    stride : float
        How much faster than other variables z goes: with a prior that is wider by a factor, so much.
    """

    rows: torch.Tensor

    def __init__(
        self,
        generator: Any,
        z: torch.Tensor,
        rows: torch.Tensor,
        b_model: Any,
        chain_index: torch.Tensor,
        target: torch.Tensor,
        prior_weight: float = 1.0,
        stride: float = 1.0,
    ) -> None:
        super().__init__()
        self._generator = [generator]  # in a list: its parameters are not refined
        self.z = torch.nn.Parameter(z.detach().clone())
        self.register_buffer("rows", rows)
        self.b_model = b_model
        self.prior_weight, self.stride = prior_weight, stride
        with torch.no_grad():
            sites = self.decoded()
        self.placement = Placement(chain_index).superpose(sites, target.to(sites))

    @property
    def generator(self) -> Any:
        return self._generator[0]

    def decoded(self) -> torch.Tensor:
        """(n_ff, 3) Å in the generator's frame."""
        sites: torch.Tensor = self.generator.decode(self.z[None])[0]
        return sites[0]

    def forward(self) -> State:
        placed = self.placement(self.decoded())
        penalty = 0.5 * self.prior_weight * self.z.square().sum() + self.b_model.penalty()
        return State(placed[self.rows], self.b_model(), penalty, placed)

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """For an optimiser; ``rate`` is that of z, in standard deviations a step."""
        return [
            {"params": [self.z], "lr": rate * self.stride, "kind": "internal"},
            {"params": [self.placement.rotations], "lr": rate / 50, "kind": "placement"},
            {"params": [self.placement.shifts], "lr": rate / 5, "kind": "placement"},
            {"params": list(self.b_model.parameters()), "lr": rate / 2, "kind": "b"},
        ]

    def facts(self) -> dict[str, Any]:
        """What is worth knowing of the present model."""
        return {"z_norm": float(self.z.detach().norm()) / math.sqrt(self.z.numel())}


class CartesianModel(torch.nn.Module):
    """Sites, B factors; the force field's energy as prior, if there is one.

    Parameters
    ----------
    sites_cart : torch.Tensor
        (n_ff, 3) Å in the crystal.
    rows, b_model
        See :class:`LatentModel`.
    energy : callable, optional
        sites (n_ff, 3) Å -> kJ/mol, differentiable.
    weight : float
        Of U / kT.
    k_t : float
        kJ/mol.
    """

    rows: torch.Tensor

    def __init__(
        self,
        sites_cart: torch.Tensor,
        rows: torch.Tensor,
        b_model: Any,
        energy: Any = None,
        weight: float = 1.0,
        k_t: float = KT_300,
    ) -> None:
        super().__init__()
        self.sites = torch.nn.Parameter(sites_cart.detach().to(torch.float64).clone())
        self.register_buffer("rows", rows)
        self.b_model, self.energy, self.weight, self.k_t = b_model, energy, weight, k_t
        self._last: float | None = None

    def forward(self) -> State:
        penalty = self.b_model.penalty()
        if self.energy is not None:
            energy = self.energy(self.sites)
            self._last = float(energy.detach())
            penalty = penalty + self.weight * limited(energy / self.k_t)
        return State(self.sites[self.rows], self.b_model(), penalty, self.sites)

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """For an optimiser; ``rate`` / 5 is that of sites, in Å a step, as of the shifts of a latent
        model."""
        return [
            {"params": [self.sites], "lr": rate / 5, "kind": "internal"},
            {"params": list(self.b_model.parameters()), "lr": rate / 2, "kind": "b"},
        ]

    def facts(self) -> dict[str, Any]:
        return {} if self._last is None else {"energy": self._last}


def limited(value: Any, high: float = 1e4) -> torch.Tensor:
    """The value below ``high``, its logarithm beyond: one overlap of two atoms does not drown everything
    else."""
    return torch.where(value < high, value, high + high * (value.clamp(min=high) / high).log())


def relax(
    sites_cart: torch.Tensor, energy: Any, steps: int = 60, hold: float = 20.0, k_t: float = KT_300
) -> torch.Tensor:
    """Sites of lower energy near the given ones, by L-BFGS with springs.

    Parameters
    ----------
    sites_cart : torch.Tensor
        (n_ff, 3) Å.
    energy : callable
        As in :class:`CartesianModel`.
    steps : int
    hold : float
        Springs to the given sites, nats Å^-2.

    Returns
    -------
    torch.Tensor
        (n_ff, 3) Å, float64.
    """
    start = sites_cart.detach().to(torch.float64)
    shift = torch.zeros(start.numel(), dtype=torch.float64, device=start.device, requires_grad=True)

    def evaluate(vector: torch.Tensor) -> Evaluation:
        moved = start + vector.reshape(start.shape)
        value = limited(energy(moved) / k_t) + 0.5 * hold * vector.square().sum()
        (gradient,) = torch.autograd.grad(value, vector)
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        # Curvatures of bonds are about a thousand; the minimiser expects one.
        return Evaluation(float(value.detach()) / 1000, gradient / 1000, None)

    with torch.enable_grad():
        minimize(evaluate, shift, steps)
    return (start + shift.reshape(start.shape)).detach()
