"""Inputs of :mod:`.gpu_study`: entries as arrays, with the times of cctbx on one core of this machine.

    python -m validation.studies.gpu_inputs FOLDER [--entries 1dur 1cbs ...] [--repeat 5]

Every entry becomes ``<entry>.npz``, from which the core makes its atoms and reflections without cctbx: cell, space group,
scattering types, sites, displacements, occupancies, indices, amplitudes, sigmas, free flags, and F_mask by the CPU.  Beside them are medians, s, of
cctbx's FFT, of the same with gradients in sites and u_iso, and of mmtbx's mask with F_mask, and the processor they are of.
Entries are deposited data: the files are not for the repository.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import time
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.crystal import as_miller_tensor
from mmtbx_sfdiff.files import find_entry, load_entry

import mmtbx.masks
import numpy as np
from cctbx import xray
from cctbx.array_family import flex

ENTRIES = ("1dur", "1cbs", "4cjl", "1nsf", "3mpq", "2uxj")


def cctbx_times(loaded, repeat):
    """Medians, s, of F, F with gradients, and mask."""
    structure, data = loaded.model.xray_structure.deep_copy_scatterers(), loaded.data.f_obs
    xray.set_scatterer_grad_flags(scatterers=structure.scatterers(), site=True, u_iso=True)
    calculate = xray.structure_factors.from_scatterers(miller_set=data)
    gradients = xray.structure_factors.gradients(miller_set=data)
    seed = flex.complex_double(data.size(), 1 + 1j)

    def f():
        calculate(xray_structure=structure, miller_set=data, algorithm="fft").f_calc()

    def f_gradients():
        f()
        gradients(
            xray_structure=structure,
            u_iso_refinable_params=None,
            miller_set=data,
            d_target_d_f_calc=seed,
            n_parameters=0,
            algorithm="fft",
        )

    def mask():
        mmtbx.masks.manager(miller_array=data).shell_f_masks(structure, force_update=True)

    found = {}
    for name, call in (("cctbx_f", f), ("cctbx_f_gradients", f_gradients), ("cctbx_mask", mask)):
        seconds = []
        for turn in range(repeat + 1):
            start = time.perf_counter()
            call()
            if turn:
                seconds.append(time.perf_counter() - start)
        found[name] = statistics.median(seconds)
    return found


def arrays(entry, repeat):
    """What goes into the file of an entry."""
    files = find_entry(entry, download=False)
    loaded = load_entry(files.model, files.data)
    atoms = sfdiff.Atoms.from_cctbx(loaded.model.xray_structure)
    data, flags = loaded.data.f_obs, loaded.data.r_free_flags
    u_cart = torch.where(atoms.use_u_aniso[:, None], atoms.u_cart, torch.nan)
    sigmas = data.sigmas()
    return {
        "entry": entry,
        "unit_cell": np.array(data.unit_cell().parameters()),
        "space_group": str(data.space_group_info()),
        "types": np.array(atoms.scattering_types),
        "sites_cart": atoms.sites_cart.numpy(),
        "b_iso": atoms.b_iso.numpy(),
        "u_cart": u_cart.numpy(),
        "occupancies": atoms.occupancies.numpy(),
        "miller_indices": as_miller_tensor(data).numpy().astype(np.int32),
        "f_obs": data.data().as_numpy_array(),
        "sigmas": np.ones(data.size()) if sigmas is None else sigmas.as_numpy_array(),
        "free": np.zeros(data.size(), bool) if flags is None else flags.data().as_numpy_array(),
        # What the mask is compared with: that machine may have no engine for CPUs.
        "f_mask": sfdiff.solvent_structure_factors(atoms, atoms.crystal, as_miller_tensor(data))
        .to(torch.complex64)
        .numpy(),
        "cpu": f"{_processor()}, one core, {datetime.date.today().isoformat()}",
        **cctbx_times(loaded, repeat),
    }


def _processor():
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--entries", nargs="*", default=ENTRIES)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for entry in options.entries:
        found = arrays(entry, options.repeat)
        np.savez_compressed(options.folder / f"{entry}.npz", **found)
        print(entry, len(found["types"]), "atoms,", len(found["f_obs"]), "reflections", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
