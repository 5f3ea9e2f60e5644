"""The columns of a reflection file as tables: MTZ and CIF by gemmi, other formats by cctbx.

What can make a library stop without a sentence is looked at first: headers cut off, loops without rows, index columns
of another type or name, text under the name of an MTZ.
"""

from __future__ import annotations

import os
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import numpy.typing as npt

from ..reflection_columns import dataset_names
from ..rules import Column, index_places, is_flag_column, is_status
from .cif_symmetry import symmetry_of_block, value
from .content import Content
from .entry_id import entry_id_in_data
from .errors import Sorry
from .other_formats import read_other_format
from .reflection_table import ReflectionFile, Table, one_line
from .symmetry import Symmetry

_INDEX_NAMES = ("h", "k", "l")
# Columns that split a CIF's loop into data sets.
_DATA_SETS = ("crystal_id", "wavelength_id", "scale_group_code")
_MISSING = ("?", ".")
_SHARED = 0.05  # share of reflections that the parts of one data set have in common at most


def read_reflection_file(content: Content, kind: str | None = None, fallback: Any = None) -> ReflectionFile:
    """The tables of a file.

    Parameters
    ----------
    content : Content
    kind : str, optional
        ``hklf3`` or ``hklf4``, what a SHELX file holds.
    fallback : Symmetry, optional
        For formats without symmetry.

    Raises
    ------
    Sorry
        In one sentence that names the file.
    """
    if content.kind == "cif":
        found = _read_cif(content)
        return replace(found, messages=(*content.end, *found.messages))
    if content.kind == "mtz":
        return _read_mtz(content)
    if content.path.suffix.lower() == ".mtz" or content.path.name.lower().endswith(".mtz.gz"):
        raise Sorry(f"{content.path} is no MTZ file, whatever its name (it is text): give the data file itself.")
    if any(line.startswith(("ATOM  ", "HETATM", "CRYST1")) for line in content.text[: 2**20].splitlines()):
        raise Sorry(f"{content.path} holds atoms, not reflections: give the data file here and this one as model.")
    found = read_other_format(content, kind, fallback)
    return replace(found, messages=(*content.end, *found.messages))


# MTZ


def _read_mtz(content: Content) -> ReflectionFile:
    raw, path = content.raw, content.path
    # the header is at the end, so a file cut short is recognised before a library stumbles
    whole = len(raw) >= 80
    if whole:
        order = "<" if raw[9] >> 4 == 4 else ">"
        start = 4 * (struct.unpack(order + "i", raw[4:8])[0] - 1)
        whole = start < 0 or (raw[start : start + 4] == b"VERS" and b"MTZENDOFHEADERS" in raw[start:])
    damaged = Sorry(f"{path} is cut short or damaged (its MTZ header is missing): download or copy it again.")
    if not whole:
        raise damaged
    handle, name = tempfile.mkstemp(suffix=".mtz")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        mtz = gemmi.read_mtz_file(name)
    except OSError as error:
        raise Sorry(
            f"Cannot unpack {path} ({error.strerror}): make room in {tempfile.gettempdir()} or set TMPDIR."
        ) from None
    except (RuntimeError, ValueError) as error:
        raise Sorry(f"{path} is damaged ({one_line(error, name)}): download or copy it again.") from None
    finally:
        os.unlink(name)
    try:
        return _mtz_tables(mtz, raw, path)
    except UnicodeDecodeError:
        raise Sorry(
            f"{path} is damaged (its header holds bytes that are no text): download or copy it again."
        ) from None


def _mtz_tables(mtz: Any, raw: bytes, path: Path) -> ReflectionFile:
    if len(mtz.columns) == 0 or mtz.nreflections == 0:
        raise Sorry(f"{path} contains no reflections: give the file with the observations.")
    if mtz.batches and mtz.column_with_label("M/ISYM") is not None:
        mtz.switch_to_original_hkl()
    array = np.array(mtz.array, dtype=np.float32)
    if not np.isnan(mtz.valm):
        array[array == np.float32(mtz.valm)] = np.nan
    data = array.astype(np.float64)
    places = index_places([c.label for c in mtz.columns], [c.type for c in mtz.columns])
    if places is None:
        listing = ", ".join(f"{column.label} ({column.type})" for column in mtz.columns)
        raise Sorry(f"{path} has no columns H, K and L (it has {listing}): correct their names or types.")
    indices = data[:, places]
    good = _possible(indices)
    accepted, said = _accepted_rows(mtz, data, path)
    if not good.any():
        raise Sorry(f"{path} has no reflection with indices H, K and L: correct or replace it.")
    names = dataset_names(mtz)
    columns = tuple(
        Column(column.label, data[:, number], column.type, names.get(column.dataset_id, ""))
        for number, column in enumerate(mtz.columns)
        if number not in places
    )
    table = Table(
        "",
        np.where(good[:, None], indices, 0).astype(np.int64),
        columns,
        Symmetry.from_gemmi(mtz.cell, _operators(raw) or mtz.spacegroup),
        None,
        {d.dataset_name: tuple(d.cell.parameters) for d in mtz.datasets if d.cell.is_crystal()},
        {d.dataset_name: d.wavelength for d in mtz.datasets if d.wavelength > 0},
    ).select(good & accepted)
    messages = (*_no_indices(int((~good).sum())), *said)
    return ReflectionFile(path, (table,), title=mtz.title, messages=messages)


