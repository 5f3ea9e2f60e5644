"""Handedness of chiral centres: CA of every residue but glycine, CB of isoleucine and threonine."""

from __future__ import annotations

import torch

from .prepared_model import PreparedModel

_CENTRES = (("CA", ("N", "C", "CB"), None), ("CB", ("CA", "CG1", "CG2"), "ILE"), ("CB", ("CA", "OG1", "CG2"), "THR"))


def chiral_centres(prepared: PreparedModel) -> torch.Tensor:
    """(n, 4) long: each centre and three of its neighbours, in an order that is the same for every residue.

    Parameters
    ----------
    prepared : PreparedModel

    Examples
    --------
    >>> centres = chiral_centres(model)
    >>> [[model.names[i] for i in row] for row in centres.tolist()]
    [['CA', 'N', 'C', 'CB']]
    """
    atoms: dict[int, dict[str, int]] = {}
    for i, (name, residue) in enumerate(zip(prepared.names, prepared.residue_index.tolist())):
        atoms.setdefault(residue, {})[name] = i
    rows = []
    for residue, mine in sorted(atoms.items()):
        for centre, neighbours, only in _CENTRES:
            row = [mine.get(name) for name in (centre, *neighbours)]
            if None not in row and only in (None, prepared.residue_names[residue]):
                rows.append(row)
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 4)


def handedness(sites_cart: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """1 or -1 for each chiral centre of each structure.

    Parameters
    ----------
    sites_cart : torch.Tensor
        (..., n_ff, 3), Å.
    centres : torch.Tensor
        (n, 4) long, of :func:`chiral_centres`.

    Returns
    -------
    torch.Tensor
        (..., n)

    Examples
    --------
    >>> centres = chiral_centres(model)
    >>> mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    >>> float(handedness(model.sites_cart, centres) * handedness(mirror * model.sites_cart, centres))
    -1.0
    """
    centre, a, b, c = (sites_cart[..., centres[:, column].to(sites_cart.device), :] for column in range(4))
    return torch.sign((torch.linalg.cross(a - centre, b - centre) * (c - centre)).sum(-1))
