"""The data inside ``SFcalculator``: indices, bins, amplitudes, normalized amplitudes, test set and outliers."""

from __future__ import annotations

import warnings
from typing import Any

import torch

import numpy as np

from ...rules.columns import is_constant
from . import data as sfc_data
from .model import ModelState
from .symmetry import generate_reciprocal_asu
from .utils import assert_numpy, bin_by_logarithmic, r_factor

# Normalized amplitudes beyond which a reflection is an outlier, of probability 1e-6: Read (1999), Acta Cryst. D55, 1759.
_CENTRIC_LIMIT, _ACENTRIC_LIMIT = 4.89, 3.72


class ExperimentState(ModelState):
    """What ``SFcalculator`` knows of the data: NumPy where that package has NumPy, float32 tensors where it has tensors.

    ``HKL_array`` is None without data, and ``Fo`` absent where nothing was taken from them.
    """

    dmin: float
    HKL_array: np.ndarray | None
    dHKL: np.ndarray
    Hasu_array: np.ndarray
    dHasu: np.ndarray
    Fo: torch.Tensor
    SigF: torch.Tensor
    Ftotal_HKL: torch.Tensor

    @property
    def _has_data(self) -> bool:
        return self.HKL_array is not None

    @property
    def _kind(self) -> str:
        return "HKL" if self._has_data else "asu"

    @property
    def _used_indices(self) -> np.ndarray:
        return self.Hasu_array if self.HKL_array is None else self.HKL_array

    def _init_data(self, data: Any, dmin: float | None, labels: tuple[str, ...]) -> None:
        table = sfc_data.read_table(data)
        if len(labels) != 2:
            raise ValueError(f"expcolumns names the amplitudes and their errors, two labels, not {len(labels)}.")
        f, sigma = sfc_data.amplitudes(table, labels)
        if is_constant(f):
            warnings.warn(
                f"The column {labels[0]!r} of {table.name} has one value everywhere, which no observations have: name another "
                "one, unless nothing is compared with it.",
                stacklevel=4,
            )
        table = table.rows(np.isfinite(f) & np.isfinite(sigma))
        table, n_absent = sfc_data.in_asymmetric_unit(table, self.anomalous)
        if n_absent:
            warnings.warn(f"{n_absent} systematically absent reflections of {table.name} were left out.", stacklevel=4)
        if not len(table.indices):
            raise ValueError(f"{table.name} has no reflection with both {labels[0]} and {labels[1]}.")
        n_repeated = len(table.indices) - len(np.unique(table.indices, axis=0))
        if n_repeated:
            warnings.warn(
                f"{n_repeated} rows of {table.name} are of reflections that it has already (equivalents, Friedel mates, or "
                "other data sets in one table): each counts by itself.",
                stacklevel=4,
            )
        parser = self._pdb
        if not np.allclose(parser.cell.parameters, table.cell.parameters, rtol=1e-6):
            warnings.warn(
                f"The cell of {table.name}, {table.cell.parameters}, replaces the model's, {parser.cell.parameters}.",
                stacklevel=4,
            )
            parser.set_unitcell(table.cell)
        if parser.spacegroup.xhm() != table.spacegroup.xhm():
            warnings.warn(
                f"The space group of {table.name}, {table.spacegroup.xhm()}, replaces the model's, "
                f"{parser.spacegroup.xhm()}.",
                stacklevel=4,
            )
            parser.set_spacegroup(table.spacegroup)
        self._init_symmetry()
        if self.wavelength is None:
            self.wavelength = table.wavelength
        d = self.unit_cell.calculate_d_array(table.indices).astype("float32")
        if dmin is None:
            self.dmin = d.min()  # NumPy's float32, as there
        else:
            self.dmin = dmin
            table, d = table.rows(d >= dmin), d[d >= dmin]
            if not len(d):
                raise ValueError(f"{table.name} has no reflection to dmin = {dmin} Å.")
        self._table, self._labels = table, labels
        self.HKL_array, self.dHKL = table.indices, d
        if self.mode == "cryoem":
            self.Hasu_array = table.indices.copy()
            self.asu2HKL_index = np.arange(len(d))
        else:
            group = self.space_group
            self.Hasu_array = generate_reciprocal_asu(self.unit_cell, group, self.dmin, self.anomalous)
            self.asu2HKL_index = _places(self.Hasu_array, table.indices)
        self.dr2HKL_array = self.unit_cell.calculate_1_d2_array(table.indices)

    def assign_resolution_bins(
        self,
        bins: int = 10,
        Nmin: int = 100,
        return_labels: bool = False,
        format_str: str = ".2f",
    ) -> list[str] | None:
        """Put the reflections into ``bins``, ``n_bins`` and ``bin_labels``; see :func:`.utils.bin_by_logarithmic`."""
        d = self.dHKL if self.HKL_array is not None else self.dHasu
        assigned, edges = bin_by_logarithmic(d, bins, Nmin)
        used, self.bins = np.unique(assigned, return_inverse=True)
        self.n_bins = len(used)
        self.bin_labels = [f"{edges[i]:{format_str}} - {edges[i + 1]:{format_str}}" for i in used]
        return self.bin_labels if return_labels else None

    def _set_experiment(self, freeflag: str | None, testset_value: float) -> None:
        table = self._table
        f, sigma = sfc_data.amplitudes(table, self._labels)

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.device)

        self.Fo, self.SigF = tensor(f), tensor(sigma)
        self.free_flag = sfc_data.free_flags(table, freeflag, testset_value)
        operations = self.space_group.operations()
        self.centric = operations.centric_flag_array(table.indices)
        epsilon = operations.epsilon_factor_array(table.indices).astype(np.float64)
        counts = np.bincount(self.bins, minlength=self.n_bins)
        sigma_n = (np.bincount(self.bins, f**2 / epsilon, self.n_bins) / counts)[self.bins]
        e_obs = f / np.sqrt(epsilon * sigma_n)
        self.epsilon, self._SigN, self.Eo = tensor(epsilon), tensor(sigma_n), tensor(e_obs)
        self.SigEo = self.SigF / (self._SigN * self.epsilon).sqrt()
        limit = np.where(self.centric, _CENTRIC_LIMIT, _ACENTRIC_LIMIT)
        self.Outlier = (e_obs > limit) | (f <= 0)

    def get_rfactors(self, ftotal: torch.Tensor | None = None, mask: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """R-work and R-free, 0-d tensors, without the outliers; ``mask`` (n,) bool chooses among the reflections.

        R-free is NaN where there is no test set.
        """
        ftotal = self.Ftotal_HKL.detach() if ftotal is None else ftotal
        chosen = ~self.Outlier if mask is None else ~self.Outlier & assert_numpy(mask)
        rows = torch.as_tensor(chosen, device=self.device)
        return r_factor(self.Fo[rows], ftotal.abs()[rows], self.free_flag[chosen])


def _places(all_indices: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Where indices (m, 3) are among sorted ones (n, 3), (m,) int64.

    Raises
    ------
    ValueError
        One that is not there.
    """
    low = np.minimum(all_indices.min(0), some.min(0)).astype(np.int64)
    size = np.maximum(all_indices.max(0), some.max(0)).astype(np.int64) - low + 1

    def key(indices: np.ndarray) -> np.ndarray:
        h, k, l = (indices.astype(np.int64) - low).T
        numbers: np.ndarray = (h * size[1] + k) * size[2] + l
        return numbers

    keys, wanted = key(all_indices), key(some)
    found: np.ndarray = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    missing = keys[found] != wanted
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} reflections, {tuple(some[missing][0].tolist())} first, are not in the asymmetric unit "
            "to this resolution: give dmin, or another space group."
        )
    return found
