"""docs/scripts/many_gpus.py: a batch over processes is the batch of one, on the CPU with gloo."""

import pathlib
import socket
import subprocess
import sys

import torch

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "docs" / "scripts" / "many_gpus.py"


def run(processes, output):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(processes),
            "--master-port",
            str(port),
            SCRIPT,
            "--models",
            "3",
            "--output",
            output,
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"3 models, 609 reflections, {processes} processes" in done.stdout, done.stdout
    return torch.load(output)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_two_processes_give_what_one_gives(tmp_path):
    one, two = (run(n, tmp_path / f"{n}.pt") for n in (1, 2))
    for a, b in zip(one, two):
        assert a.shape == b.shape and torch.linalg.vector_norm(a - b) <= 2e-3 * torch.linalg.vector_norm(a)
