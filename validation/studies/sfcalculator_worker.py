"""One entry through SFcalculator's interface, by the package of that name or by this one; see :mod:`.sfcalculator`.

Runs in an environment of its own and imports nothing of this project unless it is asked for:
``python sfcalculator_worker.py published|ours MODEL DATA OUT.npz [--speed]``.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


def peak_kib(reset=False):
    """Peak resident memory, KiB, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1])


def kind(value):
    """Type, dtype and shape, as text."""
    if hasattr(value, "shape"):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    if isinstance(value, (list, dict)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


ATTRIBUTES = [
    "HKL_array",
    "Hasu_array",
    "dHKL",
    "dmin",
    "asu2HKL_index",
    "dr2asu_array",
    "dr2HKL_array",
    "bins",
    "n_bins",
    "bin_labels",
    "Fo",
    "SigF",
    "free_flag",
    "Outlier",
    "centric",
    "epsilon",
    "Eo",
    "SigEo",
    "atom_pos_orth",
    "atom_pos_frac",
    "atom_b_iso",
    "atom_aniso_uw",
    "atom_occ",
    "atom_name",
    "cra_name",
    "n_atoms",
    "unique_atom",
    "unit_cell",
    "space_group",
    "operations",
    "R_G_tensor_stack",
    "T_G_tensor_stack",
    "orth2frac_tensor",
    "frac2orth_tensor",
    "reciprocal_cell_paras",
    "fullsf_tensor",
    "full_atomic_sf_asu",
    "inspected",
    "solventpct",
    "gridsize",
    "Fprotein_asu",
    "Fprotein_HKL",
    "Fmask_HKL",
    "real_grid_mask",
    "kmasks",
    "kisos",
    "uanisos",
    "r_work",
    "r_free",
    "Ftotal_HKL",
    "mode",
    "anomalous",
    "wavelength",
]
NUMBERS = [
    "HKL_array",
    "Hasu_array",
    "dHKL",
    "bins",
    "Fo",
    "SigF",
    "free_flag",
    "Outlier",
    "centric",
    "epsilon",
    "Eo",
    "Fprotein_asu",
    "Fprotein_HKL",
    "Fmask_HKL",
    "Ftotal_HKL",
    "atom_pos_frac",
    "gridsize",
    "solventpct",
    "r_work",
    "r_free",
]


def main():
    which, model, data, out = sys.argv[1:5]
    import torch

    if which == "ours":
        from mmtbx_sfdiff.interop.sfcalculator import PDBParser, SFcalculator
    else:
        from SFC_Torch import PDBParser, SFcalculator
    np.random.seed(0)  # noqa: NPY002  (what the published package draws from)
    torch.manual_seed(0)
    started = time.perf_counter()
    sfc = SFcalculator(PDBParser(model), data, device=torch.device("cpu"))
    sfc.inspect_data()
    sfc.calc_fprotein()
    sfc.calc_fsolvent()
    sfc.get_scales_adam()
    sfc.calc_ftotal()
    seconds = {"protocol": time.perf_counter() - started}
    kinds = {name: kind(getattr(sfc, name)) for name in ATTRIBUTES}
    arrays = {}
    for name in NUMBERS:
        value = getattr(sfc, name)
        arrays[name] = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    memory = None
    if "--speed" in sys.argv:
        # One warm call, then forward and backward: time (median of three) and memory above the warm call's.
        sites = sfc.atom_pos_orth.detach().clone().requires_grad_()

        def step():
            f = sfc.calc_fprotein(atoms_position_tensor=sites, Return=True)
            (gradient,) = torch.autograd.grad(f.abs().square().sum(), sites)
            return gradient

        with torch.no_grad():
            sfc.calc_fprotein(atoms_position_tensor=sites.detach())
        if which == "ours":
            step()  # its kernels are compiled once
        before = int(
            next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS")).split()[1]
        )
        peak_kib(reset=True)
        step()
        memory = (peak_kib() - before) / 1024
        times = []
        for _ in range(3):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        seconds["step"] = sorted(times)[1]
        times = []
        for _ in range(3):
            started = time.perf_counter()
            with torch.no_grad():
                sfc.calc_fprotein(atoms_position_tensor=sites.detach())
            times.append(time.perf_counter() - started)
        seconds["forward"] = sorted(times)[1]
    np.savez_compressed(out, **arrays)
    Path(out).with_suffix(".json").write_text(json.dumps({"kinds": kinds, "seconds": seconds, "memory_mib": memory}))


if __name__ == "__main__":
    main()
