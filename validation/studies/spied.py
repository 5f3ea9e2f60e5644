"""A script by itself, with a note of which of cctbx's C++ entry points it calls.

    python -m validation.studies.spied notes.txt script.py

Each process of the script, forked ones too, adds the name of an entry point to the notes when it first calls it.  This
package is not imported, nor is torch: the script runs as it does without them.
"""

import collections
import importlib.util
import runpy
import sys
from pathlib import Path

_ENTRY_POINTS = Path(__file__).resolve().parents[2] / "mmtbx_sfdiff" / "cctbx_backend" / "entry_points.py"


class Notes(collections.Counter):
    """Counts that write a name to a file when it comes for the first time."""

    def __init__(self, path):
        super().__init__()
        self._path = path

    def __missing__(self, name):
        with open(self._path, "a") as file:
            file.write(name + "\n")
        return 0


def main():
    notes, script = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("entry_points", _ENTRY_POINTS)
    entry_points = sys.modules["entry_points"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(entry_points)
    sys.argv = [script]
    sys.path[0] = str(Path(script).parent)
    with entry_points.spy(Notes(notes)):
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
