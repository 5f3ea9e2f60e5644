"""Reflections as MTZ files."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch

import numpy as np
from cctbx.array_family import flex
from iotbx.mtz import label_decorator

# Phases of maps are PH2FOFCWT and PHFOFCWT, which Coot recognises by itself.
_MAP_LABELS = label_decorator(phases_prefix="PH")


def miller_array(miller_set: Any, values: Any, sigmas: Any = None) -> Any:
    """Values of a tensor (n,), real, complex, bool or integer, as a miller array of that set."""
    values = values.detach().cpu()
    if values.dtype == torch.bool:
        data = flex.int(values.numpy().astype(np.int32))
    elif torch.is_complex(values):
        data = flex.complex_double(np.ascontiguousarray(values.numpy(), dtype=np.complex128))
    else:
        data = _flex_double(values)
    return miller_set.array(data=data, sigmas=None if sigmas is None else _flex_double(sigmas))


def _flex_double(values: Any) -> Any:
    return flex.double(np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.float64))


class MTZ:
    """Columns of one MTZ file, added one by one.

    Parameters
    ----------
    title : str
    wavelength : float, optional
        Å.
    """

    def __init__(self, title: str, wavelength: float | None = None) -> None:
        self._title, self._wavelength = title, wavelength or 0.0
        self._dataset: Any = None

    def add(self, array: Any, label: str, column_types: str | None = None, is_map: bool = False) -> None:
        """Add a miller array; the labels of its columns are made from the one given.

        Parameters
        ----------
        array : cctbx.miller.array
        label : str
        column_types : str, optional
            MTZ types, such as "R" for any real number; by default those of the array.
        is_map : bool
            Coefficients of a map.
        """
        options = {"column_types": column_types, "label_decorator": _MAP_LABELS if is_map else None}
        if self._dataset is None:
            self._dataset = array.as_mtz_dataset(
                column_root_label=label, title=self._title, wavelength=self._wavelength, **options
            )
        else:
            self._dataset.add_miller_array(array, column_root_label=label, **options)

    def as_bytes(self) -> bytes:
        """The content of the file."""
        with tempfile.TemporaryDirectory() as folder:
            name = os.path.join(folder, "columns.mtz")
            self._dataset.mtz_object().write(file_name=name)
            with open(name, "rb") as file:
                return file.read()
