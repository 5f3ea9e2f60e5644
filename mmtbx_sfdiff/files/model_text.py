"""The text of a model as every reader understands it, cctbx's or gemmi's: mended, or refused in one sentence."""

from __future__ import annotations

from typing import Any

import gemmi

from .content import read_content
from .errors import Sorry
from .model_cif import normalized_cif
from .reflection_table import one_line

_NUMBERS = ((30, 38), (38, 46), (46, 54), (54, 60), (60, 66))  # columns of an ATOM record: x, y, z, occupancy, B


def normalized(text: str, kind: str, path: object) -> tuple[str, Any, list[str]]:
    """(text, CIF block or None, messages): what readers would stumble over is mended or refused."""
    if kind == "cif":
        return normalized_cif(text, path)
    text = text.encode("ascii", errors="replace").decode()  # the format's columns are bytes
    for line in text.splitlines():
        if line.startswith(("ATOM  ", "HETATM")):
            for start, end in _NUMBERS:
                if " " in line[start:end].strip():
                    raise Sorry(
                        f"{path}: the record {line[:27].strip()!r} has a blank inside the number in columns {start + 1}-{end}: "
                        "correct it."
                    )
    text, messages = with_identity(text)
    return text, None, messages


def with_identity(text: str) -> tuple[str, list[str]]:
    """A PDB text whose MTRIX records begin with an identity: otherwise the first one is taken for it."""
    lines = text.splitlines()
    records = [line for line in lines if line.startswith("MTRIX") and line[5:6] in "123"]
    if not records or any(line[59:60] == "1" for line in records):
        return text, []
    operators: dict[str, dict[str, list[float]]] = {}
    for line in records:
        try:
            row = [float(line[start : start + 10]) for start in (10, 20, 30)] + [float(line[45:55])]
        except ValueError:
            return text, []  # cctbx says what it thinks of it
        operators.setdefault(line[7:10], {})[line[5]] = row
    identity = {"1": [1, 0, 0, 0], "2": [0, 1, 0, 0], "3": [0, 0, 1, 0]}
    for rows in operators.values():
        if sorted(rows) == ["1", "2", "3"] and all(
            abs(a - b) < 1e-4 for n in rows for a, b in zip(rows[n], identity[n])
        ):
            return text, []
    first = next(i for i, line in enumerate(lines) if line.startswith("MTRIX"))
    new = []
    for n in "123":
        a, b, c, shift = (float(x) for x in identity[n])
        new.append(f"MTRIX{n} {0:3d}{a:10.6f}{b:10.6f}{c:10.6f}     {shift:10.5f}    1")
    text = "\n".join(lines[:first] + new + lines[first:]) + "\n"
    return text, ["the NCS operators lack the identity: the copy in the file was kept beside those they make"]


def read_structure(path: Any) -> tuple[gemmi.Structure, list[str]]:
    """A model by gemmi, from the text that cctbx would get: NCS copies made, all MODELs kept.

    Parameters
    ----------
    path : path
        PDB or mmCIF, plain or compressed.

    Returns
    -------
    gemmi.Structure
    list of str
        What was mended.

    Raises
    ------
    Sorry
        In one sentence that names the file.
    """
    content = read_content(path, "model")
    if content.kind == "mtz":
        raise Sorry(f"{path} holds reflections, not atoms: give the model file here and this one as data.")
    text, block, messages = normalized(content.text, content.kind, path)
    try:
        if block is not None:
            structure = gemmi.make_structure_from_block(gemmi.cif.read_string(text)[0])
        else:
            structure = gemmi.read_pdb_string(text)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Sorry(f"{path} is not a readable model ({one_line(error)}): correct or replace it.") from None
    if not any(model.count_atom_sites() for model in structure):
        raise Sorry(f"{path} contains no atoms: give a PDB or mmCIF file with coordinates.")
    if any(not operator.given for operator in structure.ncs):
        structure.expand_ncs(gemmi.HowToNameCopiedChain.Dup)
    return structure, messages
