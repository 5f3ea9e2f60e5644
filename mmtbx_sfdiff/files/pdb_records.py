"""Records of a PDB file as every reader understands them: mended where their meaning is plain, refused where it is not.

cctbx and gemmi differ in what they make of an END among the atoms, of elements on the left of their columns, of MTRIX records
that are incomplete or no rotations, of files that end their lines with the entry's code and a number (before 1996); and both
take a blank occupancy or B factor for 0 or a default.  What is changed is changed in the text, so that both read the same.

Reference: the format's description by wwPDB, version 3.3, and its appendices on earlier versions.
"""

from __future__ import annotations

import re

import numpy as np

from .errors import Sorry
from .ncs_operators import IMPROPER, INCOMPLETE, NO_IDENTITY, is_rotation

_ATOMS = ("ATOM  ", "HETATM")
_NUMBERS = ((30, 38), (38, 46), (46, 54), (54, 60), (60, 66))  # columns of an ATOM record: x, y, z, occupancy, B
_TAIL = re.compile(r".{72}([0-9][A-Z0-9]{3}) *([0-9]+)")
_WHOLE = re.compile(r"[-+]?\d+")
_LOWER = ("atom  ", "hetatm", "cryst1", "anisou")
_SMALL = 1e-4  # in a rotation matrix


def mended_records(text: str, path: object) -> tuple[str, list[str]]:
    """The text as both readers understand it, and what was changed.

    Raises
    ------
    Sorry
        In one sentence, for a file that is cut short, numbers with blanks inside, an atom without B factor.
    """
    last = text[text.rfind("\n") + 1 :]
    if last.startswith(_ATOMS) and len(last) < _NUMBERS[-1][1]:
        raise Sorry(f"{path} is cut short (its last record ends in column {len(last)}): download or copy it again.")
    lines = [line[:6].upper() + line[6:] if line[:6].lower() in _LOWER else line for line in text.splitlines()]
    for i in (i for i, line in enumerate(lines) if line.startswith(_ATOMS)):
        for start, end in _NUMBERS:
            if " " in lines[i][start:end].strip():
                raise Sorry(
                    f"{path}: the record {lines[i][:27].strip()!r} has a blank inside the number in columns {start + 1}-{end}: "
                    "correct it."
                )
            if not _is_number(lines[i][start:end]):
                raise Sorry(
                    f"{path}: the record {lines[i][:27].strip()!r} has no number but {lines[i][start:end].strip()!r} in columns "
                    f"{start + 1}-{end}: correct it."
                )
    messages = _cells(lines) + _old_ends(lines)
    atoms = [i for i, line in enumerate(lines) if line.startswith(_ATOMS)]
    messages += _blank(lines, atoms, path) + _early_end(lines, atoms)
    messages += _tensors(lines, path)
    _elements(lines, path)
    messages += _operators(lines)
    _placeholder(lines)
    return "\n".join(line for line in lines if line is not None) + "\n", messages


def _is_number(text: str) -> bool:
    try:
        float(text.strip() or "0")
    except ValueError:
        return False
    return True


def _old_ends(lines: list[str]) -> list[str]:
    """Columns 73-80 of files from before 1996: the entry's code and the number of the line."""
    found = [_TAIL.fullmatch(line.rstrip()) for line in lines if line.startswith(_ATOMS)]
    if len(found) < 2 or not all(found):
        return []
    codes = {match.group(1) for match in found if match}
    numbers = [int(match.group(2)) for match in found if match]
    if len(codes) != 1 or any(b <= a for a, b in zip(numbers, numbers[1:])):
        return []
    for i, line in enumerate(lines):
        if len(line) > 72:
            lines[i] = line[:72]
    return [f"columns 73-80 hold the code {codes.pop()} and line numbers, as before 1996: not read"]


def _blank(lines: list[str], atoms: list[int], path: object) -> list[str]:
    n = 0
    for i in atoms:
        line = lines[i]
        if not line[60:66].strip():
            raise Sorry(f"{path}: atom {line[6:27].strip()} has no B factor (columns 61-66 are blank): give it.")
        if not line[54:60].strip():
            lines[i] = f"{line[:54]}  1.00{line[60:]}"
            n += 1
    return [f"atoms without an occupancy, taken as 1: {n}"] if n else []


def _early_end(lines: list[str], atoms: list[int]) -> list[str]:
    ends = [i for i in range(atoms[-1] if atoms else 0) if lines[i].rstrip() == "END"]
    for i in reversed(ends):
        del lines[i]
    return ["atoms after an END record were read like the others"] if ends else []


