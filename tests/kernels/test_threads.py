"""Threads that take the phases of a calculation side by side, and whole models."""

import contextvars
import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import mmtbx_sfdiff  # noqa: F401
import torch
from mmtbx_sfdiff.kernels import threads

import pytest

from tests.support.processes import heed_interrupts, interrupted


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", (1, 2, 3))
def test_a_phase_begins_when_the_one_before_has_been_done(n):
    for _ in range(20):
        done = []
        first = [lambda i=i: done.append(i) for i in range(n)]
        second = [lambda i=i: (i, len(done)) for i in range(n)]
        assert threads.run(first, second) == [(i, n) for i in range(n)]


@pytest.mark.parametrize("culprit", (0, 1))
def test_an_error_in_any_thread_reaches_the_caller_and_leaves_the_threads_usable(culprit):
    def fail():
        raise ArithmeticError("as asked")

    calls = [int, int]
    calls[culprit] = fail
    with pytest.raises(ArithmeticError, match="as asked"):
        threads.run(calls, [int, int])
    assert threads.run([lambda: 1, lambda: 2]) == [1, 2]


def test_an_error_in_one_range_spares_the_others(three_threads):
    done, failed = [], threading.Event()

    def work(first, after):
        if first == 0:
            failed.set()
            raise ArithmeticError("as asked")
        assert failed.wait(600)
        time.sleep(0.01)
        done.append(first)

    n_ranges = len(threads.over(3000, lambda first, after: None, per_thread=100))
    assert n_ranges > 200
    with pytest.raises(ArithmeticError, match="as asked"):
        threads.over(3000, work, per_thread=100)
    assert len(done) < n_ranges / 2


def test_torch_has_one_thread_inside_and_its_number_back_afterwards(three_threads):
    with threads.own_threads():
        assert torch.get_num_threads() == 1 and threads.n_workers() == 3
        assert threads.run([torch.get_num_threads] * 2) == [1, 1]
    with threads.one_cpu_thread("cpu"):
        assert torch.get_num_threads() == threads.n_workers() == 1
    assert torch.get_num_threads() == 3
    assert in_another_thread(torch.get_num_threads) == 3


def in_another_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_that_first_uses_torch_meanwhile_does_not_change_the_default(three_threads):
    """Its own count is then 1, and giving "its" number back made 1 the default of all threads to come."""
    inside, done = threading.Event(), threading.Event()

    def late():
        inside.wait()
        with threads.own_threads():
            torch.ones(3).sum()
        done.set()

    thread = threading.Thread(target=late)
    thread.start()
    with threads.own_threads():
        inside.set()
        done.wait()
    thread.join()
    assert torch.get_num_threads() == 3 and in_another_thread(torch.get_num_threads) == 3


def test_two_callers_at_once():
    results = []

    def call(value):
        for _ in range(50):
            results.append(threads.run([lambda: value] * 2, [lambda: value] * 2) == [value, value])

    callers = [threading.Thread(target=call, args=(i,)) for i in range(2)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(600)
    assert len(results) == 100 and all(results)


def test_models_are_shared_out_with_one_thread_for_each(three_threads):
    everyone, met = threading.Barrier(3), threading.local()

    def model(i):
        if not hasattr(met, "others"):
            met.others = everyone.wait(600)
        return (
            i,
            threading.get_ident(),
            torch.get_num_threads(),
            threads.n_workers(),
            threads.over(4, lambda a, b: b - a),
        )

    found = threads.share_models([lambda i=i: model(i) for i in range(9)])
    assert [x[0] for x in found] == list(range(9)) and len({x[1] for x in found}) == 3
    assert all(x[2:] == (1, 1, [4]) for x in found)
    assert threads.models_at_once(9) == 3
    # Fewer than threads: one after another, with all the threads.
    few = threads.share_models([lambda i=i: (i, threading.get_ident(), threads.n_workers()) for i in range(2)])
    assert few == [(i, threading.get_ident(), 3) for i in range(2)]


def test_models_have_the_callers_modes_and_variables(three_threads):
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)

    def state():
        time.sleep(0.01)
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), variable.get()

    for context, expected in (
        (torch.no_grad(), (False, False, 7)),
        (torch.enable_grad(), (True, False, 7)),
        (torch.inference_mode(), (False, True, 7)),
    ):
        with context:
            assert threads.share_models([state] * 6) == [expected] * 6


