"""How far off a start may be: latent refinement beside what people use, by the main chain's starting error.

    python -m validation.studies.latent_radius FOLDER [--entries 1aie 6jqs 1g1j 3ds1] [--seeds 0 1 2] [--rms 1.0 1.5 2.0 2.5 3.0]
        [--methods ...] [--minutes 180] [--library FOLDER] [--servalcat PATH]
    python -m validation.studies.latent_radius FOLDER --device cuda --minutes 5 --methods latent_elastic rigid_refine jelly_refine
    python -m validation.studies.latent_radius FOLDER --report [--out docs/figures]

Every start (FOLDER/starts/<entry>/<rms>_<seed>.pdb and .json) and every run (FOLDER/runs/<entry>/<rms>_<seed>_<method>.json and .pdb) is kept as it
ends; what is there is not done again, so that the command can be interrupted and given again. Exit code 3: time was up. Seed k has the
error of kind k mod 3: bend, loop, rotamers. A run that fails is a record with "failed".
"""

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import mmtbx_sfdiff
import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.files import find_entry, write_all
from mmtbx_sfdiff.latent.refinement.b_factors import wilson_b

import gemmi

from validation.studies.latent_radius import generators, methods, report
from validation.studies.latent_radius.starts import (
    KINDS,
    main_chain,
    ordered,
    rms,
    sites_of,
    stripped,
    with_sites,
    wrong_rotamers,
    wrong_start,
)
from validation.studies.refinement_peers import _Plain

ENTRIES = {"1aie": 2.0, "6jqs": 2.1, "1g1j": 2.0, "3ds1": 2.0}  # Å
RMS = (1.0, 1.5, 2.0, 2.5, 3.0)
CHEAP = ("latent_elastic", "rigid_refine", "jelly_refine", "servalcat_jelly")


class Study:
    """An entry's data, its deposited protein, and the folder where everything is kept."""

    def __init__(self, folder, entry, d_min=None, library=None, device="cpu"):
        self.folder, self.entry, self.library, self.device = Path(folder), entry, library, device
        files = find_entry(entry, download=False)
        fmodel = FModel.from_files(files.model, files.data)
        reflections = fmodel.reflections
        limit = d_min or ENTRIES.get(entry, 2.0)
        self.reflections = reflections.select(reflections.d_spacings >= limit)
        structure = gemmi.read_structure(str(files.model))
        structure.cell = gemmi.UnitCell(*fmodel.atoms.crystal.unit_cell)
        self.deposited = stripped(structure)
        self.truth, self.main = sites_of(self.deposited), main_chain(self.deposited)
        self.ordered = self.main & ordered(self.deposited)
        self.data = self.folder / "data" / f"{entry}.mtz"
        if not self.data.is_file():
            self._write_data()

    def _write_data(self):
        f_obs, flags = self.reflections.to_cctbx()
        dataset = f_obs.as_mtz_dataset(column_root_label="FP", label_decorator=_Plain())
        dataset.add_miller_array(flags.array(data=(~flags.data()).as_int()), column_root_label="FREE")
        self.data.parent.mkdir(parents=True, exist_ok=True)
        dataset.mtz_object().write(str(self.data))

    def subject(self, structure):
        return methods.Subject(structure, self.reflections, self.data, self.library, self.device)

    def overall_b(self):
        on_cpu = dataclasses.replace(self.subject(self.deposited), device="cpu")
        return wilson_b(on_cpu.fmodel().atoms, self.reflections)

    def start(self, target, seed):
        """(structure, facts), made once."""
        place = self.folder / "starts" / self.entry / f"{target:.1f}_{seed}"
        path, record = place.with_name(place.name + ".pdb"), place.with_name(place.name + ".json")
        if not record.is_file():
            sites, facts = wrong_start(self.deposited, KINDS[seed % len(KINDS)], target, seed, self.library)
            made = with_sites(self.deposited, sites, self.overall_b())
            fmodel = self.subject(made).fmodel()
            fmodel.update_scales()
            facts |= {"entry": self.entry, "r": fmodel.r_factors()}
            place.parent.mkdir(parents=True, exist_ok=True)
            write_all({path: made.make_pdb_string().encode(), record: json.dumps(facts, indent=1).encode()})
        structure = gemmi.read_structure(str(path))
        structure.setup_entities()
        return structure, json.loads(record.read_text())

    def benchmark(self):
        """The deposited protein from one overall B, polished as all others are; made once."""
        record = self.folder / "runs" / self.entry / "deposited.json"
        if not record.is_file():
            structure = with_sites(self.deposited, self.truth, self.overall_b())
            record.parent.mkdir(parents=True, exist_ok=True)
            found = self._run("polish", structure, 0, None)
            write_all({record: json.dumps(found, indent=1).encode()})
        return json.loads(record.read_text())

    def run(self, method, target, seed, servalcat):
        """A record, made once."""
        record = self.folder / "runs" / self.entry / f"{target:.1f}_{seed}_{method}.json"
        if record.is_file():
            return self._complete(record), False
        record.parent.mkdir(parents=True, exist_ok=True)
        structure, facts = self.start(target, seed)
        options = {}
        if method.startswith("servalcat"):
            options = {"folder": record.with_suffix(""), "program": servalcat}
        elif method in methods.WITH_DYNAMICS:
            options = {"folder": self.folder / "dynamics" / self.entry / f"{target:.1f}_{seed}"}
            options["folder"].mkdir(parents=True, exist_ok=True)
        try:
            found = self._run(method, structure, seed, record.with_suffix(".pdb"), **options)
        except (ValueError, RuntimeError, subprocess.SubprocessError, OSError, KeyError):
            found = {"failed": traceback.format_exc()}
        found |= {"entry": self.entry, "method": method, "start": facts}
        write_all({record: json.dumps(found, indent=1).encode()})
        return found, True

    def _complete(self, record):
        """A record that is there, with what those of earlier versions lack."""
        found, model = json.loads(record.read_text()), record.with_suffix(".pdb")
        if "failed" not in found and "rms_ordered" not in found and model.is_file():
            found["rms_ordered"] = rms(sites_of(gemmi.read_structure(str(model))), self.truth, self.ordered)
            write_all({record: json.dumps(found, indent=1).encode()})
        return found

    def _run(self, method, structure, seed, output, **options):
        subject = self.subject(structure)
        fmodel, facts = methods.run(method, subject, seed, **options)
        if self.device != "cpu":
            fmodel = fmodel.to(device="cpu")
            fmodel.update_scales()
        sites = fmodel.atoms.sites_cart.detach().to(torch.float64)
        before = facts.pop("sites_before").to(torch.float64)
        every = torch.ones_like(self.main)
        r_work, r_free = fmodel.r_factors()
        measured = dataclasses.replace(subject, device="cpu").restraint().geometry.rms(sites)
        if output is not None:
            write_all({output: with_sites(structure, sites).make_pdb_string().encode()})
        return {
            "r_work": float(r_work),
            "r_free": float(r_free),
            "rms_main": rms(sites, self.truth, self.main),
            "rms_ordered": rms(sites, self.truth, self.ordered),
            "rms_all": rms(sites, self.truth, every, self.main),
            "rms_main_before_polish": rms(before, self.truth, self.main),
            "rotamers_wrong": wrong_rotamers(self.deposited, sites, self.truth),
            "bond_rms": measured["bond"],
            "angle_rms": measured["angle"],
            "n_reflections": len(self.reflections),
            "n_free": int((~self.reflections.work).sum()),
            "d_min": self.reflections.d_min,
            "settings": settings(),
            "version": version(),
            "load": os.getloadavg()[0],
            "device": self.device,
            **{name: _plain(value) for name, value in facts.items()},
        }