def _accepted_rows(mtz: Any, data: npt.NDArray[np.float64], path: Path) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Rows of an unmerged file that its program did not flag as bad; partially recorded reflections are refused."""
    place = {column.label.upper(): number for number, column in enumerate(mtz.columns)}
    accepted = np.ones(len(data), dtype=bool)
    if "M/ISYM" not in place or "BATCH" not in place:
        return accepted, []
    is_part = np.nan_to_num(data[:, place["M/ISYM"]]) >= 256
    if "FRACTIONCALC" in place:
        is_part &= np.abs(data[:, place["FRACTIONCALC"]] - 1) > 0.05
    if is_part.any():
        raise Sorry(
            f"{path} holds partially recorded reflections ({int(is_part.sum())} of {len(data)} rows) that nobody has summed "
            "and scaled: merge them with a scaling program first."
        )
    if "FLAG" in place:
        accepted = np.nan_to_num(data[:, place["FLAG"]]) == 0
    n = int((~accepted).sum())
    return accepted, [f"rows that the integration program flagged as bad, not read: {n}"] if n else []


def _no_indices(n: int) -> tuple[str, ...]:
    return (f"rows whose indices are no numbers, not read: {n}",) if n else ()


def _operators(raw: bytes) -> gemmi.GroupOps | None:
    """The operators of the header's SYMM records, which say more than a symbol."""
    order = "<" if raw[9] >> 4 == 4 else ">"
    start = 4 * (struct.unpack(order + "i", raw[4:8])[0] - 1)
    records = raw[start:].decode("latin-1") if start > 0 else ""
    triplets = []
    for place in range(0, len(records), 80):
        words = records[place : place + 80].split(None, 1)
        if words[:1] == ["END"]:
            break
        if words[:1] == ["SYMM"] and len(words) == 2:
            triplets.append(words[1].strip().lower().replace(" ", ""))
    try:
        return gemmi.GroupOps([gemmi.Op(triplet) for triplet in triplets]) if triplets else None
    except (RuntimeError, ValueError):
        return None