def test_an_error_in_one_model_is_the_callers(three_threads):
    def fail():
        raise ArithmeticError("as asked")

    with pytest.raises(ArithmeticError, match="as asked"):
        threads.share_models([int, int, fail, int])
    assert threads.share_models([lambda: 1] * 3) == [1, 1, 1]


def test_nothing_of_a_calculation_is_kept(three_threads):
    class Large:
        pass

    large = Large()
    seen = weakref.ref(large)
    threads.run([lambda large=large: large] * 3)
    del large

    def gone():
        gc.collect()
        return seen() is None

    wait_for(gone)


def wait_for(condition, seconds=600):
    """Until it is met: threads that have the cores no longer come to their ends late."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_pools_of_many_sizes_do_not_pile_up():
    for n in (*range(2, 12), 3):
        assert threads.run([lambda i=i: i for i in range(n)]) == list(range(n))
    wait_for(lambda: sum(t.name.startswith("sfdiff") for t in threading.enumerate()) <= 10)
    assert sum(t.name.startswith("sfdiff") for t in threading.enumerate()) == 10


def test_a_caller_whose_pool_is_closed_under_it_does_the_rest_itself():
    assert threads.run([int, int]) == [0, 0]

    def close():
        threads._pool.close()
        return "closed"

    try:
        assert threads.run([close, lambda: 1], [lambda: 2, lambda: 3]) == [2, 3]
    finally:
        threads._forsake(threads._pool)


AT_THE_END = """
import atexit
import mmtbx_sfdiff
from mmtbx_sfdiff.kernels import threads

def late():
    assert threads.run([lambda: 1, lambda: 2]) == [1, 2]
    print("passed")

atexit.register(late)
if {before}:
    threads.run([int, int])
"""


@pytest.mark.parametrize("before", (True, False))
def test_what_is_called_at_the_end_of_the_interpreter_is_done_without_threads(before):
    done = child(AT_THE_END.format(before=before))
    assert done.returncode == 0 and "passed" in done.stdout, done.stderr[-2000:]


SLOW_HELPER = """
import os, signal, threading, time
import mmtbx_sfdiff
from mmtbx_sfdiff.kernels import threads

done, begun = [], threading.Event()

def old():
    begun.set()
    # The caller has done all it has to do, waits for this one, and is interrupted there.
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)
    done.append("old")

def new(i):
    time.sleep(0.1)
    done.append(f"new {i}")

threads.run([int, int])
try:
    # The helper has begun when the caller has done its part, or the caller would do it.
    threads.run([int, int], [begun.wait, old])
    raise AssertionError("not interrupted")
except KeyboardInterrupt:
    assert done == ["old"], done
threads.run([int, lambda: new(1)], [int, lambda: new(2)])
assert done == ["old", "new 1", "new 2"], done
print("passed")
"""


def child(script, timeout=600, **environment):
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "2", **environment},
        preexec_fn=heed_interrupts,
    )


def test_ctrl_c_while_waiting_leaves_no_helper_in_the_old_calculation():
    done = child(SLOW_HELPER)
    assert done.returncode == 0 and "passed" in done.stdout, done.stderr[-2000:]


def test_what_no_thread_has_begun_the_caller_does():
    """On cores that others have a helper may not be there for milliseconds."""
    let_go, here = threading.Event(), threading.get_ident()
    threads.run([int, int])
    pool = threads._pool
    occupied = threading.Barrier(pool.size + 1)
    for _ in range(pool.size):
        pool.executor.submit(lambda: (occupied.wait(), let_go.wait()))
    occupied.wait(600)
    try:
        found = threads.run([threading.get_ident] * 2, [threading.get_ident] * 2)
        assert found == [here, here]
    finally:
        let_go.set()


LONG = """
import threading, time
import mmtbx_sfdiff as sfdiff
import numpy as np
import torch
from mmtbx_sfdiff.kernels import threads
from mmtbx_sfdiff.kernels.cpu.direct_sum import ColumnSum

