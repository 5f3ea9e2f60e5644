"""The TLS part of displacement parameters that a file leaves out: residual B factors become whole ones.

    U_TLS(r) = T + A L A^T + A S + S^T A^T,     A = ((0, z, -y), (-z, 0, x), (y, -x, 0)),   (x, y, z) = r - origin

T in Å^2, L in degrees^2, S in Å degrees.  The records are REMARK 3 of the PDB format and ``_pdbx_refine_tls`` of mmCIF; groups
are ranges of residues, or selections of Phenix that are no more than those.

References: M. D. Winn, M. N. Isupov & G. N. Murshudov (2001), Acta Cryst. D57, 122; ``mmtbx.tls.tools``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gemmi
import numpy as np
import numpy.typing as npt

from ..atom_arrays import EIGHT_PI_SQ
from ..numerics.symmetric import FULL, PAIRS

Matrix = npt.NDArray[np.float64]

_DEGREE = math.pi / 180
_FLOAT = r"([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)"
_CHAIN = r"chain\s+['\"]?(\w+|(?<=['\"]) (?=['\"]))['\"]?"
_RANGE = r"res(?:seq|id|i)\s+['\"]?(-?\d+)\s*(?::|-|\s+through\s+|\s+thru\s+)\s*(-?\d+)['\"]?"
_ONE = re.compile(rf"\(*\s*{_CHAIN}\s*\)*(?:\s+and\s+\(*\s*{_RANGE}\s*\)*)?", re.IGNORECASE)
_BUSTER = re.compile(r"\{\s*(\w+)\|(-?\d+)\s*-\s*(\w+)\|(-?\d+)\s*\}|\{\s*(\w+)\|\*\s*\}")


@dataclass(frozen=True, eq=False)
class Group:
    """A rigid body.

    Attributes
    ----------
    origin : numpy.ndarray
        (3,) Å.
    t, l, s : numpy.ndarray
        (3, 3) Å^2, rad^2, Å rad.
    ranges : tuple of (str, int or None, int or None)
        Chain, first and last residue; None for all of the chain.
    """

    origin: Matrix
    t: Matrix
    l: Matrix
    s: Matrix
    ranges: tuple[tuple[str, int | None, int | None], ...]

    def holds(self, chain: str, number: int) -> bool:
        """Whether a residue belongs to it."""
        return any(
            chain == name and (first is None or (last is not None and first <= number <= last))
            for name, first, last in self.ranges
        )

    def u(self, sites: Matrix) -> Matrix:
        """(n, 3, 3) Å^2 at sites (n, 3)."""
        x, y, z = (sites - self.origin).T
        o = np.zeros_like(x)
        a = np.array([[o, z, -y], [-z, o, x], [y, -x, o]]).transpose(2, 0, 1)
        a_t = a.transpose(0, 2, 1)
        return np.asarray(self.t + a @ self.l @ a_t + a @ self.s + self.s.T @ a_t)


class Incomplete(ValueError):
    """Why the groups of a file cannot be used, as half a sentence."""


def groups_of_pdb(text: str) -> list[Group]:
    """Groups of REMARK 3.

    Raises
    ------
    Incomplete
    """
    remark = [line[10:] for line in text.splitlines() if line.startswith("REMARK   3")]
    bodies = re.split(r"\n\s*TLS GROUP\s*:\s*\d+", "\n".join(["", *remark]))[1:]
    if not bodies:
        raise Incomplete("the header lists no TLS groups")
    groups = []
    for number, body in enumerate(bodies, 1):
        origin = re.search(rf"ORIGIN FOR THE GROUP[^:]*:\s*{_FLOAT}\s*{_FLOAT}\s*{_FLOAT}", body)
        values = {name: float(value) for name, value in re.findall(rf"([TLS][123][123])\s*:\s*{_FLOAT}", body)}
        if origin is None or any(f"{x}{ij}" not in values for x in "TL" for ij in ("11", "22", "33", "12", "13", "23")):
            raise Incomplete(f"TLS group {number} of the header lacks numbers")
        if any(f"S{i}{j}" not in values for i in "123" for j in "123"):
            raise Incomplete(f"TLS group {number} of the header lacks numbers of its S tensor")
        ranges = _ranges_of_remark(body, number)
        symmetric = {x: [values[f"{x}{min(i, j)}{max(i, j)}"] for i in (1, 2, 3) for j in (1, 2, 3)] for x in "TL"}
        s = [values[f"S{i}{j}"] for i in (1, 2, 3) for j in (1, 2, 3)]
        groups.append(_group([float(x) for x in origin.groups()], symmetric["T"], symmetric["L"], s, ranges))
    return groups


def _ranges_of_remark(body: str, number: int) -> tuple[tuple[str, int | None, int | None], ...]:
    ranges: list[tuple[str, int | None, int | None]] = []
    for words in re.findall(r"RESIDUE RANGE\s*:\s*(\S+)\s+(-?\d+)\w?\s+(\S+)\s+(-?\d+)\w?", body):
        if words[0] != words[2]:
            raise Incomplete(f"TLS group {number} of the header goes from one chain to another")
        ranges.append((words[0], int(words[1]), int(words[3])))
    selection = re.search(r"SELECTION\s*:\s*(.+?)(?=\n\s*(?:ORIGIN|T TENSOR)|\Z)", body, re.DOTALL)
    if not ranges and selection is not None:
        ranges += _ranges_of_selection(" ".join(selection.group(1).split()), number)
    sets = re.search(r"SET\s*:\s*((?:.|\n)+?)(?=\n\s*(?:ORIGIN|T TENSOR))", body)
    if not ranges and sets is not None:
        for a, first, b, last, whole in _BUSTER.findall(sets.group(1)):
            if not whole and a != b:
                raise Incomplete(f"TLS group {number} of the header goes from one chain to another")
            ranges.append((whole, None, None) if whole else (a, int(first), int(last)))
    if not ranges:
        raise Incomplete(f"the atoms of TLS group {number} of the header are not given as ranges of residues")
    return tuple(ranges)


def _ranges_of_selection(text: str, number: int) -> list[tuple[str, int | None, int | None]]:
    ranges: list[tuple[str, int | None, int | None]] = []
    for part in re.split(r"\s+or\s+", text, flags=re.IGNORECASE):
        match = _ONE.fullmatch(part.strip().strip("()").strip()) or _ONE.fullmatch(part.strip())
        if match is None:
            raise Incomplete(f"the selection {text!r} of TLS group {number} is more than ranges of residues")
        first, last = match.group(2), match.group(3)
        ranges.append((match.group(1), int(first) if first else None, int(last) if last else None))
    return ranges


def groups_of_block(block: Any) -> list[Group]:
    """Groups of ``_pdbx_refine_tls`` and ``_pdbx_refine_tls_group``.

    Raises
    ------
    Incomplete
    """
    items = [f"{x}[{i}][{j}]" for x in "TL" for i, j in ((1, 1), (2, 2), (3, 3), (1, 2), (1, 3), (2, 3))]
    items += [f"S[{i}][{j}]" for i in (1, 2, 3) for j in (1, 2, 3)]
    names = ["id", "origin_x", "origin_y", "origin_z", *items]
    rows = [list(row) for row in block.find("_pdbx_refine_tls.", names)]
    if not rows:
        raise Incomplete("the file lists no complete TLS groups")
    parts = (
        "refine_tls_id",
        "beg_auth_asym_id",
        "beg_auth_seq_id",
        "end_auth_asym_id",
        "end_auth_seq_id",
        "selection_details",
    )
    columns = [_texts(block, f"_pdbx_refine_tls_group.{part}") for part in parts]
    columns = [column or ["?"] * len(columns[0]) for column in columns]
    members = list(zip(*columns))
    groups = []
    for row in rows:
        numbers = [gemmi.cif.as_number(text) for text in row[1:]]
        if any(math.isnan(x) for x in numbers):
            raise Incomplete(f"TLS group {row[0]} of the file lacks numbers")
        ranges: list[tuple[str, int | None, int | None]] = []
        for member in (m for m in members if m[0] == row[0]):
            words = [gemmi.cif.as_string(word) for word in member]  # ? is an empty word
            if all(re.fullmatch(r"-?\d+", words[i]) for i in (2, 4)) and words[1] == words[3]:
                ranges.append((words[1], int(words[2]), int(words[4])))
            else:
                ranges += _ranges_of_selection(" ".join(words[5].split()), int(float(row[0])))
        if not ranges:
            raise Incomplete(f"the atoms of TLS group {row[0]} are not given")
        t, l6, s = numbers[3:9], numbers[9:15], numbers[15:]
        groups.append(_group(numbers[:3], _full(t), _full(l6), s, tuple(ranges)))
    return groups


def _texts(block: Any, tag: str) -> list[str]:
    """Values of an item, in a loop or not."""
    return [row[0] for row in block.find([tag])]


def _full(six: Sequence[float]) -> list[float]:
    return [six[k] for k in FULL]


def _group(origin: Sequence[float], t: Any, l9: Any, s: Any, ranges: Any) -> Group:
    t, l9, s = (np.array(x, dtype=np.float64).reshape(3, 3) for x in (t, l9, s))
    return Group(np.array(origin, dtype=np.float64), t, l9 * _DEGREE**2, s * _DEGREE, ranges)


def whole(
    groups: Sequence[Group],
    chains: Sequence[str],
    numbers: Sequence[int],
    sites: Matrix,
    b_iso: Matrix,
    has_tensor: Any,
) -> tuple[Matrix, npt.NDArray[np.bool_]]:
    """Whole displacement tensors of atoms whose B is the residual.

    Parameters
    ----------
    groups : sequence of Group
    chains, numbers : sequences
        (n,) Of the atoms' residues.
    sites : numpy.ndarray
        (n, 3) Å, in the frame of the groups.
    b_iso : numpy.ndarray
        (n,) Å^2.
    has_tensor : numpy.ndarray
        (n,) bool, atoms that have a tensor in the file.

    Returns
    -------
    numpy.ndarray
        (n, 6) Å^2 in the order 11, 22, 33, 12, 13, 23.
    numpy.ndarray
        (n,) bool, the atoms of a group.

    Raises
    ------
    Incomplete
        If none, or an atom with a tensor, belongs to a group.
    """
    total = np.outer(b_iso / EIGHT_PI_SQ, (1, 1, 1, 0, 0, 0))
    member = np.zeros(len(sites), dtype=bool)
    for group in groups:
        mine = np.array([group.holds(chain, number) for chain, number in zip(chains, numbers)], dtype=bool) & ~member
        full = group.u(sites[mine])
        total[mine] += np.stack([full[:, i, j] for i, j in PAIRS], axis=1)
        member |= mine
    if not member.any():
        raise Incomplete("no atom belongs to the groups of the header")
    if (member & has_tensor).any():
        raise Incomplete("atoms of the groups have displacement tensors already")
    return total, member


def whole_pdb(text: str) -> tuple[str, int]:
    """A PDB text with ANISOU records and B factors that are whole, and of how many atoms.

    Raises
    ------
    Incomplete
    """
    groups = groups_of_pdb(text)
    lines = text.splitlines()
    if any(line.startswith("MTRIX") and line[59:60] != "1" for line in lines):
        raise Incomplete("NCS operators make further copies")
    places = [i for i, line in enumerate(lines) if line.startswith(("ATOM  ", "HETATM"))]
    try:
        chains = [lines[i][21:22] for i in places]
        numbers = [int(lines[i][22:26]) for i in places]
        sites = np.array([[float(lines[i][a : a + 8]) for a in (30, 38, 46)] for i in places]).reshape(-1, 3)
        b_iso = np.array([float(lines[i][60:66]) for i in places])
    except ValueError:
        raise Incomplete("some atoms have no readable numbers") from None
    has_tensor = np.array([i + 1 < len(lines) and lines[i + 1].startswith("ANISOU") for i in places], dtype=bool)
    total, member = whole(groups, chains, numbers, sites, b_iso, has_tensor)
    rows = dict(zip(places, range(len(places))))
    result = []
    for i, line in enumerate(lines):
        k = rows.get(i)
        if k is None or not member[k]:
            result.append(line)
            continue
        line = line.ljust(80)
        result.append(f"{line[:60]}{EIGHT_PI_SQ * total[k, :3].mean():6.2f}{line[66:]}")
        tensor = "".join(f"{round(1e4 * x):7d}" for x in total[k])
        result.append(f"ANISOU{line[6:27]} {tensor}  {line[72:]}")
    first = next((i for i, line in enumerate(result) if line.startswith("REMARK   3")), 0)
    result.insert(first, "REMARK   3  ATOM RECORD CONTAINS SUM OF TLS AND RESIDUAL B FACTORS")
    return "\n".join(result) + "\n", int(member.sum())


def whole_cif(block: Any, atoms: Any, tensors: dict[int, list[str]] | None) -> tuple[dict[int, list[str]], int]:
    """Tensors of an ``atom_site`` loop, by row, that are whole, and of how many atoms; the B factors of the loop are changed.

    Parameters
    ----------
    block : gemmi.cif.Block
    atoms : AtomSite
    tensors : dict
        Those of the file.

    Raises
    ------
    Incomplete
    """
    groups = groups_of_block(block)
    generated = block.find_values("_struct_ncs_oper.code")
    if any(gemmi.cif.as_string(code) == "generate" for code in generated):
        raise Incomplete("NCS operators make further copies")
    tensors = dict(tensors or {})
    try:
        chains = [gemmi.cif.as_string(text) for text in atoms.columns["auth_asym_id"]]
        numbers = [int(text) for text in atoms.columns["auth_seq_id"]]
        sites = np.array([[float(x) for x in atoms.columns[f"Cartn_{axis}"]] for axis in "xyz"]).T
        b_iso = np.array([float(x) for x in atoms.columns["B_iso_or_equiv"]])
    except ValueError:
        raise Incomplete("some atoms have no readable numbers") from None
    total, member = whole(groups, chains, numbers, sites, b_iso, np.isin(np.arange(atoms.n), list(tensors)))
    b = list(atoms.columns["B_iso_or_equiv"])
    for k in np.flatnonzero(member).tolist():
        tensors[k] = [f"{x:.4f}" for x in total[k]]
        b[k] = f"{EIGHT_PI_SQ * total[k, :3].mean():.2f}"
    atoms.set("B_iso_or_equiv", b)
    return tensors, int(member.sum())
