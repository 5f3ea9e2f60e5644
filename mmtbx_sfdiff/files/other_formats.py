"""Reflection files in formats that cctbx reads: XDS, scalepack, CNS, SHELX, ...

The cell and space group in the file's own header are read, and the file's rows are not merged.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..rules import Column
from .content import Content
from .errors import Sorry, needs_cctbx
from .reflection_table import ReflectionFile, Table, one_line
from .symmetry import Symmetry

_KINDS = {"hklf3": "amplitudes", "amplitudes": "amplitudes", "hklf4": "intensities", "intensities": "intensities"}


def read_other_format(content: Content, kind: str | None, fallback: Symmetry | None) -> ReflectionFile:
    """The arrays that cctbx finds in a text file, as tables.

    Raises
    ------
    Sorry
        If cctbx is not installed, does not know the format, or the file does not say what it holds.
    """
    needs_cctbx(f"{content.path} is neither MTZ nor CIF; its format")
    path = content.path
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        reader = _opened(content, folder)
        if reader.file_type() is None:
            raise Sorry(f"{path} is not a reflection file that cctbx knows: give an MTZ or structure-factor CIF file.")
        try:
            arrays = _arrays(reader, fallback)
        except Exception as error:  # whatever the format's reader raises
            raise Sorry(f"cctbx cannot read the reflections in {path} ({one_line(error)}): correct the file.") from None
    messages: list[str] = []
    if reader.file_type() == "xds_ascii":
        rows = sum(bool(line.strip()) and not line.startswith("!") for line in content.text.splitlines())
        rejected = rows - max((a.size() for a in arrays), default=0)
        if rejected > 0:
            messages.append(f"rows that XDS rejects by a negative sigma, not read: {rejected}")
    if reader.file_type() == "shelx_hklf":
        kind, messages = _shelx_kind(arrays, kind, path)
        messages += _shelx_batches(arrays, path)
    tables: list[Table] = []
    for array in arrays:
        indices = np.array(array.indices().as_vec3_double().as_double().as_numpy_array()).reshape(-1, 3)
        whole = np.rint(indices).astype(np.int64)
        columns = _columns(array, kind)
        same = next((t for t in tables if t.indices.shape == whole.shape and (t.indices == whole).all()), None)
        if same is None:
            tables.append(Table("", whole, columns, _own_symmetry(reader, array)))
        else:
            tables[tables.index(same)] = Table("", whole, same.columns + columns, same.symmetry)
    if not tables:
        raise Sorry(f"{path} contains no reflections: give the file with the observations.")
    return ReflectionFile(path, tuple(tables), messages=tuple(messages))


def _opened(content: Content, folder: str) -> Any:
    from iotbx.reflection_file_reader import any_reflection_file

    name = content.path.name
    while Path(name).suffix.lower() in (".gz", ".bz2", ".xz", ".z"):
        name = Path(name).stem
    file_name = os.path.join(folder, name)
    Path(file_name).write_text(_declared(content.text))
    try:
        reader = any_reflection_file(file_name)
        if reader.file_type() == "shelx_hklf":
            # cctbx asks for the word that says what it holds; :func:`_shelx_kind` decides
            reader = any_reflection_file(f"{file_name}=hklf4")
    except Exception:
        raise Sorry(
            f"{content.path} is not a reflection file that cctbx knows: give an MTZ or structure-factor CIF file."
        ) from None
    return reader


def _declared(text: str) -> str:
    """A file of X-PLOR with the declarations that CNS's have, and cctbx asks for."""
    first = re.search(r"^ *INDEX? +.*(?:\n(?! *INDEX? ).*)*", text, flags=re.MULTILINE | re.IGNORECASE)
    if first is None or re.search(r"^ *DECL", text, flags=re.MULTILINE | re.IGNORECASE):
        return text
    declared = []
    for name, numbers in re.findall(r"([A-Za-z_]\w*) *= *((?:[-+.\dEe]+ *)+)", first.group(0)):
        kind = "INTEGER" if name.upper() == "TEST" else "COMPLEX" if len(numbers.split()) > 1 else "REAL"
        declared.append(f" DECLare NAME={name} DOMAin=RECIprocal TYPE={kind} END\n")
    n = len(re.findall(r"^ *INDEX? ", text, flags=re.MULTILINE | re.IGNORECASE))
    header = re.sub(r"^ *NREF\w* *=? *\d+ *\n", "", text[: first.start()], flags=re.MULTILINE | re.IGNORECASE)
    return f" NREFlection={n}\n ANOMalous=FALSE\n{''.join(declared)}{header}{text[first.start() :]}"


