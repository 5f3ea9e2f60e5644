"""SFcalculator_torch 0.3.3 and this package's interface of it, entry by entry.

Every entry is written as a plain model.pdb and data.mtz (FP, SIGFP, FreeR_flag), and goes through the same program,
:mod:`.sfcalculator_worker`, in processes of their own: with the published package in an environment of its own
(``python -m venv E && E/bin/pip install SFcalculator-torch==0.3.3``), and with this one.  Compared are the type, shape and
order of every attribute, F_protein (both against direct summation in float64; theirs also against that sum with their
conventions, each atom of a special position counted by every operator and ions without charge), R factors, time, and memory.
R-free stands as each package reports it, and over the reflections that neither calls an outlier, with the standard error of
the difference (1,000 bootstrap samples of these free reflections).

    python -m validation.studies.sfcalculator --python E/bin/python [--entries 1dur ...] [--speed] [--csv FILE] [--work FOLDER]

Exit status 1 where R-free of ours is above theirs by more than 0.005 anywhere, or at all in more than a tenth.
"""

from __future__ import annotations

import argparse
import dataclasses
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
    "flags",
    "n_special",
    "n_ions",
    "kinds_differ",
    "values_differ",
    "f_ours",
    "f_theirs",
    "f_theirs_own_conventions",
    "r_work_ours",
    "r_work_theirs",
    "r_free_ours",
    "r_free_theirs",
    "r_free_common_ours",
    "r_free_common_theirs",
    "standard_error",
    "r_work_their_mask",
    "r_free_their_mask",
    "seconds_ours",
    "seconds_theirs",
    "step_ours",
    "step_theirs",
    "memory_ours",
    "memory_theirs",
]


def write_plain(entry, folder: Path, d_min: float | None = None, test: np.ndarray | None = None):
    """model.pdb and data.mtz of an entry, to a resolution; the flags with 0 for the test set, drawn by chance where it has none,
    or ``test`` (n,) bool."""
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
    if test is not None:
        free = 1.0 - test
    elif flags is None:
        free = (np.random.default_rng(0).random(len(indices)) >= 0.05).astype(float)
    else:
        free = 1.0 - flags.data().as_numpy_array()
    rows = np.column_stack([indices, f_obs.data().as_numpy_array(), sigmas, free]).astype(np.float32)
    mtz.set_data(rows if d_min is None else rows[f_obs.d_spacings().data().as_numpy_array() >= d_min])
    mtz.write_to_file(str(folder / "data.mtz"))


def run(python, which, folder: Path, speed: bool):
    """What the worker found, or None and its last line of complaint; what the published package found is kept."""
    out = folder / f"{which}.npz"
    if which == "published" and out.with_suffix(".json").is_file():
        about = json.loads(out.with_suffix(".json").read_text())
        if not speed or "step" in about["seconds"]:
            return (dict(np.load(out, allow_pickle=True)), about), ""
    command = [python, str(WORKER), which, str(folder / "model.pdb"), str(folder / "data.mtz"), str(out)]
    done = subprocess.run(command + (["--speed"] if speed else []), capture_output=True, text=True, timeout=3000)
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return (dict(np.load(out, allow_pickle=True)), json.loads(out.with_suffix(".json").read_text())), ""


