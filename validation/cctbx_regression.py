"""cctbx's own regression tests, as they are and with every structure factor and mask taken over.

    python -m validation.cctbx_regression [file ...] [--output cctbx_regression.json] [--timeout 300]

Each file runs twice in processes of its own: by itself, and, where it passes, through ``mmtbx_sfdiff.run
--takeover``.  What matters is a file whose outcome differs.  Without names, the files of the installed cctbx that
mention f_model, structure factors or masks are taken.  Files that the output already holds, for this version of
cctbx, are not run again.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mmtbx_sfdiff  # noqa: F401  (first)

import cctbx
import mmtbx

from mmtbx_sfdiff.files.writing import write_all

_FOLDERS = ("mmtbx/regression", "mmtbx/bulk_solvent", "mmtbx/masks", "mmtbx/f_model", "mmtbx/refinement",
            "mmtbx/max_lik", "mmtbx/maps", "mmtbx/twinning", "mmtbx/scaling", "mmtbx/dynamics", "mmtbx/utils",
            "cctbx/regression", "cctbx/masks", "cctbx/xray")
_SUBJECT = re.compile(r"f_?model|structure_factors|mask|xray\.minimization|sampled_model_density|gradients_direct")


def test_files():
    """The regression files that have to do with structure factors, gradients or masks."""
    root = Path(mmtbx.__file__).parent.parent
    found = []
    for folder in _FOLDERS:
        for path in sorted((root / folder).glob("tst*.py")):
            if _SUBJECT.search(path.read_text(errors="replace")):
                found.append(path)
    return found


def run(path, takeover, timeout):
    """Outcome, seconds and last line of stderr of one file."""
    command = [sys.executable, str(path)]
    if takeover:
        command = [sys.executable, "-m", "mmtbx_sfdiff.command_line.run", "--takeover", str(path)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(mmtbx_sfdiff.__file__).parent.parent)]))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = subprocess.run(command, cwd=folder, env=environment, timeout=timeout, text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return {"outcome": "timeout", "seconds": timeout, "reason": ""}
    reason = (result.stderr.strip().splitlines() or [""])[-1][:200] if result.returncode else ""
    return {"outcome": "fail" if result.returncode else "pass", "seconds": round(time.perf_counter() - start, 2),
            "reason": reason}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, default=Path("cctbx_regression.json"))
    parser.add_argument("--timeout", type=float, default=300)
    options = parser.parse_args()
    root = Path(mmtbx.__file__).parent.parent
    rows = earlier_rows(options.output)
    known = {row["file"] for row in rows}
    for path in options.files or test_files():
        name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        if name in known:
            continue
        row = {"file": name, "as it is": run(path, False, options.timeout)}
        if row["as it is"]["outcome"] == "pass":
            row["takeover"] = run(path, True, options.timeout)
        print(describe(row), flush=True)
        rows.append(row)
        record = {"cctbx": cctbx.__version__, "mmtbx_sfdiff": mmtbx_sfdiff.__version__, "files": rows}
        write_all({options.output: json.dumps(record, indent=1).encode()})
    passing = [row for row in rows if "takeover" in row]
    differing = [row["file"] for row in passing if row["takeover"]["outcome"] != "pass"]
    print(f"{len(rows)} files: {len(passing)} pass by themselves, {len(passing) - len(differing)} of them under takeover too"
          + ("; not: " + ", ".join(differing) if differing else ""))
    return 1 if differing else 0


def earlier_rows(output):
    """What a run that was stopped has left, if it was with the cctbx of now."""
    if not output.exists():
        return []
    try:
        record = json.loads(output.read_text())
        return record["files"] if record["cctbx"] == cctbx.__version__ else []
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{output} is not the output of this script; name another one with --output")


def describe(row):
    """One line on a file."""
    alone, taken = row["as it is"], row.get("takeover")
    if taken is None:
        return f"{row['file']}: {alone['outcome']} by itself, {alone['seconds']:.0f} s  {alone['reason']}"
    sign = "" if taken["outcome"] == "pass" else "DIFFERS "
    return (f"{sign}{row['file']}: {alone['outcome']} / {taken['outcome']}, {alone['seconds']:.0f} / "
            f"{taken['seconds']:.0f} s  {taken['reason']}")


if __name__ == "__main__":
    sys.exit(main())
