"""Writing results: all files of a program or none, each complete."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import Any

from .errors import Sorry

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(Sorry):
    """There is no room left to write to; nothing is wrong with what was to be written.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import DISK_FULL, DiskFull
    >>> issubclass(DiskFull, Exception), len(DISK_FULL) > 0
    (True, True)
    """


def check_writable(paths: Any, overwrite: bool = True) -> None:
    """Refuse, before anything is computed, what could not be written afterwards.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        In one folder, which is made if it does not exist.
    overwrite : bool
        Whether files that exist may be replaced.

    Raises
    ------
    libtbx.utils.Sorry

    Examples
    --------
    >>> from pathlib import Path
    >>> from mmtbx_sfdiff.files import check_writable, write_all
    >>> new = Path("new.txt")
    >>> check_writable([new], overwrite=False)
    >>> write_all({new: b"text"})
    >>> try:
    ...     check_writable([new], overwrite=False)
    ... except Exception as error:
    ...     print("new.txt" in str(error))
    True
    """
    folder = paths[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Sorry(
            f"Cannot write to the folder {folder} ({error.strerror or error}): choose another with output.directory."
        ) from None
    for path in paths:
        if path.is_dir():
            raise Sorry(f"{path} is a folder, so no file can be written there: choose another output.prefix.")
        if path.exists() and not overwrite:
            raise Sorry(f"{path} exists: choose another output.prefix, or set overwrite=True.")


def write_all(contents: Any) -> None:
    """Write several files; each appears complete, and none appears unless all could be written.

    What a symbolic link points to is replaced, not the link; a device or a pipe is written to.

    Parameters
    ----------
    contents : dict of pathlib.Path to bytes

    Raises
    ------
    libtbx.utils.Sorry
        For example when the disk is full; nothing is left behind then.

    Examples
    --------
    >>> from pathlib import Path
    >>> from mmtbx_sfdiff.files import write_all
    >>> one, two = Path("one.txt"), Path("two.bin")
    >>> write_all({one: b"text", two: b"bytes"})
    >>> one.read_bytes(), two.read_bytes()
    (b'text', b'bytes')
    """
    parts, special = {}, {}
    try:
        for path, content in contents.items():
            if path.exists() and not path.is_file():
                special[path] = content
                continue
            path = Path(os.path.realpath(path))
            handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            parts[path] = part
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(part, 0o666 & ~_umask())
        for path, part in parts.items():
            os.replace(part, path)
        for path, content in special.items():
            with open(path, "wb") as file:
                file.write(content)
    except OSError as error:
        kind = DiskFull if error.errno in DISK_FULL else Sorry
        raise kind(
            f"Cannot write {path} ({error.strerror or error}): make room, or choose another output.directory."
        ) from None
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                os.unlink(part)


def write_atomically(path: str | Path, content: Any) -> None:
    """Write one file, text or bytes, as :func:`write_all` does.

    Parameters
    ----------
    path : pathlib.Path
    content : str or bytes

    Raises
    ------
    libtbx.utils.Sorry
    """
    write_all({path: content.encode() if isinstance(content, str) else content})


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
