"""The pattern of differentiable operations, on the smallest one there is: the cube of numbers, scaled by an object."""

import copy
import dataclasses
import gc
import pickle

import torch
from mmtbx_sfdiff.kernels import opaque

import pytest


@dataclasses.dataclass(frozen=True, eq=False)
class Scale(opaque.Held):
    value: float


def _like(*args):
    return torch.empty_like(args[-2])


@opaque.operation("test_cube", fake=_like)
def cube(x: torch.Tensor, scale: int) -> torch.Tensor:
    # By value, which nothing that is traced could do.
    return opaque.held(scale).value * x**3 if float(x.sum()) < 1e300 else x


@opaque.operation("test_cube_gradient", fake=_like)
def cube_gradient(g: torch.Tensor, x: torch.Tensor, scale: int) -> torch.Tensor:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(leaf**3, leaf, g)
    return opaque.held(scale).value * found


class Gradient(opaque.Function):
    @staticmethod
    def forward(g, x, scale, keep):
        return cube_gradient(g, x, scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        g, x, ctx.scale, ctx.keep = inputs
        ctx.save_for_backward(g, x)
        ctx.save_for_forward(g, x)

    @staticmethod
    def backward(ctx, v):
        g, x = ctx.saved_tensors
        return apply_gradient(v, x, ctx.scale, ctx.keep), apply_second(v, g, x, ctx.scale, ctx.keep), None, None

    @staticmethod
    def jvp(ctx, g_t, x_t, *_):
        g, x = ctx.saved_tensors
        return apply_gradient(g_t, x, ctx.scale, ctx.keep) + apply_second(x_t, g, x, ctx.scale, ctx.keep)


class Second(opaque.Function):
    @staticmethod
    def forward(v, g, x, scale, keep):
        return 2 * cube_gradient(v * g, x.abs().sqrt(), scale) * x.sign()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        opaque.refused("the cube")


class Cube(opaque.Function):
    @staticmethod
    def forward(x, scale, keep):
        return cube(x, scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.scale, ctx.keep = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx, g):
        return apply_gradient(g, *ctx.saved_tensors, ctx.scale, ctx.keep), None, None

    @staticmethod
    def jvp(ctx, x_t, *_):
        (x,) = ctx.saved_tensors
        return apply_gradient(x_t, x, ctx.scale, ctx.keep)


apply_cube, apply_gradient, apply_second = map(opaque.caller, (Cube, Gradient, Second))


def apply(x, scale):
    """(..., n): the way from any batch to models."""
    keep = None if torch.compiler.is_compiling() else scale
    return apply_cube(x.reshape(-1, x.shape[-1]), scale.handle, keep).reshape(x.shape)


@pytest.fixture
def x():
    return torch.tensor([[0.5, 1.5, 2.0], [1.0, 0.25, 3.0]], dtype=torch.float64)


def test_gradcheck_to_second_order_and_refusal_of_the_third(x):
    scale = Scale(2.0)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply(x, scale), x)
    assert torch.autograd.gradgradcheck(lambda x: apply(x, scale), x)
    (first,) = torch.autograd.grad(apply(x, scale).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    torch.testing.assert_close(second, 12 * x)
    with pytest.raises(NotImplementedError, match="of this order"):
        torch.autograd.grad(second.sum(), x)


def test_torch_func(x):
    scale = Scale(2.0)

    def total(x):
        return apply(x, scale).sum()

    torch.testing.assert_close(torch.func.grad(total)(x), 6 * x**2)
    torch.testing.assert_close(torch.func.vmap(lambda x: apply(x, scale))(x), 2 * x**3)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total), in_dims=1)(x), 6 * x.T**2)
    expected = torch.diag_embed(6 * x[0] ** 2)
    torch.testing.assert_close(torch.func.jacrev(lambda x: apply(x, scale))(x[0]), expected)
    torch.testing.assert_close(torch.func.jacfwd(lambda x: apply(x, scale))(x[0]), expected)
    torch.testing.assert_close(torch.func.hessian(total)(x[0]), torch.diag_embed(12 * x[0]))
    torch.testing.assert_close(torch.autograd.functional.hessian(total, x[0]), torch.diag_embed(12 * x[0]))
    scaled = torch.func.vmap(lambda y, x: (y * apply(x, scale)).sum(), in_dims=(0, None))(x, x)
    torch.testing.assert_close(scaled, (x[:, None] * 2 * x**3).sum((1, 2)))


def test_compiled_in_one_graph_for_any_object(x):
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    for value in (2.0, 5.0, 7.0):
        scale = Scale(value)
        leaf = x.clone().requires_grad_()
        f = compiled(leaf, scale)
        torch.testing.assert_close(f, value * x**3)
        f.sum().backward()
        torch.testing.assert_close(leaf.grad, 3 * value * x**2)


def test_autocast_devices_and_modes_stay_outside(x):
    @opaque.operation("test_product", fake=lambda x: x.new_empty(x.shape[0], x.shape[0]))
    def product(x: torch.Tensor) -> torch.Tensor:
        return x @ x.T + torch.arange(1)

    x = x.to(torch.float32)
    expected = x @ x.T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(product(x), expected)
    with torch.device("meta"):
        assert torch.equal(product(x), expected)
    with torch.inference_mode():
        assert torch.equal(product(x), expected)


def test_handles_are_weak_and_copies_have_their_own():
    scale = Scale(3.0)
    number = scale.handle
    for other in (copy.copy(scale), pickle.loads(pickle.dumps(scale)), dataclasses.replace(scale, value=4.0)):
        assert other.handle != number and opaque.held(other.handle) is other
    assert opaque.held(number) is scale
    del scale
    gc.collect()
    with pytest.raises(RuntimeError, match="no longer exists"):
        opaque.held(number)


def test_shared_arguments_take_no_batch(x):
    class Sum(opaque.Function):
        SHARED = (1,)

        @staticmethod
        def forward(x, y):
            return x + y

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

    with pytest.raises(NotImplementedError, match="vmap of Sum"):
        torch.func.vmap(lambda x, y: opaque.caller(Sum)(x[None], y))(x, x)
