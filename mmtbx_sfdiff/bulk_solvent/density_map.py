"""The electron density of structure factors given on unique indices, rho(x) = 1/V sum_h F(h) exp(-2 pi i h.x), and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ..crystal import Crystal
from ..plans import Plan
from .transform import from_low_frequencies, low_frequencies


@dataclasses.dataclass(frozen=True, eq=False)
class Expansion:
    """Where each value goes in the transform of a real map, with every place named once.

    Attributes
    ----------
    limits : tuple of int
        Largest \\|h\\|, \\|k\\| and \\|l\\|.
    rows, source : torch.Tensor
        (n_places,) int64: places in the transform to these limits, flat, and the reflections that fill them.
    phase : torch.Tensor
        (n_places,) complex128 factor of the value, before conjugation.
    conjugate : torch.Tensor
        (n_places,) bool.
    scale : torch.Tensor
        (n_places,) float64: 1/V, and twice that where the place stands for its Friedel mate, too.
    """

    limits: tuple[int, int, int]
    rows: torch.Tensor
    source: torch.Tensor
    phase: torch.Tensor
    conjugate: torch.Tensor
    scale: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        h, k, l = self.limits
        return 2 * h + 1, 2 * k + 1, l + 1


def expansion(there: Plan, n_real: Sequence[int]) -> Expansion:
    """The :class:`Expansion` of unique indices on a grid, made once.

    Raises
    ------
    ValueError
        When the grid is too coarse for an index.
    """
    grid = tuple(int(n) for n in n_real)
    return there.part(("density", grid), lambda: _make_expansion(there.crystal, there.miller_indices, grid))


def density_map(values: torch.Tensor, there: Plan, out: torch.Tensor) -> torch.Tensor:
    """Electron density of one model's structure factors; (0, 0, 0) counts as zero when it is missing.

    Parameters
    ----------
    values : torch.Tensor
        (n,) complex.
    there : Plan
        Of the crystal and the indices, unique under the symmetry and Friedel's law.
    out : torch.Tensor
        (n1, n2, n3) real, e/Å^3.
    """
    where = expansion(there, out.shape)
    terms = values.index_select(0, where.source) * (where.phase * where.scale).to(values.dtype)
    # The sum has exp(-2 pi i h.x), the transform exp(+2 pi i h.x): conjugate what is not conjugated already.
    terms = torch.where(where.conjugate, terms, terms.conj())
    low = values.new_zeros(where.shape)
    low.view(-1)[where.rows] = terms
    from_low_frequencies(low, where.limits, out)
    return out


def density_transposed(gradient: torch.Tensor, there: Plan) -> torch.Tensor:
    """dT/dF (n,) from dT/d(density) (n1, n2, n3)."""
    where = expansion(there, gradient.shape)
    low = low_frequencies(gradient, where.limits).view(-1)
    terms = low.index_select(0, where.rows)
    terms = torch.where(where.conjugate, terms, terms.conj())
    terms = terms * (where.phase.conj() * where.scale).to(terms.dtype)
    return terms.new_zeros(len(there)).index_add_(0, where.source, terms)


def _make_expansion(crystal: Crystal, miller_indices: torch.Tensor, n_real: tuple[int, ...]) -> Expansion:
    device = miller_indices.device
    n = torch.tensor(n_real, device=device)
    equivalent, shifts = crystal.to(device).equivalent_indices(miller_indices)
    if bool((2 * equivalent.abs() >= n).any()):
        raise ValueError(
            f"A grid of {tuple(n_real)} points is too coarse for these reflections: "
            "use a smaller grid_step or a larger d_min."
        )
    # F(h R) = F(h) exp(-2 pi i h.t), and F(-h) is the conjugate of F(h).
    phase = torch.polar(torch.ones_like(shifts), -2 * torch.pi * shifts).reshape(-1)
    source = torch.arange(len(miller_indices), device=device).expand(shifts.shape).reshape(-1)
    equivalent = equivalent.reshape(-1, 3)
    h, k, l = (int(x) for x in equivalent.abs().amax(0)) if len(equivalent) else (0, 0, 0)
    places, sources, phases, conjugates, doubled = [], [], [], [], []
    for sign in (1, -1):
        inside = (sign * equivalent[:, 2] >= 0).nonzero()[:, 0]
        place = sign * equivalent[inside]
        places.append(((place[:, 0] % (2 * h + 1)) * (2 * k + 1) + place[:, 1] % (2 * k + 1)) * (l + 1) + place[:, 2])
        sources.append(source[inside])
        phases.append(phase[inside])
        conjugates.append(torch.full_like(inside, sign < 0, dtype=torch.bool))
        doubled.append(place[:, 2] > 0)
    place, source, phase, conjugate, twice = map(torch.cat, (places, sources, phases, conjugates, doubled))
    # Reflections that symmetry maps on themselves come more than once: keep the first of each place.
    unique, inverse = torch.unique(place, return_inverse=True)
    first = torch.full_like(unique, len(place)).scatter_reduce(
        0, inverse, torch.arange(len(place), device=device), "amin"
    )
    scale = torch.where(twice, 2.0, 1.0).to(torch.float64)[first] / crystal.volume
    return Expansion((h, k, l), unique, source[first], phase[first], conjugate[first], scale)
