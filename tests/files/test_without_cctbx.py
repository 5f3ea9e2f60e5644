"""FModel.from_files where cctbx is not installed: the same data and the same F."""

import subprocess
import sys

import mmtbx_sfdiff as sfdiff
import torch

import numpy as np

from tests.support import case_files as make

_BLOCKED = """
import importlib.abc, importlib.util, sys
NAMES = ("cctbx", "libtbx", "iotbx", "mmtbx", "scitbx", "boost_adaptbx")
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in NAMES:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in NAMES else found(name, package)
import torch
from mmtbx_sfdiff import FModel
model, data, other, out = sys.argv[1:]
fmodel = FModel.from_files(model, data, method="direct")
r = fmodel.reflections
torch.save((r.miller_indices, r.f_obs, r.sigmas, r.r_free_flags, fmodel.f_calc()), out)
try:
    FModel.from_files(model, other)
except ValueError as error:
    print(error)
"""


def test_files_are_read_to_the_same_numbers_where_cctbx_is_absent(tmp_path):
    indices, f = make.amplitudes(tmp_path)
    columns = {"I": ("J", f**2), "SIGI": ("Q", 0.1 * f + 1), "FreeR_flag": ("I", np.arange(len(f)) % 20)}
    data = make.write_mtz(tmp_path / "d.mtz", indices, columns)
    model, other = tmp_path / "m.cif", tmp_path / "x.sca"
    model.write_text(make.cif_text())
    other.write_text(
        "    1\n -987\n    28.000    31.000    36.000    90.000    90.000    90.000 p212121\n   0   0   2   611.0    42.6\n"
    )
    out = tmp_path / "out.pt"
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED, model, data, other, out], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert "needs cctbx, which is not installed here" in done.stdout
    theirs = torch.load(out)
    fmodel = sfdiff.FModel.from_files(model, data, method="direct")
    r = fmodel.reflections
    for ours, absent in zip((r.miller_indices, r.f_obs, r.sigmas, r.r_free_flags), theirs):
        assert torch.equal(ours, absent)
    assert float((fmodel.f_calc() - theirs[4]).abs().max() / theirs[4].abs().max()) < 1e-13
