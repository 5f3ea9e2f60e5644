"""R factors from files to the end: this package's F_calc, mask and scales, beside mmtbx's.

For every entry, ``FModel`` (structure factors by FFT to the accuracy given, and the mask given) after
``update_scales``, and ``mmtbx.f_model.manager`` after ``update_all_scales``, both at their defaults.

    python -m validation.studies.end_to_end [--entries 1yjp ...] [--mask probe_shrink] [--json end.json] [--csv end.csv]

R-free of a small free set depends on which reflections happen to be free.  ``standard_error`` says by how much: that of the
change of R-free when the free reflections are drawn anew from themselves (bootstrap, 2,000 times, both sides the same).

The exit status is 1 when the median change of R-free is positive, or when one is above 0.003 in an entry that is not
twinned.
"""

import argparse
import csv
import io
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.bulk_solvent import DEFAULT_MASK
from mmtbx_sfdiff.comparison import mmtbx_numbers as reference
from mmtbx_sfdiff.files import find_entry, write_all

import numpy as np
from cctbx import miller

from validation.studies.scaling import all_entries

LIMIT = 0.003
COLUMNS = (
    "entry",
    "n_reflections",
    "d_min",
    "r_work_sfdiff",
    "r_work_mmtbx",
    "r_free_sfdiff",
    "r_free_mmtbx",
    "delta_r_work",
    "delta_r_free",
    "n_free",
    "standard_error",
)
# Of the manifest: data of twinned crystals, for which neither side's model holds.
TWINNED = ("1l2h", "4tql")


def standard_error(fmodel, manager, repeat=2000):
    """Number of free reflections that either side uses, and the standard error of the difference of R-free."""

    def deviations(f_obs, f_model):
        scale = (f_obs @ f_model) / (f_model @ f_model)
        return np.stack([np.abs(f_obs - scale * f_model), f_obs])

    reflections, free = fmodel.reflections, ~fmodel.reflections.work
    sides = np.zeros((2, 2, len(reflections)))
    used = (free & fmodel.scales.selection).numpy()
    sides[0][:, used] = deviations(reflections.f_obs.numpy()[used], fmodel.f_model().abs().numpy()[used])
    f_obs = manager.f_obs_free()
    pairs = miller.match_indices(reflections.miller_set().indices(), f_obs.indices()).pairs()
    rows, columns = (pairs.column(i).as_numpy_array() for i in (0, 1))
    found = deviations(f_obs.data().as_numpy_array(), np.abs(manager.f_model_free().data().as_numpy_array()))
    sides[1][:, rows] = found[:, columns]
    sides = sides[:, :, (sides[:, 1] > 0).any(0)]
    n = sides.shape[2]
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), repeat)
    r = [(counts @ deviation) / (counts @ f) for deviation, f in sides]
    return n, float(np.std(r[0] - r[1]))


def compare(entry, mask, accuracy):
    files = find_entry(entry, download=False)
    fmodel = FModel.from_files(files.model, files.data, method="auto", accuracy=accuracy, mask={"method": mask})
    start = time.perf_counter()
    fmodel.update_scales()
    r_work, r_free = fmodel.r_factors()
    seconds = time.perf_counter() - start
    source = fmodel.source
    manager = reference.unscaled_model(source.data.f_obs, source.data.r_free_flags, source.model.xray_structure)
    reference.scale_model(manager)
    has_free = source.data.r_free_flags is not None
    result = {
        "entry": entry,
        "n_reflections": len(fmodel.reflections),
        "d_min": fmodel.reflections.d_min,
        "r_work_sfdiff": r_work,
        "r_work_mmtbx": manager.r_work(),
        "r_free_sfdiff": r_free if has_free else None,
        "r_free_mmtbx": manager.r_free() if has_free else None,
        "seconds": seconds,
        "mask": mask,
        "accuracy": accuracy,
    }
    result["delta_r_work"] = result["r_work_sfdiff"] - result["r_work_mmtbx"]
    result["delta_r_free"] = result["r_free_sfdiff"] - result["r_free_mmtbx"] if has_free else None
    result["n_free"], result["standard_error"] = standard_error(fmodel, manager) if has_free else (0, None)
    return result


def as_csv(results):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for r in results:
        writer.writerow(["" if r[c] is None else f"{r[c]:.4f}" if isinstance(r[c], float) else r[c] for c in COLUMNS])
    return text.getvalue()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", nargs="*", help="by default all in MANIFEST.tsv of MMTBX_SFDIFF_PDB_DIR")
    parser.add_argument("--mask", default=DEFAULT_MASK)
    parser.add_argument("--accuracy", type=float, default=1e-4)
    parser.add_argument("--json", type=Path, help="results are added to it; entries that it has are not repeated")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    results = {r["entry"]: r for r in known}
    for entry in options.entries if options.entries is not None else all_entries():
        if entry in results:
            continue
        with torch.no_grad():
            r = results[entry] = compare(entry, options.mask, options.accuracy)
        free = (
            ""
            if r["delta_r_free"] is None
            else (
                f"  R-free {r['r_free_sfdiff']:.4f} {r['r_free_mmtbx']:.4f} ({r['delta_r_free']:+.4f} "
                f"+- {r['standard_error']:.4f}, {r['n_free']} free)"
            )
        )
        print(
            f"{entry:6s} R-work {r['r_work_sfdiff']:.4f} {r['r_work_mmtbx']:.4f} ({r['delta_r_work']:+.4f}){free}",
            flush=True,
        )
        if options.json:
            write_all({options.json: json.dumps(list(results.values()), indent=1).encode()})
    results = sorted(results.values(), key=lambda r: r["entry"])
    if options.csv:
        write_all({options.csv: as_csv(results).encode()})
    if not results:
        return 0
    with_free = [r for r in results if r["delta_r_free"] is not None]
    above = [r["entry"] for r in with_free if r["delta_r_free"] > LIMIT]
    median = {
        name: statistics.median(r[name] for r in rows)
        for name, rows in (("delta_r_work", results), ("delta_r_free", with_free))
    }
    print(
        f"{len(results)} entries: median change of R-work {median['delta_r_work']:+.5f}, of R-free "
        f"{median['delta_r_free']:+.5f} ({len(with_free)} entries); R-free above by more than {LIMIT}: "
        f"{', '.join(above) or 'none'} (twinned: {', '.join(TWINNED)})"
    )
    return 1 if median["delta_r_free"] > 0 or set(above) - set(TWINNED) else 0


if __name__ == "__main__":
    sys.exit(main())
