"""Writing the results of a comparison: all files or none, each complete."""
from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from pathlib import Path

from libtbx.utils import Sorry

from . import schema


def json_text(result):
    """A result as JSON; NaN and infinity, which JSON does not have, become null.

    Raises
    ------
    ValueError
        When the result does not have the form that :mod:`.schema` promises.
    """
    result = _finite(result)
    faults = schema.errors(result)
    if faults:
        raise ValueError(f"The result is not as its schema says: {'; '.join(faults)}.")
    return json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(child) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_writable(paths):
    """Refuse, before anything is computed, what could not be written afterwards.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        In one folder, which is made if it does not exist.  Files that exist will be replaced.

    Raises
    ------
    libtbx.utils.Sorry
    """
    folder = paths[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Sorry(f"Cannot write to the folder {folder} ({error.strerror or error}): choose another with "
                    "output.directory.") from None
    for path in paths:
        if path.is_dir():
            raise Sorry(f"{path} is a folder, so no file can be written there: choose another output.prefix.")


def write_all(contents):
    """Write several files; each appears complete, and none appears unless all could be written.

    Parameters
    ----------
    contents : dict of pathlib.Path to bytes

    Raises
    ------
    libtbx.utils.Sorry
        For example when the disk is full; nothing is left behind then.
    """
    parts = {}
    try:
        for path, content in contents.items():
            handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            parts[path] = part
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(part, 0o666 & ~_umask())
        for path, part in parts.items():
            os.replace(part, path)
    except OSError as error:
        raise Sorry(f"Cannot write {path} ({error.strerror or error}): make room, or choose another "
                    "output.directory.") from None
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                os.unlink(part)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def paths(directory, prefix, kinds):
    """``{kind: directory/prefix_compare.kind}`` for kinds such as "json" and "png"."""
    return {kind: Path(directory).expanduser() / f"{prefix}_compare.{kind}" for kind in kinds}
