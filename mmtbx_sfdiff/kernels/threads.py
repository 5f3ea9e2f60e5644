"""Threads that run compiled kernels and single-threaded Fourier transforms side by side: the only place that touches thread
counts (beside ``_runtime``, where cctbx came before torch, and in forked children).

Between two parallel regions the threads of an OpenMP pool spin for milliseconds and keep other threads from
their cores, so a pool of its own beside torch's would run at the speed of one thread.  Here nothing enters
torch's pool: a transform is cut up by hand, and meanwhile torch and MKL have one thread in each of these
threads, the caller's own included, which gets its number back afterwards.  The threads are a ``ThreadPoolExecutor``'s, and
sleep when there is nothing to do.

Work is cut into pieces of about a tenth of a second, and between pieces every thread looks whether the calculation has been
given up: an error in one thread, or Ctrl-C, ends all of them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

import numpy as np

from .interrupts import interruption

T = TypeVar("T")
#: Seconds of work between two looks at whether it has been given up.
PIECE = 0.1


class _Here(threading.local):
    """Of this thread: how many threads it may use, 0 for torch's number; and the calculation that it takes part in."""

    number = 0
    call: _Call | None = None


_here = _Here()


class _GivenUp(Exception):
    """Another thread has met an error: the rest is not wanted."""


class _Call:
    """One calculation: the first error that anybody met, and what a thread has of its own in torch, which is the caller's."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.gradients, self.inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def member(self, function: Callable[[], T]) -> T:
        """The function's result in one of the threads."""
        before, _here.call = (_here.number, _here.call), self
        # Whoever asks here has one thread.
        _here.number = 1
        try:
            check()
            return function()
        except BaseException as error:
            self.stop(error)
            raise
        finally:
            _here.number, _here.call = before

    def helper(self, context: contextvars.Context, function: Callable[[], T]) -> T:
        """:meth:`member` in a thread that is not the caller's."""
        with torch.inference_mode(self.inference), torch.set_grad_enabled(self.gradients):
            return context.run(self.member, function)

    def stop(self, error: BaseException) -> None:
        error = interruption(error) or error
        if self.error is None and not isinstance(error, _GivenUp):
            self.error = error


class _Pool:
    """The threads beside the caller's, for one caller at a time."""

    def __init__(self, size: int) -> None:
        self.size = size
        #: Whose calculation they are at: number of a thread, or None.
        self.owner: int | None = None
        self.executor = concurrent.futures.ThreadPoolExecutor(
            size, thread_name_prefix="sfdiff", initializer=torch.set_num_threads, initargs=(1,)
        )
        everyone = threading.Barrier(size + 1)
        try:
            for _ in range(size):
                self.executor.submit(everyone.wait)
            everyone.wait()
        except BaseException:
            everyone.abort()
            self.close()
            raise
        # Counts set in new threads are also the default of threads to come: put that back.
        torch.set_num_threads(torch.get_num_threads())

    def run(self, phases: Sequence[Sequence[Callable[[], Any]]]) -> list[Any]:
        call = _Call()
        futures: list[concurrent.futures.Future[Any]] = []
        results: list[Any] = []
        try:
            for phase in phases:
                futures, rest = [], list(phase[1:])
                # A pool that was replaced, or the interpreter's end: the caller does what is left.
                with contextlib.suppress(RuntimeError):
                    while rest:
                        futures.append(self.executor.submit(call.helper, contextvars.copy_context(), rest[0]))
                        del rest[0]
                results = [call.member(phase[0])]
                # What no thread has begun by now, for others have the cores, the caller does rather than wait.
                results += [
                    call.member(function) if future.cancel() else future.result()
                    for future, function in zip(futures, phase[1:])
                ]
                results += [call.member(function) for function in rest]
            return results
        except BaseException as error:
            call.stop(error)
            # Nobody leaves before all threads have noticed, whatever signals arrive.
            while not all(future.cancel() or future.done() for future in futures):
                try:
                    concurrent.futures.wait(futures)
                except KeyboardInterrupt as again:
                    call.error = again
            assert call.error is not None
            raise call.error from None
        finally:
            # A traceback keeps this frame: nothing of the calculation is to be kept with it.
            del call, futures, results, phases

    def close(self) -> None:
        """Let the threads go, when they have done what they are at."""
        self.executor.shutdown(wait=False)


_lock = threading.Lock()
_pool: _Pool | None = None


def _pool_of(size: int) -> _Pool | None:
    """A pool of at least so many threads that this thread has now, or None where another has it, or no thread begins any more."""
    global _pool
    with _lock:
        if _pool is not None and _pool.size < size and _pool.owner is None:
            _pool.close()
            _pool = None
        if _pool is None:
            try:
                _pool = _Pool(size)
            except RuntimeError:  # at the end of the interpreter
                return None
        me = threading.get_ident()
        # Ctrl-C in the wrong moment leaves it to a thread that is no longer at anything.
        if _pool.size >= size and (_pool.owner is None or _pool.owner == me):
            _pool.owner = me
            return _pool
        return None


def _forsake(pool: _Pool) -> None:
    """Use a pool no more, and wait until none of its threads does anything."""
    global _pool
    with _lock:
        if _pool is pool:
            _pool = None
    while True:
        try:
            return pool.executor.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:
            continue


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
        if n > 1 and _here.call is None:
            pool = _pool_of(n - 1)
            # Where another thread has the pool, its caller does everything itself.
            if pool is not None:
                try:
                    return pool.run(phases)
                except BaseException as error:
                    if not isinstance(error, Exception):
                        # Interrupted anywhere: nobody can say what state it is in.
                        _forsake(pool)
                    raise
                finally:
                    pool.owner = None
        results: list[T] = []
        for phase in phases:
            results = [function() for function in phase]
        return results


def over(n: int, function: Callable[[int, int], T], per_thread: int = 8, seconds: float = 0.0) -> list[T]:
    """function(first, after) on consecutive ranges that cover 0..n, in a few threads; results in order.

    Later ranges are smaller, so that threads end at about the same time.

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
    n_ranges = max(per_thread * n_threads if n_threads > 1 else 1, math.ceil(2 * seconds / PIECE))
    if n < 2 or n_ranges == 1:
        check()
        return [function(0, n)]
    ranges = _ranges(n, n_threads, n_ranges)
    queue = iter(range(len(ranges)))
    results: list[Any] = [None] * len(ranges)

    def work() -> None:
        for number in queue:
            check()
            results[number] = function(*ranges[number])

    run([work] * n_threads)
    return results


@functools.lru_cache(maxsize=256)
def _ranges(n: int, n_threads: int, count: int) -> list[tuple[int, int]]:
    """About so many ranges that cover 0..n, each round of the threads' a step smaller than the one before."""
    rounds = -(-count // n_threads)
    sizes = np.repeat(np.arange(rounds, 0, -1), n_threads)[:count]
    edges = np.unique(np.rint(np.cumsum(sizes) * (n / sizes.sum())).astype(np.int64)).tolist()
    edges = [0, *(edge for edge in edges if edge)]
    return list(zip(edges[:-1], edges[1:]))


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
    global _lock, _pool
    _lock, _pool = threading.Lock(), None
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
