"""Structure factors by fast Fourier transform, to a requested accuracy.

The atoms of the asymmetric unit are put on a grid as Gaussians, the grid is transformed, and the sum over the
operators of the space group is done on the result, F(h) = sum_G exp(2 pi i h.t) E(h R).  :mod:`.accuracy`
turns the accuracy into a grid, a blur and a radius for every Gaussian; an engine of :mod:`mmtbx_sfdiff.kernels` does the
sum over the atoms, its transpose, and its derivatives.

Ten Eyck (1977) Acta Cryst. A33, 486; the gradient is the transpose of the calculation, Agarwal (1978) A34,
791. Reference: ``cctbx.xray.structure_factors.from_scatterers_fft``, ``gradients_fft``.
"""

from __future__ import annotations

import cmath
import functools
from typing import Any

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..kernels import deferred, engines
from ..kernels.jobs import DensityJob, DensitySetting, FFTUnsuitable
from ..kernels.threads import models_at_once, share_models
from ..plans import Plan
from . import direct
from .methods import DEFAULT_MEMORY, Machine, register
from .operation import compute
from .population import Population
from .request import check_result
from .scatterers import Gradients, Scatterers
from .setting import LEAST_ACCURACY, choose_setting, storage


def values(
    scatterers: Scatterers, plan: Plan, accuracy: float, memory: int, found: Population | None = None
) -> torch.Tensor:
    """F, (n_models, n) complex; ``found``: the population of these scatterers, where it is known."""
    _check_accuracy(accuracy)
    if only_origin(plan):
        return direct.values(scatterers, plan, accuracy, memory)
    s = scatterers
    setting = choose_setting(s, plan, accuracy, _of_one(memory, s), found=found)
    compute = engines.engine(s.device)
    dispersion = s.has_fdp
    result = torch.empty((s.n_models, len(plan)), dtype=s.complex_dtype, device=s.device)

    def fill(part: int | slice) -> None:
        result[part] = compute.structure_factors(_job(s, setting, part, False, False))
        if dispersion:
            result[part] += 1j * compute.structure_factors(_job(s, setting, part, True, False)).to(result.dtype)

    parts = _parts(compute, setting, s.n_models, memory)
    share_models([functools.partial(fill, part) for part in parts], s.device)
    # Every point of a grid is in every term of its transform: one that is not finite spoils them all.
    if not deferred.is_deferred(s.device) and not all(map(cmath.isfinite, result[:, 0].tolist())):
        check_result(s, [result])
    return result


def gradients(
    scatterers: Scatterers, plan: Plan, accuracy: float, memory: int, grad: torch.Tensor, wanted: tuple[bool, ...]
) -> Gradients:
    """Gradients in (sites, u_iso, u_star, weights, fp, fdp), each where it is wanted, from dT/dF (n_models, n)."""
    _check_accuracy(accuracy)
    if only_origin(plan):
        return direct.gradients(scatterers, plan, accuracy, memory, grad, wanted)
    s = scatterers
    setting = choose_setting(s, plan, accuracy, _of_one(memory, s), wanted)
    compute = engines.engine(s.device)
    parameters = (s.sites, s.u_iso, s.u_star, s.weights, s.fp, s.fdp)
    result = [torch.zeros_like(x) if want else None for x, want in zip(parameters, wanted)]
    maps = [False, True] if wanted[5] or s.has_fdp else [False]

    def fill(part: int | slice) -> None:
        for dispersion in maps:
            seed = -1j * grad[part] if dispersion else grad[part]
            found = compute.density_gradients(seed, _job(s, setting, part, dispersion, wanted[4 + dispersion]))
            for target, value in zip((*result[:4], result[4 + dispersion]), found):
                if target is not None:
                    target[part] += value.to(target.dtype)

    parts = _parts(compute, setting, s.n_models, memory)
    share_models([functools.partial(fill, part) for part in parts], s.device)
    return result


