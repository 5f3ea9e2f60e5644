"""What tests do to the processes that they start."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def heed_interrupts():
    """In a new process: Ctrl-C counts, also where the tests themselves run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processor_time(pid):
    """Seconds of user and system time of a process; where the system does not say, those of the clock."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.monotonic()


def interrupted(body, seconds):
    """Run a script that prints "ready" and is interrupted so many seconds later: the processor time of its two threads from
    the signal to its next line, that line, and what it wrote to stderr.

    Time by the clock would be that of other processes, too.
    """
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        preexec_fn=heed_interrupts,
    )
    hung = threading.Timer(600, process.kill)
    hung.start()
    try:
        first = process.stdout.readline().strip()
        assert first == "ready", (first, process.stderr.read()[-2000:])
        time.sleep(seconds)
        begin = processor_time(process.pid)
        process.send_signal(signal.SIGINT)
        line = process.stdout.readline().strip()
        took = processor_time(process.pid) - begin
        _, err = process.communicate()
    finally:
        hung.cancel()
        process.kill()
    return took, line, err


def refine_process(arguments, folder, **options):
    """``mmtbx_sfdiff.refine`` in a process of its own, which heeds Ctrl-C unless ``preexec_fn`` is another."""
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-m", "mmtbx_sfdiff.command_line.refine", *arguments],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **{"preexec_fn": heed_interrupts} | options,
    )
