"""Structure factors as one differentiable operation, whatever the method.

Four opaque leaves (see :mod:`mmtbx_sfdiff.kernels.opaque`) and two autograd functions give derivatives of every order.
With D^k F[v1 ... vk] the derivative of F along k directions,

    A_k = D^k F [v1 ... vk]                           the values of order k, complex (n)
    B_k = d/d(parameters) Re <g, A_k>                 their gradients, for dT/dA_k = g

the transpose of A_k is B_k in the parameters and B_(k-1) in a direction, and that of B_k is A_(k+1) in g, B_(k+1) in the
parameters and B_k in a direction.  A_0 and B_0 are the method's own; those with directions are summed term by term, exactly,
by :mod:`~mmtbx_sfdiff.kernels.reference.directional`, since the errors of an FFT grow with each derivative.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..atoms import Atoms
from ..crystal import Crystal, as_miller_tensor
from ..kernels import checks, opaque
from ..kernels.jobs import NotPositiveDefinite
from ..kernels.threads import own_threads
from ..plans import Plan, plan_of
from . import derivatives
from .on_device import given_atoms
from .request import Request, check_result
from .scatterers import PARAMETERS, Gradients

_N = len(PARAMETERS)
# Arguments of the operations after the parameters: residual, then what all models share.
_SHARED = 5


def _chosen(gradients: Gradients, wanted: Sequence[bool]) -> list[torch.Tensor]:
    return [x for x, want in zip(gradients, wanted) if want and x is not None]


def _fake_values(parameters: Sequence[torch.Tensor], shared: Sequence[torch.Tensor], *rest: Any) -> torch.Tensor:
    dtype = torch.complex64 if parameters[0].dtype == torch.float32 else torch.complex128
    return parameters[0].new_empty((parameters[0].shape[0], shared[-1].shape[0]), dtype=dtype)


def _fake_gradients(
    grad: torch.Tensor, wanted: Sequence[bool], parameters: Sequence[torch.Tensor], *rest: Any
) -> list[torch.Tensor]:
    return [x.new_empty(x.shape) for x, want in zip(parameters, wanted) if want]


@opaque.operation("structure_factors", fake=_fake_values)
def _values(
    parameters: Sequence[torch.Tensor],
    shared: Sequence[torch.Tensor],
    crystal: int,
    form_factors: int,
    place: int,
    method: str,
    accuracy: float,
    memory: int,
) -> torch.Tensor:
    """A_0."""
    with own_threads(parameters[0].device):
        atoms = given_atoms(parameters, shared, crystal, form_factors, place, method, accuracy, memory)
        if atoms is not None:
            return atoms.values()
        request = Request.make(parameters, shared, crystal, form_factors, place, method, accuracy, memory)
        if request.empty:
            return request.zeros()
        f = request.machine.values(request.scatterers, request.plan, accuracy, memory)
        return request.answer("structure factors", [f])[0]


@opaque.operation("structure_factor_gradients", fake=_fake_gradients)
def _gradients(
    grad: torch.Tensor,
    wanted: Sequence[bool],
    parameters: Sequence[torch.Tensor],
    shared: Sequence[torch.Tensor],
    crystal: int,
    form_factors: int,
    place: int,
    method: str,
    accuracy: float,
    memory: int,
) -> list[torch.Tensor]:
    """B_0, of the parameters that are wanted."""
    with own_threads(grad.device):
        atoms = given_atoms(parameters, shared, crystal, form_factors, place, method, accuracy, memory)
        if atoms is not None:
            return _chosen(atoms.gradients(grad, tuple(wanted)), wanted)
        request = Request.make(parameters, shared, crystal, form_factors, place, method, accuracy, memory)
        if request.empty:
            return _chosen([torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in parameters[:_N]], wanted)
        scatterers = request.scatterers
        seed = grad.to(scatterers.complex_dtype).resolve_conj()
        found = request.machine.gradients(scatterers, request.plan, accuracy, memory, seed, tuple(wanted))
        check_result(scatterers, [x for x in found if x is not None], seed)
        return request.answer("gradients", _chosen(scatterers.to_parameters(found), wanted), seed)


@opaque.operation("structure_factor_derivatives", fake=lambda directions, *rest: _fake_values(*rest))
def _directional(
    directions: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    shared: Sequence[torch.Tensor],
    crystal: int,
    form_factors: int,
    place: int,
    method: str,
    accuracy: float,
    memory: int,
) -> torch.Tensor:
    """A_k."""
    with own_threads(parameters[0].device):
        request = Request.make(parameters, shared, crystal, form_factors, place, method, accuracy, memory)
        if request.empty:
            return request.zeros()
        found = derivatives.values(request.scatterers, request.plan, memory, request.directions(directions))
        return request.answer("derivatives", [found])[0]


@opaque.operation(
    "structure_factor_derivative_gradients",
    fake=lambda grad, wanted, directions, *rest: _fake_gradients(grad, wanted, *rest),
)
def _directional_gradients(
    grad: torch.Tensor,
    wanted: Sequence[bool],
    directions: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    shared: Sequence[torch.Tensor],
    crystal: int,
    form_factors: int,
    place: int,
    method: str,
    accuracy: float,
    memory: int,
) -> list[torch.Tensor]:
    """B_k."""
    with own_threads(grad.device):
        request = Request.make(parameters, shared, crystal, form_factors, place, method, accuracy, memory)
        if request.empty:
            return _chosen([torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in parameters[:_N]], wanted)
        scatterers = request.scatterers
        seed = grad.to(torch.complex128).resolve_conj()
        found = derivatives.gradients(scatterers, request.plan, memory, request.directions(directions), seed)
        return request.answer("gradients of derivatives", _chosen(scatterers.to_parameters(found), wanted), seed)


# The autograd functions' arguments: parameters and residual, what is shared, numbers, what must live on, directions.
_FIRST_SHARED, _NUMBERS = _N + 1, _N + 1 + _SHARED


def _save(ctx: Any, tensors: Sequence[Any], first: int) -> None:
    """Keep the arguments, of which the parameters begin at ``first``."""
    numbers = first + _NUMBERS
    ctx.numbers, ctx.keep = tensors[numbers], tensors[numbers + 1]
    saved = [x for x in tensors if isinstance(x, torch.Tensor)]
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def _without(directions: Sequence[torch.Tensor], i: int) -> tuple[torch.Tensor, ...]:
    """The directions but number i."""
    return (*directions[: _N * i], *directions[_N * (i + 1) :])


def _direction(parts: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """A direction, zero where nothing is given."""
    return tuple(x.new_zeros(()).expand(x.shape) if part is None else part for part, x in zip(parts, like))


class StructureFactors(opaque.Function):
    """A_k of (six parameters, residual, five shared tensors, numbers, keep, six tensors a direction)."""

    SHARED = tuple(range(_FIRST_SHARED, _NUMBERS))

    @staticmethod
    def forward(*args: Any) -> torch.Tensor:
        parameters, shared, numbers = args[:_FIRST_SHARED], args[_FIRST_SHARED:_NUMBERS], args[_NUMBERS]
        directions = args[_NUMBERS + 2 :]
        if directions:
            return _directional(directions, parameters, shared, *numbers)  # type: ignore[no-any-return]
        return _values(parameters, shared, *numbers)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs, 0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        saved = ctx.saved_tensors  # once: torch.utils.checkpoint allows no second time
        own, directions = saved[:_NUMBERS], saved[_NUMBERS:]
        needs = ctx.needs_input_grad
        result: list[Any] = [None] * len(needs)

        def gradients(place: int, directions: Sequence[torch.Tensor]) -> None:
            wanted = tuple(needs[place : place + _N])
            if any(wanted):
                found = iter(structure_factor_gradients(grad, wanted, *own, ctx.numbers, ctx.keep, *directions))
                result[place : place + _N] = [next(found) if want else None for want in wanted]

        gradients(0, directions)
        for i in range(len(directions) // _N):
            gradients(_NUMBERS + 2 + _N * i, _without(directions, i))
        return tuple(result)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        saved = ctx.saved_tensors  # once: torch.utils.checkpoint allows no second time
        own, directions = saved[:_NUMBERS], saved[_NUMBERS:]
        total = None
        for i, others in _tangents(tangents[:_N], tangents[_NUMBERS + 2 :], own, directions):
            term = structure_factors_of(*own, ctx.numbers, ctx.keep, *others, *i)
            total = term if total is None else total + term
        return total


class StructureFactorGradients(opaque.Function):
    """B_k of (dT/dA_k, which are wanted, and the arguments of :class:`StructureFactors`)."""

    SHARED = tuple(2 + i for i in StructureFactors.SHARED)

    @staticmethod
    def forward(grad: torch.Tensor, wanted: tuple[bool, ...], *args: Any) -> tuple[torch.Tensor, ...]:
        parameters, shared, numbers = args[:_FIRST_SHARED], args[_FIRST_SHARED:_NUMBERS], args[_NUMBERS]
        directions = args[_NUMBERS + 2 :]
        if directions:
            return tuple(_directional_gradients(grad, wanted, directions, parameters, shared, *numbers))
        return tuple(_gradients(grad, wanted, parameters, shared, *numbers))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.wanted = inputs[1]
        _save(ctx, inputs, 2)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        saved = ctx.saved_tensors
        grad, *own = saved[: 1 + _NUMBERS]
        directions, needs = saved[1 + _NUMBERS :], ctx.needs_input_grad
        found = iter(cotangents)
        last = _direction([next(found) if want else None for want in ctx.wanted], own)
        result: list[Any] = [None] * len(needs)
        if needs[0]:
            result[0] = structure_factors_of(*own, ctx.numbers, ctx.keep, *directions, *last)

        def gradients(place: int, directions: Sequence[torch.Tensor]) -> None:
            wanted = tuple(needs[place : place + _N])
            if any(wanted):
                found = iter(structure_factor_gradients(grad, wanted, *own, ctx.numbers, ctx.keep, *directions))
                result[place : place + _N] = [next(found) if want else None for want in wanted]

        gradients(2, (*directions, *last))
        for i in range(len(directions) // _N):
            gradients(2 + _NUMBERS + 2 + _N * i, (*_without(directions, i), *last))
        return tuple(result)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        saved = ctx.saved_tensors
        grad, *own = saved[: 1 + _NUMBERS]
        directions = saved[1 + _NUMBERS :]
        rest = (ctx.wanted, *own, ctx.numbers, ctx.keep)
        terms = []
        if tangents[0] is not None:
            terms.append(structure_factor_gradients(tangents[0], *rest, *directions))
        for last, others in _tangents(tangents[2 : 2 + _N], tangents[2 + _NUMBERS + 2 :], own, directions):
            terms.append(structure_factor_gradients(grad, *rest, *others, *last))
        return tuple(functools.reduce(torch.add, parts) for parts in zip(*terms))


def _tangents(
    of_parameters: Sequence[Any], of_directions: Sequence[Any], own: Sequence[torch.Tensor], directions: Sequence[Any]
) -> Iterator[tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]]:
    """Each direction that a tangent adds or stands in for, and the directions beside it."""
    if any(x is not None for x in of_parameters):
        yield _direction(of_parameters, own), tuple(directions)
    for i in range(len(directions) // _N):
        part = of_directions[_N * i : _N * (i + 1)]
        if any(x is not None for x in part):
            yield _direction(part, own), _without(directions, i)


structure_factors_of = opaque.caller(StructureFactors)
_differentiable_gradients = opaque.caller(StructureFactorGradients)


def structure_factor_gradients(*args: Any) -> tuple[torch.Tensor, ...]:
    """B_k, differentiable; not in what ``torch.compile`` traces, where derivatives would go on without end."""
    if torch.compiler.is_compiling():
        return StructureFactorGradients.forward(*args)
    return _differentiable_gradients(*args)  # type: ignore[no-any-return]


def arguments(
    atoms: Atoms, plan: Plan | Crystal, miller_indices: Any, method: str, accuracy: float, memory: int
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """(The batch's shape, what :data:`structure_factors_of` takes), for atoms with any batch."""
    if isinstance(plan, Plan):
        if miller_indices is not None:
            raise ValueError("A plan has its own Miller indices: give a plan, or a crystal and indices, not both.")
        indices = plan.miller_indices
    elif miller_indices is None:
        raise ValueError("Give miller_indices with a crystal, or a plan made by mmtbx_sfdiff.plan.")
    else:
        indices = as_miller_tensor(miller_indices)
        if not torch.compiler.is_compiling() and indices.is_inference():
            # Autograd would not keep them.
            plan = plan_of(plan, indices)
            indices = plan.miller_indices
    batch = broadcast_shape([getattr(atoms, name).shape[: -1 - tail] for name, tail in _TAILS.items()])
    n_models = math.prod(batch)

    def flat(value: torch.Tensor, tail: int) -> torch.Tensor:
        own = value.shape[value.ndim - 1 - tail :]
        return value.expand(*batch, *own).reshape(n_models, *own)

    parameters = [flat(getattr(atoms, name), tail) for name, tail in _TAILS.items()]
    shared = (atoms.use_u_iso, atoms.use_u_aniso, atoms.site_weights, atoms.type_index, indices)
    numbers = (atoms.crystal.handle, atoms.form_factors.handle, plan.handle, method, float(accuracy), int(memory))
    # torch.compile cannot pass objects on, and whoever calls what it made keeps them.
    keep = None if torch.compiler.is_compiling() else (atoms.crystal, atoms.form_factors, plan)
    return batch, (*parameters, flat(atoms._frac_residual, 1), *shared, numbers, keep)


_TAILS = {"sites_cart": 1, "u_iso": 0, "u_star": 1, "occupancies": 0, "fp": 0, "fdp": 0}


def broadcast_shape(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The common shape of batches; in plain Python, which torch.compile can follow.

    Raises
    ------
    ValueError
        When there is none.
    """
    result: list[int] = []
    for shape in shapes:
        own = [1] * (len(result) - len(shape)) + list(shape)
        result = [1] * (len(own) - len(result)) + result
        for i, (a, b) in enumerate(zip(result, own)):
            if a != b and 1 not in (a, b):
                raise ValueError(f"Batches of shapes {', '.join(str(tuple(s)) for s in shapes)} do not go together.")
            result[i] = b if a == 1 else a
    return tuple(result)


def compute(
    method: str, atoms: Atoms, plan: Plan | Crystal, miller_indices: Any, accuracy: float, memory: int
) -> torch.Tensor:
    """F (..., n) by the method of that name."""
    batch, args = arguments(atoms, plan, miller_indices, method, accuracy, memory)
    n = args[_NUMBERS - 1].shape[0]
    if torch.compiler.is_compiling():
        return structure_factors_of(*args).reshape(*batch, n)  # type: ignore[no-any-return]
    with naming(atoms):
        return structure_factors_of(*args).reshape(*batch, n)  # type: ignore[no-any-return]


@contextlib.contextmanager
def naming(atoms: Atoms) -> Iterator[None]:
    """Add labels to errors about an atom."""
    with checks.naming(lambda: atoms.labels):
        try:
            yield
        except NotPositiveDefinite as error:
            raise NotPositiveDefinite(error.atom, atoms.labels[error.atom]) from None
