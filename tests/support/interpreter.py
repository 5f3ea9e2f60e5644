"""Triton's interpreter, which a process has from its start or not at all."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def interpreted(*arguments):
    """What Python with these arguments prints, in the interpreter, from the checkout; it has to end well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def small_tiles():
    """Tiles and blocks for small crystals: the interpreter is slow by the operation, not by the number."""
    from mmtbx_sfdiff.kernels.cuda import density, maps, soft_mask

    density._TILE, density._LANES, density._REFLECTIONS = (16, 16, 16), 4096, 4096
    soft_mask._TILE, soft_mask._BLOCK, maps._BLOCK = (16, 16, 32), 8192, 8192
