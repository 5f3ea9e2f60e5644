"""Scales and outlier rejection against mmtbx's update_all_scales, entry by entry.

Both get mmtbx's own F_calc and F_mask.  For every entry, with and without outlier rejection: R-work and
R-free of both, which reflections each rejected, and the time of each (medians, interleaved in one process;
every run starts from a new manager, whose construction is not timed).

mmtbx smooths k_mask over resolution bins by comparing neighbours with ``<``.  Neighbours are often equal but
for the rounding of how they were reached, so that the 15th digit of F_calc decides which are averaged, and
its own R changes by up to some thousandths.  Here such neighbours are equal.  Where the two disagree by more
than 1e-6, mmtbx is run again with that one comparison made tolerant (1e-12), and compared too.

    python -m validation.studies.scaling [--entries 1yjp 1aie ...] [--repeat 3] [--json scaling.json]

The exit status is 1 when R differs by more than 1e-6 from both of mmtbx's results, or other reflections are
rejected than by either.
"""

import argparse
import contextlib
import csv
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.files.writing import write_atomically
from mmtbx_sfdiff.reflections import Reflections
from mmtbx_sfdiff.scaling import update_all_scales

import mmtbx.bulk_solvent.scaler
import mmtbx.f_model

AGREES = 1e-6
TIE = 1e-12


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

    def mmtbx(self, remove_outliers):
        """(manager after update_all_scales, Watch.read())."""
        manager = mmtbx.f_model.manager(
            f_obs=self.f_obs, r_free_flags=self.flags, f_calc=self.f_calc, f_mask=[self.f_mask]
        )
        watch = Watch()
        manager.update_all_scales(remove_outliers=remove_outliers)
        return manager, watch.read()

    def ours(self, remove_outliers):
        """(Scales, Watch.read())."""
        watch = Watch()
        scales = update_all_scales(self.reflections, *self.tensors, remove_outliers=remove_outliers)
        return scales, watch.read()


def compare(case, remove_outliers, repeat):
    watches = {"sfdiff": [], "mmtbx": []}
    for _ in range(repeat):
        scales, seconds = case.ours(remove_outliers)
        watches["sfdiff"].append(seconds)
        manager, seconds = case.mmtbx(remove_outliers)
        watches["mmtbx"].append(seconds)
    everything = set(case.f_obs.indices())
    kept = set(map(tuple, case.reflections.miller_indices[scales.selection].tolist()))
    result = {
        "sfdiff": {"r_work": scales.r_work, "r_free": scales.r_free, "rejected": sorted(everything - kept)},
        "mmtbx": summary(manager, everything),
    }
    for number, name in enumerate(("time_s", "cpu_s")):
        result[name] = {who: statistics.median(w[number] for w in values) for who, values in watches.items()}
    result["speedup"] = result["cpu_s"]["mmtbx"] / result["cpu_s"]["sfdiff"]
    result["difference"], result["same_rejected"] = difference(result, "mmtbx")
    result["agrees"] = result["difference"] <= AGREES and result["same_rejected"]
    if not result["agrees"]:
        with tolerant_mmtbx():
            result["mmtbx_with_ties"] = summary(case.mmtbx(remove_outliers)[0], everything)
        result["difference_with_ties"], same = difference(result, "mmtbx_with_ties")
        result["agrees"] = result["difference_with_ties"] <= AGREES and same
    return result


def summary(manager, everything):
    return {
        "r_work": manager.r_work(),
        "r_free": manager.r_free(),
        "rejected": sorted(everything - set(manager.f_obs().indices())),
    }


def difference(result, other):
    """(the larger difference of R-work and R-free, whether the same reflections are rejected)."""
    ours, theirs = result["sfdiff"], result[other]
    return (
        max(abs(ours[r] - theirs[r]) for r in ("r_work", "r_free")),
        ours["rejected"] == theirs["rejected"],
    )


@contextlib.contextmanager
def tolerant_mmtbx():
    """mmtbx's scaler with neighbours that differ by rounding taken for equal; nothing else is changed."""
    original = mmtbx.bulk_solvent.scaler.moving_average

    def moving_average(x):
        values = [x[0], *x, x[len(x) - 1]]
        for _ in range(5):
            smoothed = list(values)
            for i in range(1, len(values) - 1):
                before, here, after = values[i - 1 : i + 2]
                if min(here - before, here - after) > TIE or min(before - here, after - here) > TIE:
                    smoothed[i] = (before + here + after) / 3.0
            values = smoothed
        return values[1:-1]

    mmtbx.bulk_solvent.scaler.moving_average = moving_average
    try:
        yield
    finally:
        mmtbx.bulk_solvent.scaler.moving_average = original


def all_entries():
    folder = Path(os.environ.get("MMTBX_SFDIFF_PDB_DIR") or Path(__file__).resolve().parents[3] / "shared" / "pdb")
    with open(folder / "MANIFEST.tsv", newline="") as file:
        return [row["entry"] for row in csv.DictReader(file, delimiter="\t")]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", nargs="*", help="by default all in MANIFEST.tsv of MMTBX_SFDIFF_PDB_DIR")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each, of which the median time is taken")
    parser.add_argument("--json", type=Path, help="where the results are written")
    parser.add_argument("--threads", type=int, help="torch threads (scaling on a CPU uses one)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    results, failed = {}, []
    print(
        "entry  n_refl outliers  r_work sfdiff mmtbx  r_free sfdiff mmtbx   |dR|   ties   rejected same"
        "  sfdiff s  mmtbx s  ratio (cpu)"
    )
    for entry in options.entries or all_entries():
        case = Case(entry)
        results[entry] = {"n_reflections": len(case.reflections), "threads": torch.get_num_threads()}
        for remove_outliers in (True, False):
            r = compare(case, remove_outliers, options.repeat)
            results[entry]["outliers" if remove_outliers else "no_outliers"] = r
            if not r["agrees"]:
                failed.append(entry)
            ours, theirs, cpu = r["sfdiff"], r["mmtbx"], r["cpu_s"]
            ties = f"{r['difference_with_ties']:.0e}" if "difference_with_ties" in r else "  -  "
            print(
                f"{entry:6s}{len(case.reflections):7d} {'yes' if remove_outliers else 'no':9s}"
                f"    {ours['r_work']:.4f} {theirs['r_work']:.4f}    {ours['r_free']:.4f} {theirs['r_free']:.4f}"
                f"   {r['difference']:.0e}  {ties}  {len(ours['rejected']):4d}/{len(theirs['rejected']):<4d}"
                f" {'yes' if r['same_rejected'] else 'NO '}  {cpu['sfdiff']:8.3f} {cpu['mmtbx']:8.3f}"
                f"  {r['speedup']:5.1f}",
                flush=True,
            )
        if options.json:
            write_atomically(options.json, json.dumps(results, indent=1))
    print(f"{len(results)} entries, failed: {', '.join(sorted(set(failed))) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
