"""Identifiers of PDB entries: which texts are one, and how they appear inside files.

Two forms exist: the classic four characters (``1abc``) and wwPDB's extended ``pdb_`` followed by eight
characters (``pdb_00001abc``), of which those that begin with four zeros are the classic ones.  Only a text
that passes :func:`normalize_entry_id` ever becomes part of a path or a URL.
"""

from __future__ import annotations

import re

from .errors import Sorry

_CLASSIC = re.compile(r"[1-9][a-z0-9]{3}")
_EXTENDED = re.compile(r"pdb_[0-9a-z]{8}")


def _normalized(text: object) -> str | None:
    if not isinstance(text, str):
        return None
    name = text.strip().lower()
    if _CLASSIC.fullmatch(name):
        return name
    if _EXTENDED.fullmatch(name):
        if name.startswith("pdb_0000"):
            classic = name[len("pdb_0000") :]
            return classic if _CLASSIC.fullmatch(classic) else None
        return name
    return None


def is_entry_id(text: object) -> bool:
    """Whether ``text`` is the identifier of a PDB entry, in either form and in any case.

    Parameters
    ----------
    text : str

    Returns
    -------
    bool

    Examples
    --------
    >>> from mmtbx_sfdiff.files import is_entry_id
    >>> [is_entry_id(text) for text in ("1YJP", "pdb_00001yjp", "model.pdb")]
    [True, True, False]
    """
    return _normalized(text) is not None


def normalize_entry_id(text: object) -> str:
    """The identifier in lower case; four characters where the entry has a four-character name.

    Parameters
    ----------
    text : str
        ``1ABC``, ``pdb_00001abc``, ...

    Returns
    -------
    str

    Raises
    ------
    libtbx.utils.Sorry
        If ``text`` is not an identifier.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import normalize_entry_id
    >>> normalize_entry_id(" 1YJP "), normalize_entry_id("PDB_00001YJP")
    ('1yjp', '1yjp')
    """
    name = _normalized(text)
    if name is None:
        raise Sorry(
            f"{text!r} is not a PDB entry: give four characters that begin with 1-9 (such as 1yjp), "
            "or pdb_ and eight characters, or the names of a model and a data file."
        )
    return name


def entry_id_in_model(text: str) -> str | None:
    """The entry that a coordinate file (PDB or mmCIF) says it is, or None.

    Parameters
    ----------
    text : str
        The beginning of the file, or all of it.

    Returns
    -------
    str or None
    """
    for line in text.splitlines():
        if line.startswith("HEADER"):
            return _normalized(line[62:66]) if len(line) >= 66 else None
        if line.startswith(("ATOM  ", "CRYST1")):
            return None
        if line.startswith("_atom_site."):
            break
        words = line.split()
        if len(words) == 2 and words[0].lower() == "_entry.id":
            return _normalized(words[1].strip("'\""))
    match = re.search(r"^data_(\S+)", text, flags=re.MULTILINE)
    return _normalized(match.group(1)) if match else None


def entry_id_in_data(text: str) -> str | None:
    """The entry that a structure-factor CIF says it belongs to, or None.

    The wwPDB names the first data block ``r1abcsf`` and newer files also carry ``_entry.id``; further blocks
    (``r1abcAsf``, ...) hold other data sets of the same entry.

    Parameters
    ----------
    text : str
        The beginning of the file, or all of it.

    Returns
    -------
    str or None
    """
    match = re.search(r"^data_(\S+)", text, flags=re.MULTILINE)
    if match:
        block = match.group(1).lower()
        inner = re.fullmatch(r"r(.*)sf", block)
        name = _normalized(inner.group(1)) if inner else _normalized(block)
        if name:
            return name
    match = re.search(r"^_(?:entry\.id|cell\.entry_id|symmetry\.entry_id)\s+(\S+)", text, flags=re.MULTILINE)
    return _normalized(match.group(1).strip("'\"")) if match else None
