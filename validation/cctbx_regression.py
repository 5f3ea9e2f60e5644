"""cctbx's own regression tests, as they are and with every structure factor and mask taken over.

    python -m validation.cctbx_regression [file ...] [--output cctbx_regression.json] [--timeout 300]

Each file runs twice in processes of its own: by itself, and through ``mmtbx_sfdiff.run --takeover``.  What matters is
a file whose outcome differs.  Without names, the files of the installed cctbx that mention f_model, structure factors
or masks are taken.
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
    """(outcome, seconds, last line of stderr) of one file."""
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
            return "timeout", timeout, ""
    outcome = "pass" if result.returncode == 0 else "fail"
    reason = (result.stderr.strip().splitlines() or [""])[-1][:200]
    return outcome, time.perf_counter() - start, reason if outcome == "fail" else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, default=Path("cctbx_regression.json"))
    parser.add_argument("--timeout", type=float, default=300)
    options = parser.parse_args()
    root = Path(mmtbx.__file__).parent.parent
    rows = []
    for path in options.files or test_files():
        row = {"file": str(path.relative_to(root)) if path.is_relative_to(root) else str(path)}
        for mode in ("as it is", "takeover"):
            outcome, seconds, reason = run(path, mode == "takeover", options.timeout)
            row[mode] = {"outcome": outcome, "seconds": round(seconds, 2), "reason": reason}
        same = row["as it is"]["outcome"] == row["takeover"]["outcome"]
        print(f"{'' if same else 'DIFFERS '}{row['file']}: {row['as it is']['outcome']} / "
              f"{row['takeover']['outcome']}  {row['as it is']['seconds']:.0f} / {row['takeover']['seconds']:.0f} s  "
              f"{row['takeover']['reason']}", flush=True)
        rows.append(row)
        text = json.dumps({"cctbx": cctbx.__version__, "mmtbx_sfdiff": mmtbx_sfdiff.__version__, "files": rows}, indent=1)
        temporary = options.output.with_name(f".{options.output.name}.part")
        temporary.write_text(text)
        os.replace(temporary, options.output)
    differing = [row["file"] for row in rows if row["as it is"]["outcome"] != row["takeover"]["outcome"]]
    both = sum(row["as it is"]["outcome"] == row["takeover"]["outcome"] == "pass" for row in rows)
    print(f"{len(rows)} files: {both} pass both ways, {len(rows) - both - len(differing)} fail or time out both ways, "
          f"{len(differing)} differ" + (": " + ", ".join(differing) if differing else ""))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
