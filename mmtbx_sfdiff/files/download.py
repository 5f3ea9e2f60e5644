"""Downloading one file of a PDB entry so that what arrives is whole, is the right file, and arrives once.

A download is written under a temporary name beside its destination, checked (status, length, compression,
content), flushed to disk and only then renamed, so no reader ever sees part of a file.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import urllib3

from .errors import Sorry
from .writing import DISK_FULL, DiskFull

MAX_BYTES = 2**30  # no deposited entry comes near this; a server that sends more is broken
MAX_UNPACKED_BYTES = 2**33
_CHUNK = 2**16
_RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
_NOT_THERE = (404, 410)
_HEADERS = {"User-Agent": "mmtbx_sfdiff (https://github.com/cctbx)", "Accept-Encoding": "identity"}
# What fails is tried again by :func:`download`, because it may be the content.
_REDIRECTS_ONLY = urllib3.Retry(
    total=None, connect=0, read=0, status=0, other=0, redirect=10, respect_retry_after_header=False
)


#: Called with bytes received, and bytes expected or None.
Progress = Callable[[int, int | None], object]


@dataclass(frozen=True)
class Timeouts:
    """How long to wait, in seconds, and how often to try again.

    Attributes
    ----------
    connect : float
        Longest wait for a connection or for the next bytes.
    total : float
        Longest time for one file from one server, all attempts together.
    retries : int
        Further attempts after a time-out, a broken connection or a server error (5xx).
    backoff : float
        Wait before the first retry; doubled for each further one.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import Timeouts
    >>> Timeouts(retries=0)
    Timeouts(connect=20.0, total=600.0, retries=0, backoff=1.0)
    """

    connect: float = 20.0
    total: float = 600.0
    retries: int = 3
    backoff: float = 1.0


class NotThere(Exception):
    """The server answered that it has no such file."""


class Failed(Exception):
    """The server gave no usable answer; the message says in a few words what it did."""


class _Again(Exception):
    """An attempt failed in a way that may pass."""


def _sorry_for_disk(error: OSError, path: str | os.PathLike[str]) -> Exception:
    """Turn an error of the file system into one sentence."""
    folder = Path(path).parent
    kind = DiskFull if error.errno in DISK_FULL else Sorry
    if kind is DiskFull:
        reason = "there is no space left"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = "it is not writable"
    else:
        reason = os.strerror(error.errno) if error.errno else str(error)
    return kind(
        f"Cannot write {Path(path).name} to {folder}: {reason}; make room there or set "
        "MMTBX_SFDIFF_CACHE_DIR to another folder."
    )


def make_folder(folder: Path) -> None:
    """Create a folder of the cache.

    Raises
    ------
    libtbx.utils.Sorry
        If it cannot be created.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Sorry(
            f"Cannot create the folder {folder} for downloads ({_short(error)}): set "
            "MMTBX_SFDIFF_CACHE_DIR to a folder that you can write to."
        ) from None


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], timeout: float = 900.0, busy: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (created if needed) for the duration of a ``with`` block.

    The lock belongs to the open file, so the system drops it when a process dies: there is no stale lock.
    ``busy`` is what to say when another process holds it for longer than ``timeout`` seconds.

    Raises
    ------
    libtbx.utils.Sorry
        If the lock is not obtained within ``timeout`` seconds, or the file cannot be created.
    """
    held = filelock.FileLock(path, timeout=timeout)
    try:
        held.acquire()
    except filelock.Timeout:
        raise Sorry(
            busy
            or f"Another run has been downloading to {Path(path).parent} for more than "
            f"{timeout:.0f} s: wait for it, end it, or set MMTBX_SFDIFF_CACHE_DIR."
        ) from None
    except NotImplementedError:
        pass  # a file system without locks: the rename still keeps files whole
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise _sorry_for_disk(error, path) from None
    try:
        yield
    finally:
        held.release()


def download(
    url: str,
    destination: Path,
    check: Callable[[bytes], str | None],
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
) -> None:
    """Fetch ``url`` into ``destination``, always stored compressed with gzip.

    Parameters
    ----------
    url : str
        An http or https address.
    destination : pathlib.Path
        A name that ends in ``.gz``, in a folder that exists.
    check : callable
        Called with the unpacked beginning (bytes, up to 1 MiB); returns None, or a few words on what is
        wrong.
    timeouts : Timeouts, optional
    progress : callable, optional
        Called with (bytes received, bytes expected or None) as they arrive.

    Raises
    ------
    NotThere
        If the server says that there is no such file.
    Failed
        If no attempt gave a usable file.
    libtbx.utils.Sorry
        If the file cannot be written.
    """
    timeouts = timeouts or Timeouts()
    if not url.lower().startswith(("http://", "https://")):
        raise Sorry(f"{url} is not an http or https address: correct the MMTBX_SFDIFF_*_URL variable.")
    deadline = time.monotonic() + timeouts.total
    wait = timeouts.backoff
    for attempt in range(timeouts.retries + 1):
        try:
            return _attempt(url, Path(destination), check, timeouts.connect, deadline, progress)
        except _Again as error:
            if attempt == timeouts.retries or time.monotonic() + wait > deadline:
                tries = f" ({attempt + 1} attempts)" if attempt else ""
                raise Failed(f"{error}{tries}") from None
        time.sleep(wait)
        wait *= 2


def _attempt(
    url: str,
    destination: Path,
    check: Callable[[bytes], str | None],
    wait: float,
    deadline: float,
    progress: Progress | None,
) -> None:
    """One try: receive into a temporary file, check it, rename it."""
    try:
        handle, name = tempfile.mkstemp(dir=destination.parent, prefix="." + destination.name, suffix=".part")
        part = Path(name)
    except OSError as error:
        raise _sorry_for_disk(error, destination) from None
    try:
        try:
            with os.fdopen(handle, "w+b") as out:
                _receive(url, out, destination, wait, deadline, progress)
                head = _unpacked_head(out)
                reason = _not_text(head) or check(head)
                if reason:
                    raise Failed(reason)
                if not _is_gzip(out):
                    part = _compressed(out, part, destination)
                else:
                    out.flush()
                    os.fsync(out.fileno())
            os.chmod(part, 0o644)  # mkstemp makes it private; a shared cache is the point of a cache
            os.replace(part, destination)
        except OSError as error:
            raise _sorry_for_disk(error, destination) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _receive(url: str, out: Any, destination: Path, wait: float, deadline: float, progress: Progress | None) -> None:
    """The bytes that the server sends, into an open file."""
    try:
        with _connections(url) as pool:
            with pool.request(
                "GET",
                url,
                headers=_HEADERS,
                timeout=urllib3.Timeout(connect=wait, read=wait),
                retries=_REDIRECTS_ONLY,
                preload_content=False,
                decode_content=False,
            ) as response:
                _accepted(response.status)
                _copy(response, out, destination, deadline, progress)
    except urllib3.exceptions.MaxRetryError as error:
        raise _reason(error.reason or error, url) from None
    except urllib3.exceptions.HTTPError as error:
        raise _reason(error, url) from None


def _connections(url: str) -> Any:
    """Connections by the proxy that ``http_proxy``, ``https_proxy``, ``no_proxy`` or the system name, if any."""
    parts = urllib3.util.parse_url(url)
    named = urllib.request.getproxies().get(parts.scheme or "")
    if not named or urllib.request.proxy_bypass(parts.netloc or ""):
        return urllib3.PoolManager()
    proxy = urllib3.util.parse_url(named if "://" in named else "http://" + named)
    headers = urllib3.make_headers(proxy_basic_auth=urllib.parse.unquote(proxy.auth)) if proxy.auth else None
    return urllib3.ProxyManager(proxy._replace(auth=None).url, proxy_headers=headers)


def _accepted(status: int) -> None:
    if status in _NOT_THERE:
        raise NotThere(f"answered {status}")
    if status in _RETRY_STATUS:
        raise _Again(f"answered {status}")
    if status != 200:
        raise Failed(f"answered {status}")


def _copy(response: Any, out: Any, destination: Path, deadline: float, progress: Progress | None) -> None:
    expected = response.headers.get("Content-Length")
    expected = int(expected) if expected and expected.isdigit() else None
    if expected is not None and expected > MAX_BYTES:
        raise Failed(f"offered {expected} bytes, more than any entry has")
    received = 0
    while block := response.read1(_CHUNK):  # the announced length is checked by urllib3
        received += len(block)
        if received > MAX_BYTES:
            raise Failed(f"sent more than {MAX_BYTES} bytes")
        if time.monotonic() > deadline:
            raise Failed("sent data too slowly")
        try:
            out.write(block)
        except OSError as error:
            raise _sorry_for_disk(error, destination) from None
        if progress:
            progress(received, expected)
    if received == 0:
        raise _Again("sent an empty file")


def _reason(error: BaseException, url: str) -> Exception:
    """What happened, in a few words, as an exception that says whether to try again."""
    exceptions = urllib3.exceptions
    if isinstance(error, exceptions.ProxyError):
        return Failed(f"no connection by the proxy ({_short(error.original_error)})")
    if isinstance(error, exceptions.NameResolutionError):
        return Failed("name not found (no network?)")
    if isinstance(error, exceptions.NewConnectionError):
        return Failed(f"no connection ({_short(error.__cause__ or error)})")
    if isinstance(error, exceptions.ConnectTimeoutError):
        return _Again("did not answer in time")
    if isinstance(error, exceptions.TimeoutError):
        return _Again("stopped answering")
    if isinstance(error, exceptions.SSLError):
        return Failed(f"no connection ({_short(error.__cause__ or error)})")
    if isinstance(error, exceptions.ResponseError):
        return Failed(str(error))  # of redirections without end
    if isinstance(error, (exceptions.LocationValueError, exceptions.ProxySchemeUnknown)):
        return Failed(f"has the unusable address {url} ({error})")
    cut = error.args[-1] if error.args else None
    if isinstance(cut, exceptions.IncompleteRead):
        return _Again(f"sent {cut.partial} of {cut.partial + cut.expected} bytes")
    return _Again("broke the connection")


def _short(reason: BaseException) -> str:
    while reason.__cause__ is not None:
        reason = reason.__cause__
    return reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)


def _is_gzip(file: Any) -> bool:
    file.seek(0)
    return file.read(2) == b"\x1f\x8b"  # type: ignore[no-any-return]


def _unpacked_head(file: Any, size: int = 2**20) -> bytes:
    """Unpack everything, which checks gzip's own checksum, and return the beginning."""
    if not _is_gzip(file):
        file.seek(0)
        return file.read(size)  # type: ignore[no-any-return]
    file.seek(0)
    try:
        return check_gzip(file, size)
    except (EOFError, OSError, zlib.error):
        raise _Again("sent a damaged gzip file") from None


