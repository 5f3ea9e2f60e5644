"""Fixtures shared by all tests."""
import os
from pathlib import Path

import mmtbx_sfdiff  # noqa: F401  (loads cctbx and torch in the safe order)
import pytest


def pdb_folder():
    """The folder with real PDB entries, or None."""
    checkout = Path(__file__).resolve().parents[1]
    for folder in (os.environ.get("MMTBX_SFDIFF_PDB_DIR"), checkout.parent / "shared" / "pdb",
                   checkout.parents[1] / "shared" / "pdb"):
        if folder and (Path(folder) / "MANIFEST.tsv").is_file():
            return Path(folder)
    return None


@pytest.fixture(scope="session")
def pdb_dir():
    """Folder with real PDB entries; tests that need it are skipped, by name, where there is none."""
    folder = pdb_folder()
    if folder is None:
        pytest.skip("no folder with real PDB entries: set MMTBX_SFDIFF_PDB_DIR")
    return folder


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: studies that take long")
