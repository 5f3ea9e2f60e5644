"""The frame of a model's coordinates: SCALE records and ``_atom_sites.fract_transf_matrix``.

A file may give coordinates in another Cartesian frame than the standard one (a along x, b in the xy plane): its SCALEn
records say so.  The model is turned into the standard frame for all calculations and turned back when it is written.

Reference: the PDB format, version 3.30, section 8 (ORIGXn, SCALEn); ``iotbx.pdb``'s ``xray_structure_simple``, which
applies them, as gemmi does; ``mmtbx.model.manager`` does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gemmi
import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

_VOLUME = 0.01  # relative difference of volumes above which SCALE belongs to another cell
_ROTATION = 2e-3  # largest deviation from a rotation, from rounded records
_STANDARD = 1e-3  # elements of the rotation below which it is none
_SHIFT = 5e-3  # Å


@dataclass(frozen=True, eq=False)
class Frame:
    """``x_standard = rotation @ x_file + shift`` (Å).

    Attributes
    ----------
    rotation : numpy.ndarray
        (3, 3)
    shift : numpy.ndarray
        (3,) Å.
    """

    rotation: Matrix
    shift: Matrix

    def to_standard(self, sites: Matrix) -> Matrix:
        """(n, 3) coordinates of the file in the standard frame."""
        return np.asarray(sites @ self.rotation.T + self.shift)

    def to_file(self, sites: Matrix) -> Matrix:
        """(n, 3) coordinates of the standard frame in the file's."""
        return (sites - self.shift) @ self.rotation

    def turned(self, u: Matrix, back: bool = False) -> Matrix:
        """(n, 3, 3) displacement tensors likewise."""
        r = self.rotation.T if back else self.rotation
        return np.asarray(np.einsum("ij,njk,lk->nil", r, u, r))


def frame_of(scale: tuple[Matrix, Matrix] | None, cell: tuple[float, ...]) -> tuple[Frame | None, list[str]]:
    """The frame that SCALE records mean for a cell; None for the standard one.

    Parameters
    ----------
    scale : (matrix, vector) or None
        ``x_fractional = matrix @ x_file + vector``.
    cell : tuple of float

    Returns
    -------
    Frame or None
    list of str
        What to say.
    """
    if scale is None:
        return None, []
    matrix, vector = scale
    standard = np.array(gemmi.UnitCell(*cell).orth.mat.tolist())
    turn = standard @ matrix
    shift = standard @ vector
    if not np.isfinite(turn).all() or abs(np.linalg.det(turn) - 1) > _VOLUME:
        if np.allclose(matrix, np.eye(3), atol=1e-6) or not matrix.any():
            return None, []  # a placeholder
        return None, ["the SCALE records do not belong to the unit cell and were not applied"]
    left, _, right = np.linalg.svd(turn)
    rotation = left @ right
    if np.abs(turn - rotation).max() > _ROTATION or np.linalg.det(rotation) < 0:
        return None, ["the SCALE records are no rotation of the unit cell's frame and were not applied"]
    if np.abs(rotation - np.eye(3)).max() < _STANDARD:
        if np.abs(shift).max() < _SHIFT:
            return None, []
        rotation = np.eye(3)
    return Frame(rotation, shift), [
        "the coordinates are in a frame of their own (SCALE records): turned for the calculation, and back when written"
    ]


def scale_of_pdb(text: str) -> tuple[Matrix, Matrix] | None:
    """The SCALE records of a PDB file; None where they are not all there."""
    rows: dict[str, list[float]] = {}
    for line in text.splitlines():
        if line.startswith("SCALE") and line[5:6] in "123":
            try:
                rows.setdefault(
                    line[5], [float(line[start : start + 10]) for start in (10, 20, 30)] + [float(line[45:55])]
                )
            except ValueError:
                return None
        elif line.startswith(("ATOM  ", "HETATM")):
            break
    if sorted(rows) != ["1", "2", "3"]:
        return None
    table = np.array([rows[n] for n in "123"])
    return table[:, :3], table[:, 3]


def scale_of_block(block: Any) -> tuple[Matrix, Matrix] | None:
    """``_atom_sites.fract_transf_matrix`` and vector of a CIF; None where they are not all there."""
    texts = [
        [block.find_value(f"_atom_sites.fract_transf_matrix[{i}][{j}]") for j in "123"]
        + [block.find_value(f"_atom_sites.fract_transf_vector[{i}]")]
        for i in "123"
    ]
    if any(text is None or text in ("?", ".") for row in texts for text in row[:3]):
        return None
    table = np.array([[gemmi.cif.as_number(text) if text else 0.0 for text in row] for row in texts])
    table[:, 3] = np.nan_to_num(table[:, 3])
    return table[:, :3], table[:, 3]
