"""The folder of real PDB entries that tests may use."""

import csv
import os
from pathlib import Path


def pdb_folder():
    """MMTBX_SFDIFF_PDB_DIR, else shared/pdb beside the checkout; None where that does not exist."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "pdb"
    folder = Path(os.environ.get("MMTBX_SFDIFF_PDB_DIR") or beside)
    return folder if folder.is_dir() else None


def manifest_rows():
    """Rows of MANIFEST.tsv as dictionaries, [] where there is none (for parametrize)."""
    folder = pdb_folder()
    if folder is None or not (folder / "MANIFEST.tsv").is_file():
        return []
    with open(folder / "MANIFEST.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))
