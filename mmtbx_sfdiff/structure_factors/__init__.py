"""Structure factors: one table of methods, one signature."""

from __future__ import annotations

import torch

from ..crystal import as_miller_tensor
from ..kernels.jobs import FFTUnsuitable
from ..kernels.threads import own_threads
from ..plans.miller import miller_plan
from .direct import DEFAULT_MEMORY, direct
from .fft import fft
from .setting import LEAST_ACCURACY, estimated_time
from .values import without_values

METHODS = {"direct": direct, "fft": fft}
# Measured on one core, ns: a term of direct summation as a matrix product, a term that does not separate, and
# what direct summation and an FFT cost before the first atom.
_PRODUCT_TERM, _EXPONENTIAL_TERM, _DIRECT_START, _FFT_START = 1.5, 3.0, 1.5e6, 0.8e6
# Direct summation is exact: it is given up for a gain only, and its gradients cost more than the FFT's.
_GAIN = 1.2
# A sum that takes less, ns, is done exactly, and without compiling anything.
_SMALL = 5e6


def structure_factors(atoms, crystal, miller_indices, method="auto", accuracy=1e-4, memory=DEFAULT_MEMORY):
    """Structure factors of a model, differentiable in its parameters.

    Parameters
    ----------
    atoms : Atoms
        Parameters of shape (..., n_atoms, ...); leading dimensions are a batch of models.
    crystal : Crystal
        The crystal the atoms are in.
    miller_indices : torch.Tensor, flex.miller_index or miller.set
        (n, 3) integers, in any order, inside the asymmetric unit or not.
    method : {"auto", "direct", "fft"}
        ``direct`` sums equation 4 term by term, exact to rounding.  ``fft`` samples the density on a grid
        that is fine enough for ``accuracy``.  ``auto`` takes direct summation unless the FFT is
        faster by a cost model.
    accuracy : float
        Largest relative error asked for, ||F - F_direct|| / ||F_direct||, and the same of the gradients.
    memory : int
        Bound on working storage, bytes.

    Returns
    -------
    torch.Tensor
        (..., n) complex in the atoms' precision and on their device.

    Raises
    ------
    ValueError
        An unknown method; atoms of another crystal; a bad shape, accuracy or memory bound.
    TypeError
        Miller indices that are not integers.
    """
    if method != "auto" and method not in METHODS:
        raise ValueError(f"Unknown method {method!r}: choose from auto, {', '.join(METHODS)}.")
    if not 0 < accuracy < 1:
        raise ValueError(f"accuracy must be between 0 and 1, not {accuracy!r}.")
    if not memory >= 2**20:
        raise ValueError(f"memory must be at least one MiB ({2**20} bytes), not {memory!r}.")
    if not atoms.crystal.is_same_as(crystal):
        raise ValueError(f"The atoms belong to {atoms.crystal!r}, not to {crystal!r}.")
    indices = as_miller_tensor(miller_indices, device=atoms.device)
    if method == "auto":
        faster, population = _fft_is_faster(atoms, indices, accuracy, memory)
        if faster:
            try:
                return fft(atoms, atoms.crystal, indices, accuracy=accuracy, memory=memory, population=population)
            except FFTUnsuitable:
                pass
        method = "direct"
    return METHODS[method](atoms, atoms.crystal, indices, accuracy=accuracy, memory=memory)


def structure_factor_gradients(
    atoms,
    crystal,
    miller_indices,
    d_target_d_f,
    parameters=("sites_cart",),
    method="auto",
    accuracy=1e-4,
    memory=DEFAULT_MEMORY,
):
    """Gradients of a target whose derivative by the structure factors is known, without computing these.

    Parameters
    ----------
    atoms, crystal, miller_indices, method, accuracy, memory
        See :func:`structure_factors`.
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
    """
    leaves = [getattr(atoms, name).detach().clone().requires_grad_() for name in parameters]
    with torch.enable_grad(), without_values():
        f = structure_factors(
            atoms.replace(**dict(zip(parameters, leaves))),
            crystal,
            miller_indices,
            method=method,
            accuracy=accuracy,
            memory=memory,
        )
    gradients = torch.autograd.grad(f, leaves, d_target_d_f.to(f.dtype), allow_unused=True)
    return tuple(torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, gradients))


def _fft_is_faster(atoms, indices, accuracy, memory):
    """Whether it is, and what was found out about the atoms on the way."""
    if accuracy < LEAST_ACCURACY or len(indices) == 0:
        return False, None
    plan = miller_plan(atoms.crystal, indices)
    n_aniso = int(atoms.use_u_aniso.sum())
    n_iso = atoms.n_atoms - n_aniso
    term = _PRODUCT_TERM if plan.separable else _EXPONENTIAL_TERM
    n_models = atoms.batch_shape.numel()
    direct_time = _DIRECT_START + n_models * len(plan.indices) * (n_iso * term + n_aniso * _EXPONENTIAL_TERM)
    if direct_time < _SMALL:
        return False, None
    try:
        with own_threads(atoms.device):
            time, population = estimated_time(atoms, plan, accuracy, memory)
    except FFTUnsuitable:
        return False, None
    return _GAIN * (time + _FFT_START) < direct_time, population
