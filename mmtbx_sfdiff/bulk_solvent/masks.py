"""Bulk-solvent masks: one table of methods, one signature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..kernels import opaque
from ..kernels.opaque import constant_result
from ..plans import Plan
from .binary import Binary
from .density_cutoff import DensityCutoff
from .options import Ensemble
from .probe_shrink import ProbeShrink
from .transform import F_MASK_D_MIN, the_plan

# Grid points of a cell; indices of points are 32 bits wide.
_LARGEST_GRID = 2**31 - 1


class Mask(Protocol):
    """A way to make a bulk-solvent mask: an entry of :data:`MASKS`.

    Attributes
    ----------
    name : str
    options : type
        A frozen dataclass of what can be asked for by name; it checks what it is given.
    option_names : tuple of str
        Its fields.

    Examples
    --------
    >>> mask = MASKS["binary"]
    >>> rho = mask.on_grid(atoms, crystal, (36, 48, 54), mask.options())
    >>> mask.name, rho.unique()
    ('binary', tensor([0., 1.], dtype=torch.float64))
    >>> plan = sfdiff.plan(crystal, data.miller_indices)
    >>> mask.structure_factors(atoms, plan, (36, 48, 54), None, mask.options()).shape
    torch.Size([881])
    """

    name: str
    options: Any
    option_names: tuple[str, ...]

    def on_grid(
        self,
        atoms: Atoms,
        crystal: Crystal,
        n_real: tuple[int, int, int],
        options: Any,
        ensemble: Ensemble | None = None,
    ) -> torch.Tensor:
        """The mask (..., n1, n2, n3) in the atoms' dtype: 1 in the solvent, 0 in the protein."""
        ...

    def structure_factors(
        self,
        atoms: Atoms,
        plan: Plan,
        n_real: tuple[int, int, int],
        d_min: float | None,
        options: Any,
        ensemble: Ensemble | None = None,
    ) -> torch.Tensor:
        """F (..., n) of that mask, by the shortest way there is."""
        ...


MASKS: dict[str, Mask] = {mask.name: mask for mask in (ProbeShrink(), DensityCutoff(), Binary())}
DEFAULT_MASK = "probe_shrink"


