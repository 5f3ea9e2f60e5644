"""The Triton kernels: on a GPU where there is one, else on the CPU by Triton's interpreter, in a process of
its own."""

import torch

import pytest

from tests.structure_factors.test_fft import PARAMETERS, errors, evaluate, make_atoms
from tests.support.interpreter import interpreted, with_triton

SCRIPT = """
import importlib
import mmtbx_sfdiff as sfdiff
import torch
from tests.structure_factors.test_fft import PARAMETERS, errors, make_atoms, relative
from mmtbx_sfdiff.kernels import engines
triton = engines.engine("cpu", "triton")
engines.engine = lambda device, name=None: triton
engine = importlib.import_module("mmtbx_sfdiff.kernels.cuda.density")
# The interpreter is slow by the operation, not by the number.
engine._TILE, engine._LANES = (16, 16, 16), 4096
for symbol, b in (("P 1", (10, 60)), ("P 31 2 1", (40, 90))):
    atoms = make_atoms(symbol, n=6, aniso=True, dispersion=True, b=b, d_min=3.0)
    indices = atoms.crystal.build_miller_indices(3.0, anomalous=True)
    found = errors(atoms, indices, 1e-3, names=PARAMETERS)
    assert found[0] <= 1e-3 and max(found) <= 2e-3, found
# A batch is its models, also in portions.
atoms = make_atoms("P 1", n=6, d_min=3.0)
indices = atoms.crystal.build_miller_indices(3.0)
shift = torch.zeros(2, 1, 3, dtype=torch.float64)
shift[1] = 0.3
many = atoms.replace(sites_cart=atoms.sites_cart + shift, u_iso=torch.stack([atoms.u_iso, atoms.u_iso]))
sites = many.sites_cart.clone().requires_grad_()
results = []
for method in ("direct", "fft"):
    f = sfdiff.structure_factors(many.replace(sites_cart=sites), many.crystal, indices, method=method, accuracy=1e-3)
    results.append((f.detach(), torch.autograd.grad(f.abs().square().sum(), sites)[0]))
for exact, found in zip(*results):
    assert all(relative(b, a) < 2e-3 for a, b in zip(exact, found))
print("passed")
"""


@with_triton
@pytest.mark.slow
def test_triton_kernels_by_interpretation():
    assert "passed" in interpreted("-c", SCRIPT)


@pytest.mark.gpu
@pytest.mark.parametrize("accuracy", [1e-3, 1e-5])
@pytest.mark.parametrize("symbol", ["P 1", "P 31 2 1", "C 1 2 1", "P 43 21 2"])
def test_gpu_meets_the_accuracy(symbol, accuracy):
    atoms = make_atoms(symbol, n=40, aniso=True, dispersion=True, d_min=2.0).to(device="cuda")
    indices = atoms.crystal.build_miller_indices(2.0, anomalous=True)
    found = errors(atoms, indices, accuracy, names=PARAMETERS)
    assert found[0] <= accuracy and max(found) <= 2 * accuracy, found


@pytest.mark.gpu
def test_gpu_batch_repeats_and_is_its_models():
    atoms = make_atoms("P 21 21 21", n=60).to(device="cuda", dtype=torch.float32)
    indices = atoms.crystal.build_miller_indices(2.0)
    noise = torch.randn(5, *atoms.sites_cart.shape, generator=torch.Generator().manual_seed(0)).cuda()
    many = atoms.replace(sites_cart=atoms.sites_cart + 0.1 * noise)
    runs = [
        evaluate(many, indices, ("sites_cart", "u_iso"), method="fft", accuracy=1e-3, memory=memory)
        for memory in (2**28, 2**28, 2**22)
    ]
    for f, gradients in runs[1:]:
        assert torch.equal(f, runs[0][0]) and all(torch.equal(a, b) for a, b in zip(gradients, runs[0][1]))