def _cells(lines: list[str]) -> list[str]:
    """One CRYST1 record: the first that is no dummy cell of 1 x 1 x 1; changes the lines."""
    places = [i for i, line in enumerate(lines) if line.startswith("CRYST1")]
    if len({lines[i][6:66].strip() for i in places}) < 2:
        return []
    kept = next((i for i in places if lines[i][6:33].split() != ["1.000"] * 3), places[0])
    text = " ".join(lines[kept][6:66].split())
    for i in reversed(places):
        if i != kept:
            del lines[i]
    return [f"several CRYST1 records that are not the same: {text} was taken"]


def _tensors(lines: list[str], path: object) -> list[str]:
    """ANISOU records follow their atoms and hold six whole numbers; those that hold nothing are left out; changes the lines."""
    empty, atom = [], ""
    for i, line in enumerate(lines):
        if line.startswith(_ATOMS):
            atom = line[12:27]
        elif line.startswith("ANISOU"):
            numbers = [line[start : start + 7].strip() for start in range(28, 70, 7)]
            if not any(number.strip("-+0") for number in numbers):
                empty.append(i)
            elif line[12:27] != atom or not all(_WHOLE.fullmatch(number) for number in numbers):
                raise Sorry(
                    f"{path}: the record {line[:27].strip()!r} does not follow its atom, or does not hold six whole numbers in "
                    "columns 29-70: correct it, or remove the ANISOU records."
                )
    for i in reversed(empty):
        del lines[i]
    return [f"atoms whose ANISOU record is blank or zero, taken as isotropic: {len(empty)}"] if empty else []


def _elements(lines: list[str], path: object) -> None:
    """Elements in upper case and on the right of columns 77-78; changes the lines."""
    for i, line in enumerate(lines):
        if line.startswith((*_ATOMS, "ANISOU")) and len(line) > 76:
            element = line[76:78].strip().upper().rjust(2)
            if element.strip() and not element.strip().isalpha():
                raise Sorry(
                    f"{path}: atom {line[6:27].strip()} is of the unknown element {element.strip()!r}: correct columns 77-78."
                )
            if element != line[76:78]:
                lines[i] = f"{line[:76]}{element}{line[78:]}"


def _operators(lines: list[str]) -> list[str]:
    """MTRIX records that are whole, proper rotations, and begin with an identity: the first is taken for one otherwise."""
    places = [i for i, line in enumerate(lines) if line.startswith("MTRIX") and line[5:6] in "123"]
    operators: dict[str, dict[str, list[float]]] = {}
    given: dict[str, bool] = {}
    for i in places:
        line = lines[i]
        try:
            row = [float(line[start : start + 10]) for start in (10, 20, 30)] + [float(line[45:55])]
        except ValueError:
            continue
        operators.setdefault(line[7:10], {})[line[5]] = row
        given[line[7:10]] = line[59:60] == "1" or given.get(line[7:10], False)
    names = {lines[i][7:10] for i in places}
    partial = {name for name in names if sorted(operators.get(name, ())) != ["1", "2", "3"]}
    improper = {name for name in names - partial if not is_rotation([operators[name][n][:3] for n in "123"])}
    messages = []
    if partial:
        messages.append(f"{INCOMPLETE}: {len(partial)}")
    if improper:
        messages.append(f"{IMPROPER}: {len(improper)}")
    bad = partial | improper
    for i in reversed(places):
        if lines[i][7:10] in bad:
            del lines[i]
    whole = names - bad
    for i, line in enumerate(lines):  # "given" on one row of an operator means all three
        if line.startswith("MTRIX") and line[5:6] in "123" and given.get(line[7:10]):
            lines[i] = line[:59].ljust(59) + "1"
    if not whole or any(given[name] for name in whole) or any(_is_identity(operators[name]) for name in whole):
        return messages
    first = next(i for i, line in enumerate(lines) if line.startswith("MTRIX"))
    rows = [(n, [float(m == n) for m in "123"]) for n in "123"]
    lines[first:first] = [f"MTRIX{n} {0:3d}{a:10.6f}{b:10.6f}{c:10.6f}     {0:10.5f}    1" for n, (a, b, c) in rows]
    return [*messages, NO_IDENTITY]


def _is_identity(rows: dict[str, list[float]]) -> bool:
    table = np.array([rows[n] for n in "123"])
    return bool(np.abs(table - np.eye(3, 4)).max() < _SMALL)


def _placeholder(lines: list[str]) -> None:
    """SCALE records with the identity, which say nothing and take gemmi's cell away; changes the lines."""
    places = [i for i, line in enumerate(lines) if line.startswith("SCALE") and line[5:6] in "123"]
    identity = [["1" if n == m else "0" for m in "123"] for n in "123"]
    for i in places:
        try:
            numbers = [f"{float(lines[i][start : start + 10]):g}" for start in (10, 20, 30)]
        except ValueError:
            return
        if numbers != identity[int(lines[i][5]) - 1]:
            return
    for i in reversed(places):
        del lines[i]
