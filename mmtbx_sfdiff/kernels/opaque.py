"""Differentiable operations that torch cannot look into: the one pattern of this package.

Our operations choose grids, sort atoms and run compiled kernels, all by the values of tensors.  ``torch.compile``,
``torch.func`` and autocast must not look into that, so each is a leaf, an operation of ``torch.library``:

1. :func:`operation` makes one of a function that takes tensors, numbers and strings, and gives new tensors.  Its ``fake``
   says what they look like.  Within it autocast, a default device, other modes and the transforms of ``torch.func`` are
   off, and autograd may be used for parts of the work.
2. What is neither tensor nor number (a crystal, a plan, a table) derives from :class:`Held` and crosses as the number
   ``object.handle``; inside, ``held(number)`` gives it back.  Handles are weak: whoever calls keeps the object.
3. A :class:`Function`, an ``autograd.Function`` whose ``forward`` calls the operation, gives it derivatives.  The backward
   pass calls another ``Function``, whose own backward pass is the second derivative, or refuses it by :func:`refused`.
   ``vmap`` is inherited: a tensor that is not shared begins with a dimension of models, and another batch is more models.
4. Apply it by what :func:`caller` makes of it: ``torch.compile`` is then shown one without ``jvp``.

    >>> import torch
    >>> from mmtbx_sfdiff.kernels import opaque
    >>> @opaque.operation("example_cube", fake=lambda x: torch.empty_like(x))
    ... def cube(x: torch.Tensor) -> torch.Tensor:
    ...     return x**3
    >>> @opaque.operation("example_square", fake=lambda g, x: torch.empty_like(x))
    ... def cube_gradient(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    ...     return 3 * g * x**2
    >>> class Gradient(opaque.Function):
    ...     @staticmethod
    ...     def forward(g, x):
    ...         return cube_gradient(g, x)
    ...     @staticmethod
    ...     def setup_context(ctx, inputs, output):
    ...         pass
    ...     @staticmethod
    ...     def backward(ctx, *cotangents):
    ...         opaque.refused("the cube")
    >>> class Cube(opaque.Function):
    ...     @staticmethod
    ...     def forward(x):
    ...         return cube(x)
    ...     @staticmethod
    ...     def setup_context(ctx, inputs, output):
    ...         ctx.save_for_backward(*inputs)
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         return apply_gradient(g, *ctx.saved_tensors)
    >>> apply_gradient, apply_cube = opaque.caller(Gradient), opaque.caller(Cube)
    >>> torch.func.vmap(torch.func.grad(lambda x: apply_cube(x).sum()))(torch.ones(2, 3))
    tensor([[3., 3., 3.],
            [3., 3., 3.]])
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import typing
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
import torch.library
from torch.autograd import forward_ad

from .interrupts import interruption

NAMESPACE = "mmtbx_sfdiff"
_SPELLED: dict[Any, Any] = {Sequence: typing.Sequence, list: typing.List, tuple: typing.Tuple}  # noqa: UP006
_library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_numbers = itertools.count(1)
_held: weakref.WeakValueDictionary[int, Held] = weakref.WeakValueDictionary()
# Keys of the dispatcher as they are for code outside every transform and mode, autocast off.
_INCLUDED, _EXCLUDED = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


class Held:
    """An immutable object that operations are given by its number, ``handle``.

    Copies, also those in other processes, have numbers of their own.

    Attributes
    ----------
    handle : int
    """

    handle: int

    def __new__(cls, *args: Any, **keywords: Any) -> Any:
        self = super().__new__(cls)
        number = next(_numbers)
        object.__setattr__(self, "handle", number)
        _held[number] = self
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def held(number: int) -> Any:
    """The object with this handle.

    Raises
    ------
    RuntimeError
        When nobody has kept it.
    """
    found = _held.get(number)
    if found is None:
        raise RuntimeError(
            "A crystal, plan or table that this calculation was set up with no longer exists: keep it until the backward "
            "pass of a compiled function is done."
        )
    return found


def constant_result(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: ``torch.compile`` calls the function once and takes its result for a constant.

    ``torch.compiler.assume_constant_result`` without its import of the compiler, which takes most of a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def operation(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: an operation of ``torch.library`` that nothing looks into.

    Parameters
    ----------
    name : str
        In the namespace of this package.
    fake : callable
        With the arguments of the function, of which the tensors have no values: empty tensors as the results will be.

    Returns
    -------
    callable
        Takes a function, annotated as ``torch.library.custom_op`` asks for, that changes no argument and returns none.
        What it gives can be called in its place; ``.plain`` is the function itself.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def alone(*args: Any, **keywords: Any) -> Any:
            with (
                torch._C._ForceDispatchKeyGuard(_INCLUDED, _EXCLUDED),
                torch._C.DisableTorchFunction(),
                torch.no_grad(),
            ):
                try:
                    return function(*args, **keywords)
                except SystemError as error:
                    raise (interruption(error) or error) from None

        # Not torch.library.custom_op: its first call imports the compiler, two seconds.
        schema = torch.library.infer_schema(_resolved(function), mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.needs_fixed_stride_order,))  # type: ignore[no-untyped-call]
        _library.impl(name, alone, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
        result: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
        result.plain = function  # type: ignore[attr-defined]
        return result

    return decorate


def _resolved(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with annotations that are types again after ``from __future__ import annotations``."""
    signature = inspect.signature(function, eval_str=True)
    signature = signature.replace(
        parameters=[p.replace(annotation=_spelled(p.annotation)) for p in signature.parameters.values()],
        return_annotation=_spelled(signature.return_annotation),
    )

    def described() -> None:
        pass

    described.__signature__ = signature  # type: ignore[attr-defined]
    described.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return described


