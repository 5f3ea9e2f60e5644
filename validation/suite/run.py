"""``python -m validation run``: every entry in a process of its own, here or on a Dask cluster.

An entry that fails is a result, with the reason; only a full disk, which is no fault of an entry, ends the
run.  What is recorded is never computed again, unless ``--retry`` asks for the failures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import sys
import time

from libtbx.utils import Sorry

from . import parameters, selection
from .records import CHECKOUT, Run, describe
from .supervise import OutOfDisk, Supervised

_PAUSE = 0.1
# Variables that say where entries are found; a worker on another machine gets them too.
_PLACES = (
    "MMTBX_SFDIFF_PDB_DIR",
    "MMTBX_SFDIFF_CACHE_DIR",
    "MMTBX_SFDIFF_RCSB_URL",
    "MMTBX_SFDIFF_PDBE_URL",
    "MMTBX_SFDIFF_PDBJ_URL",
    "PDB_MIRROR_",
)


def add_options(parser):
    """The command line of ``run``."""
    parser.add_argument("source", help="list, folder of entries, manifest (.tsv), or one identifier")
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run; given again, the run goes on")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="entries at a time on this machine (default: %(default)s)"
    )
    parser.add_argument(
        "--time-limit", type=float, default=3600, metavar="SECONDS", help="for one entry (default: %(default)g)"
    )
    parser.add_argument(
        "--memory-limit", type=float, default=4.0, metavar="GIB", help="for one entry (default: %(default)g)"
    )
    parser.add_argument(
        "--connect-timeout",
        type=float,
        default=20,
        metavar="SECONDS",
        help="longest wait for the next bytes of a download (default: %(default)g)",
    )
    parser.add_argument("--retries", type=int, default=3, help="further attempts at a download (default: %(default)s)")
    parser.add_argument("--retry", action="store_true", help="compute recorded failures again")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="compute on the Dask cluster of this scheduler (tcp://...)"
    )
    parser.add_argument(
        "--worker-command",
        metavar="COMMAND",
        help="another program for one entry, instead of "
        "python -m validation.suite.worker: it gets a folder with job.json and leaves result.json there",
    )
    parameters.add_options(parser)
    parser.set_defaults(run=run)


def run(options):
    """Compute what is not recorded; return the exit status: 1 where an entry failed."""
    if options.jobs < 1 or options.time_limit <= 0 or options.memory_limit <= 0:
        raise Sorry("--jobs, --time-limit and --memory-limit have to be positive.")
    entries, folder = selection.read(options.source)
    values = parameters.from_options(options)
    values.settings()  # raises before any work for what cannot be
    chosen = dataclasses.asdict(values)
    limits = {"seconds": options.time_limit, "bytes": int(options.memory_limit * 2**30)}
    environment = {
        name: os.path.abspath(os.path.expanduser(value)) if value and not name.endswith("_URL") else value
        for name, value in os.environ.items()
        if name.startswith(_PLACES)
    }
    if folder is not None:
        environment["MMTBX_SFDIFF_PDB_DIR"] = str(folder)
    command = shlex.split(options.worker_command) if options.worker_command else None
    run_folder = Run(options.out)
    with run_folder.locked(), _terminated():
        run_folder.begin(describe(entries, str(options.source), chosen, limits))
        cut = run_folder.repair()
        if cut:
            print(
                f"The last line of {run_folder.results} had not been written to its end ({cut} bytes): its "
                "entry is computed again.",
                flush=True,
            )
        known = run_folder.records()
        if options.retry:
            known = {entry: record for entry, record in known.items() if record["status"] == "ok"}
        wanted = [entry for entry in entries if entry not in known]
        jobs = [
            {
                "entry": entry,
                "parameters": chosen,
                "limits": limits,
                "checkout": str(CHECKOUT),
                "environment": environment,
                "command": command,
                "timeouts": {"connect": options.connect_timeout, "retries": options.retries},
            }
            for entry in wanted
        ]
        if len(wanted) < len(entries):
            print(
                f"{len(entries) - len(wanted)} of {len(entries)} entries are recorded, {len(wanted)} remain.",
                flush=True,
            )
        with progress(len(entries), len(entries) - len(wanted)) as show:

            def record(outcome):
                run_folder.append(*outcome)
                show(outcome[0])

            try:
                if options.scheduler:
                    from . import cluster

                    cluster.compute(jobs, options.scheduler, record)
                else:
                    compute(jobs, options.jobs, run_folder.folder / ".work", record)
            except OutOfDisk as error:
                raise run_folder.no_room(f"a worker says {str(error)!r}") from None
            except OSError as error:
                raise run_folder.no_room(error) from None
        return _summary(run_folder, entries)


def compute(jobs, n_jobs, folder, record):
    """Jobs on this machine, so many at a time; ``record`` gets each outcome."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    waiting, running = list(reversed(jobs)), []
    try:
        while waiting or running:
            while waiting and len(running) < n_jobs:
                running.append(Supervised(waiting.pop(), folder))
            ended = False
            for worker in list(running):
                outcome = worker.poll()
                if outcome is not None:
                    running.remove(worker)
                    record(outcome)
                    ended = True
            if not ended:
                time.sleep(_PAUSE)
    finally:
        for worker in running:
            worker.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _terminated():
    """A request to end (SIGTERM, as a queueing system sends it) is heeded like Ctrl-C."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def progress(n_entries, n_done):
    """A function of a record that shows how far the run is: a bar on a terminal; in a log, only what failed."""
    if not sys.stderr.isatty():

        def line(record):
            if record["status"] != "ok":
                print(f"{record['entry']}: {record['kind']}: {record['reason']}", flush=True)

        yield line
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=n_entries, completed=n_done, rate="", last="")
        start, counts = time.monotonic(), {"ended": 0, "failed": 0}

        def show(record):
            counts["ended"] += 1
            if record["status"] != "ok":
                counts["failed"] += 1
                bar.console.print(escape(f"{record['entry']}: {record['kind']}: {record['reason']}"))
            pace = (time.monotonic() - start) / counts["ended"]
            left = pace * (n_entries - n_done - counts["ended"])
            bar.update(
                task,
                advance=1,
                last=f"{record['entry']}, {counts['failed']} failed",
                rate=f"{3600 / pace:.0f} an hour, {_duration(left)} left",
            )

        yield show


def _duration(seconds):
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _summary(run_folder, entries):
    records = [record for entry, record in run_folder.records().items() if entry in set(entries)]
    failed = [record for record in records if record["status"] != "ok"]
    cpu = sum(record["cpu_s"] for record in records)
    peak = max((record["peak_bytes"] for record in records), default=0)
    print(
        f"{len(records)} entries in {run_folder.folder}, {len(failed)} failed; {cpu:.0f} s of CPU, at most "
        f"{peak / 2**30:.2f} GiB of memory in a worker.",
        flush=True,
    )
    return 1 if failed else 0
