"""R factors with the probe-shrink mask at its defaults and with mmtbx's mask, through mmtbx's own scaling.

    python -m validation.studies.mask_r_factors RESULTS.jsonl [--entries 1aie ...] [--csv TABLE.csv]

For every entry, smallest first: mmtbx's F_calc, one or the other F_mask, and ``update_all_scales`` of mmtbx without outlier
rejection, so that both see the same reflections.  A line is added to RESULTS.jsonl for each; what it holds is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch

import mmtbx.f_model
import numpy as np
from cctbx.array_family import flex

from validation.studies.scaling import Case

COLUMNS = (
    "entry",
    "n_atoms",
    "n_reflections",
    "d_min",
    "r_work_mmtbx",
    "r_work_sfdiff",
    "r_free_mmtbx",
    "r_free_sfdiff",
)


def by_size(folder):
    """Entries by the number of reflections."""
    with open(Path(folder) / "MANIFEST.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [row["entry"] for row in sorted(rows, key=lambda row: int(row["n_refl"]))]


def measure(name):
    case = Case(name)
    atoms = sfdiff.Atoms.from_cctbx(case.xray_structure)
    with torch.no_grad():
        ours = sfdiff.mask_structure_factors(
            sfdiff.solvent_mask(atoms, atoms.crystal, method="probe_shrink"),
            atoms.crystal,
            case.reflections.miller_indices,
        )
    ours = case.f_mask.customized_copy(data=flex.complex_double(np.ascontiguousarray(ours.numpy(), np.complex128)))
    has_free = bool(case.flags is not None and 0 < case.flags.data().count(True) < case.flags.size())
    result = {
        "entry": name,
        "n_atoms": atoms.n_atoms,
        "n_reflections": len(case.reflections),
        "d_min": case.reflections.d_min,
    }
    for who, f_mask in (("mmtbx", case.f_mask), ("sfdiff", ours)):
        manager = mmtbx.f_model.manager(f_obs=case.f_obs, r_free_flags=case.flags, f_calc=case.f_calc, f_mask=[f_mask])
        manager.update_all_scales(remove_outliers=False)
        result[f"r_work_{who}"] = manager.r_work()
        result[f"r_free_{who}"] = manager.r_free() if has_free else None
    return result


def summary(results):
    lines = []
    for kind in ("work", "free"):
        change = np.array(
            [r[f"r_{kind}_sfdiff"] - r[f"r_{kind}_mmtbx"] for r in results if r[f"r_{kind}_mmtbx"] is not None]
        )
        lines.append(
            f"change of R-{kind}, {len(change)} entries: median {np.median(change):+.5f}, mean {change.mean():+.5f}, "
            f"lower in {int((change < 0).sum())}, above +0.002 in {int((change > 0.002).sum())}, above +0.006 in "
            f"{int((change > 0.006).sum())}, range {change.min():+.4f} to {change.max():+.4f}"
        )
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--entries", nargs="*")
    parser.add_argument("--csv")
    options = parser.parse_args(arguments)
    results = (
        [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.is_file() else []
    )
    known = {r["entry"] for r in results}
    for name in options.entries or by_size(os.environ["MMTBX_SFDIFF_PDB_DIR"]):
        if name in known:
            continue
        start = time.perf_counter()
        results.append(measure(name))
        with open(options.results, "a") as file:
            print(json.dumps(results[-1]), file=file)
        r = results[-1]
        print(
            name,
            f"{r['r_work_mmtbx']:.4f} {r['r_work_sfdiff']:.4f}",
            "" if r["r_free_mmtbx"] is None else f"{r['r_free_mmtbx']:.4f} {r['r_free_sfdiff']:.4f}",
            f"({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    print(summary(results))
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(
                {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in r.items()}
                for r in sorted(results, key=lambda r: r["entry"])
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
