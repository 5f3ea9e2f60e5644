"""Direct summation against cctbx's on real entries."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files import read_model

import pytest
from cctbx import miller
from cctbx.array_family import flex

from tests.support.entries import manifest_rows
from tests.support.structures import cctbx_direct, relative_l2

# cctbx needs 36 ns a term, so the reference of the largest entries is taken on some reflections only.
N_REFLECTIONS = 150
ROWS = manifest_rows() or [None]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["entry"] if row else "no-entries")
def test_entry(pdb_dir, row):
    d_min = float(row["d_min"])
    structure = read_model(pdb_dir / row["model_file"], d_min=d_min).xray_structure
    miller_set = miller.build_set(structure, anomalous_flag=False, d_min=d_min)
    flex.set_random_seed(0)
    some = miller_set.select(flex.random_permutation(miller_set.size())[:N_REFLECTIONS])
    reference = cctbx_direct(structure, some)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        atoms = sfdiff.Atoms.from_cctbx(structure, dtype=dtype)
        f = sfdiff.structure_factors(atoms, atoms.crystal, some, method="direct").to(torch.complex128)
        assert relative_l2(f, reference) <= bound
