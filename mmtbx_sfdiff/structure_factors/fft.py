"""Structure factors by fast Fourier transform, to a requested accuracy.

The atoms of the asymmetric unit are put on a grid as Gaussians, the grid is transformed, and the sum over the
operators of the space group is done on the result, F(h) = sum_G exp(2 pi i h.t) E(h R).  :mod:`.error_model`
turns the accuracy into a grid, a blur and a radius for every Gaussian; :mod:`.splat_cpu`, :mod:`.splat_torch`
and :mod:`.splat_cuda` do the sum over the atoms, its transpose, and its derivatives.

Ten Eyck (1977) Acta Cryst. A33, 486; the gradient is the transpose of the calculation, Agarwal (1978) A34,
791. Reference: ``cctbx.xray.structure_factors.from_scatterers_fft``, ``gradients_fft``.
"""
from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from . import splatting
from .direct import DEFAULT_MEMORY, _Parameters
from .fft_setting import LEAST_ACCURACY, choose_setting, complex_of
from .miller_plan import miller_plan


def fft(atoms, crystal, miller_indices, accuracy=1e-4, memory=DEFAULT_MEMORY):
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
        raise splatting.FFTUnsuitable(
            f"accuracy={accuracy:g} is beyond the FFT (at best {LEAST_ACCURACY:g}): use method='direct'.")
    plan = miller_plan(crystal, miller_indices)
    batch = atoms.batch_shape
    n = miller_indices.shape[0]
    parameters = _Parameters(atoms, batch)
    if n == 0:
        return (parameters.weights[:, :1] * 0).to(complex_of(atoms.dtype)).expand(-1, 0).reshape(*batch, 0)
    result = _Transform.apply(
        parameters.sites, parameters.u_iso, parameters.u_star, parameters.weights, parameters.fp, parameters.fdp,
        atoms, plan, accuracy, memory)
    return result.reshape(*batch, n)


class _Transform(torch.autograd.Function):
    """F of all reflections, from parameters with one batch dimension."""

    @staticmethod
    def forward(ctx, sites, u_iso, u_star, weights, fp, fdp, atoms, plan, accuracy, memory):
        values = sites, u_iso, u_star, weights, fp, fdp
        ctx.save_for_backward(*values)
        ctx.atoms, ctx.plan, ctx.accuracy, ctx.memory = atoms, plan, accuracy, memory
        ctx.population, setting = choose_setting(values, atoms, plan, accuracy, memory)
        engine = splatting.engine(sites.device)
        dispersion = bool((fdp != 0).any())
        dtype = complex_of(weights.dtype)
        result = torch.empty((len(sites), setting.factor.shape[0]), dtype=dtype, device=sites.device)
        for model in range(len(sites)):
            result[model] = engine.values(_job(atoms, setting, values, model, False, False))
            if dispersion:
                result[model] += 1j * engine.values(_job(atoms, setting, values, model, True, False)).to(dtype)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        values, atoms, wanted = ctx.saved_tensors, ctx.atoms, ctx.needs_input_grad[:6]
        # A wish for gradients in f' and f'' makes another population of the same atoms.
        known = None if wanted[4] or wanted[5] else ctx.population
        _, setting = choose_setting(values, atoms, ctx.plan, ctx.accuracy, ctx.memory, wanted, known)
        engine = splatting.engine(grad.device)
        grads = [torch.zeros_like(x) if want else None for x, want in zip(values, wanted)]
        maps = [False, True] if wanted[5] or bool((values[5] != 0).any()) else [False]
        for model in range(len(values[0])):
            for dispersion in maps:
                seed = -1j * grad[model] if dispersion else grad[model]
                job = _job(atoms, setting, values, model, dispersion, wanted[4 + dispersion])
                for target, value in zip((*grads[:4], grads[4 + dispersion]), engine.gradients(seed, job)):
                    if target is not None:
                        target[model] += value.to(target.dtype)
        return *grads, None, None, None, None


def _job(atoms, setting, values, model, dispersion, gradient):
    sites, u_iso, u_star, weights, fp, fdp = (value[model] for value in values)
    return splatting.Job(atoms, setting, sites, u_iso, u_star, weights, fdp if dispersion else fp, dispersion,
                         gradient)
