"""mmtbx's manager of a scaled model, and the files that are written of one: map coefficients and the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmtbx.f_model
import numpy as np
from cctbx.array_family import flex
from libtbx.utils import Sorry

from .model import turn
from .mtz import MTZ, miller_array
from .writing import write_all

# Root of the MTZ labels of each map, as phenix.refine writes them and Coot opens them by itself.
MAPS = (("2mFo-DFc", "2FOFCWT"), ("mFo-DFc", "FOFCWT"))


def as_manager(atoms: Any, reflections: Any, scales: Any, f_calc: Any, f_mask: Any) -> Any:
    """An ``mmtbx.f_model.manager`` of the reflections that the scales are for.

    Parameters
    ----------
    atoms : Atoms
    reflections : Reflections
    scales : Scales
    f_calc, f_mask : torch.Tensor
        (n,) complex, of all reflections.
    """
    f_obs, flags = scales.selected(reflections).to_cctbx()
    f_obs.set_observation_type_xray_amplitude()
    used = scales.selection

    def real(values: Any) -> Any:
        return flex.double(np.ascontiguousarray(values[used].detach().cpu().numpy(), dtype=np.float64))

    def structure_factors(values: Any) -> Any:
        return miller_array(f_obs, values[used])

    return mmtbx.f_model.manager(
        f_obs=f_obs,
        r_free_flags=flags,
        f_calc=structure_factors(f_calc),
        f_mask=[structure_factors(f_mask)],
        k_mask=[real(k) for k in scales.k_masks],
        k_isotropic=real(scales.k_isotropic_exp * scales.k_isotropic),
        k_anisotropic=real(scales.k_anisotropic),
        f_part2=None if scales.f_part2 is None else structure_factors(scales.f_part2),
        xray_structure=atoms.to_cctbx(),
    )


def map_coefficients(manager: Any) -> list[tuple[str, Any]]:
    """(label, miller array) of 2mFo-DFc and mFo-DFc of a manager."""
    maps = manager.electron_density_map()
    return [(label, maps.map_coefficients(map_type=kind, fill_missing=False)) for kind, label in MAPS]


def map_file(manager: Any, has_flags: bool) -> bytes:
    """Map coefficients, F_model, the data used and (where there are some) the free flags of a manager as MTZ, bytes."""
    mtz = MTZ("mmtbx_sfdiff: map coefficients")
    mtz.add(manager.f_obs(), "F-obs-filtered")
    if has_flags:
        flags = manager.r_free_flags()
        mtz.add(flags.array(data=flags.data().as_int()), "R-free-flags")
    mtz.add(manager.f_model_scaled_with_k1(), "F-model")
    for label, coefficients in map_coefficients(manager):
        mtz.add(coefficients, label, is_map=True)
    return mtz.as_bytes()


def model_file(source: Any, atoms: Any, suffix: str) -> bytes:
    """The model of an entry with other parameters of its atoms, bytes; as mmCIF for the suffix ".cif".

    Parameters
    ----------
    source : Entry or None
    atoms : Atoms
    suffix : str

    Raises
    ------
    libtbx.utils.Sorry
        Without an entry, or where the model does not fit into the PDB format.
    """
    if source is None:
        raise Sorry("There is no model file to write coordinates into: make the FModel with from_files.")
    manager = source.model.manager.deep_copy()
    manager.set_xray_structure(atoms.to_cctbx())
    if source.model.frame is not None:
        turn(manager.get_hierarchy().atoms(), source.model.frame, back=True)
    if suffix != ".cif" and not manager.can_be_output_as_pdb():
        raise Sorry(
            "The model does not fit into the PDB format (too many atoms, or long names): write it as mmCIF (.cif)."
        )
    return (manager.model_as_mmcif() if suffix == ".cif" else manager.model_as_pdb()).encode()  # type: ignore[no-any-return]


def write(path: str | Path, content: Any) -> None:
    """Write one file, complete or not at all.

    Raises
    ------
    libtbx.utils.Sorry
        No such folder, or no room.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise Sorry(f"{path} cannot be written: there is no folder {path.parent}.")
    write_all({path: content})
