"""``mmtbx_sfdiff.refine`` and its peers, servalcat and TorchRef, from the same starts, judged alike.

For every entry a start is made once, hydrogens taken off: the deposited model; the same with the sites of all atoms shifted at random (normally
distributed, 0.3 or 0.6 Å root mean square); or with its side chains cut to alanine. Amplitudes and flags are in one MTZ file. Each program refines
it in its own environment with its defaults and the same monomer library, without hydrogens, or (``--hydrogens``) with riding hydrogens that
it adds and writes. What they write is judged by mmtbx's binary mask and scales (:class:`FModel`) and against the same restraints, hydrogens
left out of these.

    python -m validation.studies.refinement_peers --out FOLDER --servalcat PATH --library FOLDER [--entries 3sb3 ...]
        [--start deposited 0.3 0.6 alanine] [--hydrogens] [--programs servalcat sfdiff torchref] [--torchref PATH] [--label NAME]
        [words for mmtbx_sfdiff.refine ...]
    python -m validation.studies.refinement_peers --out FOLDER --servalcat PATH --library FOLDER --time [--entries ...] report=False
    python -m validation.studies.refinement_peers --out FOLDER --table [--json FILE] [--csv FILE] [--figure FILE] [--rst FILE]

What is there already (``FOLDER/<entry>/<start>/<program>.json``) is not done again. A start "0.6+set2" is that of 0.6 Å with test set 2 of those
drawn anew: the reflections in random parts of the size of the test set that is there, so that each is free once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.files import find_entry, write_all

import gemmi
import numpy as np

from validation.studies import refinement_peers_report as reporting

# Credible flags: R-free is within 0.01 of the deposited one, the gap at least 0.015, or close to it. 1.5 to 3.3 Å; ligands, DNA, metals.
ENTRIES = (
    "1aie",
    "2xiu",
    "3ds1",
    "4hg7",
    "5orl",
    "6n1l",
    "4cjl",
    "2apb",
    "2nth",
    "3sb3",
    "5gge",
    "1g1j",
    "5edl",
    "6jqs",
    "3g3w",
    "3mpq",
    "5c11",
    "3nm9",
    "3io0",
    "5o5i",
    "3wap",
    "5kzb",
    "5xsl",
)
# Of other entries: 1.1 Å to 3.6 Å, retinoic acid, hydrogens in the file, a twin (5bmg), flags of another refinement (1cbs).
OTHERS = ("4olr", "2igc", "5g27", "3zt9", "1cbs", "3v3x", "2q9e", "5bmg", "5t68", "4k2r", "3ifx")
TWINS = ("5bmg", "1l2h", "4tql")
NEW_TEST_SET = "+set"
# Not looked at while any setting was chosen.
UNSEEN = ("1dtx", "6nfs", "1bdw", "1bff", "5g27", "1l2h", "1nsf", "3zt9", "3v3x", "5bmg")
SERVALCAT_CYCLES = 20
LIMIT = 3600  # s


def make_start(entry, kind, folder):
    """``start.pdb`` (or ``.cif``) and ``data.mtz`` in a folder; "deposited", "alanine", or a shift in Å."""
    from mmtbx_sfdiff.programs.refine import shaken

    model = next((folder / name for name in ("start.pdb", "start.cif") if (folder / name).is_file()), None)
    if model is not None and (folder / "data.mtz").is_file():
        return model, folder / "data.mtz"
    folder.mkdir(parents=True, exist_ok=True)
    kind, _, number = kind.partition(NEW_TEST_SET)
    files = find_entry(entry, download=False)
    fmodel = FModel.from_files(files.model, files.data)
    manager = fmodel.source.model.manager
    suffix = ".pdb" if manager.can_be_output_as_pdb() else ".cif"
    if kind not in ("deposited", "alanine"):
        fmodel.replace(sites_cart=shaken(fmodel.atoms, float(kind), seed=0))
    model = folder / ("start" + suffix)
    fmodel.write_model(model)
    structure = gemmi.read_structure(str(model))
    structure.remove_hydrogens()
    if kind == "alanine":
        cut_to_alanine(structure)
    text = structure.make_pdb_string() if suffix == ".pdb" else structure.make_mmcif_document().as_string()
    write_all({model: text.encode()})
    f_obs, flags = fmodel.reflections.to_cctbx()
    if number:
        flags = test_set(flags, int(number))
    dataset = f_obs.as_mtz_dataset(column_root_label="FP", label_decorator=_Plain())
    # CCP4's convention: 0 is free.
    dataset.add_miller_array(flags.array(data=(~flags.data()).as_int()), column_root_label="FREE")
    dataset.mtz_object().write(str(folder / "data.mtz"))
    return model, folder / "data.mtz"


def test_set(flags, number, seed=0):
    """Flags of the same number of reflections, one part of a random partition."""
    from cctbx.array_family import flex

    parts = max(2, round(flags.size() / max(1, flags.data().count(True))))
    part = np.random.default_rng(seed).permutation(flags.size()) % parts
    return flags.array(data=flex.bool((part == number % parts).tolist()))


def cut_to_alanine(structure):
    """Residues of proteins but glycine and proline: alanine; changes the structure, and drops bonds of what is gone."""
    kept = {"N", "CA", "C", "O", "OXT", "CB"}
    structure.setup_entities()
    for model in structure:
        for chain in model:
            for residue in chain:
                amino = gemmi.find_tabulated_residue(residue.name).is_amino_acid()
                if (
                    not amino
                    or residue.name in ("GLY", "PRO")
                    or residue.het_flag == "H"
                    or residue.find_atom("CA", "*") is None
                ):
                    continue
                for place in reversed([i for i, atom in enumerate(residue) if atom.name not in kept]):
                    del residue[place]
                residue.name = "ALA"
    present = {(cra.chain.name, str(cra.residue.seqid), cra.atom.name) for cra in structure[0].all()}
    for place in reversed(range(len(structure.connections))):
        ends = (structure.connections[place].partner1, structure.connections[place].partner2)
        if any((p.chain_name, str(p.res_id.seqid), p.atom_name) not in present for p in ends):
            structure.connections.pop(place)
    structure.cispeps.clear()


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
    hydrogens = ["--hydrogen", "all", "--hout"] if options.hydrogens else ["--hydrogen", "no"]
    twin = ["--twin"] if options.entry in TWINS else []
    command = [
        options.servalcat,
        "refine_xtal_norefmac",
        "--model",
        model,
        "--hklin",
        data,
        "--labin",
        "FP,SIGFP,FREE",
        "-s",
        "xray",
        *hydrogens,
        *twin,
        "--ncycle",
        SERVALCAT_CYCLES,
        "--newligand_continue",
        "-o",
        "refined",
    ]
    seconds = _run(command, folder, {"CLIBD_MON": str(options.library) + "/"})
    return folder / "refined.pdb" if (folder / "refined.pdb").is_file() else folder / "refined.mmcif", seconds


def run_sfdiff(model, data, folder, options):
    folder.mkdir(exist_ok=True)
    words = ["hydrogens=add"] * options.hydrogens + options.words
    command = [
        sys.executable,
        "-m",
        "mmtbx_sfdiff.command_line.refine",
        model,
        data,
        f"library={options.library}",
        "figure=False",
        "overwrite=True",
        "resume=False",
        "prefix=refined",
        *words,
    ]
    root = Path(__file__).resolve().parents[2]
    seconds = _run(command, folder, {"PYTHONPATH": str(root)})
    return next(
        folder / name for name in ("refined_refined.pdb", "refined_refined.cif") if (folder / name).is_file()
    ), seconds


def run_torchref(model, data, folder, options):
    """TorchRef with its defaults; its process finds its own packages alone."""
    folder.mkdir(exist_ok=True)
    command = [options.torchref, "-m", model, "-sf", data, "-o", folder]
    seconds = _run(command, folder, {"CLIBD_MON": str(options.library) + "/", "PYTHONPATH": ""})
    return next(p for p in sorted(folder.glob("*refined*")) if p.suffix in (".pdb", ".cif")), seconds


PROGRAMS = {"servalcat": run_servalcat, "sfdiff": run_sfdiff, "torchref": run_torchref}


def _run(command, folder, environment):
    before, start = os.times(), time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        subprocess.run(
            list(map(str, command)),
            cwd=folder,
            env={"OMP_NUM_THREADS": "2"} | os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=True,
        )
    after = os.times()
    return {
        "wall": time.perf_counter() - start,
        "cpu": after.children_user - before.children_user + after.children_system - before.children_system,
    }


def judge(model, data, library):
    """R factors by mmtbx's binary mask and scales, deviations from the library's geometry, without hydrogens."""
    from mmtbx_sfdiff.geometry import GeometryRestraints

    path = Path(model)
    if path.suffix == ".mmcif":
        path = path.with_suffix(".cif")
        path.write_bytes(Path(model).read_bytes())
    fmodel = FModel.from_files(path, data, mask={"method": "binary"})
    fmodel.update_scales()
    r_work, r_free = fmodel.r_factors()
    structure = gemmi.read_structure(str(path))
    structure.remove_hydrogens()
    geometry = GeometryRestraints.from_gemmi(structure, library)
    rms = geometry.rms(torch.tensor(geometry.topology.atoms.sites_cart))
    free = int(fmodel.reflections.r_free_flags.sum())
    return {
        "r_work": r_work,
        "r_free": r_free,
        "bond": rms["bond"],
        "angle": rms["angle"],
        "n_atoms": fmodel.atoms.n_atoms,
        "d_min": fmodel.reflections.d_min,
        "n_free": free,
        "n_reflections": len(fmodel.reflections),
    }


def deposited_r_free(entry):
    """As the model's file says it, or None."""
    found = gemmi.read_structure(str(find_entry(entry, download=False).model)).meta.refinement
    return float(found[0].r_free) if found and found[0].r_free == found[0].r_free else None


