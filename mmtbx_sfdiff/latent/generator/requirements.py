"""The optional libraries of the latent package, each with one sentence when it is missing."""

from __future__ import annotations

import importlib
from typing import Any

_PURPOSE = {
    "openmm": "molecular dynamics and force-field energies",
    "openmm.app": "molecular dynamics and force-field energies",
    "pdbfixer": "adding the atoms that a model lacks",
    "normflows": "circular spline flows",
}


def require(name: str) -> Any:
    """Import an optional library.

    Parameters
    ----------
    name : str
        ``"openmm"``, ``"openmm.app"``, ``"pdbfixer"`` or ``"normflows"``.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        When it is not installed; the message names the remedy.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise ImportError(
            f'{_PURPOSE[name]} need {package}, which is not installed: pip install "mmtbx_sfdiff[latent]"', name=package
        ) from error
