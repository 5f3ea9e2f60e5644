"""The model of every entry, read by gemmi and by cctbx."""

import pytest

from tests.support.entries import manifest_rows

pytest.importorskip("cctbx")

from validation.studies.readers import AGREEMENT, difference

ROWS = manifest_rows() or [None]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["entry"] if row else "no-entries")
def test_structure_factors_agree(pdb_dir, row):
    found, n_atoms = difference(pdb_dir / row["model_file"])
    assert n_atoms == int(row["n_atoms"]) and found < AGREEMENT
