"""Expected second derivatives of a target: what a diagonal preconditioner is made of.

Reference: Agarwal (1978), Acta Cryst. A34, 791; Tronrud (1999), Acta Cryst. A55, 700.
"""

from __future__ import annotations

import math

import torch

from ..atoms import Atoms
from ..crystal import Crystal

_N_BINS = 40


class Curvature:
    """Expected second derivatives of a target with respect to sites and displacement parameters.

    Parameters
    ----------
    crystal : Crystal
    d_star_sq : torch.Tensor
        (n,) Å^-2, of work reflections.
    weights : torch.Tensor
        (n,) second derivative of the target with respect to |F_calc|.
    """

    def __init__(self, crystal: Crystal, d_star_sq: torch.Tensor, weights: torch.Tensor) -> None:
        low, high = float(d_star_sq.min()), float(d_star_sq.max())
        bins = ((d_star_sq - low) / max(high - low, 1e-12) * _N_BINS).long().clamp(max=_N_BINS - 1)
        zeros = torch.zeros(_N_BINS, dtype=torch.float64, device=d_star_sq.device)
        self.weight = zeros.index_add(0, bins, weights.to(torch.float64))
        self.s_sq = low + (torch.arange(_N_BINS, device=d_star_sq.device) + 0.5) / _N_BINS * (high - low)
        # Half the square of a structure factor's change is in its amplitude, half in its phase.
        self.factor = 0.5 * crystal.order_p * crystal.centring.shape[0] ** 2

    def __call__(self, atoms: Atoms, rows: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n_rows,) curvature of sites (Å^-2) and of U (Å^-4), for U equivalent (n_rows,)."""
        occupancies = atoms.occupancies.detach().to(torch.float64)[rows, None]
        power = self._power(atoms, rows, u) * occupancies.square()
        of_sites = (power * (4 * math.pi**2 / 3) * self.s_sq).sum(1)
        of_u = (power * (2 * math.pi**2 * self.s_sq).square()).sum(1)
        return of_sites, of_u

    def occupancies(self, atoms: Atoms, rows: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """(n_rows,) curvature of occupancies, for U equivalent (n_rows,)."""
        return self._power(atoms, rows, u).sum(1)

    def _power(self, atoms: Atoms, rows: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """(n_rows, n_bins) squared amplitudes, weighted, of atoms with an occupancy of 1."""
        f = atoms.form_factors(self.s_sq)[atoms.type_index[rows]]
        f = f + atoms.fp.detach().to(torch.float64)[rows, None]
        power = f.square() * (-4 * math.pi**2 * u[:, None] * self.s_sq).exp() * self.weight
        return power * self.factor * atoms.site_weights[rows, None]
