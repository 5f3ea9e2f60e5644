"""Threads that run compiled kernels and single-threaded Fourier transforms side by side.

Between two parallel regions the threads of an OpenMP pool spin for milliseconds and keep other threads from
their cores, so a pool of its own beside torch's would run at the speed of one thread.  Here nothing enters
torch's pool: a transform is cut up by hand, and meanwhile torch and MKL have one thread in each of these
threads, the caller's own included, which gets its number back afterwards.

To wake a sleeping thread takes longer than a small transform.  So a calculation is handed over once, between
its phases the threads wait for one another awake, and afterwards they stay awake for a moment.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

import torch

import numpy as np

from .cpu.density_vectors import load_flag, store_flag
from .cpu.gaussian import jit

# A flag a cache line; how often it is looked at before a thread goes to sleep, some tenths of a millisecond.
_LINE, _LOOKS = 16, 100_000
_FAILED = 1 << 30


@jit
def _set(flags, i, value):
    store_flag(flags, i * _LINE, value)


@jit
def _reached(flags, first, last, value):
    """Whether flags[first:last] have come to ``value``, after waiting for it for a while."""
    for _ in range(_LOOKS):
        least = value
        for i in range(first, last):
            least = min(least, load_flag(flags, i * _LINE))
        if least >= value:
            return True
    return False


class _Team:
    """A caller and n - 1 threads."""

    def __init__(self, n):
        self.n, self.busy, self.condition = n, threading.Lock(), threading.Condition()
        # Phases done by each member, and last the number of calculations handed over.
        self.flags = np.zeros((n + 1, _LINE), np.int64)
        self.number, self.phases, self.results, self.error = 0, (), [None] * n, None
        for i in range(1, n):
            threading.Thread(target=self._help, args=(i,), name=f"sfdiff-{i}", daemon=True).start()

    def run(self, phases):
        threads = torch.get_num_threads()
        self.phases, self.error = phases, None
        self.flags[: self.n] = 0
        with self.condition:
            self.number += 1
            _set(self.flags, self.n, self.number)
            self.condition.notify_all()
        torch.set_num_threads(1)
        try:
            self._member(0)
            self._wait(len(phases))
        finally:
            torch.set_num_threads(threads)
        if self.error is not None:
            raise self.error
        return list(self.results)

    def _help(self, i):
        torch.set_num_threads(1)
        done = 0
        while True:
            if not _reached(self.flags, self.n, self.n + 1, done + 1):
                with self.condition:
                    while self.number == done:
                        self.condition.wait()
            done += 1
            self._member(i)

    def _member(self, i):
        try:
            for number, phase in enumerate(self.phases):
                if self.error is None:
                    self.results[i] = phase[i]()
                _set(self.flags, i, number + 1)
                if number + 1 < len(self.phases):
                    self._wait(number + 1)
        except BaseException as error:
            # The others go on to the end without doing anything.
            self.error = error
            _set(self.flags, i, _FAILED)
            if i == 0:
                self._wait(len(self.phases))

    def _wait(self, number):
        while not _reached(self.flags, 0, self.n, number):
            time.sleep(2e-5)


_lock = threading.Lock()
_teams = {}


def run(*phases):
    """Run the functions of each phase side by side, and a phase when the one before it has been done.

    Every phase has as many functions; results of the last one, in order.
    """
    n = len(phases[0])
    if n > 1:
        with _lock:
            if n not in _teams:
                _teams[n] = _Team(n)
                # Counts set in new threads are also the default of threads to come: put that back.
                torch.set_num_threads(torch.get_num_threads())
            team = _teams[n]
        # Where another thread has the team, its caller does everything itself.
        if team.busy.acquire(blocking=False):
            try:
                return team.run(phases)
            finally:
                team.busy.release()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for phase in phases:
            results = [function() for function in phase]
    finally:
        torch.set_num_threads(threads)
    return results


def _forget():
    """A forked child has none of its parent's threads."""
    global _lock
    _lock = threading.Lock()
    _teams.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def n_workers():
    """As many as torch would use."""
    return _allowed.number or torch.get_num_threads()


class _Allowed(threading.local):
    number = 0


_allowed = _Allowed()


@contextlib.contextmanager
def own_threads(device="cpu"):
    """Keep this thread's torch operations out of torch's pool, of which the threads would go on spinning beside those here.

    For compiled kernels on the CPU; :func:`n_workers` stays what it was, and on other devices nothing changes.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    threads, before = torch.get_num_threads(), _allowed.number
    _allowed.number = before or threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _allowed.number = before
        torch.set_num_threads(threads)


@contextlib.contextmanager
def one_cpu_thread(device):
    """Let the calling thread's CPU operations run on it alone, for the time of the block.

    For chains of thousands of operations on arrays of 10^4 to 10^6 elements.  Sharing each among threads
    gains little when the processors are idle, and costs a scheduler's time slice for each when they are not
    (measured: 8 ms instead of 0.05 ms).  Other threads of the process keep their number.

    Parameters
    ----------
    device : torch.device or str
        Nothing changes unless this is a CPU.
    """
    number = torch.get_num_threads()
    if torch.device(device).type != "cpu" or number == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)


def shares(n, count):
    """Ranges (first, last) that cut n pieces of work evenly into so many."""
    edges = [n * i // count for i in range(count + 1)]
    return list(zip(edges, edges[1:]))


def over(n, function, per_thread=5):
    """function(first, after) on consecutive ranges that cover 0..n, in a few threads; results in order."""
    n_threads = n_workers()
    if n_threads == 1 or n < 2:
        return [function(0, n)]
    edges = np.linspace(0, n, min(n, per_thread * n_threads) + 1).astype(np.int64).tolist()
    ranges = list(zip(edges[:-1], edges[1:]))
    queue = iter(range(len(ranges)))
    results = [None] * len(ranges)

    def work():
        for number in queue:
            results[number] = function(*ranges[number])

    run([work] * n_threads)
    return results
