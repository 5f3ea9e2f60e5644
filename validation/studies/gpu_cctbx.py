"""cctbx on one core of this machine, as a table: what :mod:`.gpu_study`, whose machine need not have cctbx, puts beside its numbers.

    python -m validation.studies.gpu_cctbx docs/figures/gpu_cctbx.csv [--entries 1dur ...] [--repeat 5]

Medians, ms, of F by FFT, of that with gradients in sites and u_iso, of mmtbx's mask with F_mask, and of a whole step of least squares as in
:mod:`.refinement_step` (F, mask, scales held, target, gradients), and the relative L2 of F and of its gradients from direct
summation in double precision.  A row is written as soon as it is there, in place of the entry's row that the table has.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import statistics
import sys
import time
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files import find_entry, load_entry

import mmtbx.masks
import numpy as np
from cctbx import xray
from cctbx.array_family import flex

from .gpu_common import relative
from .gpu_inputs import ENTRIES
from .refinement_step import Theirs

COLUMNS = (
    "entry",
    "atoms",
    "reflections",
    "f",
    "f_gradients",
    "mask",
    "step",
    "f_error",
    "sites_error",
    "u_iso_error",
    "machine",
    "date",
)


def seconds_of(calls, repeat):
    """Medians, s, by name; the first call of each does not count."""
    found = {}
    for name, call in calls.items():
        taken = []
        for turn in range(repeat + 1):
            start = time.perf_counter()
            call()
            if turn:
                taken.append(time.perf_counter() - start)
        found[name] = statistics.median(taken)
    return found


def measure(entry, repeat):
    """A row of the table."""
    files = find_entry(entry, download=False)
    loaded = load_entry(files.model, files.data)
    structure, data = loaded.model.xray_structure.deep_copy_scatterers(), loaded.data.f_obs
    xray.set_scatterer_grad_flags(scatterers=structure.scatterers(), site=True, u_iso=True)
    calculate = xray.structure_factors.from_scatterers(miller_set=data)
    calculate_gradients = xray.structure_factors.gradients(miller_set=data)
    seed = flex.complex_double(data.size(), 1 + 1j)

    def f():
        return calculate(xray_structure=structure, miller_set=data, algorithm="fft").f_calc()

    def f_gradients():
        f()
        return calculate_gradients(
            xray_structure=structure,
            u_iso_refinable_params=None,
            miller_set=data,
            d_target_d_f_calc=seed,
            n_parameters=0,
            algorithm="fft",
        )

    def mask():
        mmtbx.masks.manager(miller_array=data).shell_f_masks(structure, force_update=True)

    theirs, rng = Theirs(entry), np.random.default_rng(0)
    shifts = [0.02 * rng.standard_normal((structure.scatterers().size(), 3)) for _ in range(repeat + 1)]

    def step():
        theirs.step(shifts[0], False)
        shifts.append(shifts.pop(0))

    row = {
        name: 1e3 * s
        for name, s in seconds_of({"f": f, "f_gradients": f_gradients, "mask": mask, "step": step}, repeat).items()
    }
    # What these are worth.
    atoms = sfdiff.Atoms.from_cctbx(structure)
    wanted = [x.clone().requires_grad_() for x in (atoms.sites_cart, atoms.u_iso)]
    moving = atoms.replace(sites_cart=wanted[0], u_iso=wanted[1])
    exact = sfdiff.structure_factors(moving, atoms.crystal, data, method="direct")
    gradients = torch.autograd.grad(exact, wanted, torch.full_like(exact, 1 + 1j))
    found = f_gradients()
    sites = torch.from_numpy(found.d_target_d_site_cart().as_double().as_numpy_array().reshape(-1, 3).copy())
    u_iso = torch.from_numpy(found.d_target_d_u_iso().as_numpy_array().copy())
    return {
        "entry": entry,
        "atoms": atoms.n_atoms,
        "reflections": data.size(),
        **row,
        "f_error": relative(torch.from_numpy(f().data().as_numpy_array()), exact.detach()),
        "sites_error": relative(sites, gradients[0]),
        "u_iso_error": relative(u_iso, gradients[1]),
        "machine": f"{_processor()}, one core",
        "date": datetime.date.today().isoformat(),
    }


def _processor():
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def read(path):
    """Rows of the table by entry, or none where there is no table."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {row["entry"]: row for row in csv.DictReader(file)}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--entries", nargs="*", default=ENTRIES)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = read(options.table)
    for entry in options.entries:
        row = measure(entry, options.repeat)
        rows[entry] = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        print(rows[entry], flush=True)
        with open(options.table, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows.values(), key=lambda row: int(row["atoms"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