def study(entry, kind, program, options):
    options.entry = entry
    folder = options.out / entry / kind
    name = program if program != "sfdiff" or not options.label else f"sfdiff_{options.label}"
    name += "_h" * options.hydrogens
    done = folder / f"{name}.json"
    if done.is_file():
        return json.loads(done.read_text())
    try:
        model, data = make_start(entry, kind, folder)
        if not (folder / "start.json").is_file():
            write_all({folder / "start.json": json.dumps(judge(model, data, options.library)).encode()})
        refined, seconds = PROGRAMS[program](model, data, folder / name, options)
        result = judge(refined, data, options.library) | {"seconds": seconds}
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, StopIteration) as error:
        log = (folder / name / "log.txt").read_text().strip().splitlines()
        result = {"failed": log[-1] if log else str(error)}
    write_all({done: json.dumps(result).encode()})
    return result


def time_both(entry, kind, options):
    """Seconds of the programs, one after the other, of runs whose results are not kept; the first of each in a session compiles and is not counted."""
    options.entry = entry
    model, data = make_start(entry, kind, options.out / entry / kind)
    found = {}
    for program in options.programs:
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                found[program] = PROGRAMS[program](model, data, Path(folder), options)[1]
        print(
            f"{entry} {kind} {program}: {found[program]['wall']:.1f} s, {found[program]['cpu']:.1f} s of CPU",
            flush=True,
        )
    write_all({options.out / entry / kind / "times": json.dumps(found).encode()})
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--servalcat", default="servalcat", help="the program of its own environment")
    parser.add_argument("--torchref", default="torchref.refine", help="the program of its own environment")
    parser.add_argument("--library", type=Path, default=os.environ.get("CLIBD_MON"))
    parser.add_argument("--entries", nargs="*", default=ENTRIES + OTHERS)
    parser.add_argument("--start", nargs="*", default=["0.3"], help="deposited, alanine, or shifts in Å")
    parser.add_argument("--hydrogens", action="store_true", help="both add them and write them")
    parser.add_argument("--programs", nargs="*", default=["servalcat", "sfdiff"], choices=PROGRAMS)
    parser.add_argument("--label", default="", help="of a variant of our own, by the words that follow")
    parser.add_argument(
        "--time", action="store_true", help="only times, of a second run each: for a machine that is quiet"
    )
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--names", nargs="*", default=["servalcat", "sfdiff"])
    for kind in ("json", "csv", "figure", "rst"):
        parser.add_argument(f"--{kind}", type=Path)
    options, options.words = parser.parse_known_args(arguments)
    options.out = options.out.resolve()
    if options.time:
        both = [time_both(entry, kind, options) for kind in options.start for entry in options.entries]
        for name in options.programs[1:]:
            for what in ("wall", "cpu"):
                ratio = statistics.median(one[name][what] / one[options.programs[0]][what] for one in both)
                print(f"{name} / {options.programs[0]}, {what}: {ratio:.2f} in the median of {len(both)}")
        return 0
    if not options.table:
        for kind in options.start:
            for entry in options.entries:
                for program in options.programs:
                    result = study(entry, kind, program, options)
                    print(
                        entry,
                        kind,
                        program,
                        reporting.cell(result) if "failed" not in result else result["failed"],
                        flush=True,
                    )
    rows = reporting.collect(options.out, options.start)
    for row in rows:
        if row["program"] == "start" and row["start"].startswith("deposited"):
            row["deposited_r_free"] = deposited_r_free(row["entry"])
    for kind in dict.fromkeys(row["start"] for row in rows):
        print(reporting.table(rows, kind, options.names))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.csv:
        options.csv.write_text(reporting.as_csv(rows))
    if options.rst:
        options.rst.write_text(reporting.as_rst(rows, options.names, UNSEEN))
    if options.figure:
        reporting.draw(rows, options.names).savefig(options.figure, dpi=150)
    return 0


if __name__ == "__main__":
    sys.exit(main())
