"""CUDA graphs of an FModel: on a GPU where there is one, else played through on the CPU, in a process of its own."""

import torch

import pytest

from tests.support.interpreter import interpreted, with_triton


@pytest.mark.slow
@with_triton
def test_graphs_are_right_for_other_coordinates_and_in_any_order():
    assert "passed" in interpreted("-m", "tests.kernels.captured")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["least_squares", "maximum_likelihood"])
def test_gpu_graphs_give_the_same_bits(name):
    from tests.kernels.captured import gradients, made, same

    fmodel = made().cuda()
    u = dict(fmodel.named_parameters())["u_iso"]
    points = [(fmodel.atoms.sites_cart.detach() + 0.2 * i).requires_grad_() for i in range(3)]
    expected = [gradients(fmodel.target(name, sites_cart=x), [x, u]) for x in points]
    fmodel.compile()
    for _ in range(2):
        found = [gradients(fmodel.target(name, sites_cart=x), [x, u]) for x in points]
        assert all(map(same, found, expected))
    first, second = (fmodel.target(name, sites_cart=x) for x in points[:2])
    assert same(gradients(first, [points[0], u], retain_graph=True), expected[0])
    assert same(gradients(second, [points[1], u]), expected[1])
    assert same(gradients(first, [points[0], u]), expected[0])
    torch.cuda.synchronize()
    fmodel.check()
