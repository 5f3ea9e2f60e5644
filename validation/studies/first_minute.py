"""The first minute: ``mmtbx_sfdiff.compare demo`` with nothing compiled, and again; and a warm start to the first F.

Each command runs in a process of its own, as from a command line, with caches of its own, so that the first of each environment finds nothing compiled,
as after an installation (the files of the libraries are in the system's memory: each environment is started once before).

    python -m validation.studies.first_minute [--old OLD/bin/python] [--repeats 3] [--entry 1dur] [--csv FILE]

``OLD/bin/python`` is of an environment with an older version.  Exit status 1 where the first takes more than 1.5 times the
second, the second more than the older version's, or the warm start more than 2.5 s.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATIO, WARM_START = 1.5, 2.5
DEMO = ("mmtbx_sfdiff.compare", "demo", "output.directory=out")
# What cctbx reads in half a second, gemmi reads in some milliseconds, where the version can.
FIRST_F = """
import sys
import mmtbx_sfdiff as sfdiff
import gemmi
structure = gemmi.read_structure(sys.argv[1])
atoms = sfdiff.Atoms.from_gemmi(structure)
indices = atoms.crystal.build_miller_indices(d_min=2.0)
print(len(sfdiff.structure_factors(atoms, atoms.crystal, indices)), flush=True)
"""


def seconds(command, folder):
    """Wall time of a process: (until its first line of output, until its end)."""
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(folder / "numba"),
        "XDG_CACHE_HOME": str(folder / "user"),
        "OMP_NUM_THREADS": "2",
    }
    environment.pop("PYTHONPATH", None)
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        process.stdout.readline()
        said = time.perf_counter() - began
        process.communicate()
        took = time.perf_counter() - began
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{command[0]} ended with {process.returncode}: {errors.read()[-1500:]}")
    return said, took


def demo(python, repeats):
    """(first, median of the following ones): seconds of ``compare demo``."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        imports = "import mmtbx_sfdiff, mmtbx.f_model, matplotlib.pyplot, numba.core.registry"
        seconds([python, "-c", imports], folder)
        command = [str(Path(python).parent / DEMO[0]), *DEMO[1:]]
        first = seconds(command, folder)[1]
        return first, statistics.median(seconds(command, folder)[1] for _ in range(repeats))


def warm_start(python, entry, repeats):
    """Medians of seconds from the start of Python to the first F of an entry's model, and to its end."""
    from mmtbx_sfdiff.files import find_entry

    model = str(find_entry(entry).model)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        command = [python, "-c", FIRST_F, model]
        seconds(command, folder)
        times = [seconds(command, folder) for _ in range(repeats)]
        return [statistics.median(column) for column in zip(*times, strict=True)]


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", help="Python of an environment with an older version")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--entry", default="1dur", help="whose model the warm start reads; none leaves it out")
    parser.add_argument("--csv")
    given = parser.parse_args(args)
    first, second = demo(sys.executable, given.repeats)
    rows = [("first demo", first), ("second demo", second), ("first / second", first / second)]
    bad = first > RATIO * second
    if given.old:
        old_first, old_second = demo(given.old, given.repeats)
        rows += [("first demo, older version", old_first), ("second demo, older version", old_second)]
        bad |= second > old_second
    if given.entry.lower() != "none":
        start, end = warm_start(sys.executable, given.entry, given.repeats)
        rows += [(f"start to first F of {given.entry}", start), ("and to the end of Python", end)]
        bad |= start > WARM_START
    for name, value in rows:
        print(f"{name:32s} {value:7.2f}")
    if given.csv:
        with open(given.csv, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("what", "s"), *((n, f"{v:.2f}") for n, v in rows)])
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
