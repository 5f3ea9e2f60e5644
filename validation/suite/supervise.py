"""One entry in a process of its own, watched: its time, its memory, and how it ended.

Nothing but the standard library is imported here, so that whoever watches (the suite, or a Dask worker) stays
small and cannot be brought down by what it watches.  Memory is the resident set that Linux counts: torch and
numba reserve address space by the gigabyte without using it, which a limit on address space would punish.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# A worker that finds no room to write to ends with this (EX_IOERR): its entry was not at fault.
DISK_FULL_STATUS = 74
_LOG_BYTES = 4000
# What a worker leaves beside its result: name in the exchange folder -> kind.
FILES = {"figure.svg": "svg", "section.npz": "npz"}


class Supervised:
    """A worker process at work on one entry.

    Parameters
    ----------
    job : dict
        ``entry``; ``parameters`` (handed to the worker); ``limits`` with ``seconds`` and ``bytes``;
        ``checkout``, the folder that holds the package ``validation``; ``environment``, variables that the
        worker gets; ``command``, the worker, to which the exchange folder is appended, or None for this
        suite's own; ``timeouts`` of downloads.
    folder : path, optional
        Where the exchange folder is made; by default where temporary files go.
    """

    def __init__(self, job, folder=None):
        self.job = job
        self.exchange = Path(tempfile.mkdtemp(prefix=f"{job['entry']}.", dir=folder)).absolute()
        self.peak, self.stopped, self.outcome = 0, None, None
        self.started, self.start = time.time(), time.monotonic()
        (self.exchange / "job.json").write_text(json.dumps(job | {"parent": os.getpid()}))
        threads = str(job["parameters"].get("threads", 1))
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), threads
        )
        environment |= job.get("environment") or {}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [job["checkout"], environment.get("PYTHONPATH")]))
        command = job.get("command") or [sys.executable, "-X", "faulthandler", "-m", "validation.suite.worker"]
        with open(self.exchange / "log.txt", "wb") as log:
            # A group of its own: Ctrl-C reaches the suite alone, which then ends its workers.
            self.process = subprocess.Popen(
                [*command, str(self.exchange)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=job["checkout"],
                start_new_session=True,
            )

    def poll(self):
        """None while the worker runs; then (record, files), or raises :class:`OutOfDisk`."""
        if self.outcome is None:
            self._look()
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if not pid:
                self._enforce()
                return None
            self.process.returncode = os.waitstatus_to_exitcode(status)
            # What it may have started itself must not live on.
            _kill_group(self.process.pid)
            try:
                self.outcome = self._record(usage), self._files()
            finally:
                shutil.rmtree(self.exchange, ignore_errors=True)
        return self.outcome

    def wait(self, pause=0.1, stop=lambda: False):
        """The outcome, as :meth:`poll`; None when ``stop()`` said so before the worker had ended."""
        while True:
            outcome = self.poll()
            if outcome is not None:
                return outcome
            if stop():
                self.kill()
                return None
            time.sleep(pause)

    def kill(self):
        """End the worker now; there is no outcome."""
        if self.process.returncode is None:
            _kill_group(self.process.pid)
            self.process.wait()
        shutil.rmtree(self.exchange, ignore_errors=True)

    def _look(self):
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                self.peak = max(self.peak, int(line.split()[1]) * 1024)

    def _enforce(self):
        limits = self.job["limits"]
        if self.stopped:
            return
        if self.peak > limits["bytes"]:
            self.stopped = ("memory", f"stopped: it used more than {limits['bytes'] / 2**30:.3g} GiB of memory")
        elif time.monotonic() - self.start > limits["seconds"]:
            self.stopped = ("timeout", f"stopped: it took longer than {limits['seconds']:g} s")
        if self.stopped:
            _kill_group(self.process.pid)

    def _record(self, usage):
        answer = self._answer()
        record = {"entry": self.job["entry"], "status": "failed", "kind": None, "reason": None, "step": self._step()}
        code = self.process.returncode
        if self.stopped and not answer:
            record["kind"], record["reason"] = self.stopped
        elif code == DISK_FULL_STATUS:
            raise OutOfDisk(self._log().strip().splitlines()[-1:] or ["no room is left"])
        elif answer:
            record |= answer | {"entry": record["entry"]}
        elif code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            record |= {"kind": "crash", "reason": f"the worker was ended by {name}"}
        else:
            record |= {"kind": "crash", "reason": f"the worker ended with status {code} and without a result"}
        if record["status"] == "ok":
            record["step"] = None
        else:
            record["log"] = self._log()
            if record["step"] and record["kind"] in ("crash", "memory", "timeout"):
                record["reason"] += f" (at: {record['step']})"
        return record | {
            "wall_s": round(time.monotonic() - self.start, 2),
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
            "peak_bytes": self.peak,
            "started": round(self.started),
            "host": socket.gethostname(),
        }

    def _answer(self):
        try:
            answer = json.loads((self.exchange / "result.json").read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(answer, dict) or "status" not in answer and "kind" not in answer:
            return None
        self.peak = max(self.peak, answer.pop("peak_bytes", 0))
        return answer

    def _step(self):
        try:
            return (self.exchange / "step.txt").read_text() or None
        except OSError:
            return None

    def _log(self):
        try:
            return (self.exchange / "log.txt").read_bytes()[-_LOG_BYTES:].decode(errors="replace")
        except OSError:
            return ""

    def _files(self):
        return {
            kind: (self.exchange / name).read_bytes()
            for name, kind in FILES.items()
            if (self.exchange / name).is_file()
        }


class OutOfDisk(Exception):
    """A worker found no room to write to."""

    def __init__(self, lines):
        super().__init__(lines[0])


def _kill_group(pid):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
