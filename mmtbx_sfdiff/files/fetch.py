"""Finding the model and the data of a PDB entry: local folders first, then the cache, then a download.

Order: ``MMTBX_SFDIFF_PDB_DIR``; Phenix's mirror variables ``PDB_MIRROR_MMCIF``, ``PDB_MIRROR_PDB`` and
``PDB_MIRROR_STRUCTURE_FACTORS`` (wwPDB's "divided" layout, as ``iotbx.pdb.fetch`` used it); the cache
(``MMTBX_SFDIFF_CACHE_DIR``); and the three sites of the wwPDB, whose addresses are those in
``iotbx.pdb.fetch.all_links_dict`` or their present successors.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import platformdirs

from .download import (
    Failed,
    NotThere,
    Timeouts,
    check_gzip,
    download,
    lock,
    make_folder,
    progress_bar,
)
from .entry_id import entry_id_in_data, entry_id_in_model, normalize_entry_id
from .errors import Sorry


class NotDeposited(Sorry):
    """Every server answered that there is no such entry, or that it has no structure factors.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import NotDeposited, find_entry
    >>> try:  # doctest: +SKIP
    ...     find_entry("1aaa")
    ... except NotDeposited as error:
    ...     print(error)
    >>> issubclass(NotDeposited, Exception)
    True
    """


class Unreachable(Sorry):
    """No server gave a usable file; another time one may.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import Unreachable
    >>> issubclass(Unreachable, Exception)
    True
    """


#: Called with file name, bytes received, and bytes expected or None; False for silence, None for a bar.
NamedProgress = Callable[[str, int, int | None], object] | Literal[False] | None


@dataclass(frozen=True)
class EntryFiles:
    """The two files of an entry.

    Attributes
    ----------
    entry : str or None
        Identifier in lower case; None when the files were named by the user.
    model, data : pathlib.Path
    source : str
        Where they were found: the name of a variable, ``cache``, or a server; two names joined by
        ``+`` when the model and the data came from different places.

    Examples
    --------
    >>> from pathlib import Path
    >>> from mmtbx_sfdiff.files import EntryFiles
    >>> EntryFiles(None, Path("model.pdb"), Path("data.mtz"), "given").model.suffix
    '.pdb'
    """

    entry: str | None
    model: Path
    data: Path
    source: str


@dataclass(frozen=True)
class Server:
    """A site of the wwPDB: its base address, the variable that replaces it, and the paths below it."""

    url: str
    variable: str
    model: str
    data: str

    def address(self, kind: str, entry: str) -> str:
        """The URL of ``kind`` ('model' or 'data') of an entry."""
        base = (os.environ.get(self.variable) or self.url).rstrip("/")
        return base + getattr(self, kind).format(id=entry, middle=entry[-3:-1])  # type: ignore[no-any-return]


_DIVIDED = "/pub/pdb/data/structures/divided"
SERVERS = {
    "rcsb": Server(
        "https://files.rcsb.org", "MMTBX_SFDIFF_RCSB_URL", "/download/{id}.cif.gz", "/download/{id}-sf.cif.gz"
    ),
    "pdbe": Server(
        "https://www.ebi.ac.uk",
        "MMTBX_SFDIFF_PDBE_URL",
        "/pdbe/entry-files/download/{id}.cif",
        "/pdbe/entry-files/download/r{id}sf.ent",
    ),
    "pdbj": Server(
        "https://data.pdbj.org",
        "MMTBX_SFDIFF_PDBJ_URL",
        _DIVIDED + "/mmCIF/{middle}/{id}.cif.gz",
        _DIVIDED + "/structure_factors/{middle}/r{id}sf.ent.gz",
    ),
}

_NAMES = {
    "model": (
        "{id}.cif.gz",
        "{id}.cif",
        "{id}.pdb.gz",
        "{id}.pdb",
        "{id}.ent.gz",
        "{id}.ent",
        "pdb{id}.ent.gz",
        "pdb{id}.ent",
    ),
    "data": ("{id}-sf.cif.gz", "{id}-sf.cif", "r{id}sf.ent.gz", "r{id}sf.ent", "{id}.mtz", "{id}.mtz.gz"),
}
_WHAT = {"model": "coordinates", "data": "structure factors"}


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The folder in which downloads are kept.

    Parameters
    ----------
    cache_dir : path, optional
        Used as it is; otherwise ``MMTBX_SFDIFF_CACHE_DIR``, otherwise the user's cache folder
        (``XDG_CACHE_HOME`` or ``~/.cache``, ``~/Library/Caches`` on macOS, ``LOCALAPPDATA`` on Windows).

    Returns
    -------
    pathlib.Path

    Examples
    --------
    >>> from mmtbx_sfdiff.files import cache_folder
    >>> str(cache_folder("downloads"))
    'downloads'
    """
    chosen = cache_dir or os.environ.get("MMTBX_SFDIFF_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("mmtbx_sfdiff", appauthor=False)


def find_entry(
    entry_id: str,
    download: bool = True,
    cache_dir: str | Path | None = None,
    mirrors: Any = ("rcsb", "pdbe", "pdbj"),
    progress: NamedProgress = None,
    log: TextIO | None = None,
    timeouts: Timeouts | None = None,
) -> EntryFiles:
    """Find an entry's model and data on this machine, or download them.

    Parameters
    ----------
    entry_id : str
        A four-character or extended identifier, in any case.
    download : bool
        Whether the network may be used.
    cache_dir : path, optional
        See :func:`cache_folder`.
    mirrors : sequence of str
        Keys of :data:`SERVERS`, in the order in which they are asked.
    progress : callable or False, optional
        Called with (file name, bytes received, bytes expected or None); by default a progress bar, drawn
        only on a terminal; False for none.
    log : file, optional
        One line is written for each thing worth knowing.
    timeouts : Timeouts, optional

    Returns
    -------
    EntryFiles

    Raises
    ------
    libtbx.utils.Sorry
        In one sentence: the identifier is not one, the entry or its structure factors do not exist, no
        server could be reached, or the cache cannot be written.

    Examples
    --------
    >>> import gzip, os
    >>> from unittest import mock
    >>> from mmtbx_sfdiff.files import find_entry
    >>> for name in ("1yjp.cif.gz", "1yjp-sf.cif.gz"):
    ...     with gzip.open(name, "wt") as file:
    ...         _ = file.write("data_1yjp")
    >>> with mock.patch.dict(os.environ, MMTBX_SFDIFF_PDB_DIR="."):
    ...     found = find_entry("1YJP", download=False)
    >>> found.entry, found.source
    ('1yjp', 'MMTBX_SFDIFF_PDB_DIR')
    """
    entry = normalize_entry_id(entry_id)
    for name in mirrors:
        if name not in SERVERS:
            raise Sorry(f"{name!r} is not a server: choose among {', '.join(SERVERS)}.")
    found: dict[str, tuple[Path, str]] = {}
    for source, files in _local_places(entry):
        if len(files) == 2:
            return EntryFiles(entry, files["model"], files["data"], source)
        for kind, path in files.items():
            found.setdefault(kind, (path, source))
    folder = cache_folder(cache_dir) / entry
    for kind in ("model", "data"):
        path = _cached(folder, kind, entry)
        if path:
            found.setdefault(kind, (path, "cache"))
    for kind in ("model", "data"):
        if kind in found:
            continue
        if not download:
            raise Sorry(
                f"The {_WHAT[kind]} of {entry} are not on this machine and downloading is off: allow "
                "it, give the names of a model and a data file, or set MMTBX_SFDIFF_PDB_DIR."
            )
        found[kind] = _fetch(kind, entry, folder, mirrors, progress, log, timeouts or Timeouts())
    sources = dict.fromkeys(found[kind][1] for kind in ("model", "data"))
    return EntryFiles(entry, found["model"][0], found["data"][0], "+".join(sources))


def _first_file(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    for folder in folders:
        for name in names:
            path = folder / name
            if path.is_file() and path.stat().st_size > 0:
                return path
    return None


def _local_places(entry: str) -> Iterator[Any]:
    """Yield (name of the place, {kind: path}) for the places that need no network."""
    own = os.environ.get("MMTBX_SFDIFF_PDB_DIR")
    if own:
        base = Path(own).expanduser()
        folders = (base / entry, base / entry[-3:-1] / entry, base / entry[-3:-1], base)
        yield "MMTBX_SFDIFF_PDB_DIR", _pair(folders, folders, entry)
    mirror = {
        name: Path(os.environ[name]).expanduser() / entry[-3:-1]
        for name in ("PDB_MIRROR_MMCIF", "PDB_MIRROR_PDB", "PDB_MIRROR_STRUCTURE_FACTORS")
        if os.environ.get(name)
    }
    data = [mirror[n] for n in ("PDB_MIRROR_STRUCTURE_FACTORS",) if n in mirror]
    for name in ("PDB_MIRROR_MMCIF", "PDB_MIRROR_PDB"):
        if name in mirror:
            yield name, _pair([mirror[name]], data, entry)
    if data:
        yield "PDB_MIRROR_STRUCTURE_FACTORS", _pair([], data, entry)


def _pair(model_folders: Iterable[Path], data_folders: Iterable[Path], entry: str) -> dict[str, Any]:
    found = {}
    for kind, folders in (("model", model_folders), ("data", data_folders)):
        path = _first_file(folders, [name.format(id=entry) for name in _NAMES[kind]])
        if path:
            found[kind] = path
    return found


def _cached(folder: Path, kind: str, entry: str) -> Path | None:
    return _cached_file(folder / _NAMES[kind][0].format(id=entry))


def _cached_file(path: Path) -> Path | None:
    """The cached file if it is whole; a damaged one is as good as none and gets replaced."""
    try:
        with open(path, "rb") as file:
            check_gzip(file)
    except (OSError, EOFError, zlib.error):
        return None
    return path


def _fetch(
    kind: str, entry: str, folder: Path, mirrors: Any, progress: NamedProgress, log: TextIO | None, timeouts: Timeouts
) -> tuple[Path, str]:
    """Download one file under the entry's lock; return (path, server name)."""
    make_folder(folder)
    destination = folder / _NAMES[kind][0].format(id=entry)
    with lock(folder / ".lock", timeout=timeouts.total * 2 + 60):
        if _cached(folder, kind, entry):  # another run fetched it while this one waited
            return destination, "cache"
        for leftover in folder.glob(".*.part"):  # of a run that was killed; nobody else holds the lock
            with contextlib.suppress(OSError):
                leftover.unlink()
        answers: dict[str, NotThere | Failed] = {}
        for name in mirrors:
            url = SERVERS[name].address(kind, entry)
            try:
                with _progress(progress, destination.name) as report:
                    download(url, destination, _checker(kind, entry), timeouts, report)
            except (NotThere, Failed) as error:
                answers[name] = error
                continue
            if log is not None:
                print(f"Downloaded the {_WHAT[kind]} of {entry} from {url}", file=log)
            return destination, name
    raise _explain(kind, entry, answers)


def _progress(progress: NamedProgress, name: str) -> contextlib.AbstractContextManager[Any]:
    if progress is None:
        return progress_bar(name)
    if progress is False:
        return contextlib.nullcontext()
    return contextlib.nullcontext(lambda done, total: progress(name, done, total))


def _checker(kind: str, entry: str) -> Callable[[bytes], str | None]:
    """A check that the file received is a CIF of this kind and of this entry."""
    named = entry_id_in_model if kind == "model" else entry_id_in_data

    def check(head: bytes) -> str | None:
        text = head.decode("utf-8", errors="replace")
        if not any(line.startswith("data_") for line in text.splitlines()):
            return "sent something that is not a CIF file"
        actual = named(text)
        if actual != entry:
            return f"sent a file of {actual}" if actual else "sent a file that does not name the entry"
        if kind == "data" and "_refln" not in text:
            return "sent a file without reflections"
        return None

    return check


def _explain(kind: str, entry: str, answers: dict[str, NotThere | Failed]) -> Exception:
    said = "; ".join(f"{name} {answer}" for name, answer in answers.items())
    if answers and all(isinstance(answer, NotThere) for answer in answers.values()):
        if kind == "data":
            return NotDeposited(
                f"Entry {entry} exists, but no structure factors were deposited with it ({said}): "
                "choose another entry, or give the names of a model and a data file."
            )
        return NotDeposited(
            f"There is no entry {entry} ({said}): check the identifier, or give the names of a model and a data file."
        )
    return Unreachable(
        f"Cannot download the {_WHAT[kind]} of {entry} ({said}): give the names of a model and a "
        "data file, or set MMTBX_SFDIFF_PDB_DIR to a folder that holds the entry."
    )
