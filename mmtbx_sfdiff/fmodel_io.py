"""What an FModel is made from and written to: files, and mmtbx's managers."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from typing_extensions import Self

from .atoms import Atoms
from .crystal import Crystal
from .numerics.residual import scale as numerics_scale
from .real_space import map_coefficient_bytes, map_coefficients
from .real_space.mates import difference_column, mates_in_rows
from .reflections import Reflections
from .scaling import Scales


class FModelIO:
    """The part of :class:`~mmtbx_sfdiff.FModel` that reads and writes; the work is in :mod:`mmtbx_sfdiff.files`."""

    atoms: Atoms
    reflections: Reflections
    scales: Scales | None
    source: Any
    twin_law: str | None

    if TYPE_CHECKING:

        @property
        def selection(self) -> torch.Tensor: ...
        def known_scales(self) -> Scales: ...
        def f_model(
            self, sites_cart: torch.Tensor | None = None, f_mask: torch.Tensor | None = None, twinned: bool = True
        ) -> torch.Tensor: ...
        def f_calc(self, sites_cart: torch.Tensor | None = None) -> torch.Tensor: ...
        def f_mask(self, sites_cart: torch.Tensor | None = None) -> torch.Tensor: ...

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
            In one sentence, for what is wrong with the files; it is a ValueError, too.

        Notes
        -----
        Where cctbx is not installed gemmi reads PDB, mmCIF, MTZ and structure-factor CIF files; other formats need cctbx.

        Examples
        --------
        >>> structure.write_pdb("model.pdb")
        >>> fmodel.write_map_coefficients("data.mtz")
        >>> sfdiff.FModel.from_files("model.pdb", "data.mtz")
        FModel(10 atoms, 881 reflections, no scales)
        """
        if importlib.util.find_spec("cctbx") is None:
            atoms, reflections = _read_without_cctbx(model, data, dtype, device, scattering_table, read or {})
            return cls(atoms, reflections, **options)  # type: ignore[call-arg]
        from .files import load_entry  # reads with cctbx, which this package does not need to be imported

        entry = load_entry(model, data, scattering_table=scattering_table, **(read or {}))
        for message in entry.messages:
            warnings.warn(message, stacklevel=2)
        reflections = Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags, dtype=dtype, device=device)
        left_out, said = entry.data.reflections["left_out"], tuple(entry.data.messages)
        return cls(  # type: ignore[call-arg]
            Atoms.from_cctbx(entry.model.xray_structure, dtype=dtype, device=device),
            dataclasses.replace(reflections, left_out=dict(left_out), messages=said),
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
            A manager without an xray_structure.

        Notes
        -----
        Of mmtbx's twin model the law is taken; the fraction is determined with the scales.
        """
        if manager.twin_law is not None:
            law = manager.twin_law if isinstance(manager.twin_law, str) else manager.twin_law.r().as_hkl()
            options = {"twin_law": law} | options
        if manager.xray_structure is None:
            raise ValueError("The manager has no xray_structure: make an FModel from Atoms and Reflections instead.")
        return cls(  # type: ignore[call-arg]
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

        Examples
        --------
        >>> manager = fmodel.to_cctbx(fmodel.f_calc(), fmodel.f_mask())
        >>> sfdiff.FModel.from_cctbx(manager)
        FModel(40 atoms, 881 reflections, no scales)
        """
        from .files.managers import as_manager

        scales = self.known_scales()
        with torch.no_grad():
            f_calc = self.f_calc() if f_calc is None else f_calc
            f_mask = self.f_mask() if f_mask is None else f_mask
        return as_manager(self.atoms, self.reflections, scales, f_calc, f_mask)

    def write_map_coefficients(self, path: str | Path) -> None:
        """Write 2mFo-DFc, mFo-DFc, F_model, the data used and the free flags as an MTZ file for Coot, by gemmi.

        Anomalous data keep their mates apart, in F-obs-filtered and F-model; the maps are of the mean of both mates, and a third
        is of the anomalous differences (PANOM, PHPANOM).

        Raises
        ------
        Sorry
            No such folder; a ValueError, and cctbx's Sorry where there is cctbx.
        RuntimeError
            Before :meth:`update_scales`.

        Examples
        --------
        >>> import pathlib
        >>> fmodel.write_map_coefficients("maps.mtz")
        >>> pathlib.Path("maps.mtz").read_bytes() == fmodel.map_file(), sorted(fmodel.map_coefficients())
        (True, ['2mFo-DFc', 'mFo-DFc'])
        """
        from .files.errors import Sorry  # cctbx's, where there is cctbx
        from .files.writing import write_all

        if not Path(path).parent.is_dir():
            raise Sorry(f"{path} cannot be written: there is no folder {Path(path).parent}.")
        write_all({Path(path): self.map_file()})

    def map_file(self) -> bytes:
        """The content of the file of :meth:`write_map_coefficients`."""
        return map_coefficient_bytes(self.reflections.crystal, *self.map_columns())

    def map_columns(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Indices (n, 3) and columns, by label, of the file of :meth:`write_map_coefficients`.

        Examples
        --------
        >>> indices, columns = fmodel.map_columns()
        >>> len(indices) == len(columns["2FOFCWT"]), columns["2FOFCWT"].dtype
        (True, torch.complex128)
        """
        data = self.known_scales().selected(self.reflections)
        with torch.no_grad():
            f_model = self.f_model()[self.selection]
        columns: dict[str, torch.Tensor] = {"F-obs-filtered": data.f_obs}
        if data.sigmas is not None:
            columns["SIGF-obs-filtered"] = data.sigmas
        if data.r_free_flags is not None:
            columns["R-free-flags"] = data.r_free_flags
        columns["F-model"] = f_model * numerics_scale(data.f_obs, f_model.abs())
        found = self.map_coefficients()
        columns |= {"2FOFCWT": found["2mFo-DFc"], "FOFCWT": found["mFo-DFc"]}
        indices, columns = mates_in_rows(data, columns, apart=("F-model",))
        if data.anomalous:
            columns["PANOM"] = difference_column(indices, data, f_model)
        return indices, columns

    def map_coefficients(self) -> dict[str, torch.Tensor]:
        """Coefficients of 2mFo-DFc and mFo-DFc of the reflections in use, see :func:`mmtbx_sfdiff.real_space.map_coefficients`.

        Of a twin: with data detwinned in proportion to the model's domains (mmtbx's ``detwin.mode=proportional``).

        Raises
        ------
        RuntimeError
            Before :meth:`update_scales`.
        """
        scales = self.known_scales()
        used = scales.selection
        data = scales.selected(self.reflections)
        with torch.no_grad():
            f_model = self.f_model()[used]
            if self.twin_law is not None:  # the share of the first domain in what was measured, as the model has it
                domain = self.f_model(twinned=False)[used]
                size = f_model.abs()
                share = torch.where(size > 0, domain.abs() / torch.where(size > 0, size, 1.0), 0.0)
                sigmas = None if data.sigmas is None else share * data.sigmas
                data, f_model = dataclasses.replace(data, f_obs=share * data.f_obs, sigmas=sigmas), domain
            return map_coefficients(data, f_model, scales.k_total[used])

    def write_model(self, path: str | Path) -> None:
        """Write the model with its present coordinates as PDB or mmCIF (``.cif``).

        Raises
        ------
        libtbx.utils.Sorry
            When the model did not come from a file; a ValueError where cctbx, which writes it, is not installed.

        Examples
        --------
        >>> structure.write_pdb("model.pdb")
        >>> fmodel.write_map_coefficients("data.mtz")
        >>> sfdiff.FModel.from_files("model.pdb", "data.mtz").write_model("out.cif")     # needs cctbx
        """
        if importlib.util.find_spec("cctbx") is None:
            raise ValueError("write_model needs cctbx, which is not installed: install cctbx-base.")
        from .files.managers import model_file, write

        write(path, model_file(self.source, self.atoms, Path(path).suffix))


def indices_digest(reflections: Reflections) -> str:
    """What tells the reflections of a state from others: SHA-256 of their Miller indices, in order."""
    return hashlib.sha256(reflections.miller_indices.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def refuse_other_data(reflections: Reflections, n: int, digest: str | None) -> None:
    """Raise ValueError where a state's scales are for other reflections; older states say only how many there were."""
    if n != len(reflections):
        said = f"{n} reflections, and there are {len(reflections)}"
    elif digest is not None and digest != indices_digest(reflections):
        said = f"other reflections than these {n}, or in another order"
    else:
        return
    raise ValueError(f"The scales of the state are for {said}: give the data that the state was made with.")


def _read_without_cctbx(
    model: str | Path,
    data: str | Path,
    dtype: torch.dtype,
    device: torch.device | str,
    table: str,
    read: dict[str, Any],
) -> tuple[Atoms, Reflections]:
    """The atoms and reflections of two files, by gemmi and the rules alone."""
    # Their errors are libtbx's, where there is cctbx, which this package does not need to be imported.
    from .files.model_text import read_structure, structure_messages
    from .files.observations import read_observations
    from .files.symmetry import Symmetry

    structure, messages = read_structure(model)
    crystal = Crystal.from_gemmi(structure, device=device)
    found = read_observations(data, Symmetry.from_gemmi(structure.cell, structure.find_spacegroup()), **read)
    d_min = float(found.symmetry.d_star_sq(found.indices).max()) ** -0.5
    atoms = Atoms.from_gemmi(structure, table=table, d_min=d_min, crystal=crystal, dtype=dtype, device=device)
    reflections = Reflections.from_arrays(
        crystal, found.indices, found.f_obs, found.sigmas, found.free, dtype=dtype, device=device
    )
    for message in (*messages, *structure_messages(structure), *found.messages):
        warnings.warn(message, stacklevel=4)
    left_out, said = found.summary["left_out"], tuple(found.messages)
    return atoms, dataclasses.replace(reflections, left_out=left_out, messages=said)
