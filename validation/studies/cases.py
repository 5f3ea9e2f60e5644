"""Every file of a folder of cases through every door, and what each door made of it.

    python -m validation.studies.cases FOLDER [FILE ...] [--api] [--verbose]

FOLDER holds ``model.pdb``, ``data.mtz`` and folders of kinds (``integer_columns/`` ...), whatever files they hold.  The doors of a
data file are ``read_data`` (programs), ``from_files``, ``from_gemmi``, ``from_dataset``, SFcalculator's interface and rewards; those
of a model ``read_model``, ``from_files``, ``from_gemmi``, SFcalculator's interface and rewards.  Without cctbx its own are left out.

A file is wrong in a door when

* the process ends, a time limit is passed, or something else than a ValueError or TypeError in one sentence comes out;
* rows are neither used nor counted;
* ``read_data`` and ``from_files`` do not agree, or what is read differs from what the file says to an independent reader
  (gemmi's or iotbx's plain F of a model, the R factor of its data) and not a word was said;
* it is one of the known files, and not what the table of :mod:`.cases_known` says.

With ``--api`` the folders' ``api.py`` are run with the arguments of the table, too.  The exit status is 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from .cases_known import API, known_faults

_LIMIT = 300  # seconds for a door
_API_LIMIT = 120


def main(arguments=None):
    """Run the study; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m validation.studies.cases", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", nargs="*", help="some of the files, as FOLDER names them; all by default")
    parser.add_argument("--api", action="store_true", help="run the api.py of the folders")
    parser.add_argument("--verbose", action="store_true", help="what each door said, too")
    options = parser.parse_args(arguments)
    names = options.files or sorted(
        str(path.relative_to(options.folder))
        for path in options.folder.rglob("*")
        if path.is_file() and path.parent != options.folder and path.suffix not in (".py", ".md", ".pyc")
    )
    wrong = 0
    for name, doors in outcomes(options.folder, names):
        wrong += report(name, doors, options.verbose)
    if options.api:
        for name, sets in API.items():
            if (options.folder / name).exists():
                wrong += sum(run_api(options.folder / name, name, words) for words in sets)
    where = "with cctbx" if importlib.util.find_spec("cctbx") else "without cctbx"
    print(f"{len(names)} files, {where}: {wrong} wrong", flush=True)
    return 1 if wrong else 0


def outcomes(folder, names):
    """(name, {door: outcome}) of each file, from a process that a crash may end; the next one goes on after that file."""
    names = list(names)
    while names:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "validation.studies.cases_worker",
            str(_LIMIT),
            str(folder),
            *names,
        ]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        found = {}
        for line in worker.stdout:
            if not line.startswith("{"):
                continue
            one = json.loads(line)
            if "done" in one:
                yield names.pop(0), found
                found = {}
            else:
                found[one.pop("door")] = one
        if worker.wait() == 0:
            break
        last = list(found)[-1] if found else "start"
        found[f"after {last}"] = {"fault": f"the process ended with {worker.returncode}"}
        yield names.pop(0), found


def report(name, doors, verbose):
    """Print a row; return how many doors are wrong."""
    faults = {door: one["fault"] for door, one in doors.items() if one.get("fault")}
    faults |= disagreements(doors) | known_faults(name, doors)
    print(f"{'WRONG' if faults else 'right'} {name}", flush=True)
    for door, one in doors.items():
        if verbose or door in faults:
            text = one.get("refused") or " ".join(f"{k}={v}" for k, v in one.items() if k not in ("said", "fault"))
            print(f"    {door}: {text}")
            for message in one.get("said", []):
                print(f"        said: {message}")
    for door, fault in faults.items():
        print(f"    -> {door}: {fault}", flush=True)
    return len(faults)


def disagreements(doors):
    """Between the doors that read files by the same rules."""
    one, other = doors.get("read_data") or doors.get("read_model"), doors.get("from_files")
    if one is None or other is None or "other crystal" in other:
        return {}
    if ("refused" in one) != ("refused" in other):
        return {"from_files": "one of the two doors to files refuses what the other reads"}
    differ = [
        key for key in ("n", "free", "left_out", "n_atoms") if key in one and key in other and one[key] != other[key]
    ]
    return {"from_files": f"differs in {', '.join(differ)}"} if differ else {}


def run_api(path, name, words):
    """One call of an api.py: 1 if it crashed, never ended, or answered in another package's words."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(path), *words], capture_output=True, text=True, timeout=_API_LIMIT
        )
        fault = "" if done.returncode == 0 else f"exit status {done.returncode}"
        lines = done.stderr.strip().splitlines()
        if (
            done.returncode == 1
            and lines
            and lines[-1].startswith(("ValueError:", "TypeError:", "libtbx.utils.Sorry:"))
        ):
            fault = "" if lines[-1].rstrip().endswith((".", ":")) else f"no sentence: {lines[-1]}"
        text = (done.stdout.strip().splitlines() or lines or [""])[-1]
    except subprocess.TimeoutExpired:
        fault, text = f"more than {_API_LIMIT} s", ""
    expected = API[name][words]
    if not fault and expected is not None and not expected(text):
        fault = "another answer than the table's"
    print(f"{'WRONG' if fault else 'right'} {name} {' '.join(words)}: {fault or text[:160]}", flush=True)
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
