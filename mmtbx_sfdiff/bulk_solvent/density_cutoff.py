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

import math

import torch

from ..crystal import as_miller_tensor
from ..plans.cache import TensorCache
from ..structure_factors import structure_factors

STEEPNESS = 50.0
# Of an atom other than hydrogen, Å^3, with its share of what the probe cannot reach.
VOLUME_PER_ATOM = 18.4
_NEWTON_STEPS = 5


def density_cutoff(
    atoms,
    crystal,
    n_real,
    d_min=None,
    f_protein=None,
    solvent_fraction=None,
    steepness=STEEPNESS,
    surface_width=0.03,
    voxel_average=True,
    memory=256 * 2**20,
):
    """The mask of equations 5-7; differentiable in everything that F_protein is.

    Parameters
    ----------
    atoms : Atoms
    crystal : Crystal
    n_real : tuple of int
        Numbers of grid points; the grid must carry the symmetry, see :meth:`Crystal.grid`.
    d_min : float, optional
        F_protein is taken on all reflections to this resolution, Å; by default as far as the grid samples three times,
        1.8 Å on a 0.6 Å grid.
    f_protein : tuple (miller_indices, values), optional
        F_protein, when it is already known, on a complete set of unique indices: (n, 3) integers and (..., n) complex.
        The index (0, 0, 0) does not matter.
    solvent_fraction : float or torch.Tensor, optional
        Share of the cell below the cutoff, (...); it counts as a constant in the gradient.  By default
        :func:`estimated_solvent_fraction`.
    steepness : float
        The factor of equation 7, per standard deviation of the map.
    surface_width : float
        Standard deviation of the Gaussian weights of the gradient of the cutoff, in those of the map.
    voxel_average : bool
        Take the average of equation 7 over each voxel instead of its value at the grid point.  The sigmoid is steeper
        than any bearable grid, and sampled at points it follows the atoms in jumps; its average follows them smoothly.
        Both tend to the same mask on a fine grid.
    memory : int
        Passed on to what computes F_protein.

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
        indices = _miller_indices(crystal, _resolution(crystal, n_real) if d_min is None else float(d_min))
        values = structure_factors(atoms, crystal, indices, memory=memory)
    elif d_min is not None:
        raise ValueError("Give d_min or f_protein, not both: the reflections of f_protein are taken as they are.")
    else:
        indices, values = as_miller_tensor(f_protein[0], device=atoms.device), f_protein[1]
        if values.shape[-1:] != (len(indices),):
            raise ValueError(f"f_protein has {len(indices)} indices, but values of shape {tuple(values.shape)}.")
    if solvent_fraction is None:
        solvent_fraction = estimated_solvent_fraction(atoms)
    solvent_fraction = torch.as_tensor(solvent_fraction, dtype=torch.float64, device=atoms.device).detach()
    if not bool(((solvent_fraction > 0) & (solvent_fraction < 1)).all()):
        raise ValueError(f"solvent_fraction must lie between 0 and 1, not {solvent_fraction}.")
    density = density_map(values, crystal, indices, n_real)
    flat = density.flatten(-3)
    flat = flat - flat.mean(-1, keepdim=True)
    flat = flat / flat.square().mean(-1, keepdim=True).sqrt()
    cutoff = percentile(flat, solvent_fraction, surface_width)
    if voxel_average:
        steepness = _voxel_steepness(flat.unflatten(-1, n_real), steepness).flatten(-3)
        cutoff = _enclosing_level(flat, steepness, solvent_fraction, cutoff.detach())
    return torch.sigmoid((cutoff[..., None] - flat) * steepness).unflatten(-1, n_real)


def _enclosing_level(density, steepness, fraction, level):
    """The cutoff at which the mask's mean is the fraction, (...), from a first guess, with its exact gradient."""
    fraction = fraction.to(density.dtype)

    def excess_and_slope(level):
        mask = torch.sigmoid((level[..., None] - density) * steepness)
        return mask.mean(-1) - fraction, (mask * (1 - mask) * steepness).mean(-1).detach()

    with torch.no_grad():
        for _ in range(_NEWTON_STEPS):
            excess, slope = excess_and_slope(level)
            level = level - (excess / slope.clamp(min=1e-6)).clamp(-0.1, 0.1)
    # One more step, with a graph: the derivative of the level is that of the implicit function.
    excess, slope = excess_and_slope(level)
    return level - excess / slope.clamp(min=1e-6)


def _voxel_steepness(density, steepness):
    """The steepness of the average of sigmoid(steepness (c - map)) over each voxel, in which the map is linear.

    A sigmoid is close to the distribution function of a normal variable of variance pi^2 / (3 steepness^2); a linear
    function that changes by d1, d2, d3 along the edges of a box has the variance (d1^2 + d2^2 + d3^2) / 12 in it.
    """
    variance = math.pi**2 / (3 * steepness**2)
    for axis in (-3, -2, -1):
        change = (density.roll(-1, axis) - density.roll(1, axis)) / 2
        variance = variance + change.square() / 12
    return math.pi * (3 * variance).rsqrt()


def estimated_solvent_fraction(atoms):
    """Share of the cell that the atoms' number leaves to the solvent, (...) float64.

    One minus 18.4 Å^3 for each atom that is not a hydrogen, in proportion to its occupancy, and between 1 % and 99 %.
    It does not depend on where the atoms are: a fraction read off a mask would jump with them, and the gradient of the
    density-cutoff mask would be wrong.  It agrees with the fraction of mmtbx's mask with a standard deviation of 0.035
    over 57 deposited entries of 50 to 4,400 atoms, to which the volume was fitted.
    """
    counted = (atoms.occupancies.detach() * atoms.site_weights)[..., ~atoms.hydrogens]
    protein = VOLUME_PER_ATOM * counted.sum(-1) * atoms.crystal.order_z / atoms.crystal.volume
    return (1 - protein).clamp(0.01, 0.99)


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


def _resolution(crystal, n_real):
    """Three times the widest grid spacing, Å."""
    edges = crystal.orthogonalization.norm(dim=0).tolist()
    return 3 * max(edge / n for edge, n in zip(edges, n_real))


def _miller_indices(crystal, d_min):
    key = (crystal.unit_cell, crystal.hall_symbol, str(crystal.device), d_min)
    if key not in _INDICES:
        while len(_INDICES) >= 16:
            _INDICES.pop(next(iter(_INDICES)))
        _INDICES[key] = crystal.build_miller_indices(d_min)
    return _INDICES[key]


# Kept, so that what structure_factors and _expansion derive from an index tensor is found again.
_INDICES = {}
_EXPANSIONS = TensorCache()


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
    return _EXPANSIONS.get(
        miller_indices,
        (crystal.unit_cell, crystal.hall_symbol, tuple(n_real)),
        lambda: _make_expansion(crystal, miller_indices, n_real),
    )


def _make_expansion(crystal, miller_indices, n_real):
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
        0, inverse, torch.arange(len(places), device=device), "amin"
    )
    return unique, sources[first], phases[first], conjugates[first]