def _arrays(reader: Any, fallback: Symmetry | None) -> list[Any]:
    arrays = reader.as_miller_arrays(merge_equivalents=False)
    known = [a for a in arrays if a.unit_cell() is not None]
    if known or fallback is None or not fallback.is_known:
        return [a for a in arrays if a.indices() is not None]
    return list(
        reader.as_miller_arrays(crystal_symmetry=fallback.to_cctbx(), force_symmetry=True, merge_equivalents=False)
    )


def _own_symmetry(reader: Any, array: Any) -> Symmetry:
    """What the file states, not what was handed to its reader."""
    try:
        plain = reader.as_miller_arrays(merge_equivalents=False)
    except Exception:
        return Symmetry(None, None)
    symmetries = [a.crystal_symmetry() for a in plain]
    symmetries = [s for s in symmetries if s is not None and (s.unit_cell() is not None or s.space_group() is not None)]
    return Symmetry.from_cctbx(symmetries[0]) if symmetries else Symmetry(None, None)


def _shelx_kind(arrays: list[Any], kind: str | None, path: object) -> tuple[str, list[str]]:
    """Amplitudes (HKLF 3) or intensities (HKLF 4): as said, else by negative values, which no amplitude has."""
    if kind is not None:
        if kind.lower() not in _KINDS:
            raise Sorry(f"{path}={kind} is not possible: add =hklf3 for amplitudes or =hklf4 for intensities.")
        return _KINDS[kind.lower()], []
    if any((a.data() < 0).count(True) for a in arrays if a.is_real_array()):
        return "intensities", [
            "a SHELX file with negative values: taken as intensities (HKLF 4); add =hklf3 to its name for amplitudes"
        ]
    raise Sorry(
        f"{path} is a SHELX file, which does not say whether it holds intensities (HKLF 4) or amplitudes (HKLF 3): add "
        f"=hklf4 or =hklf3 to its name, as in data_file={Path(str(path)).name}=hklf4."
    )


def _shelx_batches(arrays: list[Any], path: object) -> list[str]:
    """What batch numbers mean: -1 SHELXL's test set; below that HKLF 5, whose rows are sums over twin domains."""
    batches = [np.unique(np.asarray(a.data().as_numpy_array())) for a in arrays if a.is_integer_array()]
    found = sorted(int(value) for value in np.concatenate(batches)) if batches else []
    if found and found[0] < -1:
        raise Sorry(
            f"{path} is a SHELX file of HKLF 5 (it has the batch numbers {', '.join(map(str, found[:4]))}): rows are parts of "
            "overlapping reflections of twin domains, which are not read; give detwinned data as HKLF 4."
        )
    if sum(value > 0 for value in found) > 1:
        return [
            f"batch numbers of the SHELX file ({', '.join(map(str, found[:4]))}) were not used: all rows are one data set"
        ]
    return []


def _columns(array: Any, kind: str | None) -> tuple[Column, ...]:
    labels = list(array.info().labels or ["data"]) if array.info() is not None else ["data"]
    data = array.data()
    if array.is_complex_array() or not hasattr(data, "as_numpy_array"):
        return (Column(labels[0], np.full(array.size(), np.nan), "W"),)
    values = np.asarray(data.as_numpy_array(), dtype=np.float64)
    if array.is_integer_array() or array.is_bool_array():
        name = labels[-1]
        if name == "alphas" and set(values.tolist()) <= {-1.0, 0.0, 1.0}:
            name = "free (batch number -1)"  # SHELXL's R-free reflections
        return (Column(name, values, "I"),)
    if kind is not None:
        letter = "F" if kind == "amplitudes" else "I"  # cctbx calls both intensities
        labels = [f"{letter}obs", f"Sig{letter}obs"]
        type_ = "F" if kind == "amplitudes" else "J"
    elif array.is_xray_intensity_array():
        type_ = "J"
    elif array.is_xray_amplitude_array():
        type_ = "F"
    else:
        type_ = "R"
    first = Column(labels[0], values, type_)
    if array.sigmas() is None:
        return (first,)
    second = labels[1] if len(labels) > 1 else f"SIG{labels[0]}"
    return (first, Column(second, np.asarray(array.sigmas().as_numpy_array(), dtype=np.float64), "Q"))
