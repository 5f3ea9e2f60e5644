"""Scales and outlier rejection against mmtbx's update_all_scales, entry by entry.

Both get mmtbx's own F_calc and F_mask.  For every entry, with and without outlier rejection: R-work and
R-free of both, which reflections each rejected, and the time of each (medians, interleaved in one process;
every run starts from a new manager, whose construction is not timed).

mmtbx's algorithm is greedy, and ties in it are broken by rounding, so that its own result can change when
F_calc is changed in the 14th digit.  Where the two disagree by more than 1e-6, mmtbx is run again on such
F_calc, and the range of its R factors is reported too.

    python validation/scaling.py [--entries 1yjp 1aie ...] [--repeat 3] [--json scaling.json]

The exit status is 1 when R differs by more than 0.0005 from every one of mmtbx's results, or other
reflections are rejected.
"""
import mmtbx_sfdiff  # noqa: F401  (first: it owns the order in which native libraries are loaded)

import argparse
import csv
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch

import mmtbx.f_model
from cctbx.array_family import flex

from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.reflections import Reflections
from mmtbx_sfdiff.scaling import update_all_scales

TOLERANCE = 5e-4
AGREES = 1e-6
N_PERTURBED = 8


def as_tensor(array):
    return torch.from_numpy(array.data().as_numpy_array())


class Watch:
    """Seconds since it was made: (wall clock, processor)."""

    def __init__(self):
        self.start = time.perf_counter(), time.process_time()

    def read(self):
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


class Case:
    """One entry: its data, and mmtbx's structure factors."""

    def __init__(self, entry):
        files = find_entry(entry, download=False)
        loaded = load_entry(files.model, files.data)
        manager = mmtbx.f_model.manager(
            f_obs=loaded.data.f_obs,
            r_free_flags=loaded.data.r_free_flags,
            xray_structure=loaded.model.xray_structure,
        )
        self.xray_structure = loaded.model.xray_structure
        self.f_obs, self.flags = manager.f_obs(), manager.r_free_flags()
        self.f_calc, self.f_mask = manager.f_calc(), manager.f_masks()[0]
        self.reflections = Reflections.from_cctbx(self.f_obs, self.flags)
        self.tensors = as_tensor(self.f_calc), as_tensor(self.f_mask)

    def mmtbx(self, remove_outliers, perturbation=None):
        """(manager after update_all_scales, Watch.read())."""
        f_calc = self.f_calc
        if perturbation is not None:
            flex.set_random_seed(perturbation)
            noise = 1 + 1e-14 * (flex.random_double(f_calc.size()) - 0.5)
            f_calc = f_calc.customized_copy(data=f_calc.data() * noise)
        manager = mmtbx.f_model.manager(
            f_obs=self.f_obs, r_free_flags=self.flags, f_calc=f_calc, f_mask=[self.f_mask])
        watch = Watch()
        manager.update_all_scales(remove_outliers=remove_outliers)
        return manager, watch.read()

    def ours(self, remove_outliers):
        """(Scales, Watch.read())."""
        watch = Watch()
        scales = update_all_scales(self.reflections, *self.tensors, remove_outliers=remove_outliers)
        return scales, watch.read()


def compare(case, remove_outliers, repeat):
    times = {"sfdiff": [], "mmtbx": []}
    for _ in range(repeat):
        scales, seconds = case.ours(remove_outliers)
        times["sfdiff"].append(seconds)
        manager, seconds = case.mmtbx(remove_outliers)
        times["mmtbx"].append(seconds)
    kept = set(map(tuple, case.reflections.miller_indices[scales.selection].tolist()))
    kept_mmtbx = set(manager.f_obs().indices())
    everything = set(case.f_obs.indices())
    result = {
        "sfdiff": {"r_work": scales.r_work, "r_free": scales.r_free, "rejected": sorted(everything - kept)},
        "mmtbx": {
            "r_work": manager.r_work(),
            "r_free": manager.r_free(),
            "rejected": sorted(everything - kept_mmtbx),
        },
        "same_rejected": kept == kept_mmtbx,
        "time_s": {name: statistics.median(wall for wall, _ in values) for name, values in times.items()},
        "cpu_s": {name: statistics.median(cpu for _, cpu in values) for name, values in times.items()},
    }
    runs = [(manager.r_work(), manager.r_free())]
    if difference(scales, runs) > AGREES:
        runs += [(m.r_work(), m.r_free()) for m in (case.mmtbx(remove_outliers, seed)[0]
                                                   for seed in range(1, N_PERTURBED + 1))]
        result["mmtbx_perturbed"] = {"r_work": [r for r, _ in runs], "r_free": [r for _, r in runs]}
    result["difference"] = difference(scales, runs[:1])
    result["difference_to_nearest"] = difference(scales, runs)
    result["speedup"] = result["cpu_s"]["mmtbx"] / result["cpu_s"]["sfdiff"]
    return result


def difference(scales, runs):
    """The larger of the differences of R-work and R-free to the nearest of mmtbx's runs."""
    return min(max(abs(scales.r_work - r_work), abs(scales.r_free - r_free)) for r_work, r_free in runs)


def all_entries():
    folder = Path(
        os.environ.get("MMTBX_SFDIFF_PDB_DIR") or Path(__file__).resolve().parents[2] / "shared" / "pdb"
    )
    with open(folder / "MANIFEST.tsv", newline="") as file:
        return [row["entry"] for row in csv.DictReader(file, delimiter="\t")]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", nargs="*", help="by default all in MANIFEST.tsv of MMTBX_SFDIFF_PDB_DIR")
    parser.add_argument(
        "--repeat", type=int, default=1, help="runs of each, of which the median time is taken"
    )
    parser.add_argument("--json", type=Path, help="where the results are written")
    parser.add_argument("--threads", type=int, help="torch threads (scaling on a CPU uses one)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    results, failed = {}, []
    print("entry  n_refl outliers   r_work sfdiff/mmtbx  r_free sfdiff/mmtbx   |dR|  nearest  rejected  same"
          "   sfdiff s   mmtbx s  ratio (cpu)")
    for entry in options.entries or all_entries():
        case = Case(entry)
        results[entry] = {"n_reflections": len(case.reflections), "threads": torch.get_num_threads()}
        for remove_outliers in (True, False):
            r = compare(case, remove_outliers, options.repeat)
            results[entry]["outliers" if remove_outliers else "no_outliers"] = r
            if r["difference_to_nearest"] > TOLERANCE or not r["same_rejected"]:
                failed.append(entry)
            print(
                f"{entry:6s}{len(case.reflections):7d} {'yes' if remove_outliers else 'no':8s}"
                f"   {r['sfdiff']['r_work']:.4f} {r['mmtbx']['r_work']:.4f}   {r['sfdiff']['r_free']:.4f}"
                f" {r['mmtbx']['r_free']:.4f}   {r['difference']:.0e}  {r['difference_to_nearest']:.0e}"
                f"  {len(r['sfdiff']['rejected']):4d}/{len(r['mmtbx']['rejected'])}  {'yes' if r['same_rejected'] else 'NO'}"
                f"  {r['cpu_s']['sfdiff']:8.3f}  {r['cpu_s']['mmtbx']:8.3f}  {r['speedup']:5.1f}",
                flush=True,
            )
        if options.json:
            temporary = options.json.with_name(options.json.name + ".part")
            temporary.write_text(json.dumps(results, indent=1))
            os.replace(temporary, options.json)
    print(f"{len(results)} entries, failed: {', '.join(sorted(set(failed))) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
