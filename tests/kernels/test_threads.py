"""Threads that take the phases of a calculation side by side."""

import importlib
import threading

import mmtbx_sfdiff  # noqa: F401
import torch

import pytest

workers = importlib.import_module("mmtbx_sfdiff.kernels.threads")


@pytest.mark.parametrize("n", (1, 2, 3))
def test_a_phase_begins_when_the_one_before_has_been_done(n):
    for _ in range(20):
        done = []
        first = [lambda i=i: done.append(i) for i in range(n)]
        second = [lambda i=i: (i, len(done)) for i in range(n)]
        assert workers.run(first, second) == [(i, n) for i in range(n)]


@pytest.mark.parametrize("culprit", (0, 1))
def test_an_error_in_any_thread_reaches_the_caller_and_leaves_the_threads_usable(culprit):
    def fail():
        raise ArithmeticError("as asked")

    calls = [int, int]
    calls[culprit] = fail
    with pytest.raises(ArithmeticError, match="as asked"):
        workers.run(calls, [int, int])
    assert workers.run([lambda: 1, lambda: 2]) == [1, 2]


def test_torch_has_one_thread_inside_and_its_number_back_afterwards():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with workers.own_threads():
            assert torch.get_num_threads() == 1 and workers.n_workers() == 3
            assert workers.run([torch.get_num_threads] * 2) == [1, 1]
        assert torch.get_num_threads() == 3
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert found == [3]
    finally:
        torch.set_num_threads(before)


def test_two_callers_at_once():
    results = []

    def call(value):
        for _ in range(50):
            results.append(workers.run([lambda: value] * 2, [lambda: value] * 2) == [value, value])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 100 and all(results)
