"""Time of the probe-shrink mask and its gradient against mmtbx's default mask.

    python -m validation.studies.mask_timing [--threads 2] [--repeat 5] 1dur 1aie ...

mmtbx: ``masks.manager(...).shell_f_masks`` at its defaults, one thread, with its FFT to F_mask.  Ours, at the defaults,
on all reflections too: forward, and forward and backward to the sites.  Medians of calls taken in turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.crystal import as_miller_tensor
from mmtbx_sfdiff.files import find_entry, load_entry

import mmtbx.masks
import numpy as np


def measure(name, repeat):
    files = find_entry(name, download=False)
    loaded = load_entry(files.model, files.data)
    structure, f_obs = loaded.model.xray_structure, loaded.data.f_obs
    atoms, indices = sfdiff.Atoms.from_cctbx(structure), as_miller_tensor(loaded.data.f_obs)

    def forward(sites=None):
        model = atoms if sites is None else atoms.replace(sites_cart=sites)
        return sfdiff.solvent_structure_factors(model, atoms.crystal, indices, method="probe_shrink")

    def backward():
        sites = atoms.sites_cart.clone().requires_grad_()
        torch.autograd.grad(forward(sites).abs().sum(), sites)

    calls = {
        "mmtbx": lambda: mmtbx.masks.manager(miller_array=f_obs).shell_f_masks(structure, force_update=True),
        "forward": forward,
        "forward and backward": backward,
    }
    times = {key: [] for key in calls}
    for number in range(repeat + 1):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                times[key].append(1e3 * (time.perf_counter() - start))
    return atoms, {key: statistics.median(values) for key, values in times.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    ratios = []
    for name in options.entries:
        atoms, t = measure(name, options.repeat)
        ratios.append([t["forward"] / t["mmtbx"], t["forward and backward"] / t["mmtbx"]])
        print(
            f"{name} {atoms.n_atoms} atoms {atoms.crystal.space_group_symbol}: "
            + ", ".join(f"{key} {value:.0f} ms" for key, value in t.items())
            + "; ratios {:.2f} {:.2f}".format(*ratios[-1]),
            flush=True,
        )
    print("median ratios: forward {:.2f}, forward and backward {:.2f}".format(*np.median(ratios, 0)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
