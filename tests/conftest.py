import os
import pathlib

import pytest

import mmtbx_sfdiff  # noqa: F401  (loads the native libraries in the safe order)


@pytest.fixture(scope="session")
def pdb_dir():
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "pdb"
    path = pathlib.Path(os.environ.get("MMTBX_SFDIFF_PDB_DIR", default))
    if not (path / "MANIFEST.tsv").exists():
        pytest.skip(f"no real entries at {path}")
    return path
