"""Threads that run compiled kernels and single-threaded Fourier transforms side by side: the only place that touches thread
counts (beside ``_runtime``, where cctbx came before torch, and in forked children).

Between two parallel regions the threads of an OpenMP pool spin for milliseconds and keep other threads from
their cores, so a pool of its own beside torch's would run at the speed of one thread.  Here nothing enters
torch's pool: a transform is cut up by hand, and meanwhile torch and MKL have one thread in each of these
threads, the caller's own included, which gets its number back afterwards.

To wake a sleeping thread takes longer than a small transform.  So a calculation is handed over once, between
its phases the threads wait for one another awake, and afterwards they stay awake for a moment.

Work is cut into pieces of about a tenth of a second, and between pieces every thread looks whether the calculation has been
given up: an error in one thread, or Ctrl-C, ends all of them.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

import numpy as np

from .flags import make_flags, reached, set_flag
from .interrupts import interruption

T = TypeVar("T")
_FAILED = 1 << 30
#: Seconds of work between two looks at whether it has been given up.
PIECE = 0.1
# Teams of different sizes that are kept.
_MOST_TEAMS = 4


class _Here(threading.local):
    """Of this thread: how many threads it may use, 0 for torch's number; and the calculation that it takes part in."""

    number = 0
    call: _Call | None = None


_here = _Here()


class _GivenUp(Exception):
    """Another thread has met an error: the rest is not wanted."""


class _Call:
    """One calculation: its phases, how far each member has come, and what it met."""

    def __init__(self, n: int, phases: Sequence[Sequence[Callable[[], Any]]]):
        self.n, self.phases, self.flags = n, phases, make_flags(n)
        self.results: list[Any] = [None] * n
        self.error: BaseException | None = None
        # What a thread has of its own in torch, and context variables, are the caller's.
        self.context = [contextvars.copy_context() for _ in range(n)]
        self.gradients, self.inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def member(self, i: int) -> None:
        """Take part as member i, to the end or to the first error in any of them."""
        before, _here.call = (_here.number, _here.call), self
        # Whoever asks here has one thread.
        _here.number = 1
        try:
            for number, phase in enumerate(self.phases):
                if self.error is None:
                    self.results[i] = phase[i]()
                set_flag(self.flags, i, number + 1)
                if number + 1 < len(self.phases):
                    self.wait(number + 1)
        except BaseException as error:
            self.stop(error)
            # The others go on to the end without doing anything.
            set_flag(self.flags, i, _FAILED)
        finally:
            _here.number, _here.call = before

    def helper(self, i: int) -> None:
        """:meth:`member` in a thread that is not the caller's."""
        with torch.inference_mode(self.inference), torch.set_grad_enabled(self.gradients):
            self.context[i].run(self.member, i)

    def stop(self, error: BaseException) -> None:
        error = interruption(error) or error
        if self.error is None and not isinstance(error, _GivenUp):
            self.error = error

    def wait(self, number: int) -> None:
        """Until all members have done so many phases."""
        while not reached(self.flags, 0, self.n, number):
            time.sleep(2e-5)


class _Team:
    """A caller and n - 1 threads."""

    def __init__(self, n: int):
        self.n, self.condition = n, threading.Condition()
        # Whose calculation they are at: number of a thread, or None.
        self.owner: int | None = None
        # How many calculations have been handed over, and the last of them; None: the threads may go.
        self.handed = make_flags(1)
        self.current: tuple[int, _Call | None] = (0, None)
        ready = threading.Semaphore(0)
        try:
            for i in range(1, n):
                threading.Thread(target=self._help, args=(i, ready), name=f"sfdiff-{i}", daemon=True).start()
            for _ in range(1, n):
                ready.acquire()
        except BaseException:
            self.close()
            raise

    def take(self) -> bool:
        """Whether this thread has the team now."""
        me = threading.get_ident()
        with _lock:
            # Ctrl-C in the wrong moment leaves it to a thread that is no longer at anything.
            if self.owner is None or (self.owner == me and _here.call is None):
                self.owner = me
                return True
        return False

    def run(self, phases: Sequence[Sequence[Callable[[], Any]]]) -> list[Any]:
        call = _Call(self.n, phases)
        try:
            self._hand_over(call)
            call.member(0)
            call.wait(len(phases))
        except BaseException as error:
            # Ctrl-C outside a phase.  The threads may be within one: nobody leaves before they have noticed.
            call.stop(error)
            set_flag(call.flags, 0, _FAILED)
            call.wait(len(phases))
            raise
        # Nothing of it is kept.
        self.current = self.current[0], None
        if call.error is not None:
            raise call.error
        return list(call.results)

    def _hand_over(self, call: _Call | None) -> None:
        with self.condition:
            number = self.current[0] + 1
            self.current = number, call
            set_flag(self.handed, 0, number)
            self.condition.notify_all()

    def close(self) -> None:
        """Let the threads go, when they have done what they are at."""
        self._hand_over(None)

    def _help(self, i: int, ready: threading.Semaphore) -> None:
        torch.set_num_threads(1)
        ready.release()
        done = 0
        while True:
            if not reached(self.handed, 0, 1, done + 1):
                with self.condition:
                    while self.current[0] == done:
                        self.condition.wait()
            done, call = self.current
            if call is None:
                return
            call.helper(i)
            del call


_lock = threading.Lock()
_teams: dict[int, _Team] = {}


def _team(n: int) -> _Team:
    with _lock:
        team = _teams.pop(n, None)
        if team is None:
            team = _Team(n)
            # Counts set in new threads are also the default of threads to come: put that back.
            torch.set_num_threads(torch.get_num_threads())
            while len(_teams) >= _MOST_TEAMS:
                _teams.pop(next(iter(_teams))).close()
        _teams[n] = team
        return team


