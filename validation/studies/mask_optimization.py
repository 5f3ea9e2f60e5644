"""``optimize_mask`` against mmtbx's: R factors and time.

    python -m validation.studies.mask_optimization RESULTS.json 1aie 1dtx ...

Both start from the same F_calc and data after mmtbx's default scaling; R factors are those after scaling, by each, with
the radii that each found.  mmtbx tries 225 pairs of radii, which takes minutes: results are added to RESULTS.json.  Times
are those of the processor, one thread of either.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import mmtbx_sfdiff as sfdiff
from mmtbx_sfdiff.files.writing import write_atomically
from mmtbx_sfdiff.scaling import update_all_scales
from mmtbx_sfdiff.scaling.mask_lengths import optimize_mask

import mmtbx.f_model
from libtbx.utils import null_out

from validation.studies.scaling import Case


class Clock:
    """Seconds since it was made: of the wall, and of the processor."""

    def __init__(self):
        self.start = time.perf_counter(), time.process_time()

    def read(self):
        return {"time_s": time.perf_counter() - self.start[0], "cpu_s": time.process_time() - self.start[1]}


def measure_mmtbx(case):
    manager = mmtbx.f_model.manager(f_obs=case.f_obs, r_free_flags=case.flags, xray_structure=case.xray_structure)
    manager.update_all_scales(remove_outliers=False)
    clock = Clock()
    manager.optimize_mask(out=null_out())
    seconds = clock.read()
    parameters = manager.mask_params
    # R of both by the same scaling.
    f_mask = case.tensors[1].new_tensor(manager.f_masks()[0].data().as_numpy_array())
    scales = update_all_scales(case.reflections, case.tensors[0], f_mask, remove_outliers=False)
    return seconds | {
        "r_work": scales.r_work,
        "r_free": scales.r_free,
        "own_r_work": manager.r_work(),
        "solvent_radius": parameters.solvent_radius,
        "shrink_truncation_radius": parameters.shrink_truncation_radius,
    }


def measure_ours(case):
    atoms = sfdiff.Atoms.from_cctbx(case.xray_structure)
    sfdiff.solvent_mask(atoms, atoms.crystal)  # the first mask of a process loads compiled code
    clock = Clock()
    # mmtbx removes no outliers while it searches; the same reflections for both.
    found = optimize_mask(atoms, case.reflections, case.tensors[0], remove_outliers=False)
    return clock.read() | {
        "r_work": found.r_work,
        "r_free": found.r_free,
        "n_masks": found.n_masks,
        "start": found.start,
        **{k: found.options[k] for k in ("r_probe", "r_shrink", "softness")},
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results")
    parser.add_argument("entries", nargs="*")
    parser.add_argument("--csv")
    options = parser.parse_args(arguments)
    out = Path(options.results)
    results = json.loads(out.read_text()) if out.is_file() else {}
    for name in options.entries:
        case, known = Case(name), results.setdefault(name, {})
        if "mmtbx" not in known:
            known["mmtbx"] = measure_mmtbx(case)
        known["sfdiff"] = measure_ours(case)
        write_atomically(out, json.dumps(results, indent=1))
        a, b = results[name]["sfdiff"], results[name]["mmtbx"]
        print(
            f"{name}: {a['start'][0]:.4f}/{a['start'][1]:.4f} -> {a['r_work']:.4f}/{a['r_free']:.4f} in {a['time_s']:.1f} s; "
            f"mmtbx {b['r_work']:.4f}/{b['r_free']:.4f} in {b['time_s']:.1f} s",
            flush=True,
        )
    pairs = [(r["sfdiff"], r["mmtbx"]) for r in results.values()]
    better = sum(a["r_work"] <= b["r_work"] for a, b in pairs)
    ratios = sorted(a["cpu_s"] / b["cpu_s"] for a, b in pairs)
    print(
        f"R-work not above mmtbx's on {better} of {len(pairs)}; R-free on {sum(a['r_free'] <= b['r_free'] for a, b in pairs)}; "
        f"ratio of processor time: median {ratios[len(ratios) // 2]:.3f}, range {ratios[0]:.3f}-{ratios[-1]:.3f}"
    )
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                [
                    "entry",
                    "r_work_start",
                    "r_free_start",
                    *(f"{r}_{w}" for w in ("sfdiff", "mmtbx") for r in ("r_work", "r_free", "cpu_s")),
                    "r_probe",
                    "r_shrink",
                    "softness",
                    "solvent_radius",
                    "shrink_truncation_radius",
                ]
            )
            for name, r in sorted(results.items()):
                a, b = r["sfdiff"], r["mmtbx"]
                writer.writerow(
                    [
                        name,
                        *(f"{x:.4f}" for x in a["start"]),
                        *(f"{x[key]:.4f}" for x in (a, b) for key in ("r_work", "r_free", "cpu_s")),
                        *(f"{a[key]:.2f}" for key in ("r_probe", "r_shrink", "softness")),
                        f"{b['solvent_radius']:.1f}",
                        f"{b['shrink_truncation_radius']:.1f}",
                    ]
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
