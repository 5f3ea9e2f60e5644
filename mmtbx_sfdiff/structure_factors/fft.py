"""Structure factors by fast Fourier transform, to a requested accuracy.

The atoms of the asymmetric unit are put on a grid as Gaussians, the grid is transformed, and the sum over the
operators of the space group is done on the result, F(h) = sum_G exp(2 pi i h.t) E(h R).  :mod:`.accuracy`
turns the accuracy into a grid, a blur and a radius for every Gaussian; :mod:`~mmtbx_sfdiff.kernels.cpu.splat`, :mod:`~mmtbx_sfdiff.kernels.reference.density`
and :mod:`~mmtbx_sfdiff.kernels.cuda.density` do the sum over the atoms, its transpose, and its derivatives.

Ten Eyck (1977) Acta Cryst. A33, 486; the gradient is the transpose of the calculation, Agarwal (1978) A34,
791. Reference: ``cctbx.xray.structure_factors.from_scatterers_fft``, ``gradients_fft``.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from ..kernels import engines
from ..kernels.jobs import DensityJob, FFTUnsuitable, NotPositiveDefinite
from ..kernels.threads import own_threads
from ..plans.miller import miller_plan
from .direct import DEFAULT_MEMORY
from .setting import LEAST_ACCURACY, choose_setting, complex_of, storage
from .values import values_wanted


def fft(atoms, crystal, miller_indices, accuracy=1e-4, memory=DEFAULT_MEMORY, population=None):
    """Structure factors with a relative error of at most ``accuracy``, at a cost linear in atoms and
    reflections.

    Parameters
    ----------
    atoms : Atoms
        Parameters of shape (..., n_atoms, ...).
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) int64.
    accuracy : float
        ||F - F_direct|| / ||F_direct||, and the same for gradients in sites, u_iso and u_star; 1e-8 or more.
        Values and gradients are calculated on grids of their own, each as coarse as its own error allows.
    memory : int
        Bound on working storage in bytes; models of a batch share it, and a grid is made coarser to meet it.
    population : Population, optional
        What :func:`~.fft_setting.estimated_time` found out about these atoms.

    Returns
    -------
    torch.Tensor
        (..., n) complex in the atoms' dtype.  Differentiable once in sites, u_iso, u_star, occupancies, f'
        and f''. The arithmetic is in single precision where ``accuracy`` allows that, whatever the atoms'
        dtype.

    Raises
    ------
    ValueError
        An accuracy out of reach, displacement parameters that are not positive definite, or a grid beyond
        ``memory``.
    """
    if accuracy < LEAST_ACCURACY:
        raise FFTUnsuitable(
            f"accuracy={accuracy:g} is beyond the FFT (at best {LEAST_ACCURACY:g}): use method='direct'."
        )
    plan = miller_plan(crystal, miller_indices)
    batch = atoms.batch_shape
    n = miller_indices.shape[0]
    if n == 0:
        return (atoms.occupancies[..., :1] * 0).to(complex_of(atoms.dtype)).expand(*batch, -1)[..., :0]

    def flat(value, tail):
        own = value.shape[value.ndim - tail :]
        return value.expand(*batch, *own).reshape(-1, *own)

    with own_threads(atoms.device):
        u_iso = torch.where(atoms.use_u_iso, atoms.u_iso, 0.0)
        u_star = torch.where(atoms.use_u_aniso[:, None], atoms.u_star, 0.0)
        weights = atoms.occupancies * atoms.site_weights.to(atoms.dtype)
        result = _Transform.apply(
            flat(atoms.sites_cart, 2),
            flat(u_iso, 1),
            flat(u_star, 2),
            flat(weights, 1),
            flat(atoms.fp, 1),
            flat(atoms.fdp, 1),
            flat(atoms._frac_residual, 2),
            atoms,
            plan,
            accuracy,
            memory,
            population,
        )
        return result.reshape(*batch, n)


class _Transform(torch.autograd.Function):
    """F of all reflections, from parameters with one batch dimension."""

    @staticmethod
    def forward(ctx, sites_cart, u_iso, u_star, weights, fp, fdp, residual, atoms, plan, accuracy, memory, population):
        sites = sites_cart.to(torch.float64) @ atoms.crystal.fractionalization.T + residual
        values = sites, u_iso, u_star, weights, fp, fdp
        ctx.save_for_backward(*values)
        ctx.atoms, ctx.plan, ctx.accuracy, ctx.memory = atoms, plan, accuracy, memory
        ctx.population, setting = choose_setting(values, atoms, plan, accuracy, memory, population=population)
        engine = engines.engine(sites.device)
        dispersion = bool((fdp != 0).any())
        dtype = complex_of(weights.dtype)
        if not values_wanted():
            return torch.zeros((len(sites), setting.factor.shape[0]), dtype=dtype, device=sites.device)
        result = torch.empty((len(sites), setting.factor.shape[0]), dtype=dtype, device=sites.device)
        for part in _parts(engine, setting, len(sites), memory):
            result[part] = _named(atoms, engine.structure_factors, _job(atoms, setting, values, part, False, False))
            if dispersion:
                found = _named(atoms, engine.structure_factors, _job(atoms, setting, values, part, True, False))
                result[part] += 1j * found.to(dtype)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        values, atoms, wanted = ctx.saved_tensors, ctx.atoms, ctx.needs_input_grad[:6]
        with own_threads(grad.device):
            # A wish for gradients in f' and f'' makes another population of the same atoms.
            known = None if wanted[4] or wanted[5] else ctx.population
            _, setting = choose_setting(values, atoms, ctx.plan, ctx.accuracy, ctx.memory, wanted, known)
            engine = engines.engine(grad.device)
            grads = [torch.zeros_like(x) if want else None for x, want in zip(values, wanted)]
            maps = [False, True] if wanted[5] or bool((values[5] != 0).any()) else [False]
            for part in _parts(engine, setting, len(values[0]), ctx.memory):
                for dispersion in maps:
                    seed = -1j * grad[part] if dispersion else grad[part]
                    job = _job(atoms, setting, values, part, dispersion, wanted[4 + dispersion])
                    found = _named(atoms, engine.density_gradients, seed, job)
                    for target, value in zip((*grads[:4], grads[4 + dispersion]), found):
                        if target is not None:
                            target[part] += value.to(target.dtype)
            if wanted[0]:
                grads[0] = (grads[0] @ atoms.crystal.fractionalization).to(atoms.dtype)
        return *grads, None, None, None, None, None, None


def _parts(engine, setting, n_models, memory):
    """What an engine takes of a batch at a time: a model, or as many as memory allows."""
    if not engine.batched:
        return range(n_models)
    size = max(
        1, int(min(memory // storage(setting.grid.dims, setting.dtype), engine.largest // setting.grid.n_points))
    )
    return [slice(first, first + size) for first in range(0, n_models, size)]


def _job(atoms, setting, values, part, dispersion, gradient):
    sites, u_iso, u_star, weights, fp, fdp = (value[part] for value in values)
    return DensityJob(
        setting,
        sites,
        u_iso,
        u_star,
        weights,
        fdp if dispersion else fp,
        atoms.use_u_aniso,
        atoms.type_index,
        dispersion,
        gradient,
    )


def _named(atoms, function, *arguments):
    """What an engine answers, or its complaint with the atom's label."""
    try:
        return function(*arguments)
    except NotPositiveDefinite as error:
        raise NotPositiveDefinite(error.atom, atoms.labels[error.atom]) from None
