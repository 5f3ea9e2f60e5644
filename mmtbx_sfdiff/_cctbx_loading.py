"""cctbx's wheel and the C++ runtime that other libraries have loaded.

cctbx's wheel bundles its own libstdc++; torch, gemmi, SciPy, matplotlib ... use the system's. Both copies share the
"unique" symbols that number the locale facets, so initialising the bundled copy after the system's is a segmentation
fault (cctbx-base 2025.11). The copy that is mapped already is therefore made the one that cctbx binds to
(:func:`promote`). Whether that works with these libraries is tried once, in a fresh interpreter, before cctbx is loaded
for the first time; the answer is kept in the user's cache. conda environments have one libstdc++ and need nothing of
this.

This file imports nothing of the package: ``mmtbx_sfdiff_startup.pth`` runs it alone, where cctbx is imported without us.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import signal
import subprocess
import sys
from importlib.machinery import PathFinder  # not importlib.util.find_spec, which asks BeforeCctbx, too
from pathlib import Path

LOWEST = "boost_python_meta_ext"  # cctbx's first extension module
_BINDING = getattr(os, "RTLD_NOW", 0) | getattr(os, "RTLD_GLOBAL", 0)
_PROBE_SECONDS = 60
# Modules known to bring a C++ runtime: a runtime that nobody uses does not crash, so they take part in the trial.
_USERS = ("torch", "gemmi", "scipy.optimize", "pandas", "matplotlib.ft2font", "numba")
_PROBE = """
import ctypes, importlib, json, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
flags, modules, libraries, sys.path[:] = json.loads(sys.argv[1])
sys.meta_path[:] = [finder for finder in sys.meta_path if "BeforeCctbx" not in type(finder).__name__]  # else no end
for name in modules:
    importlib.import_module(name)
for path in libraries:
    ctypes.CDLL(path, mode=flags)
from cctbx.array_family import flex
"""


def require_cctbx(what: str = "This") -> None:
    """Load cctbx, or say in one sentence how to get it.

    Parameters
    ----------
    what : str
        What needs it, as the subject of the sentence: "Atoms.from_cctbx".

    Raises
    ------
    ImportError
        Where cctbx is not installed, or where it was tried that it cannot be loaded beside the libraries of this
        process.

    Examples
    --------
    >>> from mmtbx_sfdiff._cctbx_loading import require_cctbx
    >>> require_cctbx("Crystal.from_cctbx")
    """
    if "boost_adaptbx.boost.python" in sys.modules:
        return
    try:
        prepare()
        import boost_adaptbx.boost.python  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{what} needs cctbx: install it with `pip install 'mmtbx_sfdiff[cctbx]'` or "
            f"`conda install -c conda-forge cctbx-base` ({error})."
        ) from error


def _mapped(fragment: str) -> list[str]:
    """Paths of this process's shared libraries whose file name contains `fragment`; [] except on Linux."""
    try:
        with open("/proc/self/maps") as maps:
            fields = [line.rstrip("\n").split(maxsplit=5) for line in maps]
    except OSError:
        return []
    paths = {row[5] for row in fields if len(row) == 6 and row[5].startswith("/")}
    return sorted(path for path in paths if fragment in os.path.basename(path))


def bundled_libstdcxx() -> list[str]:
    """Paths of the C++ runtimes bundled with a cctbx wheel; [] for conda and source builds, and without cctbx."""
    spec = PathFinder.find_spec(LOWEST) if sys.platform.startswith("linux") else None
    if spec is None or not spec.origin:
        return []
    return glob.glob(os.path.join(glob.escape(os.path.dirname(spec.origin)), "cctbx*.libs", "libstdc++*"))


def promote() -> list[str]:
    """Make the C++ runtime that is mapped, if any, the first choice of every library still to be loaded.

    Returns its paths; [] where cctbx brings none of its own, or has been loaded with it.
    """
    bundled = {os.path.realpath(path) for path in bundled_libstdcxx()}
    if not bundled or _mapped(LOWEST):
        return []
    mapped = sorted({os.path.realpath(path) for path in _mapped("libstdc++.so")} - bundled)
    for path in mapped:
        ctypes.CDLL(path, mode=_BINDING | os.RTLD_NOLOAD)
    return mapped


def prepare() -> None:
    """What has to be done before cctbx's lowest extension module is loaded (trap 1)."""
    mapped = promote()
    if mapped and not _survives(mapped):
        raise ImportError(
            f"cctbx cannot be loaded in this process: its own C++ runtime ({', '.join(bundled_libstdcxx())}) crashes "
            f"beside {', '.join(mapped)}, which {', '.join(_users()) or 'another library'} loaded before; import boost_adaptbx.boost.python before "
            "them, or take cctbx from conda-forge, where there is one C++ runtime for all."
        )


def _users() -> list[str]:
    return [name for name in _USERS if name in sys.modules]


def _survives(libraries: list[str]) -> bool:
    """Whether cctbx loads beside these C++ runtimes: tried in a fresh interpreter, or known from before.

    False only where that interpreter was killed by a signal of its own making.
    """
    question = _question(libraries)
    answers = _answers()
    if question in answers:
        return answers[question]
    if not sys.executable:
        return True  # inside another program there is no interpreter to try it with
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, json.dumps([_BINDING, _users(), libraries, sys.path])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    crashed = -done.returncode in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)
    if crashed or done.returncode == 0:
        _remember(answers | {question: not crashed})
    return not crashed  # an ordinary exception: whoever imports cctbx will meet it too


def _question(libraries: list[str]) -> str:
    """The interpreter, and the libraries with their sizes and times."""
    users = [str(sys.modules[name].__file__) for name in _users()]
    lowest = str(getattr(PathFinder.find_spec(LOWEST), "origin", ""))
    files = [sys.executable, *users, *libraries, *bundled_libstdcxx(), lowest]
    stats = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files if os.path.exists(path)]
    return hashlib.sha256(repr((sys.version, _BINDING, stats)).encode()).hexdigest()


def _answers_file() -> Path:
    import platformdirs  # where nothing asks for cctbx it is not needed

    return platformdirs.user_cache_path("mmtbx_sfdiff") / "cctbx_loads.json"


def _answers() -> dict[str, bool]:
    try:
        answers = json.loads(_answers_file().read_text())
    except (OSError, ValueError):
        return {}
    return answers if isinstance(answers, dict) else {}


def _remember(answers: dict[str, bool]) -> None:
    path = _answers_file()
    part = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # no cache, no harm: it is tried again
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(dict(list(answers.items())[-32:])))
        os.replace(part, path)


class BeforeCctbx:
    """A finder of modules that finds none: it prepares the process at the last moment, whoever imports cctbx."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == LOWEST and self in sys.meta_path:
            sys.meta_path.remove(self)  # looking for the module's file comes here again
            prepare()


def watch() -> None:
    """Be asked before cctbx's lowest extension module is loaded."""
    if LOWEST not in sys.modules and not any(isinstance(finder, BeforeCctbx) for finder in sys.meta_path):
        sys.meta_path.insert(0, BeforeCctbx())
