"""Eigenvalues and eigenvectors of small symmetric matrices by Jacobi's rotations, step for step as scitbx takes them.

Reference: ``scitbx.matrix.eigensystem.real_symmetric``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def jacobi(
    matrix: npt.NDArray[np.float64], relative: float = 1e-9, absolute: float = 1e-9
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Eigenvalues (n,), eigenvectors (n, n; rows) of a symmetric matrix, and the largest element left off the
    diagonal.

    Cyclic Jacobi rotations that stop at a threshold, as in ``scitbx.matrix.eigensystem.real_symmetric``: the
    normal equations here can be so ill-conditioned that a better inverse gives another scale.  12 x 12 at
    most; plain floats.
    """
    n = len(matrix)
    a, vectors = matrix.tolist(), np.eye(n).tolist()
    norm = math.sqrt(2.0 * sum(a[i][j] ** 2 for i in range(n) for j in range(i)))
    final = max(relative * norm / n, absolute)
    threshold = norm
    while norm > 0 and threshold > final:
        threshold /= n
        rotated = True
        while rotated:
            rotated = False
            for l in range(n - 1):
                for m in range(l + 1, n):
                    if abs(a[l][m]) > threshold:
                        rotated = True
                        _rotate(a, vectors, l, m)
    return np.array([a[i][i] for i in range(n)]), np.array(vectors), final


def _rotate(a: list[list[float]], vectors: list[list[float]], l: int, m: int) -> None:
    """Make a[l][m] zero."""
    row_l, row_m = a[l], a[m]
    off, a_ll, a_mm = row_l[m], row_l[l], row_m[m]
    x = 0.5 * (a_ll - a_mm)
    y = -off / math.sqrt(off * off + x * x)
    if x < 0:
        y = -y
    sine = y / math.sqrt(2.0 * (1.0 + math.sqrt(1.0 - y * y)))
    cosine = math.sqrt(1.0 - sine * sine)
    a[l] = new_l = [p * cosine - q * sine for p, q in zip(row_l, row_m)]
    a[m] = new_m = [p * sine + q * cosine for p, q in zip(row_l, row_m)]
    for row, p, q in zip(a, new_l, new_m):
        row[l], row[m] = p, q
    v_l, v_m = vectors[l], vectors[m]
    vectors[l] = [p * cosine - q * sine for p, q in zip(v_l, v_m)]
    vectors[m] = [p * sine + q * cosine for p, q in zip(v_l, v_m)]
    square, product = sine * sine, sine * cosine
    cosine_square = cosine * cosine
    twice = 2.0 * off * product
    new_l[l] = a_ll * cosine_square + a_mm * square - twice
    new_m[m] = a_ll * square + a_mm * cosine_square + twice
    new_l[m] = new_m[l] = (a_ll - a_mm) * product + off * (cosine_square - square)
