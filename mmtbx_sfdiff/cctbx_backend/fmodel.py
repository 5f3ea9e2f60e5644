"""FModel from files and from mmtbx, and back: managers, map coefficients and models on disk."""

from __future__ import annotations

from pathlib import Path

import torch

import mmtbx.f_model
import numpy as np
from cctbx.array_family import flex
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..files import load_entry, write_all
from ..files.mtz import MTZ, miller_array
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
        raise ValueError(f"The manager is of twinned data (twin law {manager.twin_law}), which are not supported.")
    if manager.xray_structure is None:
        raise ValueError("The manager has no xray_structure: make an FModel from Atoms and Reflections instead.")
    return cls(
        Atoms.from_cctbx(manager.xray_structure, dtype=dtype, device=device),
        Reflections.from_cctbx(manager.f_obs(), manager.r_free_flags(), dtype=dtype, device=device),
        **options,
    )


def fmodel_to_cctbx(fmodel, f_calc=None, f_mask=None):
    """See :meth:`FModel.to_cctbx`; structure factors that are known already need not be computed again."""
    scales = fmodel._known_scales()
    f_obs, flags = selected(fmodel.reflections, scales).to_cctbx()
    f_obs.set_observation_type_xray_amplitude()
    used = scales.selection

    def real(values):
        return flex.double(np.ascontiguousarray(values[used].detach().cpu().numpy(), dtype=np.float64))

    def structure_factors(values):
        return miller_array(f_obs, values[used])

    return mmtbx.f_model.manager(
        f_obs=f_obs,
        r_free_flags=flags,
        f_calc=structure_factors(fmodel.f_calc() if f_calc is None else f_calc),
        f_mask=[structure_factors(fmodel.f_mask() if f_mask is None else f_mask)],
        k_mask=[real(k) for k in scales.k_masks],
        k_isotropic=real(scales.k_isotropic_exp * scales.k_isotropic),
        k_anisotropic=real(scales.k_anisotropic),
        f_part2=None if scales.f_part2 is None else structure_factors(scales.f_part2),
        xray_structure=fmodel.atoms.to_cctbx(),
    )


def map_coefficients(manager):
    """(label, miller array) of 2mFo-DFc and mFo-DFc of a manager."""
    maps = manager.electron_density_map()
    return [(label, maps.map_coefficients(map_type=kind, fill_missing=False)) for kind, label in _MAPS]


def map_file(fmodel):
    """What :meth:`FModel.write_map_coefficients` writes, bytes."""
    with torch.no_grad():
        manager = fmodel_to_cctbx(fmodel)
    mtz = MTZ("mmtbx_sfdiff: map coefficients")
    mtz.add(manager.f_obs(), "F-obs-filtered")
    if fmodel.reflections.r_free_flags is not None:
        flags = manager.r_free_flags()
        mtz.add(flags.array(data=flags.data().as_int()), "R-free-flags")
    mtz.add(manager.f_model_scaled_with_k1(), "F-model")
    for label, coefficients in map_coefficients(manager):
        mtz.add(coefficients, label, is_map=True)
    return mtz.as_bytes()


def model_file(fmodel, suffix):
    """What :meth:`FModel.write_model` writes, bytes; as mmCIF for the suffix ".cif"."""
    if fmodel._source is None:
        raise Sorry("There is no model file to write coordinates into: make the FModel with from_files.")
    manager = fmodel._source.model.manager.deep_copy()
    manager.set_xray_structure(fmodel.atoms.to_cctbx())
    if suffix != ".cif" and not manager.can_be_output_as_pdb():
        raise Sorry(
            "The model does not fit into the PDB format (too many atoms, or long names): write it as mmCIF (.cif)."
        )
    return (manager.model_as_mmcif() if suffix == ".cif" else manager.model_as_pdb()).encode()


def write_map_coefficients(fmodel, path):
    """See :meth:`FModel.write_map_coefficients`."""
    _write(path, map_file(fmodel))


def write_model(fmodel, path):
    """See :meth:`FModel.write_model`."""
    _write(path, model_file(fmodel, Path(path).suffix))


def _write(path, content):
    path = Path(path)
    if not path.parent.is_dir():
        raise Sorry(f"{path} cannot be written: there is no folder {path.parent}.")
    write_all({path: content})
