"""Calls on cores that other processes use too, against the same calls on idle ones.

    python -m validation.studies.busy [entry] [--rounds 40] [--threads 2] [--busy 2] [--csv FILE]

Prints mean times, idle and beside ``--busy`` processes that never rest, their ratio, and the longest call.  Half of a core is
a ratio of two; exit status 1 where one is above 2.5.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.files.writing import write_all

LIMIT = 2.5
HEADER = ["entry", "operation", "idle_ms", "busy_ms", "busy_over_idle", "longest_busy_ms"]


def operations(name: str) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    files = find_entry(name, download=False)
    entry = load_entry(files.model, files.data)
    atoms = sfdiff.Atoms.from_cctbx(entry.model.xray_structure)
    plan = sfdiff.plan(atoms.crystal, sfdiff.crystal.as_miller_tensor(entry.data.f_obs))
    seed = torch.randn(len(plan), dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    mask = sfdiff.solvent_mask(atoms, atoms.crystal)

    def of_mask(gradient: bool) -> object:
        given = mask.detach().requires_grad_(gradient)
        f = sfdiff.mask_structure_factors(given, plan)
        return torch.autograd.grad(f, given, seed) if gradient else f

    def of_atoms(method: str, gradient: bool) -> object:
        sites = atoms.sites_cart.detach().clone().requires_grad_(gradient)
        moved = atoms.replace(sites_cart=sites)
        if method == "mask":
            f = sfdiff.solvent_structure_factors(moved, plan)
        else:
            f = sfdiff.structure_factors(moved, plan, method=method, accuracy=1e-3)
        return torch.autograd.grad(f, sites, seed) if gradient else f

    return {
        "mask_structure_factors": lambda: of_mask(False),
        "mask_structure_factors + gradient": lambda: of_mask(True),
        "F (fft)": lambda: of_atoms("fft", False),
        "F (fft) + gradient": lambda: of_atoms("fft", True),
        "F of the mask": lambda: of_atoms("mask", False),
        "F of the mask + gradient": lambda: of_atoms("mask", True),
        "F (direct)": lambda: of_atoms("direct", False),
    }


def times(call: Callable[[], object], rounds: int) -> list[float]:
    """Milliseconds of each call, after a first one."""
    call()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - started))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", nargs="?", default="1rx2")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=2, help="processes that never rest")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows, worst = [], 0.0
    calls = operations(options.entry)
    idle = {name: times(call, options.rounds) for name, call in calls.items()}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        time.sleep(0.5)
        busy = {name: times(call, options.rounds) for name, call in calls.items()}
    finally:
        for process in others:
            process.kill()
            process.wait()
    for name in calls:
        a, b = statistics.mean(idle[name]), statistics.mean(busy[name])
        worst = max(worst, b / a)
        rows.append([options.entry, name, f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}", f"{max(busy[name]):.0f}"])
        print(f"{name:34s} idle {a:7.2f} ms, busy {b:7.2f} ms: {b / a:.2f}; longest {max(busy[name]):.0f} ms")
    if options.csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
        write_all({options.csv: text.getvalue().encode()})
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
