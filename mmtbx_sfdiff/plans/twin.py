"""Twin laws of a lattice, and which reflection is whose twin mate.

A twin law T takes each index h to its mate hT, which lies (nearly) on the same point of the lattice turned; the measured intensity is

    |F_twin(h)|^2 = (1 - alpha) |F(h)|^2 + alpha |F(hT)|^2

Reference: ``gemmi.find_twin_laws``, ``mmtbx.scaling.twin_analyses.twin_laws``.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import torch

import gemmi
import numpy as np
import numpy.typing as npt

from ..crystal import Crystal

#: Degrees by which a lattice may miss the symmetry of a law, as in mmtbx.
OBLIQUITY = 3.0
_LARGEST_CHANGE = 0.1  # of d by a law that was given
_DENOMINATOR = 24  # of gemmi's operators


@dataclasses.dataclass(frozen=True, eq=False)
class TwinMates:
    """The twin mates of some reflections.

    Attributes
    ----------
    law : str
        Such as ``h,-k,-l``.
    extra : torch.Tensor
        (m, 3) int64, mates that are not among the reflections.
    rows : torch.Tensor
        (n,) int64: where the mate of each reflection is, or its equivalent, among the n reflections followed by ``extra``.
    """

    law: str
    extra: torch.Tensor
    rows: torch.Tensor


def twin_laws(crystal: Crystal, obliquity: float = OBLIQUITY) -> list[str]:
    """The laws that the lattice of a crystal allows; each stands for all that differ from it by a symmetry of the crystal.

    Parameters
    ----------
    crystal : Crystal
    obliquity : float
        Degrees.

    Examples
    --------
    >>> import mmtbx_sfdiff as sfdiff
    >>> twin_laws(sfdiff.Crystal((50, 50, 70, 90, 90, 90), "P 43")), twin_laws(sfdiff.Crystal((50, 60, 70, 90, 90, 90), "P 2 2 2"))
    (['h,-k,-l'], [])
    """
    cell, group = crystal.to_gemmi()
    matrices = [_matrix(op) for op in gemmi.find_twin_laws(cell, group, obliquity, False)]
    return [_plainest(crystal, matrix) for matrix in matrices if (matrix == np.round(matrix)).all()]


def _plainest(crystal: Crystal, matrix: npt.NDArray[np.float64]) -> str:
    """Of a law and those that differ from it by a symmetry: each index alone, then few terms, few minus signs, h positive."""
    rows = torch.from_numpy(matrix.astype(np.int64)).to(crystal.device)
    every = crystal.equivalent_indices(rows)[0].cpu().numpy().astype(np.float64)

    def effort(one: npt.NDArray[np.float64]) -> tuple[bool, int, int, list[float]]:
        diagonal = bool((np.abs(one) == np.eye(3)).all())
        return not diagonal, int((one != 0).sum()), int((one < 0).sum()), (-one.T.ravel()).tolist()

    return _text(min(every, key=effort))


def twin_mates(crystal: Crystal, miller_indices: torch.Tensor, law: str, anomalous: bool = False) -> TwinMates:
    """The twin mate of each reflection.

    Parameters
    ----------
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) int64, each reflection once.
    law : str
        Indices of the mate: ``h,-k,-l``, ``k,h,-l``.
    anomalous : bool
        Whether F(h) and F(-h) are different reflections.

    Raises
    ------
    ValueError
        Text that is no law; one that does not keep the lattice, or is a symmetry of the crystal; mates between the reflections.
    """
    matrix = parse_law(law)
    h = miller_indices.cpu().numpy().astype(np.float64)
    mates = h @ matrix
    whole = np.round(mates)
    if not np.allclose(mates, whole, atol=1e-6):
        raise ValueError(
            f"The twin law {law} puts some mates between the reflections: twins of that kind are not known here."
        )
    at = torch.from_numpy(whole.astype(np.int64)).to(miller_indices.device)
    change = (crystal.d_star_sq(at) / crystal.d_star_sq(miller_indices)).sqrt()
    if len(h) and float((change - 1).abs().max()) > _LARGEST_CHANGE:
        laws = ", ".join(twin_laws(crystal)) or "none"
        raise ValueError(f"The twin law {law} does not keep the lattice of {crystal!r}; laws that do: {laws}.")
    own, theirs = _key(crystal, miller_indices, anomalous), _key(crystal, at, anomalous)
    if len(h) and bool((own == theirs).all()):
        raise ValueError(f"{law} is a symmetry of the crystal, {crystal.space_group_symbol}, and no twin law.")
    ordered, order = own.sort()
    place = torch.searchsorted(ordered, theirs).clamp(max=max(0, len(own) - 1))
    found = ordered[place] == theirs
    unique, inverse = torch.unique(theirs[~found], return_inverse=True)
    extra = at.new_zeros(len(unique), 3).index_copy(0, inverse, at[~found]) if len(unique) else at[:0]
    rows = order[place].clone()
    rows[~found] = len(own) + inverse
    return TwinMates(law, extra, rows)


def parse_law(law: str) -> npt.NDArray[np.float64]:
    """(3, 3) matrix T of a law: the mate of a row h is h T.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> parse_law("k,h,-l").tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]
    """
    try:
        matrix = _matrix(gemmi.parse_triplet(str(law), "h"))
    except (RuntimeError, ValueError, TypeError):
        matrix = np.zeros((3, 3))
    if abs(abs(np.linalg.det(matrix)) - 1) > 1e-6:
        raise ValueError(f"{law!r} is no twin law: give the indices of the mate, such as h,-k,-l or k,h,-l (or auto).")
    return matrix


def _matrix(op: gemmi.Op) -> npt.NDArray[np.float64]:
    rows = [op.apply_to_hkl([_DENOMINATOR * (i == j) for j in range(3)]) for i in range(3)]
    return np.array(rows, dtype=np.float64) / _DENOMINATOR


def _text(matrix: npt.NDArray[np.float64]) -> str:
    parts = []
    for column in matrix.T:
        part = ""
        for name, value in zip("hkl", column, strict=True):
            if value:
                size = Fraction(abs(float(value))).limit_denominator(_DENOMINATOR)
                part += ("-" if value < 0 else "+" if part else "") + ("" if size == 1 else str(size)) + name
        parts.append(part or "0")
    return ",".join(parts)


def _key(crystal: Crystal, indices: torch.Tensor, anomalous: bool) -> torch.Tensor:
    """One integer for all equivalents of an index."""

    def number(h: torch.Tensor) -> torch.Tensor:
        a, b, c = h.unbind(-1)
        return ((a + 2**19) << 40) + ((b + 2**19) << 20) + (c + 2**19)

    equivalent = crystal.equivalent_indices(indices)[0]
    own = number(equivalent).amax(0)
    return own if anomalous else torch.maximum(own, number(-equivalent).amax(0))
