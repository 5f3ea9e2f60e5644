"""``python validation/refinement.py``: the study of that name, where the command was before the studies had a folder."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
runpy.run_module("validation.studies.refinement", run_name="__main__", alter_sys=True)
