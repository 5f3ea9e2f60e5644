"""What tests do to the processes that they start."""

import os
import signal
import subprocess
import sys
import time


def heed_interrupts():
    """In a new process: Ctrl-C counts, also where the tests themselves run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(body, seconds):
    """Run a script that prints "ready" before what is interrupted; time from the signal to its next line, that line, and what
    it wrote to stderr."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        preexec_fn=heed_interrupts,
    )
    try:
        first = process.stdout.readline().strip()
        assert first == "ready", (first, process.stderr.read()[-2000:])
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        line = process.stdout.readline().strip()
        took = time.monotonic() - begin
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return took, line, err
