"""Calls with any arguments, each under a time limit, in a few child processes that last.

A *worker* is a function, named "module:function", of one case: numbers and strings, from which it makes its tensors and
calls the package.  It returns a dict, of which ``"finite": False`` is a fault, or raises.  ValueError, TypeError and
NotImplementedError in one sentence are right answers; other exceptions, a process that ends, and one that does not
answer in time are faults.  A child that crashed or was stopped is started again.

    outcomes = run("tests.support.robust_structure_factors:call", cases, seconds=20)
    assert not [o for o in outcomes if o.fault]
"""

import dataclasses
import importlib
import os
import pickle
import select
import struct
import subprocess
import sys
import time
import warnings

from tests.support.processes import processor_time

#: What an operation may raise.
REFUSALS = (ValueError, TypeError, NotImplementedError)
LONGEST_SENTENCE = 600


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case: ``kind`` is value, refused, error, crash or hang."""

    case: object
    kind: str
    text: str = ""
    value: object = None

    @property
    def fault(self):
        if self.kind == "value":
            return isinstance(self.value, dict) and self.value.get("finite") is False
        return self.kind != "refused"

    def __str__(self):
        return f"{self.kind}: {self.text or self.value} for {self.case!r}"


class Child:
    """One process that answers case after case."""

    def __init__(self, worker, seconds, patience=10, start_seconds=600):
        self.worker, self.seconds, self.patience, self.start_seconds = worker, seconds, patience, start_seconds
        self.process = None

    def start(self):
        environment = dict(os.environ, PYTHONFAULTHANDLER="1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.support.robustness import _answer; _answer({self.worker!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        if self._read(self.start_seconds) != "ready":
            self.stop()
            raise RuntimeError(f"The worker {self.worker} did not start.")

    def ask(self, case):
        """The :class:`Outcome` of a case."""
        if self.process is None:
            self.start()
        try:
            _write(self.process.stdin, case)
            kind, text, value = self._read(self.seconds, processor_time(self.process.pid))
        except TimeoutError:
            self.stop()
            return Outcome(case, "hang", f"no answer within {self.seconds} s of processor time")
        except (EOFError, BrokenPipeError):
            code = self.process.wait()
            self.process = None
            return Outcome(case, "crash", f"the process ended with {code}")
        return Outcome(case, kind, text, value)

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None

    def _read(self, seconds, before=None):
        """What comes within so many seconds; of processor time, and ``patience`` times as many by the clock, from ``before`` on."""
        end = time.monotonic() + (seconds if before is None else self.patience * seconds)

        def late():
            used = 0 if before is None else processor_time(self.process.pid) - before
            return used > seconds or time.monotonic() > end

        def exactly(n):
            data = b""
            while len(data) < n:
                while not select.select([self.process.stdout], [], [], min(1, seconds))[0]:
                    if late():
                        raise TimeoutError
                found = os.read(self.process.stdout.fileno(), n - len(data))
                if not found:
                    raise EOFError
                data += found
            return data

        return pickle.loads(exactly(struct.unpack("<q", exactly(8))[0]))


def run(worker, cases, seconds=20, progress=None, patience=10):
    """Outcomes of cases, in order, from one child.

    Parameters
    ----------
    worker : str
        "module:function".
    cases : iterable
        Each picklable.
    seconds : float
        Of processor time, of one call.
    progress : callable, optional
        Called with every Outcome.
    patience : float
        So many times the limit by the clock: other processes may have the cores, and what waits for ever uses no processor.
    """
    child, outcomes = Child(worker, seconds, patience), []
    try:
        for case in cases:
            outcomes.append(child.ask(case))
            if progress:
                progress(outcomes[-1])
    finally:
        child.stop()
    return outcomes


def finite(tensors):
    """Whether every number of some tensors, of which any may be None, is finite."""
    import torch

    return all(bool(torch.isfinite(x).all()) for x in tensors if x is not None)


def _write(stream, value):
    data = pickle.dumps(value)
    stream.write(struct.pack("<q", len(data)) + data)
    stream.flush()


def _answer(worker):
    """A child's life."""
    # What is printed must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    module, name = worker.split(":")
    function = getattr(importlib.import_module(module), name)
    _write(answers, "ready")
    while True:
        head = sys.stdin.buffer.read(8)
        if not head:
            return
        case = pickle.loads(sys.stdin.buffer.read(struct.unpack("<q", head)[0]))
        _write(answers, _answered(function, case))


def _answered(function, case):
    try:
        return "value", "", function(case)
    except REFUSALS as error:
        text = str(error)
        if text.strip() and "\n" not in text.strip() and len(text) <= LONGEST_SENTENCE:
            return "refused", f"{type(error).__name__}: {text}", None
        return "error", f"not one sentence: {type(error).__name__}: {text[:2000]}", None
    except Exception as error:
        return "error", f"{type(error).__name__}: {str(error)[:2000]}", None
