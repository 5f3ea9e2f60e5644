"""Finding, downloading and reading the model and the data of an entry.

The names are loaded when they are first used, so that what needs no cctbx serves where it is not installed.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_HOME = {
    "alphafold": ("find_predicted_model", "normalize_accession"),
    "data": ("Data", "data_symmetry", "read_data"),
    "entry": ("Entry", "load_entry"),
    "entry_id": ("is_entry_id", "normalize_entry_id"),
    "fetch": (
        "SERVERS",
        "EntryFiles",
        "NotDeposited",
        "Timeouts",
        "Unreachable",
        "cache_folder",
        "find_entry",
    ),
    "model": ("SCATTERING_TABLES", "Model", "read_model"),
    "observations": ("Observations", "read_observations"),
    "symmetry": ("Symmetry",),
    "writing": ("DISK_FULL", "DiskFull", "check_writable", "write_all"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
_RENAMED = {"normalise_accession": "normalize_accession", "normalise_entry_id": "normalize_entry_id"}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"{__name__}.{name} is now called {_RENAMED[name]}.", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
