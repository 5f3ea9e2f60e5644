"""What an FModel is made from and written to: files, and mmtbx's managers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from typing_extensions import Self

from .atoms import Atoms
from .reflections import Reflections
from .scaling import Scales


class FModelIO:
    """The part of :class:`~mmtbx_sfdiff.FModel` that reads and writes; the work is in :mod:`mmtbx_sfdiff.files`."""

    atoms: Atoms
    reflections: Reflections
    scales: Scales | None
    source: Any

    @classmethod
    def from_files(
        cls,
        model: str | Path,
        data: str | Path,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        scattering_table: str = "n_gaussian",
        read: dict[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Read a model file and a data file.

        Parameters
        ----------
        model, data : path
            PDB or mmCIF; MTZ, mmCIF or CNS.
        dtype, device
            Of the tensors.
        scattering_table : str
        read : dict, optional
            Further arguments of :func:`~mmtbx_sfdiff.files.load_entry`, such as labels or ``d_min``.
        **options
            Of :class:`FModel`.

        Raises
        ------
        libtbx.utils.Sorry
            In one sentence, for what is wrong with the files.
        """
        from .files import load_entry  # reads with cctbx, which this package does not need to be imported

        entry = load_entry(model, data, scattering_table=scattering_table, **(read or {}))
        return cls(
            Atoms.from_cctbx(entry.model.xray_structure, dtype=dtype, device=device),
            Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags, dtype=dtype, device=device),
            source=entry,
            **options,
        )

    @classmethod
    def from_cctbx(
        cls, manager: Any, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu", **options: Any
    ) -> Self:
        """Take atoms and reflections from an ``mmtbx.f_model.manager``; its scales are not taken.

        Raises
        ------
        ValueError
            A manager of twinned data, or without an xray_structure.
        """
        if manager.twin_law is not None:
            raise ValueError(f"The manager is of twinned data (twin law {manager.twin_law}), which are not supported.")
        if manager.xray_structure is None:
            raise ValueError("The manager has no xray_structure: make an FModel from Atoms and Reflections instead.")
        return cls(
            Atoms.from_cctbx(manager.xray_structure, dtype=dtype, device=device),
            Reflections.from_cctbx(manager.f_obs(), manager.r_free_flags(), dtype=dtype, device=device),
            **options,
        )

    def to_cctbx(self, f_calc: torch.Tensor | None = None, f_mask: torch.Tensor | None = None) -> Any:
        """An ``mmtbx.f_model.manager`` with these structure factors, scales and selected reflections.

        Parameters
        ----------
        f_calc, f_mask : torch.Tensor, optional
            (n,) complex, where they are known already.
        """
        from .files.managers import as_manager

        scales = self.known_scales()
        with torch.no_grad():
            f_calc = self.f_calc() if f_calc is None else f_calc
            f_mask = self.f_mask() if f_mask is None else f_mask
        return as_manager(self.atoms, self.reflections, scales, f_calc, f_mask)

    def write_map_coefficients(self, path: str | Path) -> None:
        """Write 2mFo-DFc, mFo-DFc, F_model, the data used and the free flags as an MTZ file for Coot."""
        from .files.managers import map_file, write

        write(path, map_file(self.to_cctbx(), self.reflections.r_free_flags is not None))

    def write_model(self, path: str | Path) -> None:
        """Write the model with its present coordinates as PDB or mmCIF (``.cif``).

        Raises
        ------
        libtbx.utils.Sorry
            When the model did not come from a file.
        """
        from .files.managers import model_file, write

        write(path, model_file(self.source, self.atoms, Path(path).suffix))
