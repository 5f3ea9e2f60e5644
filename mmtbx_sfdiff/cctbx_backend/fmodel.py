"""FModel from files and from mmtbx, and back: managers, map coefficients and models on disk."""
from __future__ import annotations

import os
from pathlib import Path

import mmtbx.f_model
import numpy as np
from cctbx.array_family import flex
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..files import load_entry
from ..fmodel import selected
from ..reflections import Reflections

# Root of the MTZ labels of each map, as phenix.refine writes them and Coot opens them by itself.
_MAPS = (("2mFo-DFc", "2FOFCWT"), ("mFo-DFc", "FOFCWT"))


def fmodel_from_files(cls, model, data, dtype, device, scattering_table, read, options):
    """See :meth:`FModel.from_files`."""
    entry = load_entry(model, data, scattering_table=scattering_table, **read)
    result = cls(
        Atoms.from_cctbx(entry.model.xray_structure, dtype=dtype, device=device),
        Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags, dtype=dtype, device=device),
        **options,
    )
    result._source = entry
    return result


def fmodel_from_cctbx(cls, manager, dtype, device, options):
    """See :meth:`FModel.from_cctbx`."""
    if manager.twin_law is not None:
        raise ValueError(
            f"The manager is of twinned data (twin law {manager.twin_law}), which are not supported."
        )
    if manager.xray_structure is None:
        raise ValueError(
            "The manager has no xray_structure: make an FModel from Atoms and Reflections instead."
        )
    return cls(
        Atoms.from_cctbx(manager.xray_structure, dtype=dtype, device=device),
        Reflections.from_cctbx(manager.f_obs(), manager.r_free_flags(), dtype=dtype, device=device),
        **options,
    )


def fmodel_to_cctbx(fmodel):
    """See :meth:`FModel.to_cctbx`."""
    scales = fmodel._known_scales()
    f_obs, flags = selected(fmodel.reflections, scales).to_cctbx()
    f_obs.set_observation_type_xray_amplitude()
    used = scales.selection

    def real(values):
        return flex.double(np.ascontiguousarray(values[used].detach().cpu().numpy(), dtype=np.float64))

    def structure_factors(values):
        data = np.ascontiguousarray(values[used].detach().cpu().numpy(), dtype=np.complex128)
        return f_obs.customized_copy(data=flex.complex_double(data), sigmas=None).set_observation_type(None)

    return mmtbx.f_model.manager(
        f_obs=f_obs,
        r_free_flags=flags,
        f_calc=structure_factors(fmodel.f_calc()),
        f_mask=[structure_factors(fmodel.f_mask())],
        k_mask=[real(k) for k in scales.k_masks],
        k_isotropic=real(scales.k_isotropic_exp * scales.k_isotropic),
        k_anisotropic=real(scales.k_anisotropic),
        f_part2=None if scales.f_part2 is None else structure_factors(scales.f_part2),
        xray_structure=fmodel.atoms.to_cctbx(),
    )


def write_map_coefficients(fmodel, path):
    """See :meth:`FModel.write_map_coefficients`."""
    manager = fmodel_to_cctbx(fmodel)
    dataset = manager.f_obs().as_mtz_dataset(column_root_label="F-obs-filtered")
    if fmodel.reflections.r_free_flags is not None:
        flags = manager.r_free_flags()
        dataset.add_miller_array(flags.array(data=flags.data().as_int()), column_root_label="R-free-flags")
    dataset.add_miller_array(manager.f_model_scaled_with_k1(), column_root_label="F-model")
    maps = manager.electron_density_map()
    for kind, label in _MAPS:
        dataset.add_miller_array(
            maps.map_coefficients(map_type=kind, fill_missing=False), column_root_label=label
        )
    _write(path, lambda name: dataset.mtz_object().write(file_name=name))


def write_model(fmodel, path):
    """See :meth:`FModel.write_model`."""
    if fmodel._source is None:
        raise Sorry("There is no model file to write coordinates into: make the FModel with from_files.")
    manager = fmodel._source.model.manager.deep_copy()
    manager.set_xray_structure(fmodel.atoms.to_cctbx())
    text = manager.model_as_mmcif() if Path(path).suffix == ".cif" else manager.model_as_pdb()
    _write(path, lambda name: Path(name).write_text(text))


def _write(path, write):
    """Write under a temporary name first, so that nothing half-written is left."""
    path = Path(path)
    if not path.parent.is_dir():
        raise Sorry(f"{path} cannot be written: there is no folder {path.parent}.")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(str(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
