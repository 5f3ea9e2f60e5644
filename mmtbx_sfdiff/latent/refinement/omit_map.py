"""Maps to build in: of the model, and of what a part of it leaves to be explained.

Coefficients are of the reflections that are refined against alone, in standard deviations of the map.
"""

from __future__ import annotations

import torch

from ...fmodel import FModel
from ...real_space.interpolation import map_values
from ...refinement.waters import maps
from .main_chain import Density

_AROUND, _LATTICE = 4.0, 2.0  # Å
_HIGHEST = 3.5  # standard deviations, above which more counts little
_CONTACT, _CLASH = 3.0, 6.0  # Å, per Å^2


def model_density(fmodel: FModel) -> Density:
    """2mFo-DFc of a model with scales."""
    return _function(fmodel, 1)


def omit_density(fmodel: FModel, rows: torch.Tensor) -> Density:
    """mFo-DFc of the model without some atoms, rows (n,) bool."""
    return _function(without(fmodel, rows), 0)


def _function(fmodel: FModel, which: int) -> Density:
    rho, crystal = torch.from_numpy(maps(fmodel)[which]), fmodel.reflections.crystal.to("cpu")
    return lambda sites: map_values(rho, crystal, sites)


def without(fmodel: FModel, rows: torch.Tensor, radius: float = _AROUND) -> FModel:
    """The model without some atoms and with no solvent near them, scaled.

    Where an atom is left out a mask would put solvent, a third of a protein's density, and hide what is to be seen there
    (Liebschner et al. 2017, Acta Cryst. D73, 148).

    Parameters
    ----------
    fmodel : FModel
    rows : torch.Tensor
        (n,) bool.
    radius : float
        Å.
    """
    atoms = fmodel.atoms
    rows = rows.to(atoms.device)
    sites = atoms.sites_cart.detach()
    mine = sites[rows].to(torch.float64)
    axes = [
        torch.arange(low, high, _LATTICE, dtype=torch.float64)
        for low, high in zip((mine.amin(0) - radius).tolist(), (mine.amax(0) + radius).tolist())
    ]
    points = torch.cartesian_prod(*axes).to(sites.device)
    points = points[(torch.cdist(points, mine) < radius).any(1)]
    first = rows.nonzero()[0]
    more = atoms.select(torch.cat([torch.arange(len(sites), device=sites.device), first.expand(len(points))]))
    occupancies = more.occupancies.detach().clone()
    occupancies[: len(sites)][rows] = 0.0
    occupancies[len(sites) :] = 0.0
    more = more.replace(sites_cart=torch.cat([sites, points.to(sites)]), occupancies=occupancies)
    part = fmodel.with_(atoms=more, mask=fmodel.mask_options | {"include_zero_occupancy": True})
    part.update_scales()
    return part


def saturated(values: torch.Tensor) -> torch.Tensor:
    """Values of a map of which no single one says much."""
    return _HIGHEST * torch.tanh(values / _HIGHEST)


def bumps(sites: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(k,) what atoms (k, n, 3) cost that are too near others (m, 3)."""
    apart = torch.cdist(sites.reshape(-1, 3), others).reshape(len(sites), -1)
    return _CLASH * (_CONTACT - apart).clamp(min=0).square().sum(1)
