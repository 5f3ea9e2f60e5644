"""Hardly any of torch's operations is large while torch has more than one thread, in any operation of this package.

Each would be a parallel region, at the end of which threads wait for one another awake: beside other busy processes, for a
time slice (docs/runtime.rst).  What is counted is what a TorchDispatchMode sees, also inside the opaque operations.
"""

from __future__ import annotations

import mmtbx_sfdiff as sfdiff
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import pytest

#: Elements from which torch shares an operation among its threads.
GRAIN = 32768
MOST = 2


class Counting(TorchDispatchMode):
    """The operations above the grain size while torch has several threads."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "mmtbx_sfdiff":
            # What is inside it counts.
            with self:
                return func.plain(*args, **kwargs)
        result = func(*args, **kwargs)
        tensors = [x for x in tree_flatten((args, kwargs, result))[0] if isinstance(x, torch.Tensor)]
        returns = func._schema.returns
        is_view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        allocates = func.__name__.partition(".")[0].startswith(("empty", "new_empty"))
        if torch.get_num_threads() > 1 and not is_view and not allocates:
            if max((x.numel() for x in tensors), default=0) >= GRAIN:
                self.found.append(str(func))
        return result


@pytest.fixture(scope="module")
def case():
    crystal = sfdiff.Crystal((50.0, 60.0, 70.0, 90.0, 90.0, 90.0), "P 21 21 21")
    generator = torch.Generator().manual_seed(0)
    sites = torch.rand((900, 3), generator=generator, dtype=torch.float64) * torch.tensor([50.0, 30.0, 35.0])
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "N", "O"] * 300, sites, b_iso=[20.0] * 900)
    indices = crystal.build_miller_indices(d_min=2.0)
    f = sfdiff.structure_factors(atoms, crystal, indices, method="fft").abs()
    data = sfdiff.Reflections.from_arrays(crystal, indices, f, sigmas=f * 0.02 + 1, free=torch.arange(len(f)) % 20 == 0)
    model = sfdiff.FModel(atoms, data, refine=("sites_cart", "u_iso"))
    model.update_scales()
    return atoms, crystal, indices, model


def operations(case):
    """Name: function."""
    atoms, crystal, indices, model = case
    seed = torch.ones(len(indices), dtype=torch.complex128)

    def moved():
        x = [getattr(atoms, name).detach().clone().requires_grad_() for name in ("sites_cart", "u_iso")]
        return x, atoms.replace(sites_cart=x[0], u_iso=x[1])

    def gradient(calculate):
        x, atoms = moved()
        f = calculate(atoms)
        torch.autograd.grad(f, x, torch.ones_like(f), allow_unused=True)

    def f(atoms):
        return sfdiff.structure_factors(atoms, crystal, indices, method="fft", accuracy=1e-3)

    def masked(method):
        return lambda atoms: sfdiff.solvent_structure_factors(atoms, crystal, indices, method=method)

    def step():
        model.zero_grad()
        model.target("least_squares").backward()

    found = {
        "structure_factors": lambda: f(atoms),
        "structure_factors, gradient": lambda: gradient(f),
        "structure_factor_gradients": lambda: sfdiff_gradients(atoms, crystal, indices, seed),
        "FModel step": step,
    }
    for method in ("probe_shrink", "density_cutoff", "binary"):
        found[f"{method}"] = lambda method=method: masked(method)(atoms)
        if method != "binary":
            found[f"{method}, gradient"] = lambda method=method: gradient(masked(method))
        found[f"{method}, transform of its map"] = lambda method=method: sfdiff.mask_structure_factors(
            sfdiff.solvent_mask(atoms, crystal, method=method), crystal, indices
        )
    return found


def sfdiff_gradients(*args):
    from mmtbx_sfdiff.structure_factors import structure_factor_gradients

    return structure_factor_gradients(*args, method="fft", accuracy=1e-3)


def test_torch_shares_hardly_any_operation_among_its_threads(case):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    counts = {}
    try:
        for name, function in operations(case).items():
            function()
            with Counting() as counting:
                function()
            counts[name] = counting.found
    finally:
        torch.set_num_threads(threads)
    assert {name: found for name, found in counts.items() if len(found) > MOST} == {}


def test_large_operations_of_torch_are_counted():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Counting() as counting:
            x = torch.zeros(GRAIN)
            (x.view(-1) + 1).sum()
            torch.ones(GRAIN // 2) + 1
    finally:
        torch.set_num_threads(threads)
    assert counting.found == ["aten.zeros.default", "aten.add.Tensor", "aten.sum.default"]
