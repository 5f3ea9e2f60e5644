"""SFcalculator and TorchRef on a device, beside what this project takes: *F* at their measured errors, whole steps, batches.

    python -m validation.studies.gpu_peers FOLDER [--wheels FOLDER] [--python torchref=PATH ...] [--device cuda] [--batch 64]

FOLDER holds entries by :mod:`.gpu_inputs`.  Each peer runs in a process of its own (:mod:`.gpu_peers_worker`), by this interpreter, with the
wheels of ``--wheels``, which are installed for it alone, or by one that is given; what cannot be imported, does not fit on
the device or fails says so in its row.  For every entry: *F*; with gradients in sites and u_iso; the relative L2 of these from direct
summation in double precision, by the form factors of peers (International Tables C), of the atoms as they are (charges, special
positions, occupancies); whether a second call gives the same bits; a whole step of least squares with scales held (F, mask, scales,
target, gradients of all sites and B); one model of a batch.  The study for a GPU asks for the same after everything else, a row at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from .gpu_common import load, write_reference

PEERS = ("sfcalculator", "torchref")
ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """The process of a peer; after it could not be started, or did not answer in time, :attr:`lost` says why."""

    def __init__(self, name, python, device, path, log):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(x for x in (path, os.environ.get("PYTHONPATH")) if x),
        }
        self.log = open(log, "w+")  # noqa: SIM115  (as long as the process)
        self.process = subprocess.Popen(
            [python, "-m", "validation.studies.gpu_peers_worker", name, str(device)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.lost = None

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def answer(self, until, put):
        """Put down what comes, until it has ended."""
        while self.lost is None:
            try:
                numbers = self.lines.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                self.lost = "out of time"
                self.process.kill()
                put(error=self.lost)
                return
            if numbers is None:
                self.process.wait()
                self.log.seek(0)
                last = self.log.read().strip().splitlines()[-1:]
                self.lost = f"its process ended with {self.process.returncode}: {' '.join(last)[-300:]}"
                put(error=self.lost)
                return
            ended = numbers.pop("ended", False)
            put(**numbers)
            if ended:
                return

    def ask(self, question, until, put):
        """The numbers of an entry."""
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what comes back says why
        self.answer(until, put)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


def install(wheels, target):
    """Put wheels into a folder, this interpreter's; what pip says why not, or None."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-index",
            "--no-deps",
            "--target",
            target,
            *map(str, wheels),
        ],
        capture_output=True,
        text=True,
    )
    return done.stderr.strip() if done.returncode else None


def measure(entries, device, options, until, put_row):
    """Rows of all peers, entry after entry, as long as there is time.

    entries: (path, reference or None); options: batch, repeat, warm, wheels, python; put_row: called with the rows after every number.
    """
    rows, wheels = [], sorted(Path(options.wheels).glob("*.whl")) if options.wheels else []
    pythons = dict(option.split("=", 1) for option in options.python or ())
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        path = os.path.join(temporary, "site")
        missing = install(wheels, path) if wheels else None
        workers = {}
        for name in PEERS:
            if missing is not None and name not in pythons:
                rows.append({"peer": name, "error": f"its wheels could not be installed: {missing[-300:]}"})
                continue
            python = pythons.get(name)
            log = os.path.join(temporary, name)
            worker = Worker(name, python or sys.executable, device, "" if python else path, log)
            stack.callback(worker.close)
            workers[name] = worker
        found = {}
        for name, worker in list(workers.items()):
            found[name] = {}
            worker.answer(until, found[name].update)
            if "error" in found[name]:
                rows.append({"peer": name, **found[name]})
                del workers[name]
        put_row(rows)
        for entry, reference in entries:
            for name, worker in workers.items():
                rows.append(row := {"peer": name, **found[name], "entry": Path(entry).stem})

                def put(row=row, **numbers):
                    row.update(numbers)
                    put_row(rows)

                if worker.lost is not None or time.monotonic() > until:
                    put(error=worker.lost or "out of time")
                    continue
                question = {
                    "entry": str(entry),
                    "reference": None if reference is None else str(reference),
                    "seconds": until - time.monotonic(),
                    **{key: getattr(options, key) for key in ("batch", "repeat", "warm")},
                }
                worker.ask(question, until, put)
    put_row(rows)
    return rows


COLUMNS = (
    ("Program", "peer"),
    ("Version", "version"),
    ("Entry", "entry"),
    ("*F*", "f"),
    ("and gradients", "f_gradients"),
    ("one of the batch", "batch_f_gradients"),
    ("Step", "step"),
    ("error of *F*", "f_error"),
    ("of gradients", "gradient_errors"),
    ("Same bits", "same_bits"),
    ("Peak, MiB", "peak_mib"),
    ("", "said"),
)


def lines(rows):
    """A list-table for the documentation, ms."""
    found = [".. list-table::", "   :header-rows: 1", ""]
    for row in [{key: name for name, key in COLUMNS}, *rows]:
        wrong = [f"{key.partition('_')[0]}: {row[key]}" for key in ("step_error", "batch_error") if key in row]
        row = {"said": "; ".join([row["error"], *wrong] if "error" in row else wrong), **row}
        for number, (_, key) in enumerate(COLUMNS):
            found.append(f"   {'* -' if number == 0 else '  -'} {_cell(row.get(key, ''))}".rstrip())
    kinds = sorted({f"{row['peer']} {row['version']}: {row['says']}." for row in rows if "says" in row})
    return "\n".join([*found, "", *kinds]) + "\n"


def _cell(value):
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def arguments_of(parser):
    """The options that the study for a GPU has too."""
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels of peers and of what they need")
    parser.add_argument("--python", nargs="*", metavar="PEER=PATH", help="an interpreter that has this peer already")


def main(arguments=None):
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    arguments_of(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args(arguments)
    paths = sorted(options.folder.glob("*.npz"), key=lambda path: path.stat().st_size)
    if not paths:
        parser.error(f"no entries are in {options.folder}: make them by validation.studies.gpu_inputs")
    import mmtbx_sfdiff as sfdiff

    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as temporary:
        entries = []
        for path in paths:
            data = load(path, device)[2]
            entries.append((path.resolve(), Path(temporary) / path.name))
            write_reference(path, sfdiff.plan(data.crystal, data.miller_indices), device, entries[-1][1])
        rows = measure(entries, device, options, start + options.seconds, lambda rows: None)
    print(lines(rows))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
