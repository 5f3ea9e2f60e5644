"""Long lives in one process: memory and caches stay as they are; workers, and threads that call at once."""

import gc
import threading
import time

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels import opaque

import pytest

from tests.support.entries import manifest_rows
from tests.support.long_life import MIB, caches, growth, many_crystals, random_atoms, train, training

# Files of tables, of which there are a few.
CONSTANT = {"mmtbx_sfdiff.tables.read"}


def living():
    """Tensors, and objects with handles, that are alive."""
    gc.collect()
    # By type: proxies of what is gone raise where they are asked for their class.
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()), len(opaque._held)


def test_steps_of_training_leave_nothing_behind():
    fmodel, _, step = training(n_atoms=40, d_min=3.5)
    for _ in range(5):
        step()
    fmodel.update_scales()
    step()
    before, kept = living(), caches()
    for _ in range(40):
        step()
    fmodel.update_scales()
    step()
    # Fewer, where other tests' leavings go meanwhile; a thread that has no core yet lets go of the last calculation late.
    for _ in range(100):
        now = living()
        if all(x <= y for x, y in zip(now, before)):
            break
        time.sleep(0.05)
    assert all(x <= y for x, y in zip(now, before)), (now, before)
    assert caches() == kept


def test_every_cache_is_bounded_and_crystals_of_the_past_are_forgotten():
    many_crystals(6, n_atoms=12, d_min=4.0)
    first = living()[1]
    many_crystals(20, n_atoms=12, d_min=4.0, seed=1)
    for name, (n, most) in caches().items():
        assert name in CONSTANT or (most is not None and n <= most), name
    # A crystal and its plan are two objects; not all twenty are kept by what is computed with them.
    assert living()[1] - first < 200


@pytest.mark.slow
def test_memory_over_ten_thousand_steps_is_flat():
    memory, values = train(10_000, every=500)
    assert values[-1] < values[0]
    assert growth(memory) < 8 * MIB and max(memory) - memory[0] < 32 * MIB


@pytest.mark.slow
def test_memory_over_a_thousand_crystals_is_bounded():
    memory = many_crystals(1000, every=100, rows=manifest_rows())
    assert growth(memory) < 64 * MIB
    assert all(name in CONSTANT or n <= most for name, (n, most) in caches().items())


def work(seed, method):
    """F, F_mask and the gradient of both, of atoms and a crystal of one's own."""
    crystal = sfdiff.Crystal((20.0 + seed, 22.0, 25.0, 90.0, 90.0, 90.0), "P 21 21 21")
    atoms = random_atoms(crystal, 60, seed)
    sites = atoms.sites_cart.clone().requires_grad_()
    moved, plan = atoms.replace(sites_cart=sites), sfdiff.plan(crystal, crystal.build_miller_indices(2.5))
    f = sfdiff.structure_factors(moved, plan, method=method)
    f_mask = sfdiff.solvent_structure_factors(moved, plan, grid_step=1.0)
    (gradient,) = torch.autograd.grad((f + f_mask).abs().square().sum(), sites)
    return f.detach(), f_mask.detach(), gradient


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_two_threads_calling_at_once_get_what_one_gets(method):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = [work(seed, method) for seed in range(2)]
        found, errors = [[], []], []
        start = threading.Barrier(2)

        def run(i):
            try:
                torch.set_num_threads(2)
                start.wait()
                for _ in range(5):
                    found[i].append(work(i, method))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert not errors and [len(x) for x in found] == [5, 5]
    for i, results in enumerate(found):
        for result in results:
            for a, b in zip(result, expected[i]):
                # A thread that does not get the helpers adds in another order.
                assert float((a - b).norm()) <= 1e-6 * float(b.norm())


class Steps(torch.utils.data.Dataset):
    """A target and its gradient, of an FModel that the workers have by fork or by pickle."""

    def __init__(self, fmodel):
        self.fmodel = fmodel

    def __len__(self):
        return 4

    def __getitem__(self, i):
        sites = (self.fmodel.sites_cart.detach() + 0.05 * i).requires_grad_()
        value = self.fmodel.target("least_squares", sites)
        (gradient,) = torch.autograd.grad(value, sites)
        return value.detach(), gradient


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_an_fmodel_in_workers_of_a_data_loader(context):
    fmodel, *_ = training(n_atoms=30, d_min=3.0)
    data = Steps(fmodel)
    expected = [data[i] for i in range(4)]
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=context)
    for (value, gradient), (f, g) in zip(loader, expected):
        torch.testing.assert_close(value, f, rtol=1e-6, atol=0)
        assert float((gradient - g).norm()) <= 1e-4 * float(g.norm())