def solvent_mask(
    atoms: Atoms,
    crystal: Crystal | Plan,
    method: str = DEFAULT_MASK,
    grid_step: float = 0.6,
    r_probe: float | torch.Tensor | None = None,
    r_shrink: float | torch.Tensor | None = None,
    softness: float | torch.Tensor | None = None,
    n_real: Sequence[int] | None = None,
    ensemble: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Bulk-solvent mask of a model on the whole unit cell: 1 in the solvent, 0 in the protein.

    Parameters
    ----------
    atoms : Atoms
        Parameters of shape (..., n_atoms, ...); leading dimensions are a batch of models.
    crystal : Crystal or Plan
        The crystal the atoms are in, or a plan of it.
    method : {"probe_shrink", "density_cutoff", "binary"}
        ``probe_shrink`` is smooth, and differentiable in the atoms and in its own radii; ``binary`` is mmtbx's mask bit for
        bit, without a gradient; ``density_cutoff`` cuts the density of F_protein at a percentile.
    grid_step : float
        Å; the grid is that of :meth:`Crystal.grid`, mmtbx's for the same step.
    r_probe, r_shrink, softness : float or torch.Tensor, optional
        Å; by default the method's own.
    n_real : sequence of int, optional
        The grid itself, instead of ``grid_step``.
    ensemble : torch.Tensor, optional
        (..., n_conformers) occupancies: the last dimension of the models are conformers of one crystal, and the result is
        one mask of them all.  Where conformers that make up an occupancy of ``full_occupancy`` (0.1) or more have protein,
        there is no solvent; see :mod:`~mmtbx_sfdiff.bulk_solvent.ensemble`.  Any number of identical conformers has the
        mask of one.
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
        An unknown method; atoms of another crystal; a grid that does not carry the symmetry; a bad radius; an atom with a
        number that is not finite.
    TypeError
        An option that the method does not have.
    NotImplementedError
        In a second derivative, or a derivative in forward mode.

    Examples
    --------
    >>> mask = sfdiff.solvent_mask(atoms, crystal)
    >>> mask.shape
    torch.Size([36, 48, 54])
    >>> two = atoms.replace(sites_cart=torch.stack([atoms.sites_cart, atoms.sites_cart + 1.0]))
    >>> sfdiff.solvent_mask(two, crystal, ensemble=torch.tensor([0.5, 0.5])).shape
    torch.Size([36, 48, 54])
    """
    asked = _asked(atoms, crystal, method, grid_step, r_probe, r_shrink, softness, n_real, ensemble, options)
    return asked.mask.on_grid(atoms, atoms.crystal, asked.n_real, asked.options, asked.ensemble)


def solvent_structure_factors(
    atoms: Atoms,
    crystal: Crystal | Plan,
    miller_indices: Any = None,
    d_min: float | None = F_MASK_D_MIN,
    method: str = DEFAULT_MASK,
    grid_step: float = 0.6,
    r_probe: float | torch.Tensor | None = None,
    r_shrink: float | torch.Tensor | None = None,
    softness: float | torch.Tensor | None = None,
    n_real: Sequence[int] | None = None,
    ensemble: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Structure factors of the bulk-solvent mask of a model: those of :func:`solvent_mask`, by a shorter way if there is one.

    Parameters
    ----------
    miller_indices, d_min
        See :func:`mask_structure_factors`; the indices are left out with a plan.
    atoms, crystal, method, grid_step, r_probe, r_shrink, softness, n_real, ensemble, **options
        See :func:`solvent_mask`.

    Returns
    -------
    torch.Tensor
        (..., n) complex in the atoms' precision and on their device.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As :func:`solvent_mask` and :func:`mask_structure_factors`.

    Examples
    --------
    >>> plan = sfdiff.plan(crystal, crystal.build_miller_indices(d_min=2.0))
    >>> sfdiff.solvent_structure_factors(atoms, plan).shape == (len(plan),)
    True
    """
    asked = _asked(atoms, crystal, method, grid_step, r_probe, r_shrink, softness, n_real, ensemble, options)
    plan = the_plan(crystal if isinstance(crystal, Plan) else atoms.crystal, miller_indices).to(atoms.device)
    return asked.mask.structure_factors(atoms, plan, asked.n_real, d_min, asked.options, asked.ensemble)


@dataclasses.dataclass(frozen=True, eq=False)
class _Asked:
    """A mask, its grid and its options, checked."""

    mask: Mask
    n_real: tuple[int, int, int]
    options: Any
    ensemble: Ensemble | None


def _asked(
    atoms: Atoms,
    place: Crystal | Plan,
    method: str,
    grid_step: float,
    r_probe: float | torch.Tensor | None,
    r_shrink: float | torch.Tensor | None,
    softness: float | torch.Tensor | None,
    n_real: Sequence[int] | None,
    ensemble: torch.Tensor | None,
    options: dict[str, Any],
) -> _Asked:
    mask = MASKS.get(method)
    if mask is None:
        raise ValueError(f"Unknown method {method!r}: choose from {', '.join(MASKS)}.")
    crystal = place.crystal if isinstance(place, Plan) else place
    if not atoms.crystal.is_same_as(crystal):
        raise ValueError(f"The atoms belong to {atoms.crystal!r}, not to {crystal!r}.")
    if n_real is None:
        n_real = _grid(crystal.handle, float(grid_step))
    elif len(n_real) != 3 or min(n_real) < 1 or math.prod(n_real) > _LARGEST_GRID:
        raise ValueError(f"n_real must be three positive integers, not {n_real!r}.")
    n1, n2, n3 = n_real
    named = {"r_probe": r_probe, "r_shrink": r_shrink, "softness": softness}
    given = options | {name: value for name, value in named.items() if value is not None}
    unknown = sorted(name for name in given if name not in mask.option_names)
    if unknown:
        raise TypeError(f"The {method} mask has no option {', '.join(unknown)}; it has {', '.join(mask.option_names)}.")
    if ensemble is not None and not isinstance(ensemble, torch.Tensor):
        raise TypeError(f"ensemble must be a tensor of occupancies, not {type(ensemble).__name__}.")
    return _Asked(
        mask, (int(n1), int(n2), int(n3)), mask.options(**given), None if ensemble is None else Ensemble(ensemble)
    )


@constant_result
def _grid(crystal: int, step: float) -> tuple[int, int, int]:
    there = opaque.held(crystal)
    if not 0 < step < math.inf:
        raise ValueError(f"grid_step must be positive, not {step!r}.")
    if there.volume / step**3 > _LARGEST_GRID:
        raise ValueError(f"grid_step {step!r} Å is too small for this cell: use a larger one.")
    found: tuple[int, int, int] = there.grid(step)
    return found


def solvent_fraction(mask: torch.Tensor) -> torch.Tensor:
    """Share of the unit cell that a mask (..., n1, n2, n3) gives to the solvent, (...).

    Examples
    --------
    >>> import torch
    >>> solvent_fraction(torch.ones(2, 4, 4, 4))
    tensor([1., 1.])
    """
    return mask.mean((-3, -2, -1))
