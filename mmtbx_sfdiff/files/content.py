"""Opening a user's file: what is it, is it whole, is it the kind of file that was asked for.

Everything that can be wrong with a file as such (missing, empty, a folder, cut short, a web page, binary) is
found here and said in one sentence, before a parser sees it.  Reflection files are recognised by content
because ``iotbx.reflection_file_reader`` would try to unpickle an unknown binary file, which runs code.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from libtbx.utils import Sorry

MAX_BYTES = 2**33
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
    def text(self):
        """The content as text; characters outside UTF-8 are replaced (they occur in author names only)."""
        return self.raw.decode("utf-8", errors="replace")


def read_content(path, what):
    """Read a file, plain or compressed with gzip, and find out what it is.

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
    libtbx.utils.Sorry
        If the file is missing, a folder, empty, unreadable, damaged, a web page, or binary of another kind.
    """
    path = Path(path).expanduser()
    try:
        with open(path, "rb") as file:
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                raw = _unpack(file, path)
            else:
                file.seek(0)
                raw = file.read(MAX_BYTES)
    except IsADirectoryError:
        raise Sorry(f"{path} is a folder: give the name of the {what} file in it.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise Sorry(f"The {what} file {path} does not exist: check its name and folder.") from None
    except OSError as error:
        raise Sorry(
            f"Cannot read the {what} file {path} ({error.strerror or error}): check it and its permissions."
        ) from None
    if not raw.strip():
        raise Sorry(f"The {what} file {path} is empty: {_AGAIN}.")
    return Content(path, raw, _kind(raw, path, what))


def _unpack(file, path):
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            raw = unpacked.read(MAX_BYTES)
            if unpacked.read(1):
                raise Sorry(f"{path} unpacks to more than {MAX_BYTES} bytes: unpack it by hand if that is right.")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise Sorry(f"{path} is cut short or damaged (its gzip checksum does not fit): {_AGAIN}.") from None
    return raw


def _kind(raw, path, what):
    if raw[:4] == b"MTZ ":
        return "mtz"
    head = raw[:65536]
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<head")):
        raise Sorry(f"{path} is a web page, not a {what} file: a download went wrong, fetch the file again.")
    if b"\0" in head or sum(byte < 9 for byte in head) > 0:
        wanted = "PDB or mmCIF" if what == "model" else "MTZ or structure-factor CIF"
        raise Sorry(f"{path} is a binary file of another kind: give a {wanted} file.")
    for line in head.splitlines():
        word = line.strip().lower()
        if word and not word.startswith(b"#"):
            return "cif" if word.startswith(b"data_") else "text"
    return "text"
