"""Predicted models from the AlphaFold Protein Structure Database, by UniProt accession.

The same care as for entries of the PDB (:mod:`.download`, :mod:`.fetch`): only an accession becomes part of
an address or of a path, what arrives has to be a model of that accession, and it is kept in the cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from .download import Failed, NotThere, Timeouts, download, lock, make_folder
from .errors import Sorry
from .fetch import _cached_file, _progress, cache_folder

URL = "https://alphafold.ebi.ac.uk/files"
VARIABLE = "MMTBX_SFDIFF_ALPHAFOLD_URL"
VERSIONS = (6, 4)  # of the database, the newest first
# https://www.uniprot.org/help/accession_numbers
_ACCESSION = re.compile(r"[OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9]([A-Z][A-Z0-9]{2}[0-9]){1,2}", re.ASCII)


def normalize_accession(text: str) -> str:
    """A UniProt accession in upper case.

    Raises
    ------
    libtbx.utils.Sorry
        If ``text`` is not one.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import normalize_accession
    >>> normalize_accession(" q07157")
    'Q07157'
    """
    name = text.strip().upper() if isinstance(text, str) else ""
    if not _ACCESSION.fullmatch(name):
        raise Sorry(
            f"{text!r} is not a UniProt accession: give six or ten characters such as Q07157, or the name of a "
            "model file."
        )
    return name


def find_predicted_model(
    accession: str,
    download_allowed: bool = True,
    cache_dir: str | Path | None = None,
    progress: Callable[..., Any] | None = None,
    log: TextIO | None = None,
    timeouts: Timeouts | None = None,
) -> Path:
    """The predicted model of a protein: from the cache, or downloaded.

    Parameters
    ----------
    accession : str
        Of UniProt.
    download_allowed : bool
        Whether the network may be used.
    cache_dir, progress, log, timeouts
        See :func:`~mmtbx_sfdiff.files.find_entry`.

    Returns
    -------
    pathlib.Path
        An mmCIF file, compressed. Its B column holds pLDDT.

    Raises
    ------
    libtbx.utils.Sorry
        In one sentence: not an accession, no such model, no answer, or a cache that cannot be written.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import find_predicted_model
    >>> try:
    ...     find_predicted_model("Q07157", download_allowed=False, cache_dir=".")
    ... except Exception as error:
    ...     print("Q07157" in str(error))
    True
    """
    name = normalize_accession(accession)
    timeouts = timeouts or Timeouts()
    folder = cache_folder(cache_dir) / "alphafold"
    path = folder / f"{name}.cif.gz"
    if _cached_file(path):
        return path
    if not download_allowed:
        raise Sorry(
            f"The predicted model of {name} is not on this machine and downloading is off: allow it, or give the "
            "name of a model file."
        )
    make_folder(folder)
    base = (os.environ.get(VARIABLE) or URL).rstrip("/")
    answers = []
    with lock(folder / ".lock", timeout=timeouts.total * 2 + 60):
        if _cached_file(path):
            return path
        for version in VERSIONS:
            url = f"{base}/AF-{name}-F1-model_v{version}.cif"
            try:
                with _progress(progress, path.name) as report:
                    download(url, path, _checker(name), timeouts, report)
            except (NotThere, Failed) as error:
                answers.append((f"v{version}", error))
                continue
            if log is not None:
                print(f"Downloaded the predicted model of {name} from {url}", file=log)
            return path
    said = "; ".join(f"{version} {error}" for version, error in answers)
    if all(isinstance(error, NotThere) for _, error in answers):
        raise Sorry(
            f"The AlphaFold database has no model of {name} ({said}): check the accession, or give the name of a "
            "model file."
        )
    raise Sorry(f"Cannot download the predicted model of {name} ({said}): give the name of a model file.")


def _checker(name: str) -> Callable[[bytes], str | None]:
    def check(head: bytes) -> str | None:
        text = head.decode("utf-8", errors="replace")
        match = re.search(r"^data_(\S+)", text, flags=re.MULTILINE)
        if not match:
            return "sent something that is not a CIF file"
        if f"AF-{name}-F1".upper() != match.group(1).upper():
            return f"sent a file of {match.group(1)}"
        return None if "_atom_site." in text else "sent a file without atoms"

    return check
