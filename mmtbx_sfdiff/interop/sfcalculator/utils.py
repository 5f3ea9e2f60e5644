"""Conversions, R factors, the anisotropic scale and bins: the functions of ``SFC_Torch.utils`` that other programs call."""

from __future__ import annotations

from typing import Any

import torch

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
