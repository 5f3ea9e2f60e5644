"""A map between its points, linear along each axis.

Reference: ``cctbx.maptbx.eight_point_interpolation``.
"""

from __future__ import annotations

import torch

from ..crystal import Crystal


def map_values(rho: torch.Tensor, crystal: Crystal, sites_cart: torch.Tensor) -> torch.Tensor:
    """The map at any places, differentiable in the map and in the places.

    Parameters
    ----------
    rho : torch.Tensor
        (n1, n2, n3) on the whole cell.
    crystal : Crystal
    sites_cart : torch.Tensor
        (..., 3) Å, inside or outside of the cell.

    Returns
    -------
    torch.Tensor
        (...,)

    Raises
    ------
    ValueError
        A map that has not three axes.

    Examples
    --------
    >>> rho = sfdiff.density(atoms, crystal, (24, 32, 36))
    >>> values = map_values(rho, crystal, atoms.sites_cart)
    >>> values.shape, bool((values > rho.mean()).all())
    (torch.Size([40]), True)
    """
    if rho.ndim != 3:
        raise ValueError(f"A map has three axes, not shape {tuple(rho.shape)}.")
    sizes = torch.tensor(rho.shape, device=rho.device)
    at = (sites_cart @ crystal.fractionalization.to(sites_cart).T) * sizes
    low = at.detach().floor()
    above = at - low
    weights = torch.stack([1 - above, above], -1)  # (..., axis, lower or upper)
    corners = torch.cartesian_prod(*[torch.arange(2, device=rho.device)] * 3)
    places = (low.long()[..., None, :] + corners) % sizes
    rows = (places[..., 0] * sizes[1] + places[..., 1]) * sizes[2] + places[..., 2]
    x, y, z = (weights[..., axis, :][..., corners[:, axis]] for axis in range(3))
    return (x * y * z * rho.flatten()[rows].to(sites_cart.dtype)).sum(-1)
