"""Which atom each hydrogen rides on: the one that it is bonded to, never one of another residue, conformer or model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

_NEAR = 1.6  # Å: the longest bond of a hydrogen (S-H is 1.34) and what a bad start adds


def parents_of_hydrogens(
    sites_cart: np.ndarray,
    hydrogens: np.ndarray,
    residues: Sequence[object] | np.ndarray,
    altlocs: Sequence[str] | np.ndarray,
    models: Sequence[object] | np.ndarray,
    bonds: np.ndarray | None = None,
) -> np.ndarray:
    """Row of the atom that each atom rides on; its own for all but hydrogens.

    Parameters
    ----------
    sites_cart : numpy.ndarray
        (n, 3) Å.
    hydrogens : numpy.ndarray
        (n,) bool.
    residues, altlocs, models : sequence
        (n,) of what tells residues, alternative conformations ("" for none) and models apart.
    bonds : numpy.ndarray, optional
        (m, 2) rows that a topology bonds. A hydrogen in it rides on its partner, others on the nearest atom that is no
        hydrogen of the same residue and model, and of the same conformation or none.

    Returns
    -------
    numpy.ndarray
        (n,) int64. A hydrogen without such an atom in its residue rides on itself: it is by itself.

    Examples
    --------
    >>> sites = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [2.5, 0.0, 0.0]])     # C, C, H
    >>> parents_of_hydrogens(sites, [False, False, True], [1, 1, 1], ["", "", ""], [1, 1, 1])
    array([0, 1, 1])
    """
    n = len(sites_cart)
    parent = np.arange(n)
    hydrogens = np.asarray(hydrogens, dtype=bool)
    if not hydrogens.any():
        return parent
    if bonds is not None and len(bonds):
        for a, b in ((0, 1), (1, 0)):
            rows = bonds[hydrogens[bonds[:, a]] & ~hydrogens[bonds[:, b]]]
            parent[rows[:, a]] = rows[:, b]
    residue = _codes(residues)
    model = _codes(models)
    conformer, blank = _codes(altlocs), np.array([a.strip("\0 ") == "" for a in altlocs])
    heavy = np.nonzero(~hydrogens)[0]
    waiting = np.nonzero(hydrogens & (parent == np.arange(n)))[0]
    if not len(heavy) or not len(waiting):
        return parent
    tree = cKDTree(sites_cart[heavy])
    for row in waiting.tolist():
        for reach in (_NEAR, 3 * _NEAR):
            near = heavy[tree.query_ball_point(sites_cart[row], reach)]
            same = (residue[near] == residue[row]) & (model[near] == model[row])
            same &= (conformer[near] == conformer[row]) | blank[near] | blank[row]
            if same.any():
                near = near[same]
                parent[row] = near[np.linalg.norm(sites_cart[near] - sites_cart[row], axis=1).argmin()]
                break
    return parent


def _codes(values: Sequence[object] | np.ndarray) -> np.ndarray:
    numbers: dict[object, int] = {}
    return np.array(
        [numbers.setdefault(v, len(numbers)) for v in (values.tolist() if isinstance(values, np.ndarray) else values)]
    )
