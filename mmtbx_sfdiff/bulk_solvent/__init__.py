"""Bulk-solvent masks: one table of methods, one signature."""

from __future__ import annotations

import inspect

from ..kernels.threads import own_threads
from .binary import binary
from .density_cutoff import density_cutoff
from .probe_shrink import probe_shrink, probe_shrink_defaults, probe_shrink_structure_factors
from .transform import F_MASK_D_MIN, mask_structure_factors

MASKS = {"probe_shrink": probe_shrink, "density_cutoff": density_cutoff, "binary": binary}

__all__ = [
    "DEFAULT_MASK",
    "MASKS",
    "F_MASK_D_MIN",
    "mask_structure_factors",
    "probe_shrink_defaults",
    "solvent_fraction",
    "solvent_mask",
    "solvent_structure_factors",
]


def solvent_mask(
    atoms,
    crystal,
    method="probe_shrink",
    grid_step=0.6,
    r_probe=None,
    r_shrink=None,
    softness=None,
    n_real=None,
    **options,
):
    """Bulk-solvent mask of a model on the whole unit cell: 1 in the solvent, 0 in the protein.

    Parameters
    ----------
    atoms : Atoms
        Parameters of shape (..., n_atoms, ...); leading dimensions are a batch of models.
    crystal : Crystal
        The crystal the atoms are in.
    method : {"probe_shrink", "density_cutoff", "binary"}
        ``probe_shrink`` is smooth, and differentiable in the atoms and in its own radii; ``binary`` is mmtbx's mask bit
        for bit, without a gradient; ``density_cutoff`` cuts the density of F_protein at a percentile.
    grid_step : float
        Å; the grid is that of :meth:`Crystal.grid`, mmtbx's for the same step.
    r_probe, r_shrink, softness : float or torch.Tensor, optional
        Å; by default the method's own.
    n_real : tuple of int, optional
        The grid itself, instead of ``grid_step``.
    **options
        The method's other arguments: ``radii``, ``include_hydrogens``, ``include_zero_occupancy``, ``memory``,
        ``solvent_fraction``, ...

    Returns
    -------
    torch.Tensor
        (..., n1, n2, n3) in the atoms' dtype and on their device.

    Raises
    ------
    ValueError
        An unknown method; atoms of another crystal; a grid that does not carry the symmetry; a bad radius.
    TypeError
        An option that the method does not have.
    """
    function, n_real, options = _arguments(
        atoms, crystal, method, grid_step, r_probe, r_shrink, softness, n_real, options
    )
    return function(atoms, atoms.crystal, n_real, **options)


def solvent_structure_factors(
    atoms,
    crystal,
    miller_indices,
    d_min=F_MASK_D_MIN,
    method="probe_shrink",
    grid_step=0.6,
    r_probe=None,
    r_shrink=None,
    softness=None,
    n_real=None,
    **options,
):
    """Structure factors of the bulk-solvent mask of a model: those of :func:`solvent_mask`, by a shorter way if there is one.

    Parameters
    ----------
    miller_indices, d_min
        See :func:`mask_structure_factors`.
    atoms, crystal, method, grid_step, r_probe, r_shrink, softness, n_real, **options
        See :func:`solvent_mask`.

    Returns
    -------
    torch.Tensor
        (..., n) complex in the atoms' precision and on their device.

    Raises
    ------
    ValueError, TypeError
        As :func:`solvent_mask` and :func:`mask_structure_factors`.
    """
    function, n_real, options = _arguments(
        atoms, crystal, method, grid_step, r_probe, r_shrink, softness, n_real, options
    )
    if function is probe_shrink:
        with own_threads(atoms.device):
            found = probe_shrink_structure_factors(atoms, atoms.crystal, n_real, miller_indices, d_min, **options)
        if found is not None:
            return found
    return mask_structure_factors(
        function(atoms, atoms.crystal, n_real, **options), atoms.crystal, miller_indices, d_min
    )


def _arguments(atoms, crystal, method, grid_step, r_probe, r_shrink, softness, n_real, options):
    """The function of a method, its grid and its options, checked."""
    if method not in MASKS:
        raise ValueError(f"Unknown method {method!r}: choose from {', '.join(MASKS)}.")
    if not atoms.crystal.is_same_as(crystal):
        raise ValueError(f"The atoms belong to {atoms.crystal!r}, not to {crystal!r}.")
    if n_real is None:
        if not float(grid_step) > 0:
            raise ValueError(f"grid_step must be positive, not {grid_step!r}.")
        n_real = crystal.grid(grid_step)
    elif len(n_real) != 3 or min(n_real) < 1:
        raise ValueError(f"n_real must be three positive integers, not {n_real!r}.")
    function = MASKS[method]
    named = {"r_probe": r_probe, "r_shrink": r_shrink, "softness": softness}
    options |= {name: value for name, value in named.items() if value is not None}
    known = list(inspect.signature(function).parameters)[3:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"The {method} mask has no option {', '.join(unknown)}; it has {', '.join(known)}.")
    return function, tuple(int(n) for n in n_real), options


def solvent_fraction(mask):
    """Share of the unit cell that a mask (..., n1, n2, n3) gives to the solvent, (...)."""
    return mask.mean((-3, -2, -1))


DEFAULT_MASK = inspect.signature(solvent_mask).parameters["method"].default
