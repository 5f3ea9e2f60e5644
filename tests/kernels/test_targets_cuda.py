"""Targets of amplitudes by Triton kernels: on a GPU where there is one, else in the interpreter, in a process of its own."""

import mmtbx_sfdiff as sfdiff
import torch

import pytest

from tests.support.interpreter import interpreted, with_triton


@with_triton
def test_fused_targets_are_those_of_torch_with_their_derivatives():
    assert "passed" in interpreted("-m", "tests.kernels.amplitude_targets")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["least_squares", "maximum_likelihood"])
def test_gpu_target_is_that_of_the_cpu(name):
    crystal = sfdiff.Crystal((14, 16, 18, 90, 90, 90), "P 21 21 2")
    generator = torch.Generator().manual_seed(1)
    sites = torch.rand(12, 3, generator=generator).double() * 14
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "N", "O"] * 4, sites, b_iso=20.0)
    indices = crystal.build_miller_indices(2.0)
    f = sfdiff.structure_factors(atoms, crystal, indices, method="direct").abs()
    noise = 1 + 0.2 * torch.rand(len(f), generator=generator).double()
    data = sfdiff.Reflections.from_arrays(crystal, indices, f * noise, 0.1 * f, torch.arange(len(f)) % 4 == 0)
    fmodel = sfdiff.FModel(atoms, data)
    fmodel.update_scales()
    here = fmodel.f_model().requires_grad_()
    expected, there = fmodel.target(name, f_model=here), here.detach().cuda().requires_grad_()
    fmodel.alpha_beta()
    value = fmodel.cuda().target(name, f_model=there)
    assert abs(float(value) / float(expected) - 1) < 1e-12
    a, b = torch.autograd.grad(expected, here)[0], torch.autograd.grad(value, there)[0].cpu()
    assert float((a - b).norm() / a.norm()) < 1e-12
