"""What the error model has to know of the atoms: how much of them scatters with which width."""

from __future__ import annotations

import dataclasses
import math

import torch

import numpy as np

from ..kernels.cpu.histogram import population as add_population
from . import accuracy as error_model
from .scatterers import Scatterers, least_u
from .tables import Tables


@dataclasses.dataclass(frozen=True)
class Population:
    """What the error model has to know of the atoms.

    Attributes
    ----------
    histogram : numpy.ndarray
        (n_types + 1, N_E) sums of squared weights by type and exponent, and a row for f' and f''.
    n_atoms : int
        Of all models, those with weight.
    largest, least : float
        Largest and smallest exponent of an atom in any direction.
    widest_atom, least_atom : tuple of int
        (model, atom) of these.
    contributions : numpy.ndarray or None
        For gradients: the histogram with the mean U of anisotropic atoms, which scatter less than an atom of their
        smallest, by which their errors are counted; None: the same.
    parts : tuple of Population
        Where some atoms are isotropic and others are not: of those whose displacements a gradient is wanted of.
    heaviest : float
        Largest weight.
    extra : float
        Largest f' or f''.
    """

    histogram: np.ndarray
    n_atoms: int
    largest: float
    least: float
    widest_atom: tuple[int, int]
    least_atom: tuple[int, int]
    heaviest: float
    extra: float
    contributions: np.ndarray | None = None
    parts: tuple[Population, ...] = ()


