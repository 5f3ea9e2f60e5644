"""``_struct_ncs_oper`` of an mmCIF as every reader understands it: whole, proper rotations, with an identity in front.

Without an identity cctbx takes the first operator for it, silently; gemmi applies what is no rotation, and cctbx does not.

Reference: the ``struct_ncs_oper`` category of the PDBx/mmCIF dictionary.
"""

from __future__ import annotations

from typing import Any

import gemmi
import numpy as np

_CATEGORY = "_struct_ncs_oper."
_TAGS = [f"{_CATEGORY}matrix[{i}][{j}]" for i in "123" for j in "123"] + [f"{_CATEGORY}vector[{i}]" for i in "123"]
_IDENTITY = [1.0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
INCOMPLETE = "NCS operators that are incomplete were not applied"
IMPROPER = "NCS operators that are no proper rotations were not applied"
NO_IDENTITY = "the NCS operators lack the identity: the copy in the file was kept beside those they make"


def is_rotation(matrix: Any) -> bool:
    """Whether a (3, 3) matrix turns without a mirror.

    Examples
    --------
    >>> is_rotation([[-1, 0, 0], [0, -1, 0], [0, 0, 1]]), is_rotation([[-1, 0, 0], [0, 1, 0], [0, 0, 1]])
    (True, False)
    """
    m = np.asarray(matrix, dtype=np.float64)
    return bool(np.isfinite(m).all() and np.abs(m @ m.T - np.eye(3)).max() < 1e-2 and np.linalg.det(m) > 0)


def mended_operators(block: Any) -> list[str]:
    """Leave out what is no operator, put an identity in front where there is none; changes the block, returns what to say."""
    names, rows = _rows(block)
    if not rows or any(tag not in names for tag in _TAGS):
        return []
    places = [names.index(tag) for tag in _TAGS]
    code = names.index(f"{_CATEGORY}code") if f"{_CATEGORY}code" in names else None
    kept, numbers, generate = [], [], []
    incomplete = improper = 0
    for row in rows:
        values = [gemmi.cif.as_number(row[place]) for place in places]
        applied = code is None or gemmi.cif.as_string(row[code]) != "given"
        if applied and not np.isfinite(values).all():
            incomplete += 1
        elif applied and not is_rotation(np.reshape(values[:9], (3, 3))):
            improper += 1
        else:
            kept.append(row)
            numbers.append(values)
            generate.append(applied)
    said = [f"{text}: {n}" for text, n in ((INCOMPLETE, incomplete), (IMPROPER, improper)) if n]
    has_identity = any(np.allclose(values, _IDENTITY, atol=1e-4) for values in numbers)
    if any(generate) and not has_identity:
        kept.insert(0, _identity(names, kept, places, code))
        said.append(NO_IDENTITY)
    if said:
        block.find_mmcif_category(_CATEGORY).erase()
        if kept:
            block.init_loop("", names).set_all_values([list(column) for column in zip(*kept)])
    return said


def _rows(block: Any) -> tuple[list[str], list[list[str]]]:
    """Names of the items, as the dictionary writes them, and the operators' values, from a loop or from pairs."""
    spelled = {tag.lower(): tag for tag in (*_TAGS, f"{_CATEGORY}id", f"{_CATEGORY}code")}
    for item in block:
        if item.loop is not None and item.loop.tags[0].lower().startswith(_CATEGORY):
            width, values = item.loop.width(), list(item.loop.values)
            rows = [values[start : start + width] for start in range(0, len(values), width)]
            return [spelled.get(tag.lower(), tag) for tag in item.loop.tags], rows
    pairs = [item.pair for item in block if item.pair is not None and item.pair[0].lower().startswith(_CATEGORY)]
    return [spelled.get(tag.lower(), tag) for tag, _ in pairs], [[text for _, text in pairs]] if pairs else []


def _identity(names: list[str], rows: list[list[str]], places: list[int], code: int | None) -> list[str]:
    first = ["?"] * len(names)
    for place, number in zip(places, _IDENTITY):
        first[place] = f"{number:.6f}"
    if f"{_CATEGORY}id" in names:
        number = names.index(f"{_CATEGORY}id")
        taken = {row[number] for row in rows}
        first[number] = next(str(n) for n in range(1, 10**6) if str(n) not in taken)
    if code is not None:
        first[code] = "given"
    return first
