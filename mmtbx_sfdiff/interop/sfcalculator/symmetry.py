"""The asymmetric unit of reciprocal space, and what follows from it in P 1.

With the operators of gemmi, in the order in which SFcalculator_torch 0.3.3 gives it.
"""

from __future__ import annotations

import torch

import gemmi
import numpy as np


def expand_to_p1(
    spacegroup: gemmi.SpaceGroup,
    Hasu_array: np.ndarray,
    Fasu_tensor: torch.Tensor,
    Batch: bool = False,
    dmin_mask: float | None = 6.0,
    unitcell: gemmi.UnitCell | None = None,
    anomalous: bool = False,
) -> tuple[np.ndarray, torch.Tensor]:
    """Structure factors of one half of reciprocal space in P 1, to a resolution.

    Parameters
    ----------
    spacegroup : gemmi.SpaceGroup
    Hasu_array : numpy.ndarray
        (n, 3) indices of the asymmetric unit.
    Fasu_tensor : torch.Tensor
        (n,), or (batch, n) with ``Batch``, complex.
    dmin_mask : float or None
        Å; reflections beyond it are left out.  Needs ``unitcell``.
    unitcell : gemmi.UnitCell, optional
    anomalous : bool
        Friedel mates are among the reflections: none are made.

    Returns
    -------
    indices : numpy.ndarray
        (m, 3), l > 0, or l = 0 and h > 0, or h = l = 0 and k >= 0.
    structure_factors : torch.Tensor
        (m,) or (batch, m); differentiable in ``Fasu_tensor``.
    """
    indices = np.asarray(Hasu_array)
    rows = np.arange(len(indices))
    if dmin_mask is not None:
        if unitcell is None:
            raise ValueError("expand_to_p1 needs unitcell for a limit of resolution; or give dmin_mask=None.")
        rows = np.flatnonzero(unitcell.calculate_d_array(indices).astype("float32") >= dmin_mask)
    inside = indices[rows]
    found, source, phase, mate = [], [], [], []
    for op in spacegroup.operations():
        found.append(np.rint(inside @ (np.array(op.rot) / op.DEN)).astype(np.int32))
        phase.append(-2 * np.pi * (inside @ (np.array(op.tran) / op.DEN)))
        source.append(rows)
        mate.append(np.zeros(len(rows), bool))
    if not anomalous:
        found, phase, source = found + [-h for h in found], phase + [-p for p in phase], source + source
        mate = mate + [np.ones(len(rows), bool) for _ in mate]
    h, angle, origin, conjugate = (np.concatenate(x) for x in (found, phase, source, mate))
    _, first = np.unique(h, axis=0, return_index=True)
    first = np.sort(first)
    half = (h[:, 2] > 0) | ((h[:, 2] == 0) & ((h[:, 0] > 0) | ((h[:, 0] == 0) & (h[:, 1] >= 0))))
    first = first[half[first]]
    device = Fasu_tensor.device
    chosen = Fasu_tensor.index_select(-1, torch.as_tensor(origin[first], device=device))
    turn = torch.polar(torch.ones(len(first), dtype=torch.float64), torch.as_tensor(angle[first]))
    turn = turn.to(device=device, dtype=Fasu_tensor.dtype)
    swapped = torch.as_tensor(conjugate[first], device=device)
    return h[first], torch.where(swapped, chosen.conj(), chosen) * turn


def generate_reciprocal_asu(
    cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, dmin: float, anomalous: bool = False
) -> np.ndarray:
    """Unique indices to ``dmin`` (Å) in gemmi's asymmetric unit without absences, (n, 3) int32, sorted.

    With ``anomalous`` the Friedel mates of acentric reflections, too.
    """
    # A margin, and then the comparison in single precision that resolutions of SFcalculator are made with.
    indices = np.asarray(gemmi.make_miller_array(cell, spacegroup, float(dmin) * (1 - 1e-5))).astype(np.int32)
    indices = indices[cell.calculate_d_array(indices).astype("float32") >= dmin]
    if anomalous:
        centric = spacegroup.operations().centric_flag_array(indices)
        indices = np.concatenate([indices, -indices[~centric]])
    return np.unique(indices, axis=0)
