"""cctbx's own regression tests, as they are and with every structure factor and mask taken over.

    python -m validation.studies.cctbx_regression [file ...] [--output cctbx_regression.json] [--timeout 300] [--csv table.csv]

Each file runs by itself, with a note of which C++ entry points it calls (:mod:`validation.studies.spied`).  One that passes and
calls any runs again through ``mmtbx_sfdiff.run --takeover``; what matters is a file whose outcome differs.  Such a file
runs a third time by cctbx alone, with its direct summation in place of its FFT (:mod:`validation.studies.exact`): where that
fails too, the file holds cctbx to the error of its FFT.  Without names, the files of the installed cctbx that mention
f_model, structure factors or masks are taken.  Files that the output already holds, for this version of cctbx, are not run again, unless they ran out of a shorter time.  Time is
processor time: on a busy machine a file is not given up for what the others do.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import mmtbx_sfdiff
from mmtbx_sfdiff.files.writing import write_atomically

import cctbx
import mmtbx

_SUBJECT = re.compile(r"f_?model|structure_factors|mask|xray\.minimization|sampled_model_density|gradients_direct")
# Others follow: these are about structure factors and masks themselves.
_FIRST = (
    "mmtbx/regression",
    "mmtbx/bulk_solvent",
    "mmtbx/masks",
    "mmtbx/refinement",
    "mmtbx/max_lik",
    "mmtbx/maps",
    "cctbx/regression",
    "cctbx/xray",
)
# Why a file fails that would need more than the wheel of cctbx.
_MISSING = re.compile(r"No module named|[Nn]ot found|not available|Cannot find|Please_pass_string_or_None")
# Seconds that torch and compiling may take before a file begins.
_START = 30
# Times its processor time that a file may wait for others, or sleep.
_PATIENCE = 10
_ROOT = Path(mmtbx.__file__).parent.parent
_REPOSITORY = Path(__file__).resolve().parents[2]


def test_files():
    """The regression files that have to do with structure factors, gradients or masks, the likeliest first."""
    found = [
        path
        for package in ("mmtbx", "cctbx")
        for path in sorted((_ROOT / package).rglob("tst*.py"))
        if _SUBJECT.search(path.read_text(errors="replace"))
    ]

    def rank(path):
        folder = str(path.parent.relative_to(_ROOT))
        return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)

    return sorted(found, key=rank)


def measure(path, timeout):
    """What is known of one file: both outcomes and the entry points it calls."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes.txt"
        notes.touch()
        alone = run([sys.executable, str(Path(__file__).with_name("spied.py")), str(notes), str(path)], timeout)
        calls = sorted(set(notes.read_text().split()))
    if alone["outcome"] == "fail" and not _MISSING.search(alone["reason"]):
        alone = run([sys.executable, str(path)], timeout)  # not for being watched
    row = {"as it is": alone, "calls": calls}
    if alone["outcome"] == "pass" and calls:
        allowed = 3 * timeout + _START
        row["takeover"] = run([sys.executable, "-m", "mmtbx_sfdiff.command_line.run", "--takeover", str(path)], allowed)
        if row["takeover"]["outcome"] == "fail":
            row["exact"] = run([sys.executable, str(Path(__file__).with_name("exact.py")), str(path)], allowed)
    return row


def run(command, timeout):
    """Outcome, seconds and what the end of the output says of it."""
    environment = dict(
        os.environ,
        PYTHONPATH=str(_REPOSITORY),
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    )
    before = _processor_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                timeout=_PATIENCE * timeout,
                text=True,
                errors="replace",
                capture_output=True,
                stdin=subprocess.DEVNULL,
                preexec_fn=lambda: resource.setrlimit(
                    resource.RLIMIT_CPU, (math.ceil(timeout), math.ceil(timeout) + 5)
                ),
            )
        except subprocess.TimeoutExpired:
            return {"outcome": "timeout", "seconds": timeout, "reason": ""}
    if -result.returncode in (signal.SIGXCPU, signal.SIGKILL):
        return {"outcome": "timeout", "seconds": timeout, "reason": ""}
    outcome = "fail" if result.returncode else "pass"
    return {"outcome": outcome, "seconds": round(_processor_time() - before, 2), "reason": _reason(result)}


