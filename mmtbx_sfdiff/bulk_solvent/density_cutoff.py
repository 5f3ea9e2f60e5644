"""The density-cutoff solvent mask, equations 5-8.

    map     = FFT(F_protein)                                                                       (5)
    cutoff  = percentile(map, solvent fraction)                                                    (6)
    mask    = sigmoid((cutoff - map) * 50)                                                         (7)
    F_mask  = inverse FFT(mask)                                                                    (8)

The map is brought to mean 0 and standard deviation 1 first, each model of a batch by itself.

A percentile is the value of one or two grid points, and back-propagating through it would give those two points the
whole gradient.  The true derivative of the level that encloses a given volume is the average of the map's derivative
over the iso-surface at that level; here it is taken over all grid points near the level, with Gaussian weights, while
the value stays the percentile.
"""
from __future__ import annotations

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..crystal import as_miller_tensor
from ..structure_factors import structure_factors
from .binary import binary

STEEPNESS = 50.0
D_MIN = 4.0
_BINARY_STEP = 0.6
# The sigmoid is steeper than any grid of bearable size, so F_mask follows the atoms in steps of one grid point.  Steps
# are small against the whole when there are many: with a million points, 5 % of a derivative over 0.003-0.02 Å.
_MIN_POINTS = 1_000_000


def density_cutoff(atoms, crystal, n_real, d_min=None, f_protein=None, solvent_fraction=None, steepness=STEEPNESS,
                   surface_width=0.03, memory=256 * 2**20):
    """The mask of equations 5-7; differentiable in everything that F_protein is.

    Parameters
    ----------
    atoms : Atoms
    crystal : Crystal
    n_real : tuple of int
        Numbers of grid points; the grid must carry the symmetry, see :meth:`Crystal.grid`.
    d_min : float, optional
        F_protein is taken on all reflections to this resolution, Å; 4 by default.  Agreement with a probe-shrink mask
        hardly depends on it; a finer map makes the mask follow the atoms less smoothly.
    f_protein : tuple (miller_indices, values), optional
        F_protein, when it is already known, on a complete set of unique indices: (n, 3) integers and (..., n) complex.
        The index (0, 0, 0) does not matter.
    solvent_fraction : float or torch.Tensor, optional
        Share of the cell below the cutoff, (...).  By default that of mmtbx's mask on a 0.6 Å grid, each model its
        own; it counts as a constant in the gradient.
    steepness : float
        The factor of equation 7, per standard deviation of the map.
    surface_width : float
        Standard deviation of the Gaussian weights of the gradient of the cutoff, in those of the map.
    memory : int
        Passed on to what computes F_protein and the solvent fraction.

    Returns
    -------
    torch.Tensor
        (..., n1, n2, n3) in the atoms' dtype, strictly between 0 and 1 up to rounding.

    Raises
    ------
    ValueError
        A grid too coarse for ``d_min``; a solvent fraction outside (0, 1); ``d_min`` and ``f_protein`` together.
    """
    if f_protein is None:
        indices = _miller_indices(crystal, D_MIN if d_min is None else float(d_min))
        values = structure_factors(atoms, crystal, indices, memory=memory)
    elif d_min is not None:
        raise ValueError("Give d_min or f_protein, not both: the reflections of f_protein are taken as they are.")
    else:
        indices, values = as_miller_tensor(f_protein[0], device=atoms.device), f_protein[1]
        if values.shape[-1:] != (len(indices),):
            raise ValueError(f"f_protein has {len(indices)} indices, but values of shape {tuple(values.shape)}.")
    if solvent_fraction is None:
        solvent_fraction = binary(atoms, crystal, crystal.grid(_BINARY_STEP), memory=memory).mean((-3, -2, -1))
        # A cell that mmtbx finds without solvent, or without protein, still has a cutoff.
        solvent_fraction = solvent_fraction.clamp(0.001, 0.999)
    solvent_fraction = torch.as_tensor(solvent_fraction, dtype=torch.float64, device=atoms.device).detach()
    if not bool(((solvent_fraction > 0) & (solvent_fraction < 1)).all()):
        raise ValueError(f"solvent_fraction must lie between 0 and 1, not {solvent_fraction}.")
    density = density_map(values, crystal, indices, n_real)
    flat = density.flatten(-3)
    flat = flat - flat.mean(-1, keepdim=True)
    flat = flat / flat.square().mean(-1, keepdim=True).sqrt()
    cutoff = percentile(flat, solvent_fraction, surface_width)
    return torch.sigmoid((cutoff[..., None] - flat) * steepness).unflatten(-1, n_real)


