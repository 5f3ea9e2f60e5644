"""The state of a refinement on disk, so that one that was killed goes on from its last macro-cycle.

A NumPy archive without pickled objects: the parameters of the atoms, and the history as JSON text. It belongs to
one set of inputs, of which it holds a fingerprint.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import numpy as np
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..files import write_all
from ..fmodel import FModel
from .settings import History

_PARAMETERS = ("sites_cart", "u_iso", "u_star", "occupancies")
_VERSION = 2


def fingerprint(files: Sequence[str | os.PathLike[str]], settings: dict[str, Any]) -> str:
    """What a state belongs to.

    Parameters
    ----------
    files : sequence of path
        Their contents count, not their names.
    settings : dict
        Everything that decides the result, as far as JSON can hold it.

    Returns
    -------
    str
    """
    digest = hashlib.sha256(json.dumps([_VERSION, settings], sort_keys=True).encode())
    for path in files:
        try:
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
        except OSError as error:
            raise Sorry(f"Cannot read {path} ({error.strerror or error}): check the name.") from None
    return digest.hexdigest()


def save(path: str | os.PathLike[str], fmodel: FModel, history: History, belongs_to: str) -> None:
    """Write the state; a previous one is replaced only when the new one is complete."""
    atoms = fmodel.atoms
    arrays: dict[str, Any] = {
        name: getattr(atoms, name).detach().cpu().to(torch.float64).numpy() for name in _PARAMETERS
    }
    text = json.dumps({"fingerprint": belongs_to, "cycles": history.cycles, "steps": history.steps})
    buffer = io.BytesIO()
    np.savez(buffer, text=np.array(text), **arrays)
    write_all({Path(path): buffer.getvalue()})


def load(path: str | os.PathLike[str], atoms: Atoms, belongs_to: str) -> tuple[Atoms, History] | None:
    """Read a state.

    Parameters
    ----------
    path : path
    atoms : Atoms
        The model as it was read.
    belongs_to : str
        From :func:`fingerprint`.

    Returns
    -------
    tuple of (Atoms, History), or None
        None when there is no state, or one of other inputs, or one that cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = json.loads(str(archive["text"]))
            arrays = {name: archive[name] for name in _PARAMETERS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if content.get("fingerprint") != belongs_to or len(arrays["u_iso"]) != atoms.n_atoms:
        return None
    values = {name: torch.tensor(array, dtype=atoms.dtype, device=atoms.device) for name, array in arrays.items()}
    return atoms.replace(**values), History(cycles=content["cycles"], steps=content["steps"])
