"""PyTorch's and cctbx's native libraries in one process, whatever is imported in which order.

``mmtbx_sfdiff/__init__.py`` imports this module before the others.  It loads torch, never cctbx, and prepares the process
so that cctbx can be loaded later.  Three traps (measured with the wheels of cctbx-base 2025.11 and torch 2.13):

1. *Two C++ runtimes*, in :mod:`mmtbx_sfdiff._cctbx_loading`.
2. *Stub OpenMP.* cctbx (from ``cctbx.xray`` on) loads libomptbx, built without OpenMP, which exports
   ``omp_get_thread_num()`` and its like as stubs to every library loaded later. If that happens before torch
   is loaded, each of torch's and MKL's threads believes it is thread 0: wrong numbers or a crash. The binding
   is made when torch loads and cannot be mended, so torch is then held to one thread, with a warning.
3. *fork.* Children of a process that ran threaded torch operations (``libtbx.easy_mp``) wait for ever for
   threads that fork did not copy, unless they start with one thread.

Only here and in ``kernels/threads.py`` are thread counts touched; otherwise torch keeps its own default.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import glob
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

from ._cctbx_loading import bundled_libstdcxx, promote, watch


class _SymbolInfo(ctypes.Structure):
    _fields_ = [
        ("file_name", ctypes.c_char_p),
        ("file_base", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("symbol_address", ctypes.c_void_p),
    ]


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Libraries are loaded within: looking for garbage among their hundred thousands of objects takes a fifth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def is_program() -> bool:
    """Whether this process is one of this package's programs, started from a command line."""
    return os.path.basename(sys.argv[0] if getattr(sys, "argv", None) else "").startswith("mmtbx_sfdiff.")


def _openmp_provider() -> str | None:
    """The library whose ``omp_get_thread_num`` torch is, or will be, bound to; None if not found.

    The global scope keeps the order of loading, so this answers for torch whether it is loaded yet or not.
    """
    if not sys.platform.startswith("linux"):
        return None
    everything = ctypes.CDLL(None)
    info = _SymbolInfo()
    try:
        address = ctypes.cast(everything.omp_get_thread_num, ctypes.c_void_p)
        everything.dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_SymbolInfo)]
        found = everything.dladdr(address, ctypes.byref(info))
    except AttributeError:
        return None
    return os.fsdecode(info.file_name) if found and info.file_name else None


def _load_torch() -> ModuleType:
    """Import torch; hold it to one thread if cctbx's OpenMP stubs came before it (trap 2)."""
    # Once torch is loaded, its own OpenMP hides from this question only where the stubs came first.
    provider = _openmp_provider()
    import torch

    library = os.path.basename(provider or "")
    if "omptbx" in library:
        _hold_to_one_thread(torch)
        gomp = glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libgomp*"))
        preload = f", or start Python with LD_PRELOAD={gomp[0]}" if gomp else ""
        warnings.warn(
            f"cctbx's OpenMP stubs ({library}) were loaded before torch: torch runs on one thread here, because more "
            f"would give wrong numbers. Import torch or mmtbx_sfdiff before cctbx.xray{preload}.",
            RuntimeWarning,
            stacklevel=2,
        )
    elif library and not re.match(r"lib(g|i|)omp\d?\W", library):
        self_test(torch)
    return torch


def _hold_to_one_thread(torch: ModuleType) -> None:
    set_num_threads = torch.set_num_threads

    def set_num_threads_to_one(number):
        if number != 1:
            raise RuntimeError(
                "torch must stay on one thread in this process: cctbx's OpenMP stubs were loaded before it, and "
                f"{number} threads would give wrong numbers; import torch or mmtbx_sfdiff before cctbx.xray."
            )
        set_num_threads(1)

    set_num_threads_to_one(1)
    torch.set_num_threads = set_num_threads_to_one  # type: ignore[attr-defined]


def self_test(torch: ModuleType) -> None:
    """Check torch's FFT and matrix product, at the current number of threads, against NumPy.

    Done at import only where torch's OpenMP is neither GNU's, Intel's nor LLVM's.  The grid is the smallest on which
    wrong thread numbers were seen to show; which call goes wrong is a matter of timing, hence the repeats.

    Raises
    ------
    ImportError
        If torch's numbers are wrong.
    """
    import numpy as np

    grid = (np.arange(48 * 60 * 60) * 7919 % 100003 / 50001.5 - 1.0).reshape(48, 60, 60)
    square = grid.ravel()[:65536].reshape(256, 256)
    expected_fft, expected_product = np.fft.rfftn(grid), square @ square
    for _ in range(3):
        error = max(
            _relative_error(torch.fft.rfftn(torch.from_numpy(grid)).numpy(), expected_fft),
            _relative_error((torch.from_numpy(square) @ torch.from_numpy(square)).numpy(), expected_product),
        )
        if not error < 1e-10:
            raise ImportError(
                f"torch computes wrong numbers in this process (relative error {error:.0e} in an FFT or a matrix "
                f"product; OpenMP comes from {_openmp_provider()}): another library loaded its own OpenMP before "
                "torch; import torch or mmtbx_sfdiff before it."
            )


def _relative_error(found, expected) -> float:
    return float(abs(found - expected).max() / abs(expected).max())


def _end_at_ctrl_c() -> None:
    """Until a program of this package runs and answers for itself, Ctrl-C ends it without a traceback."""
    if is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start() -> None:
    _end_at_ctrl_c()
    with without_collecting():
        torch = _load_torch()
    if bundled_libstdcxx():
        promote()
        watch()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))  # trap 3


_start()