def density_map(values, crystal, miller_indices, n_real):
    """Electron density of structure factors given on unique indices; (0, 0, 0) counts as zero when it is missing.

    Parameters
    ----------
    values : torch.Tensor
        (..., n) complex.
    miller_indices : torch.Tensor
        (n, 3) int64, unique under the symmetry and Friedel's law.
    n_real : tuple of int

    Returns
    -------
    torch.Tensor
        (..., n1, n2, n3) real, e/Å^3.

    Raises
    ------
    ValueError
        When the grid is too coarse for an index.
    """
    rows, source, phase, conjugate = _expansion(crystal, miller_indices, n_real)
    expanded = values.index_select(-1, source) * phase.to(values.dtype)
    parts = torch.view_as_real(expanded)
    # irfftn sums exp(+2 pi i h.x), a density exp(-2 pi i h.x): conjugate what is not conjugated already.
    imaginary = parts[..., 1] * (2 * conjugate.to(parts.dtype) - 1)
    expanded = torch.view_as_complex(torch.stack([parts[..., 0], imaginary], -1))
    n1, n2, n3 = n_real
    half = values.new_zeros((*values.shape[:-1], n1 * n2 * (n3 // 2 + 1))).index_copy(-1, rows, expanded)
    half = half.unflatten(-1, (n1, n2, n3 // 2 + 1))
    return torch.fft.irfftn(half, s=tuple(n_real), dim=(-3, -2, -1)) * (n1 * n2 * n3 / crystal.volume)


def percentile(values, fraction, surface_width):
    """The value below which a ``fraction`` of the values lies, with the gradient of an iso-surface average.

    Parameters
    ----------
    values : torch.Tensor
        (..., n).
    fraction : torch.Tensor
        (...), between 0 and 1.
    surface_width : float
        Standard deviation, in the units of the values, of the weights that spread the gradient.

    Returns
    -------
    torch.Tensor
        (...), interpolated linearly between the two closest ranks.
    """
    with torch.no_grad():
        fraction = fraction.to(torch.float64).expand(values.shape[:-1])
        flat, fractions = values.detach().reshape(-1, values.shape[-1]), fraction.reshape(-1)
        n = values.shape[-1]
        levels = []
        for row, position in zip(flat, (fractions * (n - 1)).tolist()):
            low = min(int(position), n - 1)
            first = torch.kthvalue(row, low + 1).values
            second = torch.kthvalue(row, min(low + 2, n)).values
            levels.append(first + (second - first) * (position - low))
        level = torch.stack(levels).reshape(values.shape[:-1])
        distance = (values.detach() - level[..., None]) / surface_width
        # A softmax: it also holds where no value is near, in a map with a gap.
        weights = torch.softmax(-0.5 * distance.square(), -1)
    average = (weights * values).sum(-1)
    return level + (average - average.detach())


def default_grid_step(crystal):
    """0.6 Å, or less in a cell so small that this would be fewer than a million points."""
    return min(_BINARY_STEP, (crystal.volume / _MIN_POINTS) ** (1 / 3))


def _miller_indices(crystal, d_min):
    key = (crystal.unit_cell, crystal.hall_symbol, str(crystal.device), d_min)
    if key not in _INDICES:
        while len(_INDICES) >= 16:
            _INDICES.pop(next(iter(_INDICES)))
        _INDICES[key] = crystal.build_miller_indices(d_min)
    return _INDICES[key]


# Kept, so that what structure_factors and _expansion derive from an index tensor is found again.
_INDICES = {}
_EXPANSIONS = WeakIdKeyDictionary()


def _expansion(crystal, miller_indices, n_real):
    """Where each value goes in the half transform of a real map, with every place named once.

    Returns
    -------
    rows, source : torch.Tensor
        (n_places,) int64: places in the flattened half grid, and the reflections that fill them.
    phase : torch.Tensor
        (n_places,) complex128 factor of the value, before conjugation.
    conjugate : torch.Tensor
        (n_places,) bool.
    """
    known = _EXPANSIONS.setdefault(miller_indices, {})
    key = (crystal.unit_cell, crystal.hall_symbol, tuple(n_real), miller_indices._version)
    if key not in known:
        known[key] = _make_expansion(crystal, miller_indices, n_real)
    return known[key]


def _make_expansion(crystal, miller_indices, n_real):
    device = miller_indices.device
    n = torch.tensor(n_real, device=device)
    equivalent, shifts = crystal.to(device).equivalent_indices(miller_indices)
    if bool((2 * equivalent.abs() >= n).any()):
        raise ValueError(f"A grid of {tuple(n_real)} points is too coarse for these reflections: "
                         "use a smaller grid_step or a larger d_min.")
    # F(h R) = F(h) exp(-2 pi i h.t), and F(-h) is the conjugate of F(h).
    phase = torch.polar(torch.ones_like(shifts), -2 * torch.pi * shifts).reshape(-1)
    source = torch.arange(len(miller_indices), device=device).expand(shifts.shape).reshape(-1)
    equivalent = equivalent.reshape(-1, 3)
    places, sources, phases, conjugates = [], [], [], []
    for sign in (1, -1):
        inside = (sign * equivalent[:, 2] >= 0).nonzero()[:, 0]
        place = sign * equivalent[inside]
        places.append(((place[:, 0] % n[0]) * n[1] + place[:, 1] % n[1]) * (n[2] // 2 + 1) + place[:, 2])
        sources.append(source[inside])
        phases.append(phase[inside])
        conjugates.append(torch.full_like(inside, sign < 0, dtype=torch.bool))
    places, sources, phases, conjugates = map(torch.cat, (places, sources, phases, conjugates))
    # Reflections that symmetry maps on themselves come more than once: keep the first of each place.
    unique, inverse = torch.unique(places, return_inverse=True)
    first = torch.full_like(unique, len(places)).scatter_reduce(
        0, inverse, torch.arange(len(places), device=device), "amin")
    return unique, sources[first], phases[first], conjugates[first]
