"""Fixtures shared by all tests."""
import os
from pathlib import Path

import mmtbx_sfdiff  # noqa: F401  (loads cctbx and torch in the safe order)
import pytest


@pytest.fixture(scope="session")
def pdb_dir():
    """Folder with real PDB entries; tests that need it are skipped, by name, where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "pdb"
    for folder in (os.environ.get("MMTBX_SFDIFF_PDB_DIR"), default, default.parents[2] / "shared" / "pdb"):
        if folder and (Path(folder) / "MANIFEST.tsv").is_file():
            return Path(folder)
    pytest.skip("no folder with real PDB entries: set MMTBX_SFDIFF_PDB_DIR")
