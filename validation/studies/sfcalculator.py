"""SFcalculator_torch 0.3.3 and this package's interface of it, entry by entry.

Every entry is written as a plain model.pdb and data.mtz (FP, SIGFP, FreeR_flag), and goes through the same program,
:mod:`.sfcalculator_worker`, in processes of their own: with the published package in an environment of its own
(``python -m venv E && E/bin/pip install SFcalculator-torch==0.3.3``), and with this one.  Compared are the type, shape and
order of every attribute, F_protein (both against direct summation in float64), R factors, time, and memory.

    python -m validation.studies.sfcalculator --python E/bin/python [--entries 1dur ...] [--speed] [--csv FILE] [--work FOLDER]

Exit status 1 where R-free of ours is above theirs by more than 0.005 anywhere, or at all in more than a tenth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.files.writing import write_all
from mmtbx_sfdiff.interop.sfcalculator import SFcalculator

import gemmi
import numpy as np

from validation.studies.scaling import all_entries

WORKER = Path(__file__).with_name("sfcalculator_worker.py")
#: Values that must agree, as exact or to this relative error.
EXACT = ("HKL_array", "Hasu_array", "bins", "free_flag", "centric", "gridsize")
CLOSE = {"dHKL": 1e-6, "Fo": 1e-6, "SigF": 1e-6, "epsilon": 0.0, "Eo": 1e-5, "atom_pos_frac": 1e-5}
COLUMNS = [
    "entry",
    "n_atoms",
    "n_reflections",
    "d_min",
    "n_free",
    "kinds_differ",
    "values_differ",
    "f_ours",
    "f_theirs",
    "r_work_ours",
    "r_work_theirs",
    "r_free_ours",
    "r_free_theirs",
    "seconds_ours",
    "seconds_theirs",
    "step_ours",
    "step_theirs",
    "memory_ours",
    "memory_theirs",
]


def write_plain(entry, folder: Path):
    """model.pdb and data.mtz of an entry; the flags with 0 for the test set."""
    (folder / "model.pdb").write_text(entry.model.manager.model_as_pdb())
    f_obs, flags = entry.data.f_obs, entry.data.r_free_flags
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup(str(f_obs.space_group_info()))
    mtz.set_cell_for_all(gemmi.UnitCell(*f_obs.unit_cell().parameters()))
    mtz.add_dataset("data")
    for label, kind in (("FP", "F"), ("SIGFP", "Q"), ("FreeR_flag", "I")):
        mtz.add_column(label, kind)
    indices = np.array(list(f_obs.indices()))
    sigmas = f_obs.sigmas().as_numpy_array() if f_obs.sigmas() is not None else np.ones(len(indices))
    free = np.ones(len(indices)) if flags is None else 1.0 - flags.data().as_numpy_array()
    mtz.set_data(np.column_stack([indices, f_obs.data().as_numpy_array(), sigmas, free]).astype(np.float32))
    mtz.write_to_file(str(folder / "data.mtz"))


def run(python, which, folder: Path, speed: bool):
    """What the worker found, or None and its last line of complaint."""
    out = folder / f"{which}.npz"
    command = [python, str(WORKER), which, str(folder / "model.pdb"), str(folder / "data.mtz"), str(out)]
    done = subprocess.run(command + (["--speed"] if speed else []), capture_output=True, text=True, timeout=3000)
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return (dict(np.load(out, allow_pickle=True)), json.loads(out.with_suffix(".json").read_text())), ""


def exact_f(folder: Path, indices: np.ndarray) -> np.ndarray:
    """Direct summation in float64 of the atoms as the interface reads them."""
    sfc = SFcalculator(str(folder / "model.pdb"), str(folder / "data.mtz"), set_experiment=False, device="cpu")
    atoms = sfc._atoms().to(dtype=torch.float64)
    return sfdiff.structure_factors(atoms, atoms.crystal, indices, method="direct").numpy()


def compare(name: str, python: str, folder: Path, speed: bool) -> dict:
    """One row of the table."""
    files = find_entry(name)
    entry = load_entry(files.model, files.data)
    write_plain(entry, folder)
    ours, why_ours = run(sys.executable, "ours", folder, speed)
    theirs, why_theirs = run(python, "published", folder, speed)
    if ours is None or theirs is None:
        return {"entry": name, "failed": f"ours: {why_ours or 'ok'}; theirs: {why_theirs or 'ok'}"}
    (a, about_a), (b, about_b) = ours, theirs
    kinds = [k for k in about_b["kinds"] if about_a["kinds"].get(k) != about_b["kinds"][k]]
    values = [k for k in EXACT if not np.array_equal(a[k], b[k])]
    for key, limit in CLOSE.items():
        if a[key].shape != b[key].shape or np.abs(a[key] - b[key]).max() > limit * np.abs(b[key]).max():
            values.append(key)
    f = exact_f(folder, a["HKL_array"].astype(np.int64))

    def error(found):
        return float(np.linalg.norm(found - f) / np.linalg.norm(f))

    row = {
        "entry": name,
        "n_atoms": int(len(a["atom_pos_frac"])),
        "n_reflections": len(f),
        "d_min": float(a["dHKL"].min()),
        "n_free": int(a["free_flag"].sum()),
        "kinds_differ": {k: (about_a["kinds"].get(k), about_b["kinds"][k]) for k in kinds},
        "values_differ": values,
    }
    for side, found, about in (("ours", a, about_a), ("theirs", b, about_b)):
        row[f"f_{side}"] = error(found["Fprotein_HKL"])
        row[f"r_work_{side}"], row[f"r_free_{side}"] = float(found["r_work"]), float(found["r_free"])
        row[f"seconds_{side}"] = about["seconds"]["protocol"]
        row[f"step_{side}"], row[f"memory_{side}"] = about["seconds"].get("step"), about["memory_mib"]
    return row


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of an environment with SFcalculator-torch 0.3.3")
    parser.add_argument("--entries", nargs="+", help="by default all of the folder")
    parser.add_argument("--speed", action="store_true", help="time a step and its memory, too")
    parser.add_argument("--csv", type=Path)
    parser.add_argument(
        "--work", type=Path, help="keep the files here; entries that are there already are not run again"
    )
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.entries or all_entries():
            folder = (options.work or Path(scratch)) / name
            folder.mkdir(parents=True, exist_ok=True)
            known = folder / "row.json"
            if known.is_file():
                row = json.loads(known.read_text())
            else:
                try:
                    row = compare(name, options.python, folder, options.speed)
                except Exception as error:
                    row = {"entry": name, "failed": f"{type(error).__name__}: {error}"}
                known.write_text(json.dumps(row))
            rows.append(row)
            print(
                name,
                row.get("failed")
                or f"F {row['f_ours']:.1e} {row['f_theirs']:.1e}  R {row['r_work_ours']:.4f}/{row['r_free_ours']:.4f} "
                f"{row['r_work_theirs']:.4f}/{row['r_free_theirs']:.4f}  {row['kinds_differ']} {row['values_differ']}",
                flush=True,
            )
    good = [row for row in rows if "failed" not in row]
    if options.csv:
        lines = [",".join(COLUMNS)]
        for row in good:
            lines.append(
                ",".join(" ".join(map(str, v)) if isinstance(v := row[c], (list, dict)) else str(v) for c in COLUMNS)
            )
        write_all({options.csv: ("\n".join(lines) + "\n").encode()})
    flagged = [row for row in good if row["n_free"]]
    above = [row["r_free_ours"] - row["r_free_theirs"] for row in flagged]
    if above:
        print(
            f"{len(good)} entries; R-free of ours not above theirs in {sum(d <= 0 for d in above)} of {len(above)}, "
            f"largest difference {max(above):+.4f}, median {float(np.median(above)):+.4f}"
        )
    return int(bool(above) and (max(above) > 0.005 or sum(d > 0 for d in above) > len(above) / 10))


if __name__ == "__main__":
    sys.exit(main())
