"""Two versions of this package side by side: F, gradients, mask and scaling, each version in a process of its own.

The processes load the same entries and take turns, one call each; only the one whose turn it is runs.  Before each call
the atoms move a little, as in refinement, so that nothing kept of the call before is of use.  FFT gradients are timed at
equal measured error: each version is given the largest accuracy at which its gradient's error against its own direct
summation in float64 stays within the one asked for.

    python -m validation.studies.versions OLD/bin/python [--new NEW/bin/python] [--entries 1dur ...] [--rounds 7] [--csv FILE]

``OLD/bin/python`` is of an environment where the older version is installed.  Prints median(old / new) of each operation:
above 1, this version is faster.  Compilation is not counted.  Exit status 1 below 0.95 in the median of any operation.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import subprocess
import sys
from pathlib import Path

LIMIT = 0.95
ENTRIES = ("1dur", "1bff", "1cbs", "1l2h", "3zt9", "1rx2", "1nsf", "3mpq")
OPERATIONS = ("F", "F + gradient", "mask", "mask + gradient", "scaling")

WORKER = r"""
import json, sys, time
import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.reflections import Reflections

torch.set_num_threads(int(sys.argv[1]))
asked = float(sys.argv[2])
NAMES = ("sites_cart", "u_iso")
state = {}


def leaves(atoms):
    found = [getattr(atoms, name).detach().clone().requires_grad_() for name in NAMES]
    return found, atoms.replace(**dict(zip(NAMES, found)))


def gradient(accuracy, method="fft"):
    inputs, atoms = leaves(state.get("moved") or state["atoms"])
    f = sfdiff.structure_factors(atoms, atoms.crystal, state["indices"], method=method, accuracy=accuracy)
    return torch.autograd.grad(f, inputs, state["seed"])


def load(name):
    state.pop("moved", None)
    files = find_entry(name)
    entry = load_entry(files.model, files.data)
    atoms = sfdiff.Atoms.from_cctbx(entry.model.xray_structure)
    data = Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags)
    state.update(atoms=atoms, data=data, indices=data.miller_indices)
    f = sfdiff.structure_factors(atoms, atoms.crystal, data.miller_indices, method="direct")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(f), dtype=torch.complex128, generator=generator)
    state["seed"] = f * noise
    exact = gradient(None or 1e-4, "direct")
    # The largest accuracy whose measured error stays within what was asked for.
    for factor in (8.0, 5.6, 4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25):
        found = gradient(asked * factor)
        error = max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact))
        if error <= asked:
            break
    state["accuracy"] = asked * factor
    state["f_calc"] = f
    state["f_mask"] = sfdiff.solvent_structure_factors(atoms, atoms.crystal, data.miller_indices)
    return {"n_atoms": atoms.n_atoms, "n_reflections": len(f), "gradient_accuracy": state["accuracy"], "gradient_error": error}


def move():
    # What was kept of an earlier call is of no use any more.
    state["step"] = state.get("step", 0) + 1
    state["moved"] = state["atoms"].replace(sites_cart=state["atoms"].sites_cart + 1e-5 * state["step"])


def run(operation):
    atoms, indices = state["moved"], state["indices"]
    if operation == "F":
        sfdiff.structure_factors(atoms, atoms.crystal, indices, method="fft", accuracy=asked)
    elif operation == "F + gradient":
        gradient(state["accuracy"])
    elif operation == "mask":
        sfdiff.solvent_structure_factors(atoms, atoms.crystal, indices)
    elif operation == "mask + gradient":
        inputs, moved = leaves(atoms)
        f = sfdiff.solvent_structure_factors(moved, atoms.crystal, indices)
        torch.autograd.grad(f, inputs[:1], state["seed"])
    elif operation == "scaling":
        sfdiff.update_all_scales(state["data"], state["f_calc"], state["f_mask"])


for line in sys.stdin:
    command, value = json.loads(line)
    if command == "load":
        answer = load(value)
    else:
        move()
        started = time.perf_counter()
        run(value)
        answer = time.perf_counter() - started
    print("answer " + json.dumps(answer), flush=True)
"""


class Version:
    """One version in its process."""

    def __init__(self, python: str, threads: int, accuracy: float) -> None:
        self.process = subprocess.Popen(
            [python, "-c", WORKER, str(threads), str(accuracy)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",  # no checkout is imported by accident
        )

    def ask(self, command: str, value: str):
        self.process.stdin.write(json.dumps([command, value]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit(f"A version ended with status {self.process.wait()} at {command} {value}.")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="interpreter of the older version's environment")
    parser.add_argument("--new", default=sys.executable, help="of the newer; by default this one")
    parser.add_argument("--entries", nargs="+", default=list(ENTRIES))
    parser.add_argument("--operations", nargs="+", default=list(OPERATIONS), choices=OPERATIONS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accuracy", type=float, default=1e-3)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    versions = [Version(python, options.threads, options.accuracy) for python in (options.old, options.new)]
    rows, ratios = [], {operation: [] for operation in options.operations}
    for entry in options.entries:
        about = [version.ask("load", entry) for version in versions]
        for operation in options.operations:
            for version in versions:  # compiled, caches filled
                version.ask("run", operation)
                version.ask("run", operation)
            times = [[], []]
            for number in range(options.rounds):
                for i in (0, 1) if number % 2 else (1, 0):
                    times[i].append(versions[i].ask("run", operation))
            old, new = (1e3 * statistics.median(t) for t in times)
            ratios[operation].append(old / new)
            rows.append(
                [
                    entry,
                    about[1]["n_atoms"],
                    about[1]["n_reflections"],
                    operation,
                    f"{old:.3f}",
                    f"{new:.3f}",
                    f"{old / new:.3f}",
                ]
            )
            print(f"{entry:6s} {operation:16s} {old:9.2f} ms {new:9.2f} ms  {old / new:.2f}", flush=True)
    if options.csv:
        from mmtbx_sfdiff.files.writing import write_all

        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [["entry", "n_atoms", "n_reflections", "operation", "old_ms", "new_ms", "old_over_new"], *rows]
        )
        write_all({options.csv: text.getvalue().encode()})
    medians = {operation: statistics.median(values) for operation, values in ratios.items()}
    for operation, value in medians.items():
        print(f"{operation:16s} median old / new {value:.2f}")
    return int(min(medians.values()) < LIMIT)


if __name__ == "__main__":
    sys.exit(main())