def _possible(indices: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.asarray((np.isfinite(indices) & (np.abs(indices) < 1e5)).all(axis=1), dtype=bool)


# CIF


def _read_cif(content: Content) -> ReflectionFile:
    text, path = content.text, content.path
    if "_refln" not in text and "_refln" not in text.lower():
        what = "atoms" if "_atom_site" in text.lower() else "no reflections"
        raise Sorry(f"{path} holds {what}: give the structure-factor file of the entry as data.")
    document = read_cif_document(text, path)
    tables: list[Table] = []
    dropped = 0
    said: list[str] = []
    for block in document:
        found, n, more = _tables_of_block(block)
        tables, dropped, said = tables + found, dropped + n, said + more
    filled = [table for table in tables if len(table.indices)]
    if not filled:
        raise Sorry(f"{path} contains no reflections: give the file with the observations.")
    known = [table.symmetry for table in filled] + [symmetry_of_block(block) for block in document]
    first = next((symmetry for symmetry in known if symmetry.cell is not None), Symmetry(None, None))
    filled = [_with_symmetry(table, first) for table in filled]
    return ReflectionFile(
        path, tuple(filled), entry_id_in_data(text[: 2**20]), is_cif=True, messages=(*_no_indices(dropped), *said)
    )


def _with_symmetry(table: Table, other: Symmetry) -> Table:
    """A block that states no cell or group has those of the first that does."""
    own = table.symmetry
    if own.is_known:
        return table
    return replace(table, symmetry=Symmetry(own.cell or other.cell, own.ops or other.ops))


def read_cif_document(text: str, path: object) -> Any:
    """The document, by gemmi.

    Raises
    ------
    Sorry
        With the line at which it stops to be a CIF.
    """
    try:
        return gemmi.cif.read_string(text)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Sorry(
            f"{path} is not a readable CIF file ({one_line(error, 'string:')}): download or correct it."
        ) from None


def _tables_of_block(block: Any) -> tuple[list[Table], int, list[str]]:
    """The tables, rows without indices, and what to say."""
    loop = next(
        (
            item.loop
            for item in block
            if item.loop is not None
            and any(tag.lower() in ("_refln.index_h", "_refln_index_h") for tag in item.loop.tags)
        ),
        None,
    )
    if loop is None or loop.length() == 0:
        return [], 0, []
    width, values = loop.width(), loop.values
    texts = {tag: values[number::width] for number, tag in enumerate(loop.tags)}
    short = {tag.lower().replace("_refln_", "_refln.").removeprefix("_refln."): tag for tag in loop.tags}
    if any(f"index_{name}" not in short for name in _INDEX_NAMES):
        return [], 0, []
    indices = np.stack([_numbers(texts[short[f"index_{name}"]]) for name in _INDEX_NAMES], axis=1)
    good = _possible(indices)
    columns = tuple(
        _column(tag, texts[tag], block.name)
        for key, tag in short.items()
        if key not in ("index_h", "index_k", "index_l")
    )
    wavelength = _wavelength(block)
    table = Table(
        block.name,
        np.where(good[:, None], indices, 0).astype(np.int64),
        columns,
        symmetry_of_block(block),
        wavelength,
    ).select(good)
    codes = {key: np.array(texts[short[key]])[good] for key in _DATA_SETS if key in short}
    parts, said = _data_sets(table, codes)
    return parts, int((~good).sum()), said


def _wavelength(block: Any) -> float | None:
    text = value(block, "_diffrn_radiation_wavelength.wavelength", "_diffrn_radiation_wavelength")
    number = gemmi.cif.as_number(text) if text is not None else float("nan")
    return number if 0 < number < 100 else None


def _column(tag: str, texts: list[str], block: str) -> Column:
    words = Column(
        tag, np.array([gemmi.cif.as_string(text) if text[:1] in "'\";" else text for text in texts]), "", block
    )
    if is_status(words):
        return words
    numbers = _numbers(texts)
    if is_flag_column(words) and any(np.isnan(numbers) & ~np.isin(texts, _MISSING)):
        return words
    return Column(tag, numbers, "", block)


def _numbers(texts: list[str]) -> npt.NDArray[np.float64]:
    """Numbers of a CIF; NaN for ? and . and for what is no number; a standard uncertainty in brackets is left off."""
    try:
        return np.array([text if text not in _MISSING else "nan" for text in texts], dtype=np.float64)
    except ValueError:
        return np.array([gemmi.cif.as_number(text) for text in texts], dtype=np.float64)


def _data_sets(table: Table, codes: dict[str, npt.NDArray[np.str_]]) -> tuple[list[Table], list[str]]:
    """One table for each crystal, wavelength and scale group in the loop, and what to say.

    Codes whose parts have hardly a reflection in common tell which crystal or film a reflection was measured on: one data set.
    """
    varying = {key: words for key, words in codes.items() if len(set(words.tolist())) > 1}
    if not varying:
        return [table], []
    labels = list(zip(*(words.tolist() for words in varying.values())))
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    friedel = np.where(_leading(table.indices) < 0, -1, 1)[:, None] * table.indices
    whole = np.unique(np.column_stack([friedel, [numbers[label] for label in labels]]), axis=0)
    if len(whole) - len(np.unique(whole[:, :3], axis=0)) < _SHARED * len(whole):
        listing = " and ".join(varying)
        return [table], [f"{listing}: parts of one data set, with hardly a reflection in common, taken together"]
    result = []
    for label in dict.fromkeys(labels):
        rows = np.array([other == label for other in labels])
        name = ",".join([table.name, *(f"{key}={code}" for key, code in zip(varying, label))])
        part = table.select(rows)
        result.append(replace(part, name=name, columns=tuple(replace(column, block=name) for column in part.columns)))
    return result, []


def _leading(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(n,) the first index that is not zero."""
    h, k, index_l = indices.T
    return np.asarray(np.where(h != 0, h, np.where(k != 0, k, index_l)), dtype=np.int64)
