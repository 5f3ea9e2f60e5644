"""Inputs of :mod:`.gpu_study`: entries as arrays.

    python -m validation.studies.gpu_inputs FOLDER [--entries 1dur 1cbs ...]

Every entry becomes ``<entry>.npz``, from which the core makes its atoms and reflections without cctbx: cell, space group,
scattering types, sites, displacements, occupancies, indices (in gemmi's asymmetric unit, which peers take for granted), amplitudes,
sigmas, free flags, and F_mask by the CPU.  Entries are deposited data: the files are not for the repository.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.crystal import as_miller_tensor
from mmtbx_sfdiff.files import find_entry, load_entry

import numpy as np

from .gpu_common import in_asymmetric_unit

ENTRIES = ("1dur", "1cbs", "4cjl", "1nsf", "3mpq", "2uxj")


def arrays(entry):
    """What goes into the file of an entry."""
    files = find_entry(entry, download=False)
    loaded = load_entry(files.model, files.data)
    atoms = sfdiff.Atoms.from_cctbx(loaded.model.xray_structure)
    data, flags = loaded.data.f_obs, loaded.data.r_free_flags
    u_cart = torch.where(atoms.use_u_aniso[:, None], atoms.u_cart, torch.nan)
    sigmas, space_group = data.sigmas(), str(data.space_group_info())
    indices = torch.from_numpy(in_asymmetric_unit(as_miller_tensor(data).numpy(), space_group))
    return {
        "entry": entry,
        "unit_cell": np.array(data.unit_cell().parameters()),
        "space_group": space_group,
        "types": np.array(atoms.scattering_types),
        "sites_cart": atoms.sites_cart.numpy(),
        "b_iso": atoms.b_iso.numpy(),
        "u_cart": u_cart.numpy(),
        "occupancies": atoms.occupancies.numpy(),
        "miller_indices": indices.numpy().astype(np.int32),
        "f_obs": data.data().as_numpy_array(),
        "sigmas": np.ones(data.size()) if sigmas is None else sigmas.as_numpy_array(),
        "free": np.zeros(data.size(), bool) if flags is None else flags.data().as_numpy_array(),
        # What the mask is compared with: that machine may have no engine for CPUs.
        "f_mask": sfdiff.solvent_structure_factors(atoms, atoms.crystal, indices).to(torch.complex64).numpy(),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--entries", nargs="*", default=ENTRIES)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for entry in options.entries:
        found = arrays(entry)
        np.savez_compressed(options.folder / f"{entry}.npz", **found)
        print(entry, len(found["types"]), "atoms,", len(found["f_obs"]), "reflections", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