def _processor_time():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _reason(result):
    """The last line of a failure; of a success, the line that says that something was skipped."""
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip(" ^~")] or [""]
        # An assertion that says nothing: the line of code instead.
        return " ".join(lines[-2:] if lines[-1] == "AssertionError" else lines[-1:])[:200]
    skipped = [line.strip() for line in result.stdout.splitlines() if re.search(r"\bskip", line, re.IGNORECASE)]
    return skipped[0][:200] if skipped else ""


def verdict(row):
    """One word on a file."""
    if "as it is" not in row:
        return "not run"
    alone, taken = row["as it is"]["outcome"], row.get("takeover", {}).get("outcome")
    if alone != "pass":
        return "fails by itself" if alone == "fail" else "no time"
    if taken is None:
        return "not concerned"
    if taken == "fail" and row["exact"]["outcome"] == "fail":
        return "fails with cctbx's direct sums too"
    return {"pass": "passes both ways", "fail": "differs", "timeout": "no time"}[taken]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, default=Path("cctbx_regression.json"))
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--csv", type=Path, help="also write the table of all files known")
    options = parser.parse_args()
    rows = earlier_rows(options.output)
    for path in options.files or test_files():
        name = str(path.relative_to(_ROOT)) if path.is_relative_to(_ROOT) else str(path)
        if name in rows and not (verdict(rows[name]) == "no time" and rows[name]["timeout"] < options.timeout):
            continue
        rows[name] = {"file": name, "timeout": options.timeout, **measure(path, options.timeout)}
        print(describe(rows[name]), flush=True)
        record = {"cctbx": cctbx.__version__, "mmtbx_sfdiff": mmtbx_sfdiff.__version__, "files": list(rows.values())}
        write_atomically(options.output, json.dumps(record, indent=1))
    if options.csv:
        known = {str(path.relative_to(_ROOT)): {"file": str(path.relative_to(_ROOT))} for path in test_files()} | rows
        write_atomically(options.csv, as_csv(known.values()))
    by_verdict = {}
    for row in rows.values():
        by_verdict.setdefault(verdict(row), []).append(row["file"])
    print(f"{len(rows)} files: " + ", ".join(f"{len(names)} {name}" for name, names in sorted(by_verdict.items())))
    print(*by_verdict.get("differs", []), sep="\n")
    return 1 if "differs" in by_verdict else 0


def earlier_rows(output):
    """What a run that was stopped has left, by file, if it was with the cctbx of now."""
    if not output.exists():
        return {}
    try:
        record = json.loads(output.read_text())
        return {row["file"]: row for row in record["files"]} if record["cctbx"] == cctbx.__version__ else {}
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{output} is not the output of this script; name another one with --output")


def describe(row):
    """One line on a file."""
    alone, taken = row["as it is"], row.get("takeover")
    seconds = f"{alone['seconds']:.0f}" + (f" / {taken['seconds']:.0f}" if taken else "")
    return f"{verdict(row)}: {row['file']}, {seconds} s, calls {' '.join(row['calls']) or 'none'}  {_remark(row)}"


def _remark(row):
    return row.get("takeover", row["as it is"])["reason"] or row["as it is"]["reason"]


def as_csv(rows):
    """All files by verdict, those not run among them, as text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "verdict", "C++ entry points called", "seconds", "seconds under takeover", "last line"])
    for row in sorted(rows, key=lambda row: (verdict(row), row["file"])):
        times = [f"{row[mode]['seconds']:.0f}" if mode in row else "" for mode in ("as it is", "takeover")]
        remark = _remark(row).replace(str(_ROOT) + os.sep, "") if "as it is" in row else ""
        writer.writerow([row["file"], verdict(row), " ".join(row.get("calls", ())), *times, remark])
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
