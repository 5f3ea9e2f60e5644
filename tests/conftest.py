"""Import order, test data and markers for the whole suite."""

import mmtbx_sfdiff  # noqa: F401  (first: it owns the order in which native libraries are loaded)

import csv
import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent


def _pdb_dir():
    """Folder of real PDB entries: MMTBX_SFDIFF_PDB_DIR, else shared/pdb beside the checkout."""
    return Path(os.environ.get("MMTBX_SFDIFF_PDB_DIR") or _ROOT.parent / "shared" / "pdb")


def pdb_entries():
    """Ids in MANIFEST.tsv of the folder of entries, [] where there is none (for parametrize)."""
    manifest = _pdb_dir() / "MANIFEST.tsv"
    if not manifest.is_file():
        return []
    with open(manifest, newline="") as file:
        return [row["entry"] for row in csv.DictReader(file, delimiter="\t")]


@pytest.fixture(scope="session")
def pdb_dir():
    """Path of the folder of real PDB entries; skips the test where there is none."""
    path = _pdb_dir()
    if not path.is_dir():
        pytest.skip("no PDB entries at %s (set MMTBX_SFDIFF_PDB_DIR)" % path)
    return path


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    import torch

    run_slow = config.getoption("--runslow") or "slow" in config.getoption("markexpr")
    for item in items:
        if "slow" in item.keywords and not run_slow:
            item.add_marker(pytest.mark.skip(reason="slow: run with --runslow or -m slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device"))
