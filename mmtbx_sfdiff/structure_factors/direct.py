"""Structure factors by direct summation, exact to rounding.

    F(h) = sum_G sum_j O_j f_j(h) DWF_j(h R_G) exp[2πi h.(R_G x_j + T_G)]                      (equation 4)

over all operators G of the space group and all atoms j of the asymmetric unit, each with the weight
(multiplicity of its site) / (order of the group).  :mod:`~mmtbx_sfdiff.plans.miller` moves the operators to the indices and
lays these out in columns: F(h) = sum_G exp(2πi h.T_G) E(h R_G).  What is left, E, is a matrix product over the atoms for
each scattering type, and the gradient is three more of them.  Anisotropic atoms, and oblique cells in which an isotropic
Debye-Waller factor does not separate, take one exponential a term instead.

Reference: ``cctbx.xray.structure_factors.from_scatterers_direct``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..kernels import deferred
from ..kernels.checks import BadAtom
from ..kernels.engines import engine
from ..kernels.jobs import DirectJob
from ..kernels.threads import models_at_once, share_models
from ..plans import Plan
from ..plans.miller import MillerPlan
from .methods import DEFAULT_MEMORY, Machine, register
from .operation import compute
from .operators import operators_transposed, sum_over_operators
from .request import check_result
from .scatterers import Gradients, Scatterers, least_u, packed_metric

T = TypeVar("T")
# Exponents beyond which the factor of a negative displacement parameter drowns everything else, and squares of F or second
# derivatives overflow.
_LARGEST_EXPONENT = {torch.float32: 30.0, torch.float64: 200.0}


@dataclasses.dataclass(frozen=True, eq=False)
class _Sum:
    """Atoms whose terms are summed in one way: those of a job, and where their gradients go.

    ``separable``: the job's u is u_iso, otherwise the whole tensor.  ``factor``: what the weights were multiplied by, fp
    or fdp; None: nothing.
    """

    rows: torch.Tensor
    separable: bool
    factor: str | None
    job: DirectJob


def values(scatterers: Scatterers, plan: Plan, accuracy: float, memory: int) -> torch.Tensor:
    """F, (n_models, n) complex."""
    miller = _miller(scatterers, plan)
    _check_exponents(scatterers, plan)
    f = torch.cat(_shared(scatterers, memory, lambda s, part, memory: _values(s, miller, memory)))
    check_result(scatterers, [f])
    return f


def _values(scatterers: Scatterers, miller: MillerPlan, memory: int) -> torch.Tensor:
    compute = engine(scatterers.device)
    real: list[torch.Tensor] = []
    imaginary: list[torch.Tensor] = []
    for part in _sums(scatterers, miller, memory, (False,) * 6):
        (imaginary if part.factor == "fdp" else real).append(compute.direct_sum(part.job))
    result = sum_over_operators(miller, functools.reduce(torch.add, real))
    if imaginary:
        result += 1j * sum_over_operators(miller, functools.reduce(torch.add, imaginary))
    return result


def gradients(
    scatterers: Scatterers, plan: Plan, accuracy: float, memory: int, grad: torch.Tensor, wanted: tuple[bool, ...]
) -> Gradients:
    """Gradients in (sites, u_iso, u_star, weights, fp, fdp), each where it is wanted, from dT/dF (n_models, n)."""
    miller = _miller(scatterers, plan)
    _check_exponents(scatterers, plan)
    found = _shared(scatterers, memory, lambda s, part, memory: _gradients(s, miller, memory, grad[part], wanted))
    return [torch.cat(of_one) if want else None for want, of_one in zip(wanted, zip(*found))]


def _gradients(
    s: Scatterers, miller: MillerPlan, memory: int, grad: torch.Tensor, wanted: tuple[bool, ...]
) -> Gradients:
    compute = engine(s.device)
    found = [
        torch.zeros_like(x) if want else None
        for x, want in zip((s.sites, s.u_iso, s.u_star, s.weights, s.fp, s.fdp), wanted)
    ]
    sites, u_iso, u_star, weights, *dispersion = found
    grad_e = operators_transposed(miller, grad)
    grad_imaginary = None
    metric = packed_metric(s.crystal, s.u_iso)
    for part in _sums(s, miller, memory, wanted):
        seed = grad_e
        if part.factor == "fdp":
            if grad_imaginary is None:
                grad_imaginary = operators_transposed(miller, -1j * grad)
            seed = grad_imaginary
        number = {"fp": 0, "fdp": 1}.get(part.factor or "")
        of_factor = dispersion[number] if number is not None else None
        # The Debye-Waller factor of an atom that uses both is that of their sum.
        asked = (
            sites is not None,
            u_iso is not None or u_star is not None,
            weights is not None or of_factor is not None,
        )
        by_sites, by_u, by_weights = compute.direct_sum_gradients(part.job, seed, asked)
        rows = part.rows
        if sites is not None and by_sites is not None:
            sites[:, rows] += by_sites
        if by_u is not None and part.separable and u_iso is not None:
            u_iso[:, rows] += by_u[..., 0]
        elif by_u is not None and not part.separable:
            if u_star is not None:
                u_star[:, rows] += by_u
            if u_iso is not None:
                u_iso[:, rows] += (by_u * metric).sum(-1)
        if weights is not None and by_weights is not None:
            factor = 1 if part.factor is None else getattr(s, part.factor)[:, rows]
            weights[:, rows] += by_weights * factor
        if of_factor is not None and by_weights is not None:
            of_factor[:, rows] += by_weights * s.weights[:, rows]
    return found


def _shared(scatterers: Scatterers, memory: int, function: Callable[[Scatterers, slice, int], T]) -> list[T]:
    """function(some of the models, which, memory for them): models to threads where there are enough, else all at once."""
    s = scatterers
    at_once = models_at_once(s.n_models, s.device)
    if at_once == 1:
        return [function(s, slice(0, s.n_models), memory)]
    parts = [slice(i, i + 1) for i in range(s.n_models)]
    return share_models([lambda p=p: function(s.models(p), p, memory // at_once) for p in parts], s.device)  # type: ignore[misc]


def _miller(scatterers: Scatterers, plan: Plan) -> MillerPlan:
    mostly_anisotropic = 2 * int(scatterers.use_u_aniso.sum()) > scatterers.n_atoms
    return plan.miller("longest" if mostly_anisotropic else "separable")


def _check_exponents(scatterers: Scatterers, plan: Plan) -> None:
    """Raise unless every Debye-Waller factor is a number at every reflection.

    Raises
    ------
    BadAtom
        Displacement parameters so negative that their factor overflows.
    """
    s = scatterers
    if deferred.is_deferred(s.device):  # the results will show it
        return
    largest = _LARGEST_EXPONENT[s.dtype]
    scale = 2 * math.pi**2 * float(plan.part("s_sq", lambda: plan.crystal.d_star_sq(plan.miller_indices).max()))
    # A tensor's size bounds its smallest eigenvalue; only where that is not enough is it worked out.
    if float(s.u_iso.min()) * scale > -largest / 2 and not bool(s.use_u_aniso.any()):
        return
    least = s.u_iso.to(torch.float64) + least_u(s)
    if float(least.min()) * scale >= -largest:
        return
    model, atom = (least * scale < -largest).nonzero()[0].tolist()
    raise BadAtom(
        "the displacement parameter",
        f"amounts to U = {float(least[model, atom]):g} Å^2 in one direction, whose Debye-Waller factor is beyond all measure at this "
        "resolution: raise it, or leave the atom out.",
        atom,
        model,
        s.n_models,
    )


def _sums(s: Scatterers, miller: MillerPlan, memory: int, wanted: tuple[bool, ...]) -> Iterator[_Sum]:
    """The sums that make E: of form factors for all atoms, of f' and f'' where they are not zero or their gradient is
    wanted; isotropic atoms by matrix products where the cell allows it."""
    table = s.form_factors(miller.d_star_sq).to(s.dtype)
    everyone = torch.arange(s.n_atoms, device=s.device)
    yield from _split(s, miller, memory, everyone, s.weights, s.type_index, table, None)
    one = torch.ones((1, len(miller.indices)), dtype=s.dtype, device=s.device)
    for name, want in (("fp", wanted[4]), ("fdp", wanted[5])):
        value = getattr(s, name)
        chosen = everyone if want else (value != 0).any(0).nonzero()[:, 0]
        if len(chosen):
            yield from _split(s, miller, memory, chosen, s.weights * value, torch.zeros_like(s.type_index), one, name)


def _split(
    s: Scatterers,
    miller: MillerPlan,
    memory: int,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    type_index: torch.Tensor,
    table: torch.Tensor,
    factor: str | None,
) -> Iterator[_Sum]:
    aniso = s.use_u_aniso[chosen]
    for rows, separable in ((chosen[aniso], False), (chosen[~aniso], miller.separable)):
        if not len(rows):
            continue
        rows = rows[torch.argsort(type_index[rows], stable=True)]
        counts = torch.bincount(type_index[rows], minlength=table.shape[0]).tolist()
        if separable:
            u = s.u_iso[:, rows, None]
        else:
            u = s.u_star[:, rows] + s.u_iso[:, rows, None] * packed_metric(s.crystal, s.u_iso)
        metric = s.crystal.reciprocal_metric
        job = DirectJob(miller, s.sites[:, rows], u, weights[:, rows], table, counts, metric, memory)
        yield _Sum(rows, separable, factor, job)


register("direct", Machine(values, gradients))


def sum_directly(
    atoms: Atoms, plan: Plan | Crystal, miller_indices: Any = None, accuracy: float = 1e-4, memory: int = DEFAULT_MEMORY
) -> torch.Tensor:
    """Structure factors of equation 4, summed term by term: exact to the rounding of the atoms' dtype.

    Parameters
    ----------
    atoms : Atoms
        Parameters of shape (..., n_atoms, ...).
    plan : Plan or Crystal
        From :func:`~mmtbx_sfdiff.plan`; or a crystal, and the indices follow.
    miller_indices : torch.Tensor, flex.miller_index or miller.set, optional
        (n, 3) integers, with a crystal.
    accuracy : float
        Not used.
    memory : int
        Bound on working storage in bytes, beyond the result and what is proportional to the atoms or the
        reflections alone.

    Returns
    -------
    torch.Tensor
        (..., n) complex, electrons (the form factor table's units).  Differentiable any number of times in sites, u_iso,
        u_star, occupancies, f' and f''.

    Raises
    ------
    ValueError
        Numbers that nothing can be computed with (the first bad atom is named), or atoms of another crystal.

    Examples
    --------
    >>> import mmtbx_sfdiff as sfdiff
    >>> from mmtbx_sfdiff.structure_factors.direct import sum_directly
    >>> from cctbx.development import random_structure
    >>> from cctbx import sgtbx
    >>> structure = random_structure.xray_structure(sgtbx.space_group_info("P 21"), elements=["C"] * 4)
    >>> atoms = sfdiff.Atoms.from_cctbx(structure)
    >>> sum_directly(atoms, atoms.crystal, atoms.crystal.build_miller_indices(3.0)).dtype
    torch.complex128
    """
    return compute("direct", atoms, plan, miller_indices, accuracy, memory)
