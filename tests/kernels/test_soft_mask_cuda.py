"""The Triton kernels of the soft mask: on a GPU where there is one, else on the CPU by Triton's interpreter, in a process
of its own."""

import mmtbx_sfdiff as sfdiff
import torch

import pytest

from tests.bulk_solvent.test_probe_shrink import GROUPS, atoms_of, gradients, mask, one_atom
from tests.support.interpreter import interpreted, with_triton

SCRIPT = """
import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels.cuda import soft_mask
from tests.bulk_solvent.test_probe_shrink import atoms_of, gradients, mask, one_atom
# The interpreter is slow by the operation, not by the number.
soft_mask._TILE, soft_mask._BLOCK = (16, 16, 32), 8192

# The interpreter is slow: a small cell, and one that is smaller than the reach of an atom.
atoms = one_atom((7, 8, 9, 80, 95, 100), "P -1")
found, expected = (gradients(atoms, engine, 0.8) for engine in ("triton", "cpu"))
for a, b in zip(found, expected):
    assert float((a - b).norm()) <= 1e-10 * float(b.norm()), (a, b)

tiny = one_atom((3.0, 3.1, 3.2, 80, 95, 100))
sites = torch.stack([tiny.sites_cart, tiny.sites_cart + 0.4])
small = {"r_probe": 0.1, "r_shrink": 0.3, "radii": torch.tensor([1.0], dtype=torch.float64)}
a, b = (mask(tiny.replace(sites_cart=sites), engine=engine, **small) for engine in ("triton", "cpu"))
assert a.shape == b.shape == (2, *tiny.crystal.grid(0.6)) and float((a - b).abs().max()) < 1e-10
assert 0.01 < float(a.mean()) < 0.99
print("passed")
"""


@with_triton
def test_triton_kernels_by_interpretation():
    assert "passed" in interpreted("-c", SCRIPT)


@pytest.mark.gpu
@pytest.mark.parametrize("symbol", GROUPS)
def test_gpu_agrees_with_cpu(symbol):
    atoms = atoms_of(symbol, n_atoms=5, volume_per_atom=40)
    expected, found = gradients(atoms, "torch", 0.8), gradients(atoms.to(device="cuda"), "triton", 0.8)
    for a, b in zip(found, expected):
        assert a.device.type == "cuda" and float((a.cpu() - b).norm()) <= 1e-10 * float(b.norm()) + 1e-12


@pytest.mark.gpu
def test_gpu_single_precision_and_repeats():
    atoms = atoms_of("P 31 2 1", n_atoms=40)
    there = atoms.to(device="cuda")
    masks, slopes = [], []
    for _ in range(2):
        sites = there.sites_cart.clone().requires_grad_()
        result = mask(there.replace(sites_cart=sites), precision="single")
        masks.append(result.detach())
        slopes.append(torch.autograd.grad(result.square().sum(), sites)[0])
    assert torch.equal(*masks) and torch.equal(*slopes)
    assert float((masks[0].cpu() - mask(atoms)).abs().max()) < 1e-4


@pytest.mark.gpu
def test_gpu_batch_and_memory():
    atoms = atoms_of("P 21 21 21", n_atoms=10).to(device="cuda")
    noise = torch.randn(5, *atoms.sites_cart.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    many = atoms.replace(sites_cart=atoms.sites_cart + 0.1 * noise.cuda())
    together, one_by_one = mask(many), mask(many, memory=1)
    assert together.shape == (5, *atoms.crystal.grid(0.6)) and torch.equal(together, one_by_one)


@pytest.mark.gpu
def test_gpu_cell_without_atoms():
    assert float(mask(one_atom((9, 10, 11, 90, 90, 90), occupancy=0.0).to(device="cuda")).min()) > 1 - 1e-6
    with pytest.raises(ValueError, match="engine"):
        sfdiff.solvent_mask(
            one_atom((9, 10, 11, 90, 90, 90)).to(device="cuda"), one_atom((9, 10, 11, 90, 90, 90)).crystal, engine="cpu"
        )


@pytest.mark.gpu
@pytest.mark.parametrize("symbol", ["P 1", "P 31 2 1"])
def test_gpu_hard_mask(symbol):
    atoms = atoms_of(symbol, n_atoms=3, volume_per_atom=40)
    found, expected = (mask(here, softness=0) for here in (atoms.to(device="cuda"), atoms))
    assert found.device.type == "cuda" and float((found.cpu() - expected).abs().max()) < 1e-10
