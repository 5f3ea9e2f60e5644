"""Working storage: used again when nothing refers to it, never before, and not more of it than is said."""

import gc
import threading

import torch
from mmtbx_sfdiff.kernels import scratch as module
from mmtbx_sfdiff.kernels.scratch import scratch, scratch_like

import numpy as np
import pytest

N = 2**20


@pytest.fixture(autouse=True)
def empty_pool():
    gc.collect()
    module._POOL.forget()


def place(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_nothing_refers_to_it():
    first = scratch(N, np.float32)
    where = place(first)
    part = first.reshape(-1, 2)[5:]
    del first
    assert place(scratch(N, np.float32)) != where
    del part
    assert place(scratch(N, np.float32)) == where


def test_a_tensor_keeps_its_memory():
    tensor = scratch_like(torch.zeros(1), (4, N // 4))
    where = tensor.data_ptr()
    view = tensor[1:].t()
    del tensor
    other = scratch_like(torch.zeros(1), (4, N // 4))
    assert other.data_ptr() != where
    del view, other
    assert where in map(place, [scratch(N, np.float32) for _ in range(3)])


def test_arrays_in_use_never_overlap():
    failures = []

    def work(number):
        for step in range(50):
            kept = [scratch(N // 8 + 1000 * i, np.float64) for i in range(3)]
            for i, array in enumerate(kept):
                array[:] = number * 1000 + step * 3 + i
            if any((array != number * 1000 + step * 3 + i).any() for i, array in enumerate(kept)):
                failures.append((number, step))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_what_waits_is_bounded():
    arrays = [scratch(module.MOST // 16 // 8 + 5000 * i, np.float64) for i in range(40)]
    del arrays
    assert 0 < module._POOL.size <= module.MOST
    assert module._POOL.size == sum(buffer.nbytes for buffer in module._POOL.waiting)
    too_large = scratch(module.MOST // 8 + 1, np.float64)
    del too_large
    assert module._POOL.size <= module.MOST