def population(scatterers: Scatterers, tables: Tables, wanted: tuple[bool, ...] | None = None) -> Population:
    """The :class:`Population` of scatterers; ``wanted``: of which parameters a gradient is wanted, if of any."""
    s = scatterers
    # The gradient of a term that may be zero: as if it were as large as a form factor.
    least = tables.terms.typical_factor if wanted and (wanted[4] or wanted[5]) else 0.0
    extras = [value for i, value in enumerate((s.fp, s.fdp)) if (wanted and wanted[4 + i]) or (s.has_fp, s.has_fdp)[i]]
    mixed = bool(wanted) and s.has_u_aniso
    found = (_compiled if s.device.type == "cpu" else _torch)(s, extras, least, tables, mixed)
    if not found.n_atoms:
        found.histogram[0, error_model.N_E // 2] = 1.0
    extra = max((float(value.abs().max()) for value in extras), default=0.0)
    parts: tuple[Population, ...] = ()
    if mixed and found.n_atoms and len(found.parts) == 2:
        assert wanted is not None
        parts = tuple(part for part, want in zip(found.parts, wanted[1:3]) if want and part.n_atoms)
    return dataclasses.replace(found, n_atoms=max(found.n_atoms, 1), extra=extra, parts=parts)


_Ends = tuple[float, float, tuple[int, int], tuple[int, int], float]


def _counted(
    s: Scatterers, extras: list[torch.Tensor], least: float, tables: Tables
) -> tuple[np.ndarray, int, int, _Ends]:
    """Histograms of isotropic atoms, and of anisotropic ones by their least and by their mean U; their numbers, and ends."""

    def array(value: torch.Tensor) -> np.ndarray:
        return np.ascontiguousarray(value.numpy(), np.float64)

    histograms = np.zeros((3, len(tables.terms.constants) + 1, error_model.N_E))
    use_aniso, types = s.use_u_aniso.numpy(), s.type_index.numpy()
    orthogonalization = s.crystal.orthogonalization.numpy()
    u_iso, weights = array(s.u_iso), array(s.weights)
    u_star = array(s.u_star) if s.has_u_aniso else np.zeros((len(u_iso), 1, 6))
    extra = np.stack([array(x) for x in extras]) if extras else np.zeros((0, len(u_iso), 1))
    n_iso, n_aniso, heaviest = 0, 0, 0.0
    largest, smallest = (0.0, (0, 0)), (0.0, (0, 0))
    for i in range(len(u_iso)):
        found = add_population(
            u_iso[i],
            u_star[i],
            use_aniso,
            orthogonalization,
            2 * math.pi**2 * tables.s_sq,
            weights[i],
            extra[:, i],
            least,
            types,
            error_model.E_FIRST,
            error_model.E_SCALE,
            math.log(error_model.E_GROWTH),
            histograms,
        )
        n_iso, n_aniso, heaviest = n_iso + found[0], n_aniso + found[1], max(heaviest, found[3])
        largest = max(largest, (found[2], (i, found[5])), key=lambda x: x[0])
        smallest = min(smallest, (found[4], (i, found[6])), key=lambda x: x[0])
    return histograms, n_iso, n_aniso, (largest[0], smallest[0], largest[1], smallest[1], heaviest)


def _compiled(s: Scatterers, extras: list[torch.Tensor], least: float, tables: Tables, mixed: bool) -> Population:
    histograms, n_iso, n_aniso, first_ends = _counted(s, extras, least, tables)
    ends = (*first_ends, 0.0)
    round_ones, least_ones, mean_ones = histograms
    contributions, parts = None, []
    histogram = round_ones + least_ones
    if mixed:
        round_ones[-1] = 0
        contributions = round_ones + mean_ones
        if 0 < int(s.use_u_aniso.numpy().sum()) < s.n_atoms:
            parts = [
                Population(round_ones, n_iso, *ends, contributions=round_ones),
                Population(least_ones, n_aniso, *ends, contributions=mean_ones),
            ]
    return Population(histogram, n_iso + n_aniso, *ends, contributions, tuple(parts))


def _torch(s: Scatterers, extras: list[torch.Tensor], least: float, tables: Tables, mixed: bool) -> Population:
    found = _torch_of(s, extras, least, tables)
    if not mixed:
        return found
    contributions, parts = _with_mean_u(s, tables), []
    for chosen in (~s.use_u_aniso, s.use_u_aniso):
        if 0 < int(chosen.sum()) < s.n_atoms:
            those = dataclasses.replace(s, weights=torch.where(chosen, s.weights, 0.0))
            part = _torch_of(those, [], 0.0, tables)
            parts.append(dataclasses.replace(part, contributions=_with_mean_u(those, tables)))
    return dataclasses.replace(found, contributions=contributions, parts=tuple(parts))


def _with_mean_u(s: Scatterers, tables: Tables) -> np.ndarray:
    """The histogram where anisotropic atoms have the mean of their U."""
    mean = s.u_iso + (_cart_trace(s) / 3).to(s.dtype)
    round_ones = dataclasses.replace(s, u_iso=mean, use_u_aniso=torch.zeros_like(s.use_u_aniso))
    return _torch_of(round_ones, [], 0.0, tables).histogram


def _torch_of(s: Scatterers, extras: list[torch.Tensor], least: float, tables: Tables) -> Population:
    n_types, n_e = len(tables.terms.constants), error_model.N_E
    u = s.u_iso.to(torch.float64)
    widest = u
    if s.has_u_aniso:
        widest = u + _cart_trace(s)
        u = u + least_u(s)
    scale = 2 * math.pi**2 * tables.s_sq
    position = error_model.exponent_bins(u * scale).clamp(max=n_e - 1.001)
    low = position.to(torch.int64)
    high_share = position - low
    squares = s.weights.to(torch.float64) ** 2
    flat = (s.type_index * n_e + low).flatten()
    size = (n_types + 1) * n_e
    result = torch.bincount(flat, (squares * (1 - high_share)).flatten(), minlength=size)
    result += torch.bincount(flat + 1, (squares * high_share).flatten(), minlength=size)
    for value in extras:
        extra = squares * value.to(torch.float64).abs().clamp(min=least) ** 2
        result += torch.bincount((n_types * n_e + low).flatten(), extra.flatten(), minlength=size)
    at = [divmod(int(i), s.n_atoms) for i in (widest.argmax(), u.argmin())]
    return Population(
        result.reshape(n_types + 1, n_e).cpu().numpy(),
        int((squares > 0).sum()),
        float(widest.max()) * scale,
        float(u.min()) * scale,
        at[0],
        at[1],
        float(squares.max()) ** 0.5,
        0.0,
    )


def _cart_trace(s: Scatterers) -> torch.Tensor:
    metric = s.crystal.orthogonalization.T @ s.crystal.orthogonalization
    packed = torch.stack(
        [metric[0, 0], metric[1, 1], metric[2, 2], 2 * metric[0, 1], 2 * metric[0, 2], 2 * metric[1, 2]]
    )
    return (s.u_star.to(torch.float64) @ packed).clamp(min=0)
