"""Structure factors by direct summation, exact to rounding.

    F(h) = sum_G sum_j O_j f_j(h) DWF_j(h R_G) exp[2 pi i h.(R_G x_j + T_G)]                      (equation 4)

over all operators G of the space group and all atoms j of the asymmetric unit, each with the weight
(multiplicity of its site) / (order of the group).  :mod:`~mmtbx_sfdiff.plans.miller` moves the operators to the indices and
lays these out in columns; what is left is a matrix product over the atoms for each scattering type, and the
gradient is three more of them. Anisotropic atoms, and oblique cells in which an isotropic Debye-Waller factor
does not separate, take one exponential a term instead.

Reference: ``cctbx.xray.structure_factors.from_scatterers_direct``.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from ..kernels.engines import engine
from ..kernels.jobs import DirectJob
from ..plans.miller import miller_plan
from .values import values_wanted

DEFAULT_MEMORY = 256 * 2**20


def direct(atoms, crystal, miller_indices, accuracy=None, memory=DEFAULT_MEMORY):
    """Structure factors of equation 4, summed term by term.

    Parameters
    ----------
    atoms : Atoms
        Parameters of shape (..., n_atoms, ...).
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) int64.
    accuracy : float, optional
        Not used: the sum is exact to the rounding of the atoms' dtype.
    memory : int
        Bound on working storage in bytes, beyond the result and what is proportional to the atoms or the
        reflections alone.

    Returns
    -------
    torch.Tensor
        (..., n) complex, electrons (the form factor table's units).  Differentiable once in sites, u_iso,
        u_star, occupancies, f' and f''.
    """
    mostly_anisotropic = 2 * int(atoms.use_u_aniso.sum()) > atoms.n_atoms
    plan = miller_plan(crystal, miller_indices, prefer="longest" if mostly_anisotropic else "separable")
    batch = atoms.batch_shape
    parameters = _Parameters(atoms, batch)
    real = parameters.real_part(plan, memory)
    fp, fdp = parameters.dispersion(plan, memory)
    e_real = real if fp is None else real + fp
    f = _sum_over_operators(plan, e_real)
    if fdp is not None:
        f = f + 1j * _sum_over_operators(plan, fdp)
    return f.reshape(*batch, miller_indices.shape[0])


class _Parameters:
    """The atoms' parameters with one batch dimension, and which of them go which way."""

    def __init__(self, atoms, batch):
        def flat(value, tail):
            own = value.shape[value.ndim - tail :]
            return value.expand(*batch, *own).reshape(-1, *own)

        self.atoms = atoms
        self.sites = flat(atoms.sites_frac, 2)
        self.u_iso = flat(torch.where(atoms.use_u_iso, atoms.u_iso, 0.0), 1)
        self.u_star = flat(torch.where(atoms.use_u_aniso[:, None], atoms.u_star, 0.0), 2)
        self.weights = flat(atoms.occupancies * atoms.site_weights.to(atoms.dtype), 1)
        self.fp, self.fdp = flat(atoms.fp, 1), flat(atoms.fdp, 1)

    def real_part(self, plan, memory):
        """E of the form factors f0 of every type, (batch, n_unique)."""
        table = self.atoms.form_factors(plan.d_star_sq).to(self.atoms.dtype)
        everyone = torch.arange(self.atoms.n_atoms, device=self.sites.device)
        return self._sum(plan, everyone, self.weights, self.atoms.type_index, table, memory)

    def dispersion(self, plan, memory):
        """E of f' and of f'', each None when it is zero for every atom and nobody asks for its gradient."""
        results = []
        for value in (self.fp, self.fdp):
            if value.requires_grad:
                chosen = torch.arange(self.atoms.n_atoms, device=value.device)
            else:
                chosen = (value != 0).any(0).nonzero()[:, 0]
            if not len(chosen):
                results.append(None)
                continue
            one = torch.ones((1, len(plan.indices)), dtype=self.atoms.dtype, device=value.device)
            results.append(
                self._sum(plan, chosen, self.weights * value, torch.zeros_like(self.atoms.type_index), one, memory)
            )
        return results

    def _sum(self, plan, chosen, weights, type_index, table, memory):
        """Sum over the chosen atoms, isotropic ones by matrix products where the cell allows it."""
        aniso = self.atoms.use_u_aniso[chosen]
        parts = [(chosen[aniso], False), (chosen[~aniso], plan.separable)]
        total = None
        for rows, separable in parts:
            if not len(rows):
                continue
            rows = rows[torch.argsort(type_index[rows], stable=True)]
            counts = torch.bincount(type_index[rows], minlength=table.shape[0]).tolist()
            if separable:
                u = self.u_iso[:, rows, None]
                if self.u_star.requires_grad:
                    # Zero here, value and gradient, but part of the graph: its gradient may be asked for.
                    u = u + self.u_star[:, rows].sum(-1, keepdim=True)
            else:
                metric = _packed_metric(self.atoms.crystal, self.u_iso)
                u = self.u_star[:, rows] + self.u_iso[:, rows, None] * metric
            part = _AtomSum.apply(
                self.sites[:, rows],
                u,
                weights[:, rows],
                table,
                counts,
                plan,
                self.atoms.crystal.reciprocal_metric,
                memory,
            )
            total = part if total is None else total + part
        return total


def _packed_metric(crystal, like):
    g = crystal.reciprocal_metric.to(like)
    return torch.stack([g[0, 0], g[1, 1], g[2, 2], g[0, 1], g[0, 2], g[1, 2]])


def _sum_over_operators(plan, e):
    """F(h) = sum_G exp(2 pi i h.t) E(h R), one operator at a time: (batch, n_unique) to (batch, n)."""
    total = 0
    for rows, sign, phase in zip(plan.gather, plan.conjugate.to(e.real.dtype), plan.phase.to(e.dtype)):
        term = torch.view_as_real(e[:, rows])
        term = torch.view_as_complex(torch.stack([term[..., 0], term[..., 1] * sign], -1))
        total = total + term * phase
    return total


class _AtomSum(torch.autograd.Function):
    """E(h) = sum_t f_t(h) sum_{j in t} w_j exp(-2 pi^2 h U_j h) exp(2 pi i h.x_j) on the plan's indices.

    sites (batch, n_atoms, 3) float64; u (batch, n_atoms, 1) isotropic in Å^2, or (batch, n_atoms, 6)
    fractional; weights (batch, n_atoms); table (n_types, n_unique); counts: atoms of each type, in order.
    """

    @staticmethod
    def forward(ctx, sites, u, weights, table, counts, plan, metric, memory):
        ctx.save_for_backward(sites, u, weights, table, metric)
        ctx.counts, ctx.plan, ctx.memory = counts, plan, memory
        if not values_wanted():
            complex_dtype = torch.complex64 if weights.dtype == torch.float32 else torch.complex128
            return torch.zeros((len(sites), len(plan.indices)), dtype=complex_dtype, device=sites.device)
        return engine(sites.device).direct_sum(DirectJob(plan, sites, u, weights, table, counts, metric, memory))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        sites, u, weights, table, metric = ctx.saved_tensors
        job = DirectJob(ctx.plan, sites, u, weights, table, ctx.counts, metric, ctx.memory)
        return *engine(grad.device).direct_sum_gradients(job, grad, ctx.needs_input_grad[:3]), *[None] * 5
