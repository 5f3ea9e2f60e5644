"""The validation suite's runs: entries that crash, hang or eat memory, and runs that are killed and go on.

Most tests give the suite a worker that is quick (``entry_worker.py``); what the suite does with it is the
same.
"""

import contextlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from libtbx.utils import Sorry

from validation.__main__ import main
from validation.suite.records import Run

ROOT = Path(__file__).resolve().parents[2]
WORKER = shlex.join([sys.executable, "-S", str(ROOT / "tests" / "support" / "entry_worker.py")])


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """The folder in which the quick worker counts its starts."""
    folder = tmp_path / "starts"
    folder.mkdir()
    monkeypatch.setenv("STARTS", str(folder))
    return folder


def write_list(tmp_path, entries):
    path = tmp_path / "list.txt"
    path.write_text("# entries\n" + "".join(f"{entry}  # comment\n" for entry in entries))
    return str(path)


def command(tmp_path, entries, *more):
    return ["run", write_list(tmp_path, entries), "--out", str(tmp_path / "RUN"), "--worker-command", WORKER, *more]


def start(tmp_path, entries, *more, **kwargs):
    """The suite in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "validation", *command(tmp_path, entries, *more)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except OSError:
        return True


def pids(starts, entry):
    return [int(word) for word in (starts / entry).read_text().split()] if (starts / entry).exists() else []


def test_entries_that_fail_are_results(tmp_path, starts, capsys):
    entries = ["1aaa", "1seg", "1mem", "1end", "1odd", "1bbb"]
    assert main(command(tmp_path, entries, "--jobs", "3", "--time-limit", "4", "--memory-limit", "0.2")) == 1
    records = Run(tmp_path / "RUN").records()
    assert sorted(records) == sorted(entries)
    found = {entry: (record["status"], record["kind"]) for entry, record in records.items()}
    assert found == {
        "1aaa": ("ok", None),
        "1bbb": ("ok", None),
        "1seg": ("failed", "crash"),
        "1odd": ("failed", "crash"),
        "1mem": ("failed", "memory"),
        "1end": ("failed", "timeout"),
    }
    assert "SIGSEGV" in records["1seg"]["reason"] and "structure factors" in records["1seg"]["reason"]
    assert "status 3" in records["1odd"]["reason"] and "nothing to say" in records["1odd"]["log"]
    assert "0.2 GiB" in records["1mem"]["reason"] and 0.2 * 2**30 < records["1mem"]["peak_bytes"] < 2**30
    assert "4 s" in records["1end"]["reason"] and 4 <= records["1end"]["wall_s"] < 60
    assert all(record["cpu_s"] >= 0 and record["peak_bytes"] >= 0 for record in records.values())
    assert records["1end"]["peak_bytes"] > 2**20  # the others end as soon as anybody looks
    assert (tmp_path / "RUN" / "figures" / "1aaa.svg").read_text().startswith("<svg")
    assert all(gone(pid) for entry in entries for pid in pids(starts, entry))
    assert not (tmp_path / "RUN" / ".work").exists()
    out = capsys.readouterr().out
    assert "6 entries" in out and "4 failed" in out and "1aaa" not in out and "1seg: crash: " in out


def test_three_corrupt_of_twenty(tmp_path, starts):
    entries = [f"1a{number:02d}" for number in range(17)] + ["3aaa", "3bbb", "3ccc"]
    assert main(command(tmp_path, entries, "--jobs", "4")) == 1
    records = Run(tmp_path / "RUN").records()
    failed = {entry for entry, record in records.items() if record["status"] != "ok"}
    assert len(records) == 20 and failed == {"3aaa", "3bbb", "3ccc"}
    assert all("is corrupt" in records[entry]["log"] for entry in failed)


def test_nothing_is_computed_twice_but_failures_on_request(tmp_path, starts, capsys):
    main(command(tmp_path, ["1aaa", "1odd"]))
    assert main(command(tmp_path, ["1aaa", "1odd", "1bbb"])) == 1
    assert "2 of 3 entries are recorded, 1 remain" in capsys.readouterr().out
    main(command(tmp_path, ["1aaa", "1odd", "1bbb"], "--retry"))
    assert {entry: len(pids(starts, entry)) for entry in ("1aaa", "1bbb", "1odd")} == {"1aaa": 1, "1bbb": 1, "1odd": 2}
    assert len(lines(tmp_path / "RUN")) == 4 and len(Run(tmp_path / "RUN").records()) == 3
    assert Run(tmp_path / "RUN").description()["entries"] == ["1aaa", "1odd", "1bbb"]


def test_description_of_the_run(tmp_path, starts):
    main(command(tmp_path, ["1aaa"], "--accuracy", "1e-3"))
    description = Run(tmp_path / "RUN").description()
    assert description["parameters"]["accuracy"] == 1e-3 and description["versions"]["cctbx"]
    assert description["machine"]["cores"] == os.cpu_count() and description["limits"]["bytes"] == 4 * 2**30
    if (ROOT / ".git").exists():
        assert len(description["commit"].rstrip("+")) == 40


@pytest.mark.parametrize(
    "more, said",
    [(["--accuracy", "1e-3"], "accuracy was 0.0001 and is 0.001 now"), (["--threads", "2"], "threads was 1 and is 2")],
)
def test_other_parameters_are_refused(tmp_path, starts, capsys, more, said):
    main(command(tmp_path, ["1aaa"]))
    assert main(command(tmp_path, ["1aaa", "1bbb"], *more)) == 1
    assert said in capsys.readouterr().err and not pids(starts, "1bbb")


def test_half_a_line_is_cut_off_and_its_entry_computed(tmp_path, starts, capsys):
    main(command(tmp_path, ["1aaa", "1bbb"], "--jobs", "1"))
    path = tmp_path / "RUN" / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert list(Run(tmp_path / "RUN").records()) == ["1aaa"]
    assert main(command(tmp_path, ["1aaa", "1bbb"])) == 0
    assert "had not been written to its end" in capsys.readouterr().out
    assert [record["entry"] for record in lines(tmp_path / "RUN")] == ["1aaa", "1bbb"]
    assert len(pids(starts, "1aaa")) == 1 and len(pids(starts, "1bbb")) == 2


def test_damage_in_the_middle_is_named(tmp_path, starts):
    main(command(tmp_path, ["1aaa", "1bbb"], "--jobs", "1"))
    path = tmp_path / "RUN" / "results.jsonl"
    path.write_text("{half\n" + path.read_text())
    with pytest.raises(Sorry, match="Line 1 of .*results.jsonl is damaged"):
        Run(tmp_path / "RUN").records()


def test_two_runs_at_once_are_refused(tmp_path, starts, capsys):
    with Run(tmp_path / "RUN").locked():
        assert main(command(tmp_path, ["1aaa"])) == 1
    assert "Another run is at work" in capsys.readouterr().err


@contextlib.contextmanager
def once(condition, action):
    """Meanwhile, do something when a condition is met."""

    def work():
        wait_for(condition)
        action()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_killed_worker_is_a_result(tmp_path, starts):
    def recorded():
        return pids(starts, "2aaa") and (tmp_path / "RUN" / "results.jsonl").exists()

    with once(recorded, lambda: os.kill(pids(starts, "2aaa")[0], signal.SIGKILL)):
        assert main(command(tmp_path, ["2aaa", "1aaa"], "--jobs", "2")) == 1
    records = Run(tmp_path / "RUN").records()
    assert records["1aaa"]["status"] == "ok" and "SIGKILL" in records["2aaa"]["reason"]


def test_a_killed_run_goes_on_where_it_was(tmp_path, starts):
    entries = ["1aaa", "2aaa", "1bbb"]
    run = start(tmp_path, entries, "--jobs", "1")
    wait_for(lambda: pids(starts, "2aaa"))
    run.kill()
    run.communicate(timeout=600)
    for pid in pids(starts, "2aaa"):  # the quick worker does not watch its parent; the suite's own does, see below
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    goes_on(tmp_path, starts, entries)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, starts, how, capsys):
    entries = ["1aaa", "2aaa", "1bbb"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with once(lambda: pids(starts, "2aaa"), lambda: os.kill(os.getpid(), how)):
            assert main(command(tmp_path, entries, "--jobs", "1")) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "what was recorded is safe" in capsys.readouterr().err
    assert gone(pids(starts, "2aaa")[0]) and not (tmp_path / "RUN" / ".work").exists()
    goes_on(tmp_path, starts, entries)


def goes_on(tmp_path, starts, entries):
    """One entry was recorded, the second was worked at: the rest is computed, nothing twice."""
    assert [record["entry"] for record in lines(tmp_path / "RUN")] == ["1aaa"]
    (starts / "go").touch()
    assert main(command(tmp_path, entries)) == 0
    recorded = [record["entry"] for record in lines(tmp_path / "RUN")]
    assert recorded[0] == "1aaa" and sorted(recorded) == sorted(entries)
    assert [len(pids(starts, entry)) for entry in entries] == [1, 2, 1] and not list((tmp_path / "RUN").glob(".work"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's prctl")
def test_the_suites_own_worker_ends_with_its_parent(tmp_path):
    script = """if True:
        import os, subprocess, sys, time
        from pathlib import Path
        import json
        folder = Path(sys.argv[1])
        (folder / "job.json").write_text(json.dumps({"parent": os.getpid()}))
        code = ("import sys, time, json; from pathlib import Path; "
                "from validation.suite.worker import _bind_to_parent; "
                "_bind_to_parent(json.loads((Path(sys.argv[1]) / 'job.json').read_text())['parent']); "
                "print('bound', flush=True); time.sleep(100)")
        child = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, start_new_session=True)
        child.stdout.readline()
        print(child.pid, flush=True)
        time.sleep(100)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    wait_for(lambda: gone(pid))
    parent.communicate()


