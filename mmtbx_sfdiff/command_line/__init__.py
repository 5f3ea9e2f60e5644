"""Thin dispatchers: each starts one program of ``mmtbx_sfdiff.programs`` and returns its exit code."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

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
        return importlib.import_module(f"mmtbx_sfdiff.programs.{program}")
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
