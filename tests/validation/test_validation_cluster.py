"""The validation suite on a Dask cluster: a scheduler and workers in processes of their own, which get killed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.validation.test_validation_run import command, gone, lines, once, pids, starts, wait_for  # noqa: F401  (starts is a fixture)
from validation.__main__ import main
from validation.suite import cluster
from validation.suite.records import Run

pytest.importorskip("distributed")


@contextlib.contextmanager
def dask(folder, n_workers):
    """(address, processes of the workers) of a cluster on the loopback interface."""

    def begin(*words):
        log = open(folder / f"dask{len(processes)}.log", "wb")
        processes.append(subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log, cwd=folder))
        return processes[-1]

    processes = []
    try:
        begin(
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            "file.json",
        )
        wait_for((folder / "file.json").exists)
        address = re.search(r"tcp://127.0.0.1:\d+", (folder / "file.json").read_text()).group()
        for _ in range(n_workers):
            begin(
                "distributed.cli.dask_worker",
                address,
                "--nthreads",
                "1",
                "--no-nanny",
                "--no-dashboard",
                "--host",
                "127.0.0.1",
            )
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def two_workers(tmp_path, starts):  # noqa: F811
    (tmp_path / "dask").mkdir()
    with dask(tmp_path / "dask", 2) as found:
        yield found


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_killed_dask_worker_loses_nothing(tmp_path, starts, two_workers):  # noqa: F811
    address, workers = two_workers
    entries = ["1aaa", "2aaa", "1seg", "1bbb"]

    def kill():
        pid = pids(starts, "2aaa")[0]
        dead = next(worker for worker in workers if worker.pid == parent_of(pid))
        dead.kill()
        os.kill(pid, signal.SIGKILL)  # the quick worker does not watch its parent, as the suite's own does
        (starts / "go").touch()

    with once(lambda: pids(starts, "2aaa") and len(lines_if_any(tmp_path)) == 3, kill):
        assert main(command(tmp_path, entries, "--scheduler", address)) == 1  # 1seg crashes by design
    records = Run(tmp_path / "RUN").records()
    assert {entry: record["status"] for entry, record in records.items()} == {
        "1aaa": "ok",
        "2aaa": "ok",
        "1bbb": "ok",
        "1seg": "failed",
    }
    assert "SIGSEGV" in records["1seg"]["reason"] and len(lines(tmp_path / "RUN")) == 4
    assert [len(pids(starts, entry)) for entry in entries] == [1, 2, 1, 1]
    assert (tmp_path / "RUN" / "figures" / "2aaa.svg").exists()
    # On the worker that is left: a disk without room ends the run; Ctrl-C ends what is being worked at.
    assert main(command(tmp_path, [*entries, "1ful"], "--scheduler", address)) == 1
    (starts / "go").unlink()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with once(lambda: pids(starts, "2bbb"), lambda: os.kill(os.getpid(), signal.SIGINT)):
            assert main(command(tmp_path, [*entries, "2bbb"], "--scheduler", address)) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: gone(pids(starts, "2bbb")[0]))
    assert len(lines(tmp_path / "RUN")) == 4


def lines_if_any(tmp_path):
    return lines(tmp_path / "RUN") if (tmp_path / "RUN" / "results.jsonl").exists() else []


def test_no_scheduler(tmp_path, starts, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.5)
    assert main(command(tmp_path, ["1aaa"], "--scheduler", "tcp://127.0.0.1:9")) == 1
    assert "No Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


def test_job_script_of_slurm(tmp_path, monkeypatch):
    """As text: nothing here can be submitted."""
    pytest.importorskip("dask_jobqueue")
    monkeypatch.chdir(tmp_path)
    script = cluster.job_script(
        cores=16,
        memory="64GB",
        walltime="08:00:00",
        queue="long",
        account="xtal",
        interface="lo",
        job_script_prologue=["source /software/mmtbx_sfdiff/bin/activate"],
    )
    assert script.startswith("#!/usr/bin/env bash")
    for line in (
        "#SBATCH -p long",
        "#SBATCH -A xtal",
        "#SBATCH --cpus-per-task=16",
        "#SBATCH --mem=60G",
        "#SBATCH -t 08:00:00",
    ):
        assert line in script.splitlines(), script
    worker = script.strip().splitlines()[-1]
    assert (
        script.index("activate") < script.index(worker)
        and f"{sys.executable} -m distributed.cli.dask_worker tcp://" in worker
    )
    assert "--nthreads 16" in worker
    page = Path(__file__).resolve().parents[2] / "docs" / "validation.rst"
    # What the page shows is what the suite makes of it.
    shown = [line.strip() for line in page.read_text().splitlines() if line.strip().startswith("#SBATCH")]
    assert shown and set(shown) <= set(script.splitlines())
