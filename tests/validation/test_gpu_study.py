"""The study for a GPU, dry: the same way in Triton's interpreter."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def dry_run(folder, *options):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "validation.studies.gpu_study",
            "--dry-run",
            "--output",
            str(folder / "found"),
            *options,
        ],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done, json.loads((folder / "found.json").read_text())


def test_what_there_is_no_time_for_is_left_out_and_said(tmp_path):
    done, record = dry_run(tmp_path, "--seconds", "0.01")
    assert done.returncode == 1 and record["rows"] == []
    assert sorted(record["left_out"]) == ["first", "second"]
    assert "out of time: first" in done.stdout and "inputs: 0.01 MiB of 64" in done.stdout


@pytest.mark.slow
def test_a_dry_run_fills_every_row_by_the_kernels_of_a_gpu(tmp_path):
    done, record = dry_run(tmp_path, "--seconds", "2400")  # it takes thirty or so; a busy machine may stop it for long
    assert done.returncode == 0, done.stderr[-3000:]
    assert record["left_out"] == [] and [row["entry"] for row in record["rows"]] == ["first", "second"]
    times = [f"step_{name}" for name in ("least_squares", "maximum_likelihood")]
    times += ["f", "f_gradients", "mask", "mask_gradient", "batch_f_gradients", "batch_mask_gradient"]
    for row in record["rows"]:
        assert all(row[name] > 0 for name in times)
        assert row["f_error"] <= 1e-3 and max(row["gradient_errors"]) <= 2e-3 and row["mask_error"] <= 1e-5
        assert row["same_bits"] is True and "error" not in row
    # Peers come last: what is not installed, or what a crystal so small does to them, is said.
    assert {row["peer"] for row in record["peers"]} == {"sfcalculator", "torchref"}
    assert all("error" in row or row["f"] > 0 for row in record["peers"])
    table = (tmp_path / "found.rst").read_text()
    assert table.count("   * - ") == 4 + len(record["peers"]) and "dry run on the CPU" in table


def test_without_a_card_the_study_says_what_to_do(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    done = subprocess.run(
        [sys.executable, "-m", "validation.studies.gpu_study", str(tmp_path)],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and "no CUDA device is here: run it on a machine with one, or with --dry-run" in done.stderr
    )