def exact_f(folder: Path, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Direct summation in float64 of the atoms as the interface reads them, the same with the published package's
    conventions, and the numbers of atoms on special positions and of charged ones."""
    sfc = SFcalculator(str(folder / "model.pdb"), str(folder / "data.mtz"), set_experiment=False, device="cpu")
    atoms = sfc._atoms().to(dtype=torch.float64)
    special = int((atoms.site_weights != 1).sum())
    charged = [charge for charge in sfc._pdb.atom_charge if charge]
    for record in sfc._pdb._records:
        record[-1].charge = 0
    theirs = sfc._make_atoms().to(dtype=torch.float64)
    theirs = dataclasses.replace(atoms, form_factors=theirs.form_factors, type_index=theirs.type_index)
    theirs = dataclasses.replace(theirs, site_weights=torch.ones_like(atoms.site_weights))
    found = [sfdiff.structure_factors(x, atoms.crystal, indices, method="direct").numpy() for x in (atoms, theirs)]
    return found[0], found[1], special, len(charged)


def common_residuals(a: dict, b: dict) -> tuple[np.ndarray, list[np.ndarray]]:
    """F_obs and the residuals of both, over the free reflections that neither calls an outlier."""
    rows = a["free_flag"] & ~a["Outlier"] & ~b["Outlier"]
    f_obs = a["Fo"][rows].astype(np.float64)
    return f_obs, [np.abs(f_obs - np.abs(x["Ftotal_HKL"][rows])) for x in (a, b)]


def common_r_free(f_obs: np.ndarray, residuals: list[np.ndarray]) -> tuple[float, float, float]:
    """R-free of both over the same reflections, and the standard error of the difference."""
    draw = np.random.default_rng(0).integers(0, len(f_obs), (1000, len(f_obs)))
    spread = (residuals[0] - residuals[1])[draw].sum(1) / f_obs[draw].sum(1)
    return (*(float(x.sum() / f_obs.sum()) for x in residuals), float(spread.std()))


def with_their_mask(folder: Path, a: dict, b: dict) -> tuple[float, float]:
    """R-work and R-free of our F and our scaling, with their mask in the place of ours."""
    crystal = sfdiff.Atoms.from_gemmi(gemmi.read_structure(str(folder / "model.pdb"))).crystal
    f_obs, free = torch.as_tensor(a["Fo"]).double().clamp(min=0), torch.as_tensor(a["free_flag"])
    sigmas = torch.as_tensor(a["SigF"]).double()
    indices = torch.as_tensor(a["HKL_array"].astype(np.int64))
    data = sfdiff.Reflections.from_arrays(crystal, indices, f_obs, sigmas=sigmas, free=free)
    f_protein, f_mask = (torch.as_tensor(x).to(torch.complex128) for x in (a["Fprotein_HKL"], b["Fmask_HKL"]))
    scales = sfdiff.update_all_scales(data, f_protein, f_mask)
    return scales.r_work, scales.r_free


def redrawn(name: str, python: str, folder: Path, n_sets: int) -> dict:
    """R-free of both over every reflection of an entry, each in the test set once: ``n_sets`` runs with sets drawn by chance."""
    files = find_entry(name)
    entry = load_entry(files.model, files.data)
    number = np.random.default_rng(0).integers(0, n_sets, entry.data.f_obs.size())
    f_obs, ours, theirs, lower = [], [], [], 0
    for k in range(n_sets):
        part = folder / f"set{k}"
        part.mkdir(parents=True, exist_ok=True)
        write_plain(entry, part, test=number == k)
        found = [run(*which, part, False) for which in ((sys.executable, "ours"), (python, "published"))]
        if any(side is None for side, _ in found):
            raise RuntimeError("; ".join(why for _, why in found if why))
        f, (r_ours, r_theirs) = common_residuals(*(arrays for (arrays, _), _ in found))
        f_obs, ours, theirs = [*f_obs, f], [*ours, r_ours], [*theirs, r_theirs]
        lower += r_ours.sum() <= r_theirs.sum()
    pooled = np.concatenate(f_obs), [np.concatenate(ours), np.concatenate(theirs)]
    r_ours, r_theirs, error = common_r_free(*pooled)
    return {
        "entry": name,
        "n": len(pooled[0]),
        "r_free_ours": r_ours,
        "r_free_theirs": r_theirs,
        "standard_error": error,
        "sets_not_above": int(lower),
        "sets": n_sets,
    }


def _as_text(value) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return " ".join(map(str, value)) if isinstance(value, (list, dict)) else "" if value is None else str(value)


def compare(name: str, python: str, folder: Path, speed: bool, d_min: float | None = None) -> dict:
    """One row of the table."""
    files = find_entry(name)
    entry = load_entry(files.model, files.data)
    write_plain(entry, folder, d_min)
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
    f, f_as_theirs, special, ions = exact_f(folder, a["HKL_array"].astype(np.int64))

    def error(found, reference=f):
        return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))

    row = {
        "entry": name,
        "n_atoms": int(len(a["atom_pos_frac"])),
        "n_reflections": len(f),
        "d_min": float(a["dHKL"].min()),
        "n_free": int(a["free_flag"].sum()),
        "kinds_differ": {k: (about_a["kinds"].get(k), about_b["kinds"][k]) for k in kinds},
        "values_differ": values,
        "flags": "drawn" if entry.data.r_free_flags is None else "deposited",
        "n_special": special,
        "n_ions": ions,
        "f_theirs_own_conventions": error(b["Fprotein_HKL"], f_as_theirs),
    }
    row["r_work_their_mask"], row["r_free_their_mask"] = with_their_mask(folder, a, b)
    common = common_r_free(*common_residuals(a, b))
    row["r_free_common_ours"], row["r_free_common_theirs"], row["standard_error"] = common
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
    parser.add_argument("--d-min", type=float, help="resolution of the data, Å")
    parser.add_argument("--csv", type=Path)
    parser.add_argument(
        "--work", type=Path, help="keep the files here; entries that are there already are not run again"
    )
    parser.add_argument(
        "--redraw",
        type=int,
        metavar="N",
        help="instead: R-free over N test sets, drawn so that each reflection is in one",
    )
    options = parser.parse_args(arguments)
    if options.redraw:
        with tempfile.TemporaryDirectory() as scratch:
            for name in options.entries or all_entries():
                row = redrawn(name, options.python, (options.work or Path(scratch)) / name, options.redraw)
                print(
                    f"{name}: {row['n']} reflections, each free once in {row['sets']} sets: R-free {row['r_free_ours']:.4f}, theirs "
                    f"{row['r_free_theirs']:.4f}; difference {row['r_free_ours'] - row['r_free_theirs']:+.4f} (standard error "
                    f"{row['standard_error']:.4f}); not above in {row['sets_not_above']} of {row['sets']} sets",
                    flush=True,
                )
        return 0
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
                    row = compare(name, options.python, folder, options.speed, options.d_min)
                except Exception as error:
                    row = {"entry": name, "failed": f"{type(error).__name__}: {error}"}
                if "failed" not in row:
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
        lines = [",".join(COLUMNS), *(",".join(_as_text(row[c]) for c in COLUMNS) for row in good)]
        write_all({options.csv: ("\n".join(lines) + "\n").encode()})
    above = [row["r_free_ours"] - row["r_free_theirs"] for row in good if row["flags"] == "deposited"]
    if above:
        print(
            f"{len(good)} entries; R-free of ours not above theirs in {sum(d <= 0 for d in above)} of {len(above)} with flags "
            f"of their own, largest difference {max(above):+.4f}, median {float(np.median(above)):+.4f}"
        )
    return int(bool(above) and (max(above) > 0.005 or sum(d > 0 for d in above) > len(above) / 10))


if __name__ == "__main__":
    sys.exit(main())