def run(*phases: Sequence[Callable[[], T]]) -> list[T]:
    """Run the functions of each phase side by side, and a phase when the one before it has been done.

    Parameters
    ----------
    *phases : sequence of callable
        Every phase has as many functions, each for one thread.

    Returns
    -------
    list
        Results of the last phase, in order.

    Raises
    ------
    BaseException
        The first error in any of the functions, when all threads have stopped.
    """
    n = len(phases[0])
    with _lowered():
        if n > 1:
            team = _team(n)
            # Where another thread has the team, its caller does everything itself.
            if team.take():
                try:
                    return team.run(phases)
                except BaseException as error:
                    if not isinstance(error, Exception):
                        # Interrupted anywhere: nobody can say what state it is in.
                        with _lock:
                            if _teams.get(n) is team:
                                del _teams[n]
                        team.close()
                    raise
                finally:
                    team.owner = None
        results: list[T] = []
        for phase in phases:
            results = [function() for function in phase]
        return results


def over(n: int, function: Callable[[int, int], T], per_thread: int = 5, seconds: float = 0.0) -> list[T]:
    """function(first, after) on consecutive ranges that cover 0..n, in a few threads; results in order.

    Parameters
    ----------
    n : int
    function : callable
    per_thread : int
        Ranges for each thread, who take them as they come.
    seconds : float
        What one thread would take for all of it, about; there are more ranges for long work.
    """
    n_threads = n_workers()
    n_ranges = max(per_thread * n_threads if n_threads > 1 else 1, math.ceil(seconds / PIECE))
    if n < 2 or n_ranges == 1:
        check()
        return [function(0, n)]
    edges = np.linspace(0, n, min(n, n_ranges) + 1).astype(np.int64).tolist()
    ranges = list(zip(edges[:-1], edges[1:]))
    queue = iter(range(len(ranges)))
    results: list[Any] = [None] * len(ranges)

    def work() -> None:
        for number in queue:
            check()
            results[number] = function(*ranges[number])

    run([work] * n_threads)
    return results


def portions(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most ``size`` that cover first..last, while the calculation goes on."""
    for begin in range(first, last, max(1, size)):
        check()
        yield begin, min(begin + size, last)


def check() -> None:
    """End here when the calculation that this thread takes part in has been given up."""
    call = _here.call
    if call is not None and call.error is not None:
        raise _GivenUp


def share_models(functions: Sequence[Callable[[], T]], device: torch.device | str = "cpu") -> list[T]:
    """Results of functions of one model each: whole models to threads, with one thread for all that happens in each.

    On two cores 1.5 times as fast as one model after another, each on both.  Where there are fewer models than threads,
    or on other devices, one after another, with all threads for each.  Modes of autograd and context variables are the
    caller's in every thread.

    Parameters
    ----------
    functions : sequence of callable
        They run side by side, so that together they take :func:`models_at_once` times the memory of one.
    device : torch.device or str

    Returns
    -------
    list
        Results in order.

    Examples
    --------
    >>> share_models([lambda i=i: i**2 for i in range(4)])
    [0, 1, 4, 9]
    """
    n_threads = models_at_once(len(functions), device)
    if n_threads == 1:
        results = []
        for function in functions:
            check()
            results.append(function())
        return results
    queue = iter(range(len(functions)))
    found: list[Any] = [None] * len(functions)

    def work() -> None:
        for number in queue:
            check()
            found[number] = functions[number]()

    run([work] * n_threads)
    return found


def models_at_once(n_models: int, device: torch.device | str = "cpu") -> int:
    """How many models :func:`share_models` works on at a time: by so many a bound on memory is to be divided."""
    n_threads = n_workers()
    return n_threads if torch.device(device).type == "cpu" and n_models >= n_threads > 1 else 1


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _lock
    _lock = threading.Lock()
    _teams.clear()
    _here.call = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def n_workers() -> int:
    """Threads that a calculation may use here: as many as torch would."""
    return _here.number or torch.get_num_threads()


@contextlib.contextmanager
def _lowered() -> Iterator[None]:
    """One thread for torch in this thread.

    torch's setter also sets the default of threads to come, and getting it back sets that again.  So where there is one
    already nothing is set: it may be the short-lived default of another thread that is in here.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def own_threads(device: torch.device | str = "cpu") -> Iterator[None]:
    """Keep this thread's torch operations out of torch's pool, of which the threads would go on spinning beside those here.

    For compiled kernels on the CPU; :func:`n_workers` stays what it was, and on other devices nothing changes.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    before = _here.number
    _here.number = n_workers()
    try:
        with _lowered():
            yield
    finally:
        _here.number = before


@contextlib.contextmanager
def one_cpu_thread(device: torch.device | str) -> Iterator[None]:
    """Let the calling thread's CPU operations run on it alone, for the time of the block.

    For chains of thousands of operations on arrays of 10^4 to 10^6 elements.  Sharing each among threads
    gains little when the processors are idle, and costs a scheduler's time slice for each when they are not
    (measured: 8 ms instead of 0.05 ms).  Other threads of the process keep their number.

    Parameters
    ----------
    device : torch.device or str
        Nothing changes unless this is a CPU.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    before, _here.number = _here.number, 1
    try:
        with _lowered():
            yield
    finally:
        _here.number = before


def shares(n: int, count: int) -> list[tuple[int, int]]:
    """Ranges (first, last) that cut n pieces of work evenly into so many."""
    edges = [n * i // count for i in range(count + 1)]
    return list(zip(edges, edges[1:]))
