"""``mmtbx_sfdiff.refine`` and servalcat from the same starts, judged alike.

For every entry a start is made once: hydrogens taken off, the sites of all atoms shifted at random (normally distributed,
0.3 Å root mean square), amplitudes and flags in one MTZ file. Both programs refine it with their defaults, without hydrogens, with the
same monomer library, each in its own environment. What they write is judged by mmtbx's binary mask and scales (:class:`FModel`)
and against the same restraints.

    python -m validation.studies.refinement_peers --out FOLDER --servalcat PATH --library FOLDER [--entries 3sb3 ...] [--start 0.3]
        [--programs servalcat sfdiff] [--label NAME] [words for mmtbx_sfdiff.refine ...]
    python -m validation.studies.refinement_peers --out FOLDER --table

What is there already (``FOLDER/<entry>/<start>/<program>.json``) is not done again.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.files import find_entry, write_all

import gemmi

# Credible flags: R-free is within 0.01 of the deposited one, the gap at least 0.015, or close to it. 1.5 to 3.3 Å; ligands, DNA, metals.
ENTRIES = (
    "1aie", "2xiu", "3ds1", "4hg7", "5orl", "6n1l", "4cjl", "2apb", "2nth", "3sb3", "5gge", "1g1j", "5edl", "6jqs", "3g3w",
    "3mpq", "5c11", "3nm9", "3io0", "5o5i", "3wap", "5kzb", "5xsl",
)  # fmt: skip
SERVALCAT_CYCLES = 20
LIMIT = 3600  # s


def make_start(entry, kind, folder):
    """``start.pdb`` (or ``.cif``) and ``data.mtz`` in a folder; "deposited", or a shift in Å."""
    from mmtbx_sfdiff.programs.refine import shaken

    model = next((folder / name for name in ("start.pdb", "start.cif") if (folder / name).is_file()), None)
    if model is not None and (folder / "data.mtz").is_file():
        return model, folder / "data.mtz"
    folder.mkdir(parents=True, exist_ok=True)
    files = find_entry(entry, download=False)
    fmodel = FModel.from_files(files.model, files.data)
    manager = fmodel.source.model.manager
    suffix = ".pdb" if manager.can_be_output_as_pdb() else ".cif"
    if kind != "deposited":
        fmodel.replace(sites_cart=shaken(fmodel.atoms, float(kind), seed=0))
    model = folder / ("start" + suffix)
    fmodel.write_model(model)
    structure = gemmi.read_structure(str(model))
    structure.remove_hydrogens()
    text = structure.make_pdb_string() if suffix == ".pdb" else structure.make_mmcif_document().as_string()
    write_all({model: text.encode()})
    f_obs, flags = fmodel.reflections.to_cctbx()
    dataset = f_obs.as_mtz_dataset(column_root_label="FP", label_decorator=_Plain())
    # CCP4's convention: 0 is free.
    dataset.add_miller_array(flags.array(data=(~flags.data()).as_int()), column_root_label="FREE")
    dataset.mtz_object().write(str(folder / "data.mtz"))
    return model, folder / "data.mtz"


class _Plain:
    """Labels FP and SIGFP."""

    def __new__(cls):
        import iotbx.mtz

        class Decorator(iotbx.mtz.ccp4_label_decorator):
            def sigmas(self, root_label, anomalous_sign=None):
                return "SIG" + root_label

        return Decorator()


def run_servalcat(model, data, folder, options):
    folder.mkdir(exist_ok=True)
    command = [options.servalcat, "refine_xtal_norefmac", "--model", model, "--hklin", data, "--labin", "FP,SIGFP,FREE",
               "-s", "xray", "--hydrogen", "no", "--ncycle", SERVALCAT_CYCLES, "--newligand_continue", "-o",
               "refined"]  # fmt: skip
    seconds = _run(command, folder, {"CLIBD_MON": str(options.library) + "/"})
    return folder / "refined.pdb" if (folder / "refined.pdb").is_file() else folder / "refined.mmcif", seconds


def run_sfdiff(model, data, folder, options):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mmtbx_sfdiff.command_line.refine", model, data, f"library={options.library}",
               "figure=False", "overwrite=True", "resume=False", "prefix=refined", *options.words]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    seconds = _run(command, folder, {"PYTHONPATH": str(root)})
    return next(
        folder / name for name in ("refined_refined.pdb", "refined_refined.cif") if (folder / name).is_file()
    ), seconds


PROGRAMS = {"servalcat": run_servalcat, "sfdiff": run_sfdiff}


def _run(command, folder, environment):
    before, start = os.times(), time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        subprocess.run(list(map(str, command)), cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "2"} | environment,
                       stdout=log, stderr=subprocess.STDOUT, timeout=LIMIT, check=True)  # fmt: skip
    after = os.times()
    return {
        "wall": time.perf_counter() - start,
        "cpu": after.children_user - before.children_user + after.children_system - before.children_system,
    }


def judge(model, data, library):
    """R factors by mmtbx's binary mask and scales, deviations from the library's geometry."""
    from mmtbx_sfdiff.geometry import GeometryRestraints

    path = Path(model)
    if path.suffix == ".mmcif":
        path = path.with_suffix(".cif")
        path.write_bytes(Path(model).read_bytes())
    fmodel = FModel.from_files(path, data, mask={"method": "binary"})
    fmodel.update_scales()
    r_work, r_free = fmodel.r_factors()
    geometry = GeometryRestraints.from_gemmi(gemmi.read_structure(str(path)), library)
    rms = geometry.rms(torch.tensor(geometry.topology.atoms.sites_cart))
    free = int(fmodel.reflections.r_free_flags.sum())
    return {
        "r_work": r_work, "r_free": r_free, "bond": rms["bond"], "angle": rms["angle"], "n_atoms": fmodel.atoms.n_atoms,
        "d_min": fmodel.reflections.d_min, "n_free": free, "n_reflections": len(fmodel.reflections),
    }  # fmt: skip


def study(entry, program, options):
    folder = options.out / entry / options.start
    name = program if program != "sfdiff" or not options.label else f"sfdiff_{options.label}"
    done = folder / f"{name}.json"
    if done.is_file():
        return json.loads(done.read_text())
    model, data = make_start(entry, options.start, folder)
    if not (folder / "start.json").is_file():
        write_all({folder / "start.json": json.dumps(judge(model, data, options.library)).encode()})
    try:
        refined, seconds = PROGRAMS[program](model, data, folder / name, options)
        result = judge(refined, data, options.library) | {"seconds": seconds}
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, StopIteration) as error:
        log = (folder / name / "log.txt").read_text().strip().splitlines()
        result = {"failed": log[-1] if log else str(error)}
    write_all({done: json.dumps(result).encode()})
    return result


def collect(out, start):
    """{entry: {name: result}}"""
    found = {}
    for path in sorted(out.glob(f"*/{start}/*.json")):
        found.setdefault(path.parts[-3], {})[path.stem] = json.loads(path.read_text())
    return found


def table(out, start, names):
    """Lines, and the comparison of each program with servalcat over the entries that both did."""
    found = collect(out, start)
    names = names or sorted({n for results in found.values() for n in results} - {"start"})
    lines = [f"{'entry':5} {'d_min':>5} {'free':>5} {'start':>13}  " + "  ".join(f"{n:>34}" for n in names)]
    for entry, results in sorted(found.items(), key=lambda item: item[1].get("start", {}).get("d_min", 9)):
        s = results.get("start")
        if s is None:
            continue
        cells = [_cell(results.get(name)) for name in names]
        lines.append(
            f"{entry:5} {s['d_min']:5.2f} {s['n_free']:5d} {s['r_work']:.4f}/{s['r_free']:.4f}  " + "  ".join(cells)
        )
    for name in names:
        if name == "servalcat":
            continue
        pairs = [(r[name], r["servalcat"]) for r in found.values()
                 if "r_free" in r.get(name, {}) and "r_free" in r.get("servalcat", {})]  # fmt: skip
        if pairs:
            differences = [a["r_free"] - b["r_free"] for a, b in pairs]
            allowed = [max(0.01, b["r_free"] / math.sqrt(2 * b["n_free"])) for _, b in pairs]
            lines.append(
                f"{name}: {len(pairs)} entries, R-free - servalcat's: median {statistics.median(differences):+.4f}, below in "
                f"{sum(d < 0 for d in differences)}, above by more than allowed in "
                f"{sum(d > a for d, a in zip(differences, allowed))}; gap "
                f"{statistics.median(a['r_free'] - a['r_work'] for a, _ in pairs):.4f} "
                f"({statistics.median(b['r_free'] - b['r_work'] for _, b in pairs):.4f}), bonds "
                f"{statistics.median(a['bond'] for a, _ in pairs):.4f} ({statistics.median(b['bond'] for _, b in pairs):.4f}) Å, "
                f"angles {statistics.median(a['angle'] for a, _ in pairs):.2f} "
                f"({statistics.median(b['angle'] for _, b in pairs):.2f})°, CPU time / servalcat's "
                f"{statistics.median(a['seconds']['cpu'] / b['seconds']['cpu'] for a, b in pairs):.2f}"
            )
    return "\n".join(lines)


def _cell(result):
    if result is None or "failed" in result:
        return f"{'-' if result is None else 'failed':>34}"
    return (f"{result['r_work']:.4f}/{result['r_free']:.4f} {result['bond']:.4f} Å {result['angle']:4.2f}° "
            f"{result['seconds']['cpu']:5.0f} s")  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--servalcat", default="servalcat", help="the program of its own environment")
    parser.add_argument("--library", type=Path, default=os.environ.get("CLIBD_MON"))
    parser.add_argument("--entries", nargs="*", default=ENTRIES)
    parser.add_argument("--start", default="0.3", help="deposited, or a shift in Å")
    parser.add_argument("--programs", nargs="*", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--label", default="", help="of a variant of our own, by the words that follow")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--names", nargs="*")
    options, options.words = parser.parse_known_args(arguments)
    options.out = options.out.resolve()
    if not options.table:
        for entry in options.entries:
            for program in options.programs:
                result = study(entry, program, options)
                print(entry, program, _cell(result) if "failed" not in result else result["failed"], flush=True)
    print(table(options.out, options.start, options.names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
