"""Thin dispatchers: each starts one program of ``mmtbx_sfdiff.programs`` and returns its exit code."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from mmtbx_sfdiff._runtime import is_program, without_collecting
from mmtbx_sfdiff.kernels import compilation

# What brings a missing module: the extra of pip.
_EXTRAS = {
    **dict.fromkeys(("cctbx", "iotbx", "mmtbx", "libtbx", "scitbx", "boost_adaptbx", "boost_python_meta_ext"), "cctbx"),
    **dict.fromkeys(("matplotlib", "rich", "jinja2", "jsonschema"), "cctbx"),
    **dict.fromkeys(("openmm", "pdbfixer", "normflows"), "latent"),
}


def load(program: str) -> ModuleType:
    """The module ``mmtbx_sfdiff.programs.<program>``; where a library is missing, one sentence, and the end.

    Parameters
    ----------
    program : str
        ``compare``, ``fmodel``, ...

    Raises
    ------
    SystemExit
        With status 1, after the sentence.
    """
    try:
        with without_collecting():
            module = importlib.import_module(f"mmtbx_sfdiff.programs.{program}")
        _keep_what_is_loaded()
        return module
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in _EXTRAS:
            raise
        name = "cctbx" if "tbx" in missing or missing.startswith("boost") else missing
        said = f"needs {name}, which is not installed: pip install 'mmtbx_sfdiff[{_EXTRAS[missing]}]'"
        if _EXTRAS[missing] == "cctbx":
            said += ", or take cctbx from conda-forge"
    except ImportError as error:  # cctbx is there and cannot be loaded: the message says why
        said = f"cannot start: {error}"
    print(f"Sorry: mmtbx_sfdiff.{program} {said}.".replace("..", "."), file=sys.stderr)
    sys.exit(1)


def compile_meanwhile(args: Sequence[str] | None) -> None:
    """Begin to compile kernels, where they are not, in processes beside this one, which loads libraries and reads files meanwhile.

    The program waits for them when it needs them (:func:`mmtbx_sfdiff.kernels.compilation.start` gives it what has begun);
    where it ends before, by an error or having said what it was asked, they end with it.

    Parameters
    ----------
    args : sequence of str or None
        Of the command line; with options (``--help``), or none at all, nothing is computed.
    """
    _keep_what_is_loaded()
    words = sys.argv[1:] if args is None else args
    if is_program() and words and not any(word.startswith("-") for word in words):
        compilation.start(compilation.USUAL)


def _keep_what_is_loaded() -> None:
    """What a program's libraries made stays as long as the process: no collection of garbage has to go through it again.

    At the end of the process that alone takes most of a second.
    """
    if is_program():  # within another's process its garbage would stay as well
        gc.freeze()
        atexit.unregister(_end_as_loaded)
        atexit.register(_end_as_loaded)


def _end_as_loaded() -> None:
    # Triton's binding looks at the end for what it made, and reports at length what is kept.
    (gc.unfreeze if "triton" in sys.modules else gc.freeze)()