def _plain(value):
    return [float(v) for v in value] if isinstance(value, tuple) else value


def settings():
    """What decides a result, by name."""
    names = [
        name
        for name in dir(methods)
        if name.isupper() and name not in ("MASK", "METHODS", "SEARCH", "REBUILD", "EIGHT_PI_SQ", "WITH_DYNAMICS")
    ]
    force_field = {
        name: getattr(generators, name) for name in dir(generators) if name.isupper() and name != "EIGHT_PI_SQ"
    }
    return (
        {name: getattr(methods, name) for name in names}
        | {"with_dynamics": force_field}
        | {"search": dataclasses.asdict(methods.SEARCH), "rebuild": dataclasses.asdict(methods.REBUILD)}
    )


def version():
    """Of the package, with the checksum of what refines."""
    folder = Path(mmtbx_sfdiff.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(
        [*folder.glob("latent/**/*.py"), *folder.glob("refinement/*.py"), *Path(__file__).parent.glob("*.py")]
    ):
        digest.update(path.read_bytes())
    return f"{mmtbx_sfdiff.__version__} {digest.hexdigest()[:8]}"


def in_turn(entries, rms, seeds):
    """Every (entry, rms, seed) once, such that wherever it is interrupted the kinds, the sizes and the entries are mixed evenly."""
    once = [(rms[(shift + 2 * j) % len(rms)], seed) for shift in range(len(rms)) for j, seed in enumerate(seeds)]
    for turn in range(len(entries)):
        for k, (target, seed) in enumerate(once):
            yield entries[(k + turn) % len(entries)], target, seed


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--entries", nargs="+", default=list(ENTRIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rms", nargs="+", type=float, default=list(RMS))
    parser.add_argument("--methods", nargs="+", default=list(CHEAP), choices=list(methods.METHODS))
    parser.add_argument("--minutes", type=float, help="nothing begins after so long")
    parser.add_argument("--library", help="of monomers")
    parser.add_argument("--servalcat", default="servalcat", help="the program, of its own environment")
    parser.add_argument("--device", default="cpu", help="of methods but servalcat and those with dynamics")
    parser.add_argument("--report", action="store_true", help="only what is there: table, curves, figure")
    parser.add_argument("--out", type=Path, help="of the report; by default the folder")
    options = parser.parse_args(arguments)
    if options.report:
        print(report.write(options.folder, options.out or options.folder, options.methods))
        return 0
    torch.set_num_threads(1)
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    studies = {
        entry: Study(options.folder, entry, library=options.library, device=options.device) for entry in options.entries
    }
    for study in studies.values():
        found = study.benchmark()
        print(f"{study.entry} deposited: {found['r_work']:.4f} / {found['r_free']:.4f}", flush=True)
    for entry, target, seed in in_turn(options.entries, options.rms, options.seeds):
        study = studies[entry]
        try:
            study.start(target, seed)
        except ValueError as error:
            print(f"{entry}: {error}", flush=True)
            continue
        for method in options.methods:
            if end is not None and time.monotonic() > end:
                print("Time is up: give the same command again.")
                return 3
            found, new = study.run(method, target, seed, options.servalcat)
            if new:
                print(report.line(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
