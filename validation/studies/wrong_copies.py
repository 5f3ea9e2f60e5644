"""Wrong copies of deposited entries: is what was done to each named, with the command that mends it?

    python -m validation.studies.wrong_copies 1aie 1dtx ... --csv FILE

Of each entry, found as :doc:`files` says and not downloaded, copies are made in which one thing is wrong: the data indexed in another
way that the lattice allows (or with their axes in another order), the enantiomorphic space group, the model moved by (1/4, 1/8, 3/8) of
the cell, the model's cell 0.9 % too large.  Each is scaled.  It is *named* if the R-work that the sentence promises is within 0.02 of
the entry's own; if not, it is *missed* where its R-work is absurd (:data:`~mmtbx_sfdiff.files.disagreement.ABSURD`), and *not absurd*
where it is below, where nothing need be said.  The entry itself is asked, too: what is said there is a *false alarm*.

The table has a row a copy; rows that the file has are not computed again.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import mmtbx_sfdiff as sfdiff
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.files.disagreement import ABSURD, _lattice_operators, disagreement_messages
from mmtbx_sfdiff.files.screening import Screen

from cctbx import sgtbx

ENTRIES = ("1aie", "1dtx", "1rx2", "2apb", "3zt9", "1ehz", "3ds1", "5gge", "4cjl", "1cbs", "5kzb", "3v3x")
COLUMNS = ("entry", "wrong", "r_work_right", "r_work", "r_work_promised", "verdict", "said", "seconds")
NEAR = 0.02


def read(entry: str, **wrong: Any) -> sfdiff.FModel:
    """The entry, with one thing wrong, and its scales."""
    files = find_entry(entry, download=False)
    source = load_entry(files.model, files.data, strict=False, **wrong)
    fmodel = sfdiff.FModel(
        sfdiff.Atoms.from_cctbx(source.model.xray_structure),
        sfdiff.Reflections.from_cctbx(source.data.f_obs, source.data.r_free_flags),
        source=source,
    )
    fmodel.update_scales()
    return fmodel


def copies(fmodel: sfdiff.FModel) -> dict[str, dict[str, Any]]:
    """What can be wrong with an entry: arguments of :func:`load_entry` by name."""
    result: dict[str, dict[str, Any]] = {}
    laws = _lattice_operators(Screen(fmodel))
    if laws:
        result["indexing"] = {"reindex": laws[0][0]}
    else:
        result["axes"] = {"reindex": "l,h,k"}
    group = sgtbx.space_group(fmodel.atoms.crystal.to_cctbx().space_group())
    other = group.type().change_of_hand_op()
    mirrored = group.change_basis(other)
    if mirrored != group and mirrored.type().number() != group.type().number():
        result["enantiomorph"] = {"space_group": str(sgtbx.space_group_info(group=mirrored))}
    result["origin"] = {"model_shift": (0.25, 0.125, 0.375)}
    a, b, c, *angles = fmodel.atoms.crystal.unit_cell
    result["cell"] = {"unit_cell": (1.009 * a, 1.009 * b, 1.009 * c, *angles)}
    return result


def rows_of(entry: str, known: set[tuple[str, str]]) -> Any:
    """A row for the entry as it is, and for each copy, as they are computed."""
    right = read(entry)
    r_right = float(right.scales.r_work)
    for wrong, arguments in {"nothing": {}, **copies(right)}.items():
        if (entry, wrong) in known:
            continue
        start = time.perf_counter()
        fmodel = read(entry, **arguments) if arguments else right
        r = float(fmodel.scales.r_work)
        said = " ".join(disagreement_messages(fmodel))
        promised = re.search(r"but ([0-9.]+) if", said)
        r_promised = float(promised.group(1)) if promised else None
        if wrong == "nothing":
            verdict = "false alarm" if said else "silent"
        elif r_promised is not None and r_promised <= r_right + NEAR:
            verdict = "named"
        else:
            verdict = "missed" if r > ABSURD else "not absurd"
        seconds = time.perf_counter() - start
        yield [entry, wrong, f"{r_right:.4f}", f"{r:.4f}", r_promised or "", verdict, said, f"{seconds:.1f}"]


def main(arguments: list[str] | None = None) -> int:
    """Run the study and print the counts; the exit status is 1 after a false alarm."""
    parser = argparse.ArgumentParser(
        prog="python -m validation.studies.wrong_copies", description=__doc__.splitlines()[0]
    )
    parser.add_argument("entries", nargs="*", default=ENTRIES)
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if not options.csv.exists():
        options.csv.write_text(",".join(COLUMNS) + "\n")
    with open(options.csv, newline="") as file:
        known = {(row["entry"], row["wrong"]) for row in csv.DictReader(file)}
    for entry in options.entries:
        for row in rows_of(entry, known):
            with open(options.csv, "a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(row)
            print(*row, flush=True)
    with open(options.csv, newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = dict.fromkeys(row["wrong"] for row in rows)
    for kind in kinds:
        found = [row["verdict"] for row in rows if row["wrong"] == kind]
        print(f"{kind}: " + ", ".join(f"{found.count(what)} {what}" for what in dict.fromkeys(found)))
    return int(any(row["verdict"] == "false alarm" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
