"""Running short operations without a thread pool.

The scaling is a chain of thousands of operations on arrays of 10^4 to 10^6 elements.  Sharing each among threads gains
little when the processors are idle, and costs a scheduler's time slice for each when they are not (measured: 8 ms
instead of 0.05 ms).
"""
from __future__ import annotations

import contextlib

import torch


@contextlib.contextmanager
def one_cpu_thread(device):
    """Let the calling thread's CPU operations run on it alone, for the time of the block."""
    number = torch.get_num_threads()
    if torch.device(device).type != "cpu" or number == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)