def test_a_worker_without_room_ends_the_run_and_not_the_entry(tmp_path, starts, capsys):
    assert main(command(tmp_path, ["1aaa", "1ful", "1bbb"], "--jobs", "1")) == 1
    assert "No space left on device" in (said := capsys.readouterr().err) and "1 entries" in said
    assert list(Run(tmp_path / "RUN").records()) == ["1aaa"]


@contextlib.contextmanager
def small_disk(folder):
    """A file system of 64 kB; where none can be mounted, None."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk(tmp_path, starts, capsys):
    with small_disk(tmp_path / "RUN") as disk:
        if disk is None:
            pytest.skip("no file system can be mounted here")
        filler = disk / "filler"
        entries = [f"1a{number:02d}" for number in range(6)]
        main(command(tmp_path, entries[:2]))
        filler.write_bytes(b"")
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)
        assert main(command(tmp_path, entries)) == 1
        said = capsys.readouterr().err
        assert "Cannot write" in said and ("o space left" in said) and "\n" not in said.strip()
        assert set(entries[:2]) <= {record["entry"] for record in lines(disk)}
        filler.unlink()
        assert main(command(tmp_path, entries)) == 0
        assert [len(pids(starts, entry)) for entry in entries[:2]] == [1, 1]
        assert sorted(record["entry"] for record in lines(disk)) == entries


def test_no_part_of_a_record_is_left_where_it_does_not_fit(tmp_path, starts):
    """A limit on the size of files stands in for the disk, so that a line fits in part."""
    main(command(tmp_path, ["1aaa"]))
    run = Run(tmp_path / "RUN")
    before = run.results.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
    try:
        with pytest.raises(Sorry) as caught:
            run.append({"entry": "1bbb", "status": "ok", "text": "x" * 200}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "no space left" in str(caught.value) and "1 entries" in str(caught.value)
    assert run.results.read_bytes() == before


def test_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "taken").write_text("x")
    assert main(["run", "1aaa", "--out", str(tmp_path / "taken")]) == 1
    assert "Cannot make the folder" in capsys.readouterr().err


def test_progress_on_a_terminal(tmp_path, starts, monkeypatch):
    """Rate and time left, on a real terminal; nothing of it in a log."""
    pty = pytest.importorskip("pty")
    primary, secondary = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    said = []

    def listen():
        with contextlib.suppress(OSError):
            while block := os.read(primary, 4096):
                said.append(block)

    listener = threading.Thread(target=listen)
    listener.start()
    with open(secondary, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        assert main(command(tmp_path, ["1aaa", "1odd"])) == 1
    listener.join()
    os.close(primary)
    said = b"".join(said)
    assert b"an hour" in said and b"left" in said and b"2/2" in said and b"1odd: crash" in said
