"""Load cctbx's and PyTorch's native libraries so that both work in one process.

Importing this module is the whole interface; ``mmtbx_sfdiff/__init__.py`` does it first. Afterwards cctbx
and torch are loaded, a threaded FFT and a matrix product have been checked against NumPy, and forked children
are safe. Where nothing of either is loaded yet the order is simply ``boost_adaptbx.boost.python``, then
``torch``. Three traps make that order matter (measured with the wheels of cctbx-base 2025.11 and torch 2.13):

1. *Two C++ runtimes.* cctbx's wheel bundles its own libstdc++; torch, gemmi, SciPy, matplotlib ... use the
   system's. Both copies share the "unique" symbols that number the locale facets, so initialising the bundled
   copy after the system's is a segmentation fault. When torch came first, that is an ImportError with the
   remedy. When one of the others brought the system's, it is made the one that cctbx binds to, and a forked
   child tries the import before this process does. conda environments have one libstdc++ and never get here.
2. *Stub OpenMP.* cctbx (from ``cctbx.xray`` on) loads libomptbx, built without OpenMP, which exports
   ``omp_get_thread_num()`` and its like as stubs to every library loaded later. If that happens before torch
   is loaded, each of torch's and MKL's threads believes it is thread 0: wrong numbers or a crash. The binding
   is made when torch loads and cannot be mended, so torch is then held to one thread, with a warning.
3. *fork.* Children of a process that ran threaded torch operations (``libtbx.easy_mp``) wait for ever for
   threads that fork did not copy, unless they start with one thread.

This is the one place that touches thread counts; otherwise torch keeps its own default.
"""

import contextlib
import ctypes
import gc
import glob
import importlib.util
import os
import signal
import sys
import time
import warnings

_REMEDY = (
    "Put `import mmtbx_sfdiff` (or `import boost_adaptbx.boost.python, torch`, in this order) "
    "before every other import."
)
_PROBE_SECONDS = 60


def _mapped(fragment):
    """Paths of this process's shared libraries whose file name contains `fragment`; [] except on Linux."""
    try:
        with open("/proc/self/maps") as maps:
            fields = [line.rstrip("\n").split(maxsplit=5) for line in maps]
    except OSError:
        return []
    paths = {row[5] for row in fields if len(row) == 6 and row[5].startswith("/")}
    return sorted(path for path in paths if fragment in os.path.basename(path))


def _bundled_libstdcxx():
    """Paths of the C++ runtimes bundled with a cctbx wheel; [] for conda and source builds."""
    spec = importlib.util.find_spec("boost_python_meta_ext")
    if spec is None or not spec.origin:
        return []
    return glob.glob(os.path.join(glob.escape(os.path.dirname(spec.origin)), "cctbx*.libs", "libstdc++*"))


def _load_cctbx():
    """Import cctbx's lowest extension module, trap 1 avoided."""
    try:
        bundled = {os.path.realpath(path) for path in _bundled_libstdcxx()}
        mapped = {os.path.realpath(path) for path in _mapped("libstdc++.so")} - bundled
        if bundled and mapped and not _mapped("boost_python_meta_ext"):
            if "torch" in sys.modules:
                raise ImportError(
                    "torch was imported before mmtbx_sfdiff: cctbx's wheel brings a C++ runtime of its own (%s), which "
                    "must be loaded before torch loads the system's. %s" % (", ".join(sorted(bundled)), _REMEDY)
                )
            _bind_cctbx_to(mapped)
            if not _import_survives():
                raise ImportError(
                    "mmtbx_sfdiff cannot load cctbx in this process: %s loaded %s first, and cctbx's own C++ "
                    "runtime (%s) crashes beside it. %s"
                    % (_suspects(), ", ".join(sorted(mapped)), ", ".join(sorted(bundled)), _REMEDY)
                )
        import boost_adaptbx.boost.python  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            "mmtbx_sfdiff needs cctbx: install it with `pip install cctbx-base` or "
            "`conda install -c conda-forge cctbx-base` (%s)." % error
        ) from error


def _bind_cctbx_to(libraries):
    """Make C++ runtimes that are already loaded the first choice of every library still to be loaded."""
    for path in libraries:
        ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD | os.RTLD_GLOBAL)


def _suspects():
    known = ("torch", "gemmi", "scipy", "pandas", "matplotlib", "numba", "numpy")
    found = [name for name in known if name in sys.modules]
    return "an earlier import (%s)" % ", ".join(found) if found else "an earlier import"


def _import_survives():
    """Whether importing cctbx ends well, tried in a forked child so that a crash stays there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python >= 3.12, about threads
        child = os.fork()
    if child == 0:
        status = 0
        try:
            import faulthandler
            import resource

            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            import boost_adaptbx.boost.python  # noqa: F401
        except BaseException:
            status = 1  # an ordinary exception: the parent will meet it too, and report it
        finally:
            os._exit(status)
    deadline = time.monotonic() + _PROBE_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return not os.WIFSIGNALED(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


class _SymbolInfo(ctypes.Structure):
    _fields_ = [
        ("file_name", ctypes.c_char_p),
        ("file_base", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("symbol_address", ctypes.c_void_p),
    ]


def _openmp_provider():
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


def _load_torch():
    """Import torch; hold it to one thread if cctbx's OpenMP stubs came before it (trap 2)."""
    provider = _openmp_provider()
    # Collecting garbage among the hundred thousands of objects of this import takes a sixth of its time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        import torch
    finally:
        if collecting:
            gc.enable()

    if provider is None or "omptbx" not in os.path.basename(provider):
        return torch
    _hold_to_one_thread(torch)
    gomp = glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libgomp*"))
    preload = " or start Python with LD_PRELOAD=%s" % gomp[0] if gomp else ""
    warnings.warn(
        "cctbx's OpenMP stubs (%s) were loaded before torch: torch runs on one thread here, because more "
        "would give wrong numbers. %s%s" % (os.path.basename(provider), _REMEDY[:-1], preload + "."),
        RuntimeWarning,
        stacklevel=2,
    )
    return torch


def _hold_to_one_thread(torch):
    set_num_threads = torch.set_num_threads

    def set_num_threads_to_one(number):
        if number != 1:
            raise RuntimeError(
                "torch must stay on one thread in this process: cctbx's OpenMP stubs were loaded before it, "
                "and %d threads would give wrong numbers. %s" % (number, _REMEDY)
            )
        set_num_threads(1)

    set_num_threads_to_one(1)
    torch.set_num_threads = set_num_threads_to_one


def self_test(torch):
    """Check torch's FFT and matrix product, at the current number of threads, against NumPy.

    The grid is the smallest on which wrong thread numbers were seen to show; which call goes wrong is a
    matter of timing, hence the repeats. Takes 10-20 ms on an idle machine (importing torch takes 2 s).

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
                "torch computes wrong numbers in this process (relative error %.0e in an FFT or a matrix "
                "product; OpenMP comes from %s). Usually another library loaded its own OpenMP first. %s"
                % (error, _openmp_provider(), _REMEDY)
            )


def _relative_error(found, expected):
    return float(abs(found - expected).max() / abs(expected).max())


def _end_at_ctrl_c():
    """Until a program of this package runs and answers for itself, Ctrl-C ends it without a traceback."""
    program = os.path.basename(sys.argv[0] if getattr(sys, "argv", None) else "").startswith("mmtbx_sfdiff.")
    if program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start():
    _end_at_ctrl_c()
    _load_cctbx()
    torch = _load_torch()
    self_test(torch)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))  # trap 3


_start()