def check_gzip(file: Any, size: int = 0) -> bytes:
    """Read a whole gzip file, which verifies its checksum; return the first ``size`` unpacked bytes.

    Raises
    ------
    EOFError, OSError, zlib.error
        If the file is cut short or damaged, or unpacks to more than any entry has.
    """
    with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
        head = unpacked.read(size)
        total = len(head)
        while block := unpacked.read(2**20):
            total += len(block)
            if total > MAX_UNPACKED_BYTES:
                raise OSError("unpacks to more than any entry has")
    return head


def _not_text(head: bytes) -> str | None:
    start = head[:4096].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "sent a web page instead of the file"
    if b"\0" in head[:4096]:
        return "sent binary data instead of the file"
    return None


def _compressed(file: Any, part: Path, destination: Path) -> Path:
    """Compress what was received into a second temporary file; return its name, the first one removed."""
    handle, packed = tempfile.mkstemp(dir=destination.parent, prefix="." + destination.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as raw:
            file.seek(0)
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as out:
                while block := file.read(2**20):
                    out.write(block)
            raw.flush()
            os.fsync(raw.fileno())
    except BaseException:
        os.unlink(packed)
        raise
    os.unlink(part)
    return Path(packed)


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Progress | None]:
    """A bar on a terminal, nothing elsewhere, as a callback for :func:`download`."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
