"""Structure factors: one table of methods, one signature."""
from __future__ import annotations

from ..crystal import as_miller_tensor
from .direct import DEFAULT_MEMORY, direct

METHODS = {"direct": direct}


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
    method : {"auto", "direct"}
        ``direct`` sums equation 4 term by term, exact to rounding.  ``auto`` takes the fastest method that meets
        ``accuracy``.
    accuracy : float
        Largest relative error asked for, ||F - F_direct|| / ||F_direct||.
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
    function = METHODS["direct" if method == "auto" else method]
    return function(atoms, atoms.crystal, indices, accuracy=accuracy, memory=memory)
