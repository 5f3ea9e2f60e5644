"""Threads that run compiled kernels and single-threaded Fourier transforms side by side.

Between two parallel regions the threads of an OpenMP pool spin for milliseconds and keep other threads from
their cores, so a pool of its own beside torch's would run at the speed of one thread.  Here nothing enters
torch's pool: a transform is cut up by hand, and in these threads torch and MKL have one thread.

To wake a sleeping thread takes as long as a small transform, so a calculation is handed over once, and between
its phases the threads wait for one another awake.
"""
from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from .gaussian_cpu import jit
from .vector_code import load_flag, store_flag

_lock = threading.Lock()
_pools = {}
_FAILED = 1 << 30


def n_workers():
    """As many as torch would use."""
    return torch.get_num_threads()


def run(*phases):
    """Run the functions of each phase side by side, and a phase when the one before it has been done.

    Every phase has as many functions; results of the last one, in order.
    """
    n = len(phases[0])
    if n == 1:
        for phase in phases:
            result = phase[0]()
        return [result]
    # One flag a cache line: how many phases each thread has done.
    flags = np.zeros((n, 16), np.int64)

    def member(i):
        try:
            for number, phase in enumerate(phases):
                result = phase[i]()
                store_flags(flags, i, number + 1)
                if number + 1 < len(phases):
                    while not _all_reached(flags, number + 1):
                        time.sleep(2e-5)
            return result
        except BaseException:
            # The others go on, and what they make is thrown away.
            store_flags(flags, i, _FAILED)
            raise

    pool = _pool(n)
    futures = [pool.submit(member, i) for i in range(n)]
    return [future.result() for future in futures]


@jit
def store_flags(flags, i, value):
    store_flag(flags, i * 16, value)


@jit
def _all_reached(flags, value):
    """Whether every thread has come to ``value``, after waiting for it some tenth of a millisecond."""
    for _ in range(20000):
        least = value
        for i in range(flags.shape[0]):
            least = min(least, load_flag(flags, i * 16))
        if least >= value:
            return True
    return False


def _pool(n):
    with _lock:
        if n not in _pools:
            pool = ThreadPoolExecutor(n, thread_name_prefix="sfdiff", initializer=torch.set_num_threads,
                                      initargs=(1,))
            ready = threading.Barrier(n + 1)
            for _ in range(n):
                pool.submit(ready.wait)
            ready.wait()
            # The call counts for its thread, and as the default of threads to come: put that back.
            torch.set_num_threads(torch.get_num_threads())
            _pools[n] = pool
        return _pools[n]


def _forget():
    """A forked child has none of its parent's threads."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def shares(n, count):
    """Ranges (first, last) that cut n pieces of work evenly into so many."""
    edges = [n * i // count for i in range(count + 1)]
    return list(zip(edges, edges[1:]))
