"""Kernels compiled for a card that is not there: its compiler takes them, and none spills much."""

import ast
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

from mmtbx_sfdiff.kernels import engines

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HAVE_ASSEMBLER = importlib.util.find_spec("triton") is not None and bool(
    list(pathlib.Path(importlib.util.find_spec("triton").origin).parent.glob("backends/nvidia/bin/ptxas"))
)


def kernels():
    """Names of the kernels that are launched: those with a subscript before their arguments."""
    found = set()
    for path in (ROOT / "mmtbx_sfdiff/kernels/cuda").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                name = node.func.value.attr if isinstance(node.func.value, ast.Attribute) else node.func.value.id
                found.add(name)
    return found


def test_a_triton_that_refuses_the_kernels_counts_as_none():
    assert not engines._takes_kernels("3.1.0")
    assert engines._takes_kernels("3.9.0") and engines._takes_kernels("3.10.0+git1")
    least = ".".join(map(str, engines.LEAST_TRITON))
    assert f"Triton {least} or newer" in " ".join((ROOT / "docs/gpu.rst").read_text().split())


@pytest.mark.slow
@pytest.mark.skipif(not HAVE_ASSEMBLER, reason="triton with its assembler is not installed")
@pytest.mark.parametrize("arch", [80, 90])
def test_every_kernel_is_compiled_for_cards(arch, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "validation.studies.gpu_compile", "--arch", str(arch)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = re.findall(r"\* - (\w+)\n +- (\d+)\n +- (\d+)\n +- (\d+)\n +- (\d+)", done.stdout)
    assert {name for name, *_ in rows} == kernels()
    # Bytes a thread beside its registers, and a block's shared memory: far from any limit.
    assert {row for row in rows if int(row[3]) > 64 or int(row[4]) > 16 * 2**10} == set()
