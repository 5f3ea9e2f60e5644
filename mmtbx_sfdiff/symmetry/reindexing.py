"""Operators on Miller indices as people write them: ``k,h,-l``, ``-h-l,k,h``, ``h/2+k/2,-h/2+k/2,l``.

Reference: the notation of ``cctbx.sgtbx.change_of_basis_op.as_hkl``.
"""

from __future__ import annotations

import gemmi
import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def matrix_of(operator: str) -> npt.NDArray[np.float64]:
    """(3, 3) matrix M of an operator: ``M @ (h, k, l)`` are the new indices.

    Raises
    ------
    ValueError
        If the text is no operator on h, k and l, or has no inverse.

    Examples
    --------
    >>> matrix_of("k,h,-l").tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]
    """
    remedy = "three sums of h, k and l, as k,h,-l"
    letters = operator.replace(" ", "").lower()
    if set("xyz") & set(letters) or letters.count(",") != 2:
        raise ValueError(f"{operator!r} is no operator on Miller indices: give {remedy}.")
    try:
        op = gemmi.Op(letters.translate(str.maketrans("hkl", "xyz")))
    except (RuntimeError, ValueError):
        raise ValueError(f"{operator!r} is no operator on Miller indices: give {remedy}.") from None
    if any(op.tran):
        raise ValueError(f"{operator!r} shifts indices: give {remedy}.")
    matrix = np.array(op.rot, dtype=np.float64) / gemmi.Op.DEN
    if abs(np.linalg.det(matrix)) < 1e-6:
        raise ValueError(f"{operator!r} maps different reflections to the same indices: give {remedy}.")
    return matrix


def text_of(matrix: npt.NDArray[np.float64]) -> str:
    """The operator of a matrix as text.

    Examples
    --------
    >>> text_of(np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]]))
    'k,h,-l'
    """
    op = gemmi.Op()
    op.rot = np.rint(np.asarray(matrix) * gemmi.Op.DEN).astype(int).tolist()
    op.tran = [0, 0, 0]
    return str(op.triplet()).translate(str.maketrans("xyz", "hkl"))


def reindexed(indices: Indices, operator: str) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """New indices, and which of them are whole numbers.

    Parameters
    ----------
    indices : numpy.ndarray
        (n, 3) int64.
    operator : str

    Returns
    -------
    numpy.ndarray
        (n, 3) int64, rounded.
    numpy.ndarray
        (n,) bool.
    """
    exact = indices @ matrix_of(operator).T
    whole = np.rint(exact)
    return whole.astype(np.int64), np.asarray((np.abs(exact - whole) < 1e-6).all(axis=1), dtype=bool)
