"""Which reflections are one: equivalents by symmetry, and Friedel mates.

Reference: ``cctbx.miller.map_to_asu``; here equivalents have one number, and nothing is moved.
"""

from __future__ import annotations

from typing import Any

import torch

from .crystal import Crystal, as_miller_tensor
from .rules import free_of_equivalents


def _keys(indices: torch.Tensor) -> torch.Tensor:
    """One integer for each index triple."""
    h, k, l = indices.unbind(-1)
    return ((h + 2**19) << 40) + ((k + 2**19) << 20) + (l + 2**19)


def mate_keys(crystal: Crystal, indices: torch.Tensor) -> torch.Tensor:
    """(n,) the same number for equivalents and Friedel mates."""
    equivalent = crystal.equivalent_indices(indices)[0]
    return torch.maximum(_keys(equivalent).amax(0), _keys(-equivalent).amax(0))


def has_mates(crystal: Crystal, indices: torch.Tensor) -> bool:
    """Whether Friedel mates stand apart; refuses reflections that are there twice."""
    if not len(indices):
        return False
    equivalent = crystal.equivalent_indices(indices)[0]
    own = _keys(equivalent).amax(0)
    mates = mate_keys(crystal, indices)
    unique, counts = torch.unique(own, return_counts=True)
    if len(unique) != len(indices):
        first = unique[counts > 1][0]
        where = tuple(indices[int((own == first).nonzero()[0])].tolist())
        raise ValueError(
            f"{len(indices) - len(unique)} reflections are there twice, by symmetry too, {where} first: merge them first."
        )
    return len(torch.unique(mates)) != len(indices)


def flags_of_cctbx(r_free_flags: Any, f_obs: Any, crystal: Crystal) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The flags of a ``cctbx.miller.array`` for the reflections of another, and what has to be said of them.

    Parameters
    ----------
    r_free_flags, f_obs : cctbx.miller.array
        Booleans, and amplitudes.  Where one is merged and the other has Friedel or symmetry mates, they are matched by the unique
        reflection, which is free if any of its mates is.
    crystal : Crystal
        Of ``f_obs``.

    Raises
    ------
    ValueError
        Another cell; reflections without a flag.
    """
    if not f_obs.unit_cell().is_similar_to(r_free_flags.unit_cell(), 0.01, 1.0):
        cells = [
            "(%s)" % ", ".join("%g" % x for x in array.unit_cell().parameters()) for array in (r_free_flags, f_obs)
        ]
        raise ValueError(f"r_free_flags are of another crystal: their cell is {cells[0]}, that of f_obs {cells[1]}.")
    data = r_free_flags.data().as_numpy_array()
    messages: tuple[str, ...] = ()
    if r_free_flags.is_similar_symmetry(f_obs) and r_free_flags.anomalous_flag() == f_obs.anomalous_flag():
        matched = r_free_flags.common_set(f_obs)
        n_missing = f_obs.size() - matched.size()
        flags = torch.tensor(matched.data().as_numpy_array(), device=crystal.device)
    else:
        wanted = mate_keys(crystal, as_miller_tensor(f_obs, device=crystal.device))
        given = mate_keys(crystal, as_miller_tensor(r_free_flags, device=crystal.device))
        unique, group = torch.unique(given, return_inverse=True)
        free, n_mixed = free_of_equivalents(group.cpu().numpy(), data, len(unique))
        place = torch.searchsorted(unique, wanted).clamp(max=max(len(unique) - 1, 0))
        n_missing = int((unique[place] != wanted).sum()) if len(unique) else len(wanted)
        flags = torch.tensor(free, device=crystal.device)[place] if len(unique) else torch.zeros(0, dtype=torch.bool)
        if n_mixed:
            messages = (f"reflections whose mates have unlike R-free flags, taken as free: {n_mixed}",)
    if n_missing:
        raise ValueError(f"r_free_flags lack {n_missing} of the {f_obs.size()} reflections.")
    return flags, messages
