"""What tests do to the processes that they start."""

import signal


def heed_interrupts():
    """In a new process: Ctrl-C counts, also where the tests themselves run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
