"""Isotropic B factors for a refinement whose coordinates are few variables: one for each residue's main chain
and one for its side chain, and later one for each atom.

    B_j = exp(b_group(j))

Predicted models carry pLDDT where B factors would be; the expected error of an atom is 1.5 exp(4 (0.7 - pLDDT
/ 100)) Å (Hiranuma et al. (2021), Nature Comm. 12, 1340, as ``mmtbx.process_predicted_model`` uses it), and B
= 8 pi^2 / 3 of its square. A trajectory gives B = 8 pi^2 / 3 <u^2>.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...atom_arrays import EIGHT_PI_SQ
from ...atoms import Atoms
from ...reflections import Reflections

LEAST_B, MOST_B = 5.0, 80.0  # Å², of starting values
B_LIMITS = (1.0, 300.0)  # Å², of refined values
_MAIN_CHAIN = ("N", "CA", "C", "O", "OXT")
_PER_BIN = 60
_WILSON_D_MAX = 4.5


def b_from_plddt(plddt: Any) -> torch.Tensor:
    """B factors (Å²) for pLDDT (0 to 100, or 0 to 1), within 5 and 80 Å²."""
    plddt = torch.as_tensor(plddt, dtype=torch.float64)
    fraction = plddt / 100 if float(plddt.max()) > 1 else plddt
    error: torch.Tensor = 1.5 * (4 * (0.7 - fraction)).exp()
    return (EIGHT_PI_SQ / 3 * error.square()).clamp(LEAST_B, MOST_B)


def b_from_fluctuations(frames: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
    """B factors (n,) Å² from the fluctuations of superposed frames (n_frames, n, 3), within 5 and 80 Å²."""
    frames = frames.to(torch.float64)
    mean = frames.mean(0) if reference is None else reference
    return (EIGHT_PI_SQ / 3 * (frames - mean).square().sum(-1).mean(0)).clamp(LEAST_B, MOST_B)


def wilson_b(atoms: Atoms, reflections: Reflections) -> float:
    """Overall B (Å²) from the fall-off of the work set's intensities, Wilson's plot beyond 4.5 Å.

    Returns
    -------
    float
        Within 5 and 80; 25 where the data do not reach 4 Å or are fewer than 120.
    """
    s_sq = reflections.crystal.d_star_sq(reflections.miller_indices)
    chosen = reflections.work & (s_sq > _WILSON_D_MAX**-2)
    n_bins = int(chosen.sum()) // _PER_BIN
    if n_bins < 2 or reflections.d_min > 4.0:
        return 25.0
    s_sq, f_obs = s_sq[chosen].to(torch.float64), reflections.f_obs[chosen].to(torch.float64)
    epsilons = reflections.crystal.epsilons(reflections.miller_indices[chosen]).to(torch.float64)
    order = s_sq.argsort()
    means = [(s_sq[part].mean(), (f_obs[part].square() / epsilons[part]).mean()) for part in order.tensor_split(n_bins)]
    x = torch.stack([a for a, _ in means])
    observed = torch.stack([b for _, b in means])
    f = atoms.form_factors(x)[atoms.type_index].to(torch.float64)
    expected = (f * atoms.occupancies.detach().to(torch.float64)[:, None]).square().sum(0)
    y = (observed / expected).log()
    # <I> = k sum f^2 exp(-B s^2 / 2)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return min(max(-2 * float(slope), LEAST_B), MOST_B)


def is_main_chain(names: Sequence[str]) -> torch.Tensor:
    """(n,) bool for atom names."""
    return torch.tensor([name.strip() in _MAIN_CHAIN for name in names])


class ResidueB(torch.nn.Module):
    """B factors of main and side chain of each residue, with a prior.

    The prior is a Gaussian in ln B about the starting value (standard deviation ``sigma``), and about the
    next residue of the same chain, in the change from the start.

    Parameters
    ----------
    b_start : torch.Tensor
        (n,) Å², starting values of the atoms.
    residue_index : torch.Tensor
        (n,) int64, ascending along each chain.
    main_chain : torch.Tensor
        (n,) bool.
    chain_index : torch.Tensor, optional
        (n,) int64.
    sigma, sigma_neighbour : float
    """

    group: torch.Tensor
    start: torch.Tensor
    pairs: torch.Tensor

    def __init__(
        self,
        b_start: torch.Tensor,
        residue_index: torch.Tensor,
        main_chain: torch.Tensor,
        chain_index: torch.Tensor | None = None,
        sigma: float = 0.7,
        sigma_neighbour: float = 0.3,
    ) -> None:
        super().__init__()
        b_start = b_start.detach().to(torch.float64).clamp(*B_LIMITS)
        residue_index = torch.as_tensor(residue_index, dtype=torch.int64)
        chain = torch.zeros_like(residue_index) if chain_index is None else torch.as_tensor(chain_index)
        key = torch.stack([chain, residue_index, (~main_chain).long()], -1)
        groups, group = torch.unique(key, dim=0, return_inverse=True)
        count = torch.bincount(group).to(torch.float64)
        start = torch.zeros_like(count).index_add(0, group, b_start.log()) / count
        follows = (
            (groups[None, :, 0] == groups[:, None, 0])
            & (groups[None, :, 2] == groups[:, None, 2])
            & (groups[None, :, 1] == groups[:, None, 1] + 1)
        )
        same = (
            (groups[None, :, 0] == groups[:, None, 0])
            & (groups[None, :, 1] == groups[:, None, 1])
            & (groups[:, None, 2] < groups[None, :, 2])
        )
        self.register_buffer("group", group)
        self.register_buffer("start", start)
        self.register_buffer("pairs", (follows | same).nonzero())
        self.log_b = torch.nn.Parameter(start.clone())
        self.sigma, self.sigma_neighbour = sigma, sigma_neighbour

    def forward(self) -> torch.Tensor:
        """(n,) B of every atom, Å²."""
        return self.log_b.clamp(math.log(B_LIMITS[0]), math.log(B_LIMITS[1])).exp()[self.group]

    def penalty(self) -> torch.Tensor:
        """-ln prior, up to a constant."""
        change = self.log_b - self.start
        i, j = self.pairs.unbind(1)
        return (
            0.5 * (change / self.sigma).square().sum()
            + 0.5 * ((change[i] - change[j]) / self.sigma_neighbour).square().sum()
        )


class AtomB(torch.nn.Module):
    """A B factor for each atom; those of neighbours are similar.

    Parameters
    ----------
    b_start : torch.Tensor
        (n,) Å².
    sites_cart : torch.Tensor
        (n, 3) Å; atoms within ``reach`` are neighbours.
    sigma_neighbour : float
        Of the difference of ln B between neighbours.
    reach : float
        Å; 1.8 takes bonded atoms.
    """

    pairs: torch.Tensor

    def __init__(
        self, b_start: torch.Tensor, sites_cart: torch.Tensor, sigma_neighbour: float = 0.15, reach: float = 1.8
    ) -> None:
        super().__init__()
        self.log_b = torch.nn.Parameter(b_start.detach().to(torch.float64).clamp(*B_LIMITS).log())
        near = torch.cdist(sites_cart.detach().to(torch.float64), sites_cart.detach().to(torch.float64)) < reach
        self.register_buffer("pairs", near.triu(1).nonzero())
        self.sigma_neighbour = sigma_neighbour

    def forward(self) -> torch.Tensor:
        """(n,) B of every atom, Å²."""
        return self.log_b.clamp(math.log(B_LIMITS[0]), math.log(B_LIMITS[1])).exp()

    def penalty(self) -> torch.Tensor:
        """-ln prior, up to a constant."""
        i, j = self.pairs.unbind(1)
        return 0.5 * ((self.log_b[i] - self.log_b[j]) / self.sigma_neighbour).square().sum()
