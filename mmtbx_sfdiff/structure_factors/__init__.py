"""Structure factors: one table of methods, one signature."""
from __future__ import annotations

from ..crystal import as_miller_tensor
from .direct import DEFAULT_MEMORY, direct
from .fft import fft
from .fft_setting import LEAST_ACCURACY, estimated_time
from .miller_plan import miller_plan
from .splatting import FFTUnsuitable

METHODS = {"direct": direct, "fft": fft}
# Measured on one core, ns: a term of direct summation as a matrix product, a term that does not separate, and
# what direct summation and an FFT cost before the first atom.
_PRODUCT_TERM, _EXPONENTIAL_TERM, _DIRECT_START, _FFT_START = 1.5, 3.0, 1.5e6, 0.8e6
# Direct summation is exact: it is given up for a gain only, and its gradients cost more than the FFT's.
_GAIN = 1.2


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
        if _fft_is_faster(atoms, indices, accuracy, memory):
            try:
                return fft(atoms, atoms.crystal, indices, accuracy=accuracy, memory=memory)
            except FFTUnsuitable:
                pass
        method = "direct"
    return METHODS[method](atoms, atoms.crystal, indices, accuracy=accuracy, memory=memory)


def _fft_is_faster(atoms, indices, accuracy, memory):
    if accuracy < LEAST_ACCURACY or len(indices) == 0:
        return False
    plan = miller_plan(atoms.crystal, indices)
    n_aniso = int(atoms.use_u_aniso.sum())
    n_iso = atoms.n_atoms - n_aniso
    term = _PRODUCT_TERM if plan.separable else _EXPONENTIAL_TERM
    n_models = atoms.batch_shape.numel()
    direct_time = _DIRECT_START + n_models * len(plan.indices) * (n_iso * term + n_aniso * _EXPONENTIAL_TERM)
    if direct_time < _GAIN * _FFT_START:
        return False
    try:
        return _GAIN * (estimated_time(atoms, plan, accuracy, memory) + _FFT_START) < direct_time
    except FFTUnsuitable:
        return False
