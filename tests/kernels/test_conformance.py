"""Every engine against the reference: {dtype, space group, anisotropic, batch, atoms at the edges of tiles and cells}."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import mmtbx_sfdiff  # noqa: F401
from mmtbx_sfdiff.kernels import engines

import pytest

from tests.kernels.conformance import CASES, CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu_engine_conforms(case, check):
    check(engines.engine("cpu", "cpu"), case)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    "cases",
    (("2",), *(pytest.param((f"L{i}",), marks=pytest.mark.slow) for i in range(14))),
    ids=str,
)
def test_triton_engine_conforms_in_the_interpreter(cases):
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.conformance", "triton", *cases],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "conforms" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("device, name", (("cuda", "cpu"), ("cpu", "fortran")))
def test_an_engine_that_cannot_be_used_is_refused_in_a_sentence(device, name):
    with pytest.raises(ValueError, match=f"engine='{name}' cannot be used here"):
        engines.engine(device, name)