class Plan:
    axes = (0, 1, 2)

def plan(n):
    h = torch.cartesian_prod(*(torch.arange(-n, n + 1) for _ in range(2)))
    result = Plan()
    s = 2 * n + 1
    result.columns = h
    result.indices = torch.cat([torch.cat([h[:, None].expand(-1, s, -1), torch.arange(-n, n + 1)[None, :, None].expand(len(h), -1, 1)], -1)]).reshape(-1, 3)
    result.column_start = list(range(0, len(h) * s + 1, s))
    return result

def column_sum(n, n_atoms):
    generator = torch.Generator().manual_seed(0)
    turns = torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64)
    u = torch.full((6, n_atoms), 1e-4, dtype=torch.float64)
    p = plan(n)
    radial = torch.ones((1, len(p.indices)), dtype=torch.float64)
    return ColumnSum(p, turns, u, [(0, 0, n_atoms)], radial), torch.ones(n_atoms, dtype=torch.float64)

small, weights = column_sum(2, 5)
small.forward(weights)
# Some 5e10 terms: minutes.
large, weights = column_sum(60, 30000)
try:
    print("ready")
    large.forward(weights)
    print("too short")
except KeyboardInterrupt:
    used = time.process_time()
    print("interrupted")
time.sleep(0.5)
# Nothing is left running: no thread takes processor time.
assert time.process_time() - used < 0.25, time.process_time() - used
assert threads.run([lambda: 1, lambda: 2]) == [1, 2]
"""


def test_ctrl_c_inside_a_kernel_call_ends_it_within_a_second_and_leaves_nothing_running():
    took, line, err = interrupted(LONG, 1.0)
    assert line == "interrupted" and took < 8.0, (took, line, err[-2000:])
    assert "AssertionError" not in err, err[-2000:]


FORK = """
import os
import mmtbx_sfdiff
import torch
from mmtbx_sfdiff.kernels import threads

torch.set_num_threads(2)
assert threads.over(10, lambda a, b: b - a) and threads._pool
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    ok = not threads._pool and threads.run([lambda: 1, lambda: 2]) == [1, 2]
    os._exit(0 if ok else 1)
assert os.waitpid(child, 0)[1] == 0
print("passed")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_makes_threads_of_its_own():
    done = child(FORK)
    assert done.returncode == 0 and "passed" in done.stdout, done.stderr[-2000:]


def test_ctrl_c_inside_a_dispatcher_is_ctrl_c():
    from mmtbx_sfdiff.kernels import opaque
    from mmtbx_sfdiff.kernels.interrupts import interruption

    def within():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            # What CPython makes of a C function that gives a result with an exception set.
            raise SystemError("returned a result with an exception set") from error

    @opaque.operation("test_interrupted", fake=lambda x: torch.empty_like(x))
    def operation(x: torch.Tensor) -> torch.Tensor:
        return within()

    for call in (lambda: operation(torch.ones(2)), lambda: threads.run([within, within])):
        with pytest.raises(KeyboardInterrupt):
            call()
    assert interruption(SystemError("of its own")) is None
    assert threads.run([int, int]) == [0, 0]


@pytest.mark.parametrize("n", (1, 2, 7, 30, 1000))
@pytest.mark.parametrize("per_thread", (1, 4, 8))
def test_ranges_cover_everything_and_shrink(three_threads, n, per_thread):
    ranges = threads.over(n, lambda a, b: (a, b), per_thread=per_thread)
    assert ranges[0][0] == 0 and ranges[-1][1] == n
    assert all(x[1] == y[0] for x, y in zip(ranges, ranges[1:])) and all(a < b for a, b in ranges)
    sizes = [b - a for a, b in ranges]
    assert max(sizes) <= sizes[0] + 1 and len(ranges) <= max(3 * per_thread, 1)
