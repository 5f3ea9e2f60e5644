"""Structure factors: one table of methods, one signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..plans import Plan
from .choice import choose_method
from .direct import sum_directly
from .fft import transform_density
from .methods import DEFAULT_MEMORY, Method
from .operation import arguments, naming
from .operation import structure_factor_gradients as _gradients
from .scatterers import PARAMETERS

#: The methods, by name.
METHODS: dict[str, Method] = {"direct": sum_directly, "fft": transform_density}

__all__ = ["DEFAULT_MEMORY", "METHODS", "Method", "structure_factor_gradients", "structure_factors"]


def structure_factors(
    atoms: Atoms,
    crystal: Crystal | Plan,
    miller_indices: Any = None,
    method: str = "auto",
    accuracy: float = 1e-4,
    memory: int = DEFAULT_MEMORY,
) -> torch.Tensor:
    """Structure factors of a model, differentiable in its parameters.

    Parameters
    ----------
    atoms : Atoms
        Parameters of shape (..., n_atoms, ...); leading dimensions are a batch of models.
    crystal : Crystal or Plan
        The crystal the atoms are in; or what :func:`~mmtbx_sfdiff.plan` made of it and the indices, for many calls.
    miller_indices : torch.Tensor, flex.miller_index or miller.set, optional
        (n, 3) integers, in any order, inside the asymmetric unit or not; with a crystal.
    method : {"auto", "direct", "fft"}
        ``direct`` sums equation 4 term by term, exact to rounding.  ``fft`` samples the density on a grid
        that is fine enough for ``accuracy``.  ``auto`` takes direct summation unless the FFT is
        faster by a cost model.
    accuracy : float
        Largest relative error asked for, ||F - F_direct|| / ||F_direct||, and the same of the gradient in each parameter.
    memory : int
        Bound on working storage, bytes.

    Returns
    -------
    torch.Tensor
        (..., n) complex in the atoms' precision and on their device; empty for no models or reflections, zero for no
        atoms.  Differentiable any number of times in sites_cart, u_iso, u_star, occupancies, fp and fdp.

    Raises
    ------
    ValueError
        An unknown method; atoms of another crystal; a bad shape, accuracy or memory bound; numbers that nothing can be
        computed with: the first bad atom is named.
    TypeError
        Miller indices that are not integers; parameters of several dtypes.

    Examples
    --------
    >>> import mmtbx_sfdiff as sfdiff
    >>> from cctbx.development import random_structure
    >>> from cctbx import sgtbx
    >>> structure = random_structure.xray_structure(sgtbx.space_group_info("P 21 21 21"), elements=["C"] * 8)
    >>> atoms = sfdiff.Atoms.from_cctbx(structure)
    >>> plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(2.5))
    >>> sites = atoms.sites_cart.clone().requires_grad_()
    >>> f = sfdiff.structure_factors(atoms.replace(sites_cart=sites), plan)
    >>> f.abs().sum().backward()
    >>> sites.grad.shape
    torch.Size([8, 3])
    """
    function = _checked(method, accuracy, memory)
    return function(atoms, crystal, miller_indices, accuracy=accuracy, memory=memory)


def structure_factor_gradients(
    atoms: Atoms,
    crystal: Crystal | Plan,
    miller_indices: Any,
    d_target_d_f: torch.Tensor,
    parameters: Sequence[str] = ("sites_cart",),
    method: str = "auto",
    accuracy: float = 1e-4,
    memory: int = DEFAULT_MEMORY,
) -> tuple[torch.Tensor, ...]:
    """Gradients of a target whose derivative by the structure factors is known, without computing these.

    Parameters
    ----------
    atoms, crystal, miller_indices, method, accuracy, memory
        See :func:`structure_factors`; None for the indices with a plan.
    d_target_d_f : torch.Tensor
        (..., n) complex, dT/dRe(F) + i dT/dIm(F), as autograd has it.
    parameters : sequence of str
        Which of sites_cart, u_iso, u_star, occupancies, fp, fdp.

    Returns
    -------
    tuple of torch.Tensor
        In the shape of each parameter.

    Raises
    ------
    ValueError, TypeError
        As :func:`structure_factors`.

    Examples
    --------
    >>> f = sfdiff.structure_factors(atoms, crystal, data.miller_indices)
    >>> d_target_d_f = f - data.f_obs * f / f.abs()              # of half the sum of (|F| - F_obs)^2
    >>> d_sites, d_u = structure_factor_gradients(atoms, crystal, data.miller_indices, d_target_d_f, ("sites_cart", "u_iso"))
    >>> d_sites.shape, d_u.shape
    (torch.Size([40, 3]), torch.Size([40]))
    """
    _checked(method, accuracy, memory)
    unknown = [name for name in parameters if name not in PARAMETERS]
    if unknown:
        raise ValueError(f"Atoms has no parameter {unknown[0]!r}; choose from {', '.join(PARAMETERS)}.")
    batch, args = arguments(atoms, crystal, miller_indices, method, accuracy, memory)
    seed = d_target_d_f.expand(*batch, d_target_d_f.shape[-1]).reshape(-1, d_target_d_f.shape[-1])
    wanted = tuple(name in parameters for name in PARAMETERS)
    with naming(atoms):
        found = _gradients(seed, wanted, *args)
    by_name = dict(zip((name for name in PARAMETERS if name in parameters), found))
    return tuple(
        by_name[name].reshape(*batch, *by_name[name].shape[1:]).sum_to_size(getattr(atoms, name).shape)
        for name in parameters
    )


def _checked(method: str, accuracy: float, memory: int) -> Method:
    """The method of this name."""
    if method != "auto" and method not in METHODS:
        raise ValueError(f"Unknown method {method!r}: choose from auto, {', '.join(METHODS)}.")
    if not 0 < accuracy < 1:
        raise ValueError(f"accuracy must be between 0 and 1, not {accuracy!r}.")
    if not memory >= 2**20:
        raise ValueError(f"memory must be at least one MiB ({2**20} bytes), not {memory!r}.")
    return choose_method if method == "auto" else METHODS[method]
