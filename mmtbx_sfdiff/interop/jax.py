"""This engine as functions of JAX: jitted, differentiable by ``jax.grad``, mapped by ``jax.vmap``.

The calculation stays in PyTorch, on the CPU; JAX calls it back (``jax.pure_callback`` under ``jax.custom_vjp``), with
arrays shared by DLPack.  A mapped function is one call with a batch.  Forward-mode derivatives (``jax.jvp``) and second
derivatives are refused by JAX in its own words.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ..atoms import Atoms
from ..crystal import Crystal, as_miller_tensor
from ..reflections import Reflections
from .arrays import PARAMETERS, protein_pair, solvent_pair

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError("mmtbx_sfdiff.interop.jax needs JAX: pip install jax.") from error

_Function = Callable[..., Any]
_KEPT = 32
_functions: collections.OrderedDict[Any, tuple[_Function, Any]] = collections.OrderedDict()


def structure_factors(
    atoms: Atoms,
    crystal: Crystal,
    miller_indices: Any,
    *,
    method: str = "auto",
    accuracy: float = 1e-4,
    **parameters: Any,
) -> jax.Array:
    """F of the atoms.

    Parameters
    ----------
    atoms : Atoms
        What is not given as an array.
    crystal : Crystal
    miller_indices : torch.Tensor or array
        (n, 3) integers.
    method, accuracy
        Of :func:`mmtbx_sfdiff.structure_factors`.
    **parameters : jax.Array
        ``sites_cart`` (..., n_atoms, 3) Å, ``u_iso``, ``u_star``, ``occupancies``: the result is a function of these.

    Returns
    -------
    jax.Array
        (..., n) complex, in the precision of the parameters.

    Raises
    ------
    TypeError, ValueError
        No parameter, or one that is not an array of floating-point numbers or has another shape than the atoms.

    Examples
    --------
    >>> import jax.numpy as jnp, mmtbx_sfdiff as sfdiff
    >>> from mmtbx_sfdiff.interop import jax as sfjax
    >>> crystal = sfdiff.Crystal((20, 25, 30, 90, 90, 90), "P 21 21 21")
    >>> atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "O"], [[1.0, 2.0, 3.0], [2.0, 2.5, 3.0]], b_iso=[10.0, 12.0])
    >>> indices = crystal.build_miller_indices(3.0)
    >>> sites = jnp.asarray(atoms.sites_cart.numpy())
    >>> bool(jnp.isfinite(sfjax.structure_factors(atoms, crystal, indices, sites_cart=sites)).all())
    True
    """
    return _call(protein_pair, atoms, crystal, miller_indices, parameters, {"method": method, "accuracy": accuracy})


def solvent_structure_factors(
    atoms: Atoms, crystal: Crystal, miller_indices: Any, *, options: dict[str, Any] | None = None, **parameters: Any
) -> jax.Array:
    """F of the bulk solvent; ``options`` of :func:`mmtbx_sfdiff.solvent_structure_factors`, the rest as
    :func:`structure_factors`."""
    return _call(solvent_pair, atoms, crystal, miller_indices, parameters, options or {})


def r_factors(
    data: Reflections, f_model: jax.Array, selection: Any = None, f_obs_scale: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """R-work and R-free of scaled structure factors.

    Parameters
    ----------
    data : Reflections
    f_model : jax.Array
        (..., n) complex, on the scale of ``f_obs / f_obs_scale``.
    selection : array, optional
        (n,) bool, which reflections count: ``scales.selection``.
    f_obs_scale : float
        ``scales.f_obs_scale``.

    Returns
    -------
    r_work, r_free : jax.Array
        (...,), differentiable in ``f_model``; R-free is NaN without a test set.
    """
    f_obs = np.asarray(data.f_obs.cpu()) / f_obs_scale
    chosen = np.ones(len(f_obs), bool) if selection is None else np.asarray(selection)
    work = np.asarray(data.work.cpu())

    def r(rows: np.ndarray) -> jax.Array:
        if not rows.any():
            return jnp.full(f_model.shape[:-1], jnp.nan)
        observed = jnp.asarray(f_obs[rows])
        calculated = jnp.abs(f_model)[..., rows]
        scale = (calculated * observed).sum(-1) / (calculated**2).sum(-1)
        return jnp.abs(observed - scale[..., None] * calculated).sum(-1) / observed.sum()

    return r(chosen & work), r(chosen & ~work)


def _call(
    make: _Function,
    atoms: Atoms,
    crystal: Crystal,
    miller_indices: Any,
    parameters: dict[str, Any],
    options: dict[str, Any],
) -> jax.Array:
    if atoms.device.type != "cpu":
        raise ValueError("JAX calls this package back on the CPU: give it atoms on the CPU, atoms.to(device='cpu').")
    names = tuple(name for name in PARAMETERS if name in parameters)
    unknown = sorted(set(parameters) - set(names))
    if unknown or not names:
        raise TypeError(f"Parameters are some of {', '.join(PARAMETERS)}, not {', '.join(unknown) or 'none'}.")
    arrays = [jnp.asarray(parameters[name]) for name in names]
    dtype = jnp.result_type(*arrays)
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"Parameters must be float32 or float64, not {dtype}.")
    for name, array in zip(names, arrays):
        tail = getattr(atoms, name).shape[-1 - PARAMETERS[name] :]
        if array.shape[array.ndim - len(tail) :] != tuple(tail):
            raise ValueError(f"{name} must have the shape (..., {', '.join(map(str, tail))}), not {array.shape}.")
    function = _function(make, atoms, crystal, miller_indices, names, options)
    found: jax.Array = function(*(a.astype(dtype) for a in arrays))
    return found


def _function(
    make: _Function,
    atoms: Atoms,
    crystal: Crystal,
    miller_indices: Any,
    names: tuple[str, ...],
    options: dict[str, Any],
) -> _Function:
    """The JAX function of these constants; the same object for the same ones, or JAX would compile at every call."""
    key = (make, id(atoms), id(crystal), id(miller_indices), names, tuple(sorted(options.items())))
    if key not in _functions:
        value, vjp = make(atoms, crystal, as_miller_tensor(miller_indices), names, **options)
        function = _make(value, vjp, names, miller_indices)
        # The objects are kept with it, so that an id is theirs as long as it is a key.
        _functions[key] = function, (atoms, crystal, miller_indices)
        while len(_functions) > _KEPT:
            _functions.popitem(last=False)
    _functions.move_to_end(key)
    return _functions[key][0]


def _make(value: _Function, vjp: _Function, names: tuple[str, ...], miller_indices: Any) -> _Function:
    n = len(as_miller_tensor(miller_indices))

    def batch_of(arrays: Any) -> tuple[int, ...]:
        shape: tuple[int, ...] = jnp.broadcast_shapes(
            *(a.shape[: a.ndim - 1 - PARAMETERS[name]] for name, a in zip(names, arrays))
        )
        return shape

    def host(function: _Function, shapes: Any, *arrays: Any) -> Any:
        return jax.pure_callback(function, shapes, *arrays, vmap_method="broadcast_all")

    def plain(*arrays: Any) -> Any:
        dtype = jnp.complex64 if arrays[0].dtype == jnp.float32 else jnp.complex128
        return host(value, jax.ShapeDtypeStruct((*batch_of(arrays), n), dtype), *arrays)

    f: Any = jax.custom_vjp(plain)

    def forward(*arrays: Any) -> Any:
        return f(*arrays), arrays

    def backward(arrays: Any, cotangent: Any) -> Any:
        def gradients(cotangent: Any, *arrays: Any) -> Any:
            return tuple(g.astype(a.dtype) for g, a in zip(vjp(np.conj(cotangent), *arrays), arrays))

        shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays)
        return host(gradients, shapes, cotangent, *arrays)

    f.defvjp(forward, backward)
    return cast(_Function, f)
