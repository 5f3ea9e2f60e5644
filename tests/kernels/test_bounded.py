"""No number makes a kernel crash or go on for ever, or drop an atom without a word."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.cctbx  # the child makes its crystals with it
@pytest.mark.parametrize(
    "name, cases, values, limit",
    (("cpu", 2, 5, 300), ("torch", 2, 5, 300), pytest.param("triton", 1, 1, 600, marks=pytest.mark.slow)),
)
def test_numbers_that_are_none_end_in_an_error_or_in_none(name, cases, values, limit):
    if name == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.bounded", name, str(cases), str(values)],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=limit,
        env={**os.environ, "TRITON_INTERPRET": "1" if name == "triton" else "0", "OMP_NUM_THREADS": "1"},
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[-1] == "ended", (lines[-3:], done.stderr[-2000:])
    # NaN and infinity are never turned into numbers.
    silent = [line for line in lines if line.endswith(": finite") and ("nan" in line or ": inf" in line)]
    assert not [line for line in silent if "population" not in line]
