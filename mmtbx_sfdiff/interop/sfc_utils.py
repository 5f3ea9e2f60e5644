"""The functions of SFcalculator's submodules that other programs call: ``utils``, ``mask`` and ``symmetry``.

Reciprocal space is expanded with the operators of gemmi, in the order in which SFcalculator_torch 0.3.3 gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import gemmi
import numpy as np


def try_gpu(i: int = 0) -> torch.device:
    """CUDA device number ``i`` where there is one, else the CPU."""
    return torch.device(f"cuda:{i}") if torch.cuda.device_count() > i else torch.device("cpu")


def try_all_gpus() -> list[torch.device]:
    """Every CUDA device, or the CPU."""
    return [torch.device(f"cuda:{i}") for i in range(torch.cuda.device_count())] or [torch.device("cpu")]


def assert_numpy(x: Any, arr_type: Any = None) -> np.ndarray:
    """A tensor, list or tuple as a NumPy array, detached, on the CPU.

    Raises
    ------
    TypeError
        Something else.
    """
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().numpy()
    elif isinstance(x, (list, tuple)):
        x = np.array(x)
    if not isinstance(x, np.ndarray):
        raise TypeError(f"An array, a tensor or a list is needed, not {type(x).__name__}.")
    return x if arr_type is None else x.astype(arr_type)


def assert_tensor(x: Any, arr_type: torch.dtype | None = None, device: torch.device | str = "cpu") -> torch.Tensor:
    """An array, list or tuple as a tensor on ``device``; a tensor stays where it is.

    Raises
    ------
    TypeError
        Something else.
    """
    if isinstance(x, (list, tuple)):
        x = np.array(x)
    if isinstance(x, np.ndarray):
        x = torch.tensor(x, device=device)
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"An array, a tensor or a list is needed, not {type(x).__name__}.")
    return x if arr_type is None else x.to(arr_type)


def r_factor(Fo: torch.Tensor, Fmodel: torch.Tensor, free_flag: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """R-work and R-free of amplitudes (n,), 0-d tensors; ``free_flag`` (n,) bool, True for the test set."""
    free = torch.as_tensor(free_flag, device=Fo.device)
    difference = (Fo - Fmodel).abs()
    return difference[~free].sum() / Fo[~free].sum(), difference[free].sum() / Fo[free].sum()


def aniso_scaling(uaniso: torch.Tensor, reciprocal_cell_paras: torch.Tensor, HKL_array: Any) -> torch.Tensor:
    """exp(-2 pi^2 h U h) of (n, 3) indices, U as 11, 22, 33, 12, 13, 23 along the reciprocal axes."""
    h, k, l = torch.as_tensor(HKL_array, device=uaniso.device).to(uaniso.dtype).T
    a, b, c, cos_alpha, cos_beta, cos_gamma = reciprocal_cell_paras.to(uaniso)
    h, k, l = h * a, k * b, l * c
    terms = torch.stack([h * h, k * k, l * l, 2 * h * k * cos_gamma, 2 * h * l * cos_beta, 2 * k * l * cos_alpha], -1)
    return torch.exp(-2 * torch.pi**2 * (terms @ uaniso))


def bin_by_logarithmic(data: Any, bins: int = 10, Nmin: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Bins of resolution by Urzhumtsev, Afonine & Adams (2009), Acta Cryst. D65, 1283.

    Parameters
    ----------
    data : array-like
        (n,) d spacings, Å.
    bins : int
        Their number; the edges are even in ln d beyond the second.
    Nmin : int
        Reflections in the first bin; about as many in the second.

    Returns
    -------
    assignments : numpy.ndarray
        (n,) int64.
    edges : numpy.ndarray
        (bins + 1,) Å, descending.

    Raises
    ------
    ValueError
        Fewer than ``2 Nmin + 11`` reflections, or fewer than two bins.
    """
    data = np.asarray(data)
    descending = np.sort(data)[::-1]
    second = 2 * Nmin + 10
    if bins < 2 or len(data) <= second:
        raise ValueError(f"{len(data)} reflections cannot be put into {bins} bins of {Nmin} or more: lower n_bins.")
    inner = np.exp(np.linspace(np.log(descending[second]), np.log(descending[-1] - 0.001), bins - 1))
    edges = np.concatenate([[descending[0] + 0.001, descending[Nmin]], inner])
    # A reflection on an edge belongs to the bin of higher resolution... of the two, as edges[i] >= d > edges[i + 1].
    return np.clip(np.searchsorted(-edges, -data, side="right") - 1, 0, bins - 1), edges


def reciprocal_grid(
    Hp1_array: Any, Fp1_tensor: torch.Tensor, gridsize: Sequence[int], batchsize: int | None = None
) -> torch.Tensor:
    """Structure factors (n,) or (batch, n) on the grid of reciprocal space, zeros elsewhere; complex64."""
    h, k, l = torch.as_tensor(np.asarray(Hp1_array), device=Fp1_tensor.device, dtype=torch.int64).T
    n1, n2, n3 = gridsize
    place = ((h % n1) * n2 + k % n2) * n3 + l % n3
    grid: torch.Tensor = Fp1_tensor.new_zeros((*Fp1_tensor.shape[:-1], n1 * n2 * n3), dtype=torch.complex64)
    grid = grid.index_copy(-1, place, Fp1_tensor.to(torch.complex64))
    return grid.reshape(*grid.shape[:-1], n1, n2, n3)


def realmask2Fmask(
    real_grid_mask: torch.Tensor, H_array: Any, cell_volume: float = 1.0, batchsize: int | None = None
) -> torch.Tensor:
    """``V/N sum mask exp(2 pi i h.x)`` of a map (..., n1, n2, n3) at (n, 3) indices."""
    h, k, l = torch.as_tensor(np.asarray(H_array), device=real_grid_mask.device, dtype=torch.int64).T
    n1, n2, n3 = real_grid_mask.shape[-3:]
    transform: torch.Tensor = torch.fft.ifftn(real_grid_mask, dim=(-3, -2, -1)) * cell_volume
    return transform[..., h % n1, k % n2, l % n3]


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
