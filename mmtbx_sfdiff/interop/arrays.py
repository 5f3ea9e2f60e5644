"""Values and vector-Jacobian products on NumPy arrays: the pair that any framework of automatic differentiation can wrap.

A target's derivative comes in as ``dT/dRe(F) + i dT/dIm(F)``, PyTorch's convention; JAX's is its conjugate.
docs/jax.rst shows the pair under ``jax.custom_vjp`` and ``tf.custom_gradient``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import numpy as np

from ..atoms import Atoms
from ..bulk_solvent import solvent_structure_factors
from ..crystal import Crystal
from ..structure_factors import structure_factor_gradients, structure_factors

#: Parameters of the atoms that may be given as arrays, and their dimensions beyond the atoms.
PARAMETERS = {"sites_cart": 1, "u_iso": 0, "u_star": 1, "occupancies": 0}
Value = Callable[..., np.ndarray]
Vjp = Callable[..., tuple[np.ndarray, ...]]


def protein_pair(
    atoms: Atoms,
    crystal: Crystal,
    miller_indices: Any,
    parameters: Sequence[str] = ("sites_cart",),
    **options: Any,
) -> tuple[Value, Vjp]:
    """F of the atoms as a function of some of their parameters.

    Parameters
    ----------
    atoms, crystal, miller_indices, **options
        Of :func:`mmtbx_sfdiff.structure_factors`.
    parameters : sequence of str
        Of sites_cart (Å), u_iso (Å^2), u_star, occupancies.

    Returns
    -------
    value : callable
        Arrays (..., n_atoms, ...) in the order of ``parameters`` -> F (..., n) complex, in the precision of the first.
    vjp : callable
        Derivative (..., n) complex and the same arrays -> the target's gradient in each of them.

    Raises
    ------
    ValueError
        An unknown parameter; whatever :func:`mmtbx_sfdiff.structure_factors` refuses.

    Examples
    --------
    >>> import mmtbx_sfdiff as sfdiff
    >>> from mmtbx_sfdiff.interop.arrays import protein_pair
    >>> crystal = sfdiff.Crystal((20, 25, 30, 90, 90, 90), "P 21 21 21")
    >>> atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "O"], [[1.0, 2.0, 3.0], [2.0, 2.5, 3.0]], b_iso=[10.0, 12.0])
    >>> value, vjp = protein_pair(atoms, crystal, crystal.build_miller_indices(3.0))
    >>> f = value(atoms.sites_cart.numpy())
    >>> gradient, = vjp(f, atoms.sites_cart.numpy())
    >>> gradient.shape
    (2, 3)
    """
    names = _checked(parameters)

    def value(*arrays: Any) -> np.ndarray:
        with torch.no_grad():
            return structure_factors(_placed(atoms, names, arrays), crystal, miller_indices, **options).numpy()

    def vjp(derivative: Any, *arrays: Any) -> tuple[np.ndarray, ...]:
        placed = _placed(atoms, names, arrays)
        found = structure_factor_gradients(placed, crystal, miller_indices, _tensor(derivative), names, **options)
        return tuple(x.numpy() for x in found)

    return value, vjp


def solvent_pair(
    atoms: Atoms,
    crystal: Crystal,
    miller_indices: Any,
    parameters: Sequence[str] = ("sites_cart",),
    **options: Any,
) -> tuple[Value, Vjp]:
    """F of the bulk solvent, likewise; ``options`` of :func:`mmtbx_sfdiff.solvent_structure_factors`."""
    names = _checked(parameters)

    def value(*arrays: Any) -> np.ndarray:
        with torch.no_grad():
            return solvent_structure_factors(_placed(atoms, names, arrays), crystal, miller_indices, **options).numpy()

    def vjp(derivative: Any, *arrays: Any) -> tuple[np.ndarray, ...]:
        leaves = [x.requires_grad_() for x in _leaves(atoms, names, arrays)]
        with torch.enable_grad():
            placed = _as_type(atoms, leaves[0]).replace(**dict(zip(names, leaves)))
            f = solvent_structure_factors(placed, crystal, miller_indices, **options)
        found = torch.autograd.grad(f, leaves, _tensor(derivative).to(f.dtype), allow_unused=True)
        return tuple(
            np.zeros(leaf.shape, leaf.detach().numpy().dtype) if x is None else x.numpy()
            for x, leaf in zip(found, leaves)
        )

    return value, vjp


def _checked(parameters: Sequence[str]) -> tuple[str, ...]:
    unknown = sorted(set(parameters) - set(PARAMETERS))
    if unknown or not parameters:
        raise ValueError(f"parameters are some of {', '.join(PARAMETERS)}, not {', '.join(unknown) or 'none'}.")
    return tuple(parameters)


def _tensor(array: Any) -> torch.Tensor:
    """The array's own memory where it may be shared, else a copy."""
    if not isinstance(array, np.ndarray) and hasattr(array, "__dlpack__"):
        return torch.from_dlpack(array)
    array = np.asarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _leaves(atoms: Atoms, names: tuple[str, ...], arrays: Sequence[Any]) -> list[torch.Tensor]:
    if len(arrays) != len(names):
        raise ValueError(f"{len(names)} arrays are needed, for {', '.join(names)}, not {len(arrays)}.")
    tensors = [_tensor(array) for array in arrays]
    dtype = tensors[0].dtype
    return [tensor.detach().to(dtype).clone() for tensor in tensors]


def _as_type(atoms: Atoms, like: torch.Tensor) -> Atoms:
    return atoms if atoms.dtype == like.dtype else atoms.to(dtype=like.dtype)


def _placed(atoms: Atoms, names: tuple[str, ...], arrays: Sequence[Any]) -> Atoms:
    leaves = _leaves(atoms, names, arrays)
    placed: Atoms = _as_type(atoms, leaves[0]).replace(**dict(zip(names, leaves)))
    return placed