def only_origin(plan: Plan) -> bool:
    """Whether (0, 0, 0) is the only index: there is no resolution then, and nothing to transform."""
    return plan.part("only origin", lambda: not bool((plan.miller_indices != 0).any()))


def _of_one(memory: int, s: Scatterers) -> int:
    """The bound for one model, of those that are worked on at a time; but a grid is not refused for the others' sake."""
    return max(memory // models_at_once(s.n_models, s.device), min(memory, 2**25))


def _check_accuracy(accuracy: float) -> None:
    if accuracy < LEAST_ACCURACY:
        raise FFTUnsuitable(
            f"accuracy={accuracy:g} is beyond the FFT (at best {LEAST_ACCURACY:g}): use method='direct'."
        )


def _parts(compute: engines.Engine, setting: DensitySetting, n_models: int, memory: int) -> list[int | slice]:
    """What an engine takes of a batch at a time: a model, or as many as memory allows."""
    if not compute.batched:
        return list(range(n_models))
    of_memory = memory // storage(setting.grid.dims, setting.dtype)
    size = max(1, int(min(of_memory, compute.largest // setting.grid.n_points)))
    return [slice(first, first + size) for first in range(0, n_models, size)]


def _job(s: Scatterers, setting: DensitySetting, part: int | slice, dispersion: bool, gradient: bool) -> DensityJob:
    constant = s.fdp if dispersion else s.fp
    return DensityJob(
        setting,
        s.sites[part],
        s.u_iso[part],
        s.u_star[part],
        s.weights[part],
        constant[part],
        s.use_u_aniso,
        s.type_index,
        dispersion,
        gradient,
    )


register("fft", Machine(values, gradients))


def transform_density(
    atoms: Atoms, plan: Plan | Crystal, miller_indices: Any = None, accuracy: float = 1e-4, memory: int = DEFAULT_MEMORY
) -> torch.Tensor:
    """Structure factors with a relative error of at most ``accuracy``, at a cost linear in atoms and reflections.

    Parameters
    ----------
    atoms : Atoms
        Parameters of shape (..., n_atoms, ...).
    plan : Plan or Crystal
        From :func:`~mmtbx_sfdiff.plan`; or a crystal, and the indices follow.
    miller_indices : torch.Tensor, flex.miller_index or miller.set, optional
        (n, 3) integers, with a crystal.
    accuracy : float
        ||F - F_direct|| / ||F_direct||, and the same for the gradient in each parameter; 1e-8 or more.
        Values and gradients are calculated on grids of their own, each as coarse as its own error allows.
    memory : int
        Bound on working storage in bytes; models of a batch share it, and a grid is made coarser to meet it.

    Returns
    -------
    torch.Tensor
        (..., n) complex in the atoms' dtype.  Differentiable any number of times in sites, u_iso, u_star, occupancies, f'
        and f''; derivatives beyond the first are summed term by term, at the cost of direct summation.  The arithmetic
        is in single precision where ``accuracy`` allows that, whatever the atoms' dtype.

    Raises
    ------
    ValueError
        An accuracy out of reach, displacement parameters that are not positive definite, or a grid beyond
        ``memory``; numbers that nothing can be computed with (the first bad atom is named), or atoms of another crystal.

    Examples
    --------
    >>> import mmtbx_sfdiff as sfdiff
    >>> from mmtbx_sfdiff.structure_factors.fft import transform_density
    >>> from cctbx.development import random_structure
    >>> from cctbx import sgtbx
    >>> structure = random_structure.xray_structure(
    ...     sgtbx.space_group_info("P 21"), elements=["C"] * 40, u_iso=0.2, random_u_iso=False)
    >>> atoms = sfdiff.Atoms.from_cctbx(structure)
    >>> plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(2.0))
    >>> f, exact = (sfdiff.structure_factors(atoms, plan, method=m) for m in ("fft", "direct"))
    >>> bool((f - exact).norm() < 1e-4 * exact.norm())
    True
    """
    return compute("fft", atoms, plan, miller_indices, accuracy, memory)