def _spelled(annotation: Any) -> Any:
    """``Sequence``, ``list`` and ``tuple`` by the names of ``typing``, the only ones that torch 2.5 knows."""
    origin = typing.get_origin(annotation)
    if origin not in _SPELLED:
        return annotation
    return _SPELLED[origin][tuple(_spelled(x) for x in typing.get_args(annotation))]


def refused(what: str) -> NoReturn:
    """Say that a derivative of this order is not to be had.

    Raises
    ------
    NotImplementedError
    """
    raise NotImplementedError(
        f"Derivatives of {what} of this order are not available: detach() what need not be differentiated again, or use "
        "differences of the derivatives that there are."
    )


class Function(torch.autograd.Function):
    """Base class of the differentiable operations, whose ``vmap`` is more models.

    Every tensor among the arguments that is not in ``SHARED``, and every result, begins with a dimension of models, as
    many for all of them (stride 0 will do where they are the same).

    Attributes
    ----------
    SHARED : tuple of int
        Which arguments are tensors without a dimension of models: what all models have in common.
    HANDLES : tuple of int
        Which arguments are numbers of :class:`Held` objects that nothing else among the arguments keeps until the backward
        pass.
    """

    SHARED: Sequence[int] = ()
    HANDLES: Sequence[int] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.vmap = staticmethod(functools.partial(_more_models, cls))  # type: ignore[method-assign]
        if "forward" in vars(cls):
            # torch asks for it in every call.
            cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]


def _keeping(cls: type[Function], ctx: Any, inputs: Any, output: Any) -> None:
    """A ``setup_context`` that keeps what the backward pass looks up."""
    cls.setup_context(ctx, inputs, output)
    ctx.held = tuple(held(inputs[i]) for i in cls.HANDLES)


def caller(cls: type[Function]) -> Callable[..., Any]:
    """What applies a :class:`Function`, also under ``torch.compile``, which cannot trace one that has a ``jvp``.

    The compiler traces the backward pass as well, and what that calls: there, where ``torch.compiler.is_compiling()``, call
    ``forward`` of the next Function instead if its own backward pass goes on to others without end.
    """
    traced = eager = cls
    if cls.HANDLES:
        # Compiled functions leave it to whoever calls them to keep things.
        own = {"setup_context": staticmethod(functools.partial(_keeping, cls)), "__module__": cls.__module__}
        eager = type(cls.__name__, (cls,), own)
    if cls.jvp is not torch.autograd.Function.jvp:
        traced = type(cls.__name__, (cls,), {"jvp": torch.autograd.Function.jvp, "__module__": cls.__module__})

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in args):
                return traced.apply(*args)  # type: ignore[no-untyped-call]
            # The compiler takes a forward() with *args for one with a context where no gradient is wanted.
            return cls.forward(*args)
        if followed(args):
            return eager.apply(*args)  # type: ignore[no-untyped-call]
        return cls.forward(*args)

    return call


def followed(args: Sequence[Any]) -> bool:
    """Whether anything would differentiate or transform what is made of these arguments; else a graph is no use."""
    return (
        (torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in args))
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def lasting() -> bool:
    """Whether a tensor that is made now may be kept for later calls: not of a compilation, a transform, or inference mode.

    Examples
    --------
    >>> lasting()
    True
    >>> with torch.inference_mode():
    ...     lasting()
    False
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.is_inference_mode_enabled()
    )


@contextlib.contextmanager
def outlasting() -> Iterator[None]:
    """Constants of later calls: no graph, and no tensors of inference mode, which autograd would refuse to save.

    Examples
    --------
    >>> with torch.inference_mode(), outlasting():
    ...     torch.zeros(1).is_inference()
    False
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def _more_models(cls: type[Function], info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    """The ``vmap`` of a :class:`Function`: (size, n_models, ...) is taken as size n_models models.

    Raises
    ------
    NotImplementedError
        When what all models share has a batch.
    """
    size, flat, n_models = info.batch_size, list(args), 1
    for i, (value, dim) in enumerate(zip(args, in_dims)):
        if i in cls.SHARED and dim is not None:
            raise NotImplementedError(
                f"vmap of {cls.__name__} is over atoms' parameters, not over indices, tables or kinds of atoms: give all "
                "models the same of those, or call it once for each."
            )
        if i in cls.SHARED or not isinstance(value, torch.Tensor):
            continue
        value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
        n_models = value.shape[1]
        flat[i] = value.reshape(size * n_models, *value.shape[2:])
    found = cls.apply(*flat)  # type: ignore[no-untyped-call]
    several = isinstance(found, tuple)
    results = tuple(
        None if value is None else value.reshape(size, n_models, *value.shape[1:])
        for value in (found if several else (found,))
    )
    dims = tuple(None if value is None else 0 for value in results)
    return (results, dims) if several else (results[0], 0)
