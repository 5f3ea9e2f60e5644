"""Friedel mates that stand apart, as files of map coefficients have them: one row for both, and a column for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..reflections import Reflections
from .coefficients import anomalous_difference_coefficients

_DIGITS = (2**40, 2**20, 1)


def mates_in_rows(
    data: Reflections, columns: dict[str, torch.Tensor], apart: Sequence[str] = ()
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Indices and columns with one row for both mates of a pair.

    Parameters
    ----------
    data : Reflections
        Of n reflections; those that are not anomalous stay as they are.
    columns : dict of str to torch.Tensor
        (n,) each. Real ones become two, with (+) and (-) behind their labels; complex ones the mean of F(h) and F(-h)* over the
        mates that have a number; flags mark a row where either mate has one.
    apart : sequence of str
        Complex columns that become two as well.

    Examples
    --------
    >>> from mmtbx_sfdiff.real_space.mates import mates_in_rows
    >>> indices = crystal.build_miller_indices(3.0, anomalous=True)
    >>> f = sfdiff.structure_factors(atoms, crystal, indices)
    >>> data = sfdiff.Reflections.from_arrays(crystal, indices, f.abs())
    >>> h, columns = mates_in_rows(data, {"F": data.f_obs, "FC": f})
    >>> list(columns), len(h) == len(crystal.build_miller_indices(3.0))
    (['F(+)', 'F(-)', 'FC'], True)
    """
    h = data.miller_indices
    if not data.anomalous:
        return h, columns
    keys, row, positive = _rows(h)
    n = len(keys)
    indices = h.new_zeros(n, 3).index_copy(0, row, torch.where(positive[:, None], h, -h))
    centric = data.crystal.centric_flags(h)
    result: dict[str, torch.Tensor] = {}
    for label, values in columns.items():
        if values.is_complex() and label not in apart:
            same = torch.where(positive, values, values.conj())
            known = same.isfinite()
            total = same.new_zeros(n).index_add(0, row, torch.where(known, same, 0.0))
            count = torch.bincount(row[known], minlength=n)
            result[label] = torch.where(count > 0, total / count.clamp(min=1), complex("nan"))
        elif values.dtype == torch.bool:
            result[label] = values.new_zeros(n).index_fill(0, row[values], True)
        else:
            for sign, chosen in (("(+)", positive | centric), ("(-)", ~positive & ~centric)):
                blank = torch.full((n,), float("nan"), dtype=values.dtype, device=h.device)
                result[label + sign] = blank.index_copy(0, row[chosen], values[chosen])
    return indices, result


def difference_column(indices: torch.Tensor, data: Reflections, f_model: torch.Tensor) -> torch.Tensor:
    """(m,) complex coefficients of the anomalous difference map at indices (m, 3), NaN where there is no pair.

    Parameters
    ----------
    indices : torch.Tensor
        (m, 3), of the rows of a file.
    data : Reflections
        With mates apart.
    f_model : torch.Tensor
        (n,) complex, of these reflections.

    Raises
    ------
    ValueError
        There are no pairs.

    Examples
    --------
    >>> from mmtbx_sfdiff.real_space.mates import difference_column
    >>> indices = crystal.build_miller_indices(3.0, anomalous=True)
    >>> f = sfdiff.structure_factors(atoms.replace(fdp=torch.full_like(atoms.fdp, 3.0)), crystal, indices)
    >>> data = sfdiff.Reflections.from_arrays(crystal, indices, f.abs())
    >>> h = crystal.build_miller_indices(3.0)
    >>> found = difference_column(h, data, f)
    >>> bool((found.isfinite() == ~crystal.centric_flags(h)).all())
    True
    """
    first, coefficients = anomalous_difference_coefficients(data, f_model)
    keys, row, positive = _rows(indices)
    there, of_first, first_positive = _rows(first)
    same = torch.where(first_positive, coefficients, coefficients.conj())
    by_key = same.new_zeros(len(there)).index_copy(0, of_first, same)
    place = torch.searchsorted(there, keys).clamp(max=len(there) - 1)
    known = there[place] == keys
    values = torch.where(known, by_key[place], complex("nan"))[row]
    return torch.where(positive, values, values.conj())


def _rows(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sorted keys, row of each index, whether it is the positive one of its pair)."""
    numbers = (h * torch.tensor(_DIGITS, dtype=torch.int64, device=h.device)).sum(-1)
    keys, row = torch.unique(numbers.abs(), return_inverse=True)
    return keys, row, numbers > 0
