"""Threads that run compiled kernels and single-threaded Fourier transforms side by side.

Between two parallel regions the threads of an OpenMP pool spin for milliseconds and keep other threads from
their cores, so a pool of its own beside torch's would run at the speed of one thread.  Here nothing enters
torch's pool: a transform is cut up by hand, and in these threads torch and MKL have one thread.
"""
from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_lock = threading.Lock()
_pools = {}


def n_workers():
    """As many as torch would use."""
    return torch.get_num_threads()


def run(calls):
    """Run functions side by side; results in order.  One function is run here."""
    if len(calls) == 1:
        return [calls[0]()]
    futures = [_pool(len(calls)).submit(call) for call in calls]
    return [future.result() for future in futures]


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


def shares(n, least=1):
    """Ranges (first, last) that cut n pieces of work evenly, with at least ``least`` in each."""
    count = max(1, min(n_workers(), n // least))
    edges = [n * i // count for i in range(count + 1)]
    return list(zip(edges, edges[1:]))
