"""Runs of the study of latent refinement: made one after the other or several at a time, one JSON line each."""

import concurrent.futures
import json
import multiprocessing
import os
import statistics
import time
import traceback
from pathlib import Path

import torch


def read(path):
    """Lines of a results file; an incomplete last one is left out."""
    lines = []
    if Path(path).exists():
        for text in Path(path).read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines


def key(line):
    return line["entry"], line["seed"], line["kind"], line["d_min"], line.get("label", "")


def summary(lines):
    """Text: every run, then medians."""
    out = ["entry seed kind          d_min  start R        before polish   final R         main-chain rmsd        s"]

    def pair(r):
        return f"{r[0]:.3f}/{r[1]:.3f}" if r else "-          "

    for line in sorted(lines, key=key):
        before = line.get("before_polish")
        moved = (
            ""
            if "rmsd" not in line
            else f"{line['rmsd_start']['main']:.2f} -> "
            + (f"{line['rmsd_before']['main']:.2f} -> " if line["rmsd_before"] else "")
            + f"{line['rmsd']['main']:.2f}"
        )
        out.append(
            f"{line['entry']:6s}{line['seed']:3d}  {line['kind'] + line.get('label', ''):14s}{line['d_min']:5.2f}  "
            f"{pair(line.get('start_r'))}  {pair(before and (before['r_work'], before['r_free']))}    "
            f"{pair((line['r_work'], line['r_free']))}  {moved:22s}{line.get('seconds', 0):6.0f}"
        )
    groups = {}
    for line in lines:
        groups.setdefault((line["entry"], line["kind"] + line.get("label", ""), line["d_min"]), []).append(
            line["r_free"]
        )
    out.append("\nmedian R-free")
    out += [
        f"{e:6s}{k:14s}{d:5.2f}  {statistics.median(v):.3f}  of {len(v)}" for (e, k, d), v in sorted(groups.items())
    ]
    return "\n".join(out)


def run_tasks(make, wanted, protocol, results, workers=1, minutes=None):
    """Make runs and keep each as it ends.

    Parameters
    ----------
    make : callable
        (kind, entry, seed, d_min, protocol) -> (line, histories)
    wanted : list of tuple
        (entry, seed, kind, d_min, label)
    protocol : Protocol
    results : pathlib.Path
    workers : int
    minutes : float, optional
        Nothing begins after so long.

    Returns
    -------
    int
        3 when time was up before all had begun, 1 when one failed, else 0.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    jobs = [(make, task, protocol, end) for task in wanted]
    if workers == 1:
        finished = map(job, jobs)
        return max([keep(task, found, protocol, results) for task, found in zip(wanted, finished)], default=0)
    # Not by fork: a process that has used threads does not survive it.
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(job, work): work[1] for work in jobs}
        return max(
            [keep(futures[f], f.result(), protocol, results) for f in concurrent.futures.as_completed(futures)],
            default=0,
        )


def job(work):
    """What ``work`` (make, task, protocol, end) gives; None when it is past the end, a text when it failed."""
    make, (entry, seed, kind, d_min, _), protocol, end = work
    if end is not None and time.monotonic() > end:
        return None
    torch.set_num_threads(1)
    try:
        return make(kind, entry, seed, d_min, protocol)
    except Exception:  # one run that fails does not end a study of hours
        return traceback.format_exc()


def keep(task, found, protocol, results):
    """Write what :func:`job` gave; the exit code."""
    if found is None:
        print(f"{task[0]} seed {task[1]} {task[2]}: time is up, give the same command again", flush=True)
        return 3
    if isinstance(found, str):
        print(f"{task[0]} seed {task[1]} {task[2]} failed:\n{found}", flush=True)
        return 1
    entry, seed, kind, d_min, label = task
    line, histories = found
    line = {"entry": entry, "seed": seed, "kind": kind, "d_min": d_min, "label": label, **line}
    if histories:
        name = f"history_{kind}{label}_{d_min:g}.json"
        (protocol.folder / entry / f"seed{seed}" / name).write_text(json.dumps(histories))
    with open(results, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(summary([line]).splitlines()[1], flush=True)
    return 0
