"""Opening a user's file: what is it, is it whole, is it the kind of file that was asked for.

Everything that can be wrong with a file as such (missing, empty, a folder, cut short, a web page, binary) is
found here and said in one sentence, before a parser sees it.  Reflection files are recognised by content
because ``iotbx.reflection_file_reader`` would try to unpickle an unknown binary file, which runs code.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import Sorry

MAX_BYTES = 2**33
_COMPRESS = b"\x1f\x9d"  # Unix compress, .Z
_PACKED: dict[bytes, tuple[str, Callable[..., Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ": ("xz", lzma.open),
}
_ARCHIVES = ((b"PK\x03\x04", 0, "zip"), (b"ustar", 257, "tar"), (b"7z\xbc\xaf", 0, "7z"))
_WORD = re.compile(r"=(hklf3|hklf4|amplitudes|intensities)$", re.IGNORECASE)
_AGAIN = "download or copy it again"


@dataclass(frozen=True)
class Content:
    """A file's unpacked bytes and what they look like.

    Attributes
    ----------
    path : pathlib.Path
    raw : bytes
    kind : str
        ``mtz``, ``cif`` or ``text``.
    """

    path: Path
    raw: bytes
    kind: str

    @property
    def end(self) -> list[str]:
        """What to say where the last line of a text was not ended: a sign of a copy that stopped, or of an editor."""
        # What a file is filled up with at its end, blanks or zeros, is no line of it.
        tail = self.raw.rstrip(b"\0 \t")[-400:].replace(b"\0", b"").decode("latin-1")
        if (
            self.kind == "mtz"
            or not tail
            or tail.endswith(("\n", "\r"))
            or tail.splitlines()[-1].startswith(("END", "#"))
        ):
            return []
        return ["the last line of the file is not ended: if the file is cut short, the rest is missing"]

    @property
    def text(self) -> str:
        """The content as text, with line ends of Unix and without a byte-order mark.

        Characters outside UTF-8 are replaced (they occur in author names only).
        """
        return _decoded(self.raw)


def _decoded(raw: bytes) -> str:
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return raw.decode(encoding, errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def split_word(path: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], str | None]:
    """(path, word): a SHELX file's name may end in ``=hklf4`` or ``=hklf3``, as in cctbx; the word is None otherwise."""
    text = str(path)
    match = _WORD.search(text)
    return (text[: match.start()], match.group(1).lower()) if match and not Path(text).exists() else (path, None)


def read_content(path: str | os.PathLike[str], what: str) -> Content:
    """Read a file, plain or compressed (gzip, bzip2, xz, compress, by content), and find out what it is.

    Parameters
    ----------
    path : path
    what : str
        ``model`` or ``data``, for messages.

    Returns
    -------
    Content

    Raises
    ------
    Sorry
        If the file is missing, a folder, empty, unreadable, damaged, a web page, or binary of another kind.
    """
    path = Path(path).expanduser()
    try:
        with open(path, "rb") as file:
            start = file.read(6)
        packed = next((how for magic, how in _PACKED.items() if start.startswith(magic)), None)
        if packed is not None:
            raw = _unpack(path, *packed)
        elif start.startswith(_COMPRESS):
            raw = _uncompress(path)
        else:
            with open(path, "rb") as file:
                raw = file.read(MAX_BYTES)
    except IsADirectoryError:
        raise Sorry(f"{path} is a folder: give the name of the {what} file in it.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise Sorry(f"The {what} file {path} does not exist: check its name and folder.") from None
    except ValueError as error:  # a NUL in the name
        if isinstance(error, Sorry):
            raise
        raise Sorry(f"{str(path)!r} cannot be the name of a file: check it.") from None
    except OSError as error:
        raise Sorry(
            f"Cannot read the {what} file {path} ({error.strerror or error}): check it and its permissions."
        ) from None
    if not raw.strip():
        raise Sorry(f"The {what} file {path} is empty: {_AGAIN}.")
    return Content(path, raw, _kind(raw, path, what))


def _unpack(path: Path, name: str, opener: Callable[..., Any]) -> bytes:
    try:
        with opener(path, "rb") as unpacked:
            raw: bytes = unpacked.read(MAX_BYTES)
            if unpacked.read(1):
                raise Sorry(f"{path} unpacks to more than {MAX_BYTES} bytes: unpack it by hand if that is right.")
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, ValueError, OSError) as error:
        if isinstance(error, Sorry):
            raise
        raise Sorry(f"{path} is cut short or damaged (its {name} checksum does not fit): {_AGAIN}.") from None
    return raw


def _uncompress(path: Path) -> bytes:
    """What compress packed: Python has no decompressor for it, gzip has."""
    program = shutil.which("gzip")
    if program is None:
        raise Sorry(
            f"{path} is compressed with compress (.Z), which needs the program gzip: install it, or unpack the file."
        )
    with open(path, "rb") as file:
        done = subprocess.run([program, "-dc"], stdin=file, capture_output=True)
    if done.returncode:
        raise Sorry(f"{path} is cut short or damaged (it is no whole file of compress): {_AGAIN}.")
    if len(done.stdout) > MAX_BYTES:
        raise Sorry(f"{path} unpacks to more than {MAX_BYTES} bytes: unpack it by hand if that is right.")
    return done.stdout


def _kind(raw: bytes, path: Path, what: str) -> str:
    if raw[:4] == b"MTZ ":
        return "mtz"
    head = _decoded(raw[:65536]).encode()
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<head")):
        raise Sorry(f"{path} is a web page, not a {what} file: a download went wrong, fetch the file again.")
    for magic, place, name in _ARCHIVES:
        if raw[place : place + len(magic)] == magic:
            raise Sorry(f"{path} is a {name} archive: unpack it and give the {what} file in it.")
    if b"\0" in head or sum(byte < 9 for byte in head) > 0:
        wanted = "a PDB or mmCIF" if what == "model" else "an MTZ or structure-factor CIF"
        raise Sorry(f"{path} is a binary file of another kind: give {wanted} file.")
    for line in head.splitlines():
        word = line.strip().lower()
        if word and not word.startswith(b"#"):
            return "cif" if word.startswith(b"data_") else "text"
    return "text"
