"""The Triton kernels: on a GPU where there is one, else on the CPU by Triton's interpreter, in a process of
its own."""
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from test_fft import PARAMETERS, errors, make_atoms

SCRIPT = """
import importlib, sys
sys.path.insert(0, {tests!r})
import mmtbx_sfdiff
from test_fft import PARAMETERS, errors, make_atoms
splatting = importlib.import_module("mmtbx_sfdiff.structure_factors.splatting")
engine = importlib.import_module("mmtbx_sfdiff.structure_factors.splat_cuda")
splatting.engine = lambda device: engine
for symbol, b in (("P 1", (10, 60)), ("P 31 2 1", (40, 90))):
    atoms = make_atoms(symbol, n=6, aniso=True, dispersion=True, b=b, d_min=3.0)
    indices = atoms.crystal.build_miller_indices(3.0, anomalous=True)
    found = errors(atoms, indices, 1e-3, names=PARAMETERS)
    assert found[0] <= 1e-3 and max(found) <= 2e-3, found
print("passed")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_kernels_by_interpretation():
    tests = pathlib.Path(__file__).resolve().parent
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(tests=str(tests))],
                          env=environment, cwd=tests.parent, capture_output=True, text=True)
    assert done.returncode == 0 and "passed" in done.stdout, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.parametrize("accuracy", [1e-3, 1e-5])
@pytest.mark.parametrize("symbol", ["P 1", "P 31 2 1", "C 1 2 1", "P 43 21 2"])
def test_gpu_meets_the_accuracy(symbol, accuracy):
    atoms = make_atoms(symbol, n=40, aniso=True, dispersion=True, d_min=2.0).to(device="cuda")
    indices = atoms.crystal.build_miller_indices(2.0, anomalous=True)
    found = errors(atoms, indices, accuracy, names=PARAMETERS)
    assert found[0] <= accuracy and max(found) <= 2 * accuracy, found
