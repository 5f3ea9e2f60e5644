"""The first minute: ``mmtbx_sfdiff.compare demo`` with nothing compiled, and again; and a warm start to the first F.

Each command runs in a process of its own, with caches of its own, so that the first of each environment finds nothing compiled,
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
DEMO = "from mmtbx_sfdiff.command_line.compare import run; raise SystemExit(run(['demo', 'output.directory=out']))"
# What cctbx reads in half a second, gemmi reads in some milliseconds, where the version can.
FIRST_F = """
import sys
import mmtbx_sfdiff as sfdiff
import gemmi
structure = gemmi.read_structure(sys.argv[1])
atoms = sfdiff.Atoms.from_gemmi(structure)
indices = atoms.crystal.build_miller_indices(d_min=2.0)
print(len(sfdiff.structure_factors(atoms, atoms.crystal, indices)))
"""


def seconds(python, code, folder, *arguments):
    """Wall time of a process, and what it said last."""
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(folder / "numba"),
        "XDG_CACHE_HOME": str(folder / "user"),
        "OMP_NUM_THREADS": "2",
    }
    environment.pop("PYTHONPATH", None)
    began = time.perf_counter()
    done = subprocess.run(
        [python, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{python} ended with {done.returncode}: {done.stderr[-1500:]}")
    return took


def demo(python, repeats):
    """(first, median of the following ones): seconds of ``compare demo``."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        seconds(python, "import mmtbx_sfdiff, mmtbx.f_model, matplotlib.pyplot, numba.core.registry", folder)
        first = seconds(python, DEMO, folder)
        return first, statistics.median(seconds(python, DEMO, folder) for _ in range(repeats))


def warm_start(python, entry, repeats):
    """Median of seconds from the start of Python to the first F of an entry's model."""
    from mmtbx_sfdiff.files import find_entry

    model = str(find_entry(entry).model)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        seconds(python, FIRST_F, folder, model)
        return statistics.median(seconds(python, FIRST_F, folder, model) for _ in range(repeats))


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
        start = warm_start(sys.executable, given.entry, given.repeats)
        rows.append((f"start to first F of {given.entry}", start))
        bad |= start > WARM_START
    for name, value in rows:
        print(f"{name:32s} {value:7.2f}")
    if given.csv:
        with open(given.csv, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("what", "s"), *((n, f"{v:.2f}") for n, v in rows)])
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
