"""Maps as CCP4 files and map coefficients as MTZ files, by gemmi."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

import gemmi
import numpy as np

from ..crystal import Crystal

# Labels of phases that programs look for; others are PHI and the amplitude's.
_PHASES = {
    "2FOFCWT": "PH2FOFCWT",
    "FOFCWT": "PHFOFCWT",
    "PANOM": "PHPANOM",
    "FWT": "PHWT",
    "DELFWT": "PHDELWT",
    "FC": "PHIC",
    "FC_ALL": "PHIC_ALL",
    "FAN": "PHAN",
}


def write_map(path: str | Path, rho: torch.Tensor, crystal: Crystal) -> None:
    """Write a map of the whole cell as a CCP4 file, float32.

    Parameters
    ----------
    path : path
    rho : torch.Tensor
        (n1, n2, n3)
    crystal : Crystal

    Raises
    ------
    ValueError
        A batch of maps; a folder that does not exist.

    Examples
    --------
    >>> rho = sfdiff.density(atoms, crystal, (24, 32, 36))
    >>> write_map("model.ccp4", rho, crystal)
    >>> bool(torch.allclose(read_map("model.ccp4", crystal), rho, atol=1e-6))
    True
    """
    if rho.ndim != 3:
        raise ValueError(f"A CCP4 file holds one map, (n1, n2, n3), not {tuple(rho.shape)}: write them one by one.")
    _check_folder(path)
    values = np.ascontiguousarray(rho.detach().cpu().numpy(), dtype=np.float32)
    grid = gemmi.FloatGrid(values, gemmi.UnitCell(*crystal.unit_cell), _space_group(crystal))
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = grid
    ccp4.update_ccp4_header()
    ccp4.write_ccp4_map(str(path))


def read_map(
    path: str | Path,
    crystal: Crystal | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """The map of a CCP4 file, filled to the whole cell by its symmetry, (n1, n2, n3).

    Parameters
    ----------
    path : path
    crystal : Crystal, optional
        The crystal it should be of.
    dtype, device
        Of the tensor.

    Raises
    ------
    ValueError
        No such file, or none that gemmi reads; a map of part of the cell that its symmetry does not complete; another cell
        than the crystal's (by more than 0.1 Å or 0.1 degrees).

    Examples
    --------
    >>> write_map("model.ccp4", sfdiff.density(atoms, crystal, (24, 32, 36)), crystal)
    >>> read_map("model.ccp4").shape
    torch.Size([24, 32, 36])
    """
    try:
        ccp4 = gemmi.read_ccp4_map(str(path))
        ccp4.setup(float("nan"))
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a CCP4 map: {error}") from None
    cell = ccp4.grid.unit_cell.parameters
    if crystal is not None and not np.allclose(cell, crystal.unit_cell, rtol=0, atol=0.1):
        raise ValueError(
            f"{path} has the cell {' '.join(f'{x:g}' for x in cell)}, and the crystal {crystal.unit_cell}: another crystal."
        )
    values = np.array(ccp4.grid, copy=True)
    if np.isnan(values).any():
        raise ValueError(f"{path} covers a part of the unit cell only, which its symmetry does not complete.")
    return torch.tensor(values, dtype=dtype, device=device)


def write_map_coefficients(
    path: str | Path, crystal: Crystal, miller_indices: torch.Tensor, columns: Mapping[str, torch.Tensor]
) -> None:
    """Write columns of reflections as an MTZ file.

    Parameters
    ----------
    path : path
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) integers.
    columns : dict of str to torch.Tensor
        (n,) each, by label: complex ones are amplitude and phase ("2FOFCWT" with "PH2FOFCWT", which Coot opens by itself, and
        others, such as "F-model", with "PHIF-model"), labels that begin with SIG are standard deviations, those that end with (+)
        or (-) of one mate of a pair, bool and integers are flags.

    Raises
    ------
    ValueError
        Columns of another length than the indices; a folder that does not exist.

    Examples
    --------
    >>> f = sfdiff.structure_factors(atoms, crystal, data.miller_indices)
    >>> write_map_coefficients("out.mtz", crystal, data.miller_indices, {"FC": f, "FOBS": data.f_obs, "SIGFOBS": data.sigmas})
    >>> h, found = read_map_coefficients("out.mtz", "FC,PHIC")
    >>> bool((h == data.miller_indices).all()), float((found - f).norm() / f.norm()) < 1e-6
    (True, True)
    """
    _check_folder(path)
    Path(path).write_bytes(map_coefficient_bytes(crystal, miller_indices, columns))


def map_coefficient_bytes(crystal: Crystal, miller_indices: torch.Tensor, columns: Mapping[str, torch.Tensor]) -> bytes:
    """The content of the file of :func:`write_map_coefficients`.

    Examples
    --------
    >>> map_coefficient_bytes(crystal, data.miller_indices, {"FOBS": data.f_obs})[:4]
    b'MTZ '
    """
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = "mmtbx_sfdiff"
    mtz.set_cell_for_all(gemmi.UnitCell(*crystal.unit_cell))
    mtz.spacegroup = _space_group(crystal)
    mtz.add_dataset("crystal")
    data = [miller_indices.detach().cpu().numpy().astype(np.float64)]
    for label, tensor in columns.items():
        if tensor.shape[:1] != miller_indices.shape[:1] or tensor.ndim != 1:
            raise ValueError(f"{label} must have one value for each of the {len(miller_indices)} indices.")
        values = tensor.detach().cpu().numpy()
        if np.iscomplexobj(values):
            mtz.add_column(label, "F")
            mtz.add_column(_PHASES.get(label, f"PHI{label}"), "P")
            data += [np.abs(values)[:, None], np.degrees(np.angle(values))[:, None]]
            continue
        mate = label.endswith(("(+)", "(-)"))
        amplitude, error = ("G", "L") if mate else ("F", "Q")
        kind = "I" if values.dtype.kind in "bi" else error if label.startswith("SIG") else amplitude
        mtz.add_column(label, kind)
        data.append(values.astype(np.float64)[:, None])
    mtz.set_data(np.concatenate(data, 1).astype(np.float32))
    if hasattr(mtz, "write_to_bytes"):
        return bytes(mtz.write_to_bytes())
    with tempfile.TemporaryDirectory() as folder:  # gemmi before 0.7
        mtz.write_to_file(f"{folder}/columns.mtz")
        return Path(folder, "columns.mtz").read_bytes()


def read_map_coefficients(
    path: str | Path, labels: str = "2FOFCWT,PH2FOFCWT", device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Miller indices (n, 3) and complex coefficients (n,) of an MTZ file; rows without a number are left out.

    Parameters
    ----------
    path : path
    labels : str
        Amplitude and phase.
    device : torch.device or str

    Raises
    ------
    ValueError
        No such file, or no such columns: those there are are named.

    Examples
    --------
    >>> fmodel.write_map_coefficients("maps.mtz")
    >>> indices, coefficients = read_map_coefficients("maps.mtz", "FOFCWT,PHFOFCWT")
    >>> coefficients.dtype, len(coefficients) == len(indices)
    (torch.complex128, True)
    """
    try:
        mtz = gemmi.read_mtz_file(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an MTZ file: {error}") from None
    names = [name.strip() for name in labels.split(",")]
    found = [mtz.column_with_label(name) for name in names]
    if len(names) != 2 or any(column is None for column in found):
        raise ValueError(f"{path} has no columns {labels}; it has {', '.join(mtz.column_labels())}.")
    amplitude, phase = (np.array(column, dtype=np.float64) for column in found)
    present = ~(np.isnan(amplitude) | np.isnan(phase))
    values = amplitude[present] * np.exp(1j * np.radians(phase[present]))
    indices = np.array(mtz.make_miller_array())[present].astype(np.int64)
    return torch.tensor(indices, device=device), torch.tensor(values, device=device)


def _space_group(crystal: Crystal) -> gemmi.SpaceGroup:
    """gemmi's space group; of a setting that its table lacks P 1, since the whole cell or all mates are given."""
    try:
        found = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(crystal.hall_symbol))
    except (RuntimeError, ValueError):
        found = None
    found = found or gemmi.find_spacegroup_by_name(crystal.space_group_symbol.split("(")[0])
    return found or gemmi.SpaceGroup("P 1")


def _check_folder(path: str | Path) -> None:
    if not Path(path).parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {Path(path).parent}.")
