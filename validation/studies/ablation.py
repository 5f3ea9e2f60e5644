"""What the hand-written vector instructions of the CPU kernels are worth, against plain loops.

Two processes, of which only the one whose turn it is runs:

* ``own``: as shipped;
* ``plain loops``: the vector instructions are replaced by plain loops for numba (:mod:`.plain_vectors`) before anything is compiled.

Everything else, torch's number of threads included, is the same, and so are the results, to rounding: that is checked first.
Conditions: an idle machine, one with a busy process on every core, and a batch of four models on an idle one.

    python -m validation.studies.ablation [entry ...] [--rounds 9] [--threads 2] [--cache FOLDER] [--csv FILE]

Prints medians and median / median of ``own``: above 1, what is shipped is faster.  Compilation is not counted;
``--cache`` keeps the replaced kernels' for the next time.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib
import io
import json
import os
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.files.writing import write_all
from mmtbx_sfdiff.kernels import cpu

import numpy as np

VARIANTS = ("own", "plain loops")
OPERATIONS = ("F", "F + gradient", "mask", "mask + gradient")
CONDITIONS = ("idle", "busy", "batch of 4")
#: What makes it worth keeping, and how far results may be apart: single precision, sums in another order.
WORTH, ROUNDING = 1.3, 2e-5
_KERNELS = "mmtbx_sfdiff.kernels."


def replace_vectors() -> int:
    """Put plain loops where the kernels have vector instructions, before they are compiled; how many names."""
    from mmtbx_sfdiff.kernels.cpu import density_vectors, mask_vectors

    from . import plain_vectors

    names = [(density_vectors, name) for name in plain_vectors.DENSITY]
    names += [(mask_vectors, name) for name in plain_vectors.MASK]
    return sum(
        _replace(getattr(module, name), getattr(plain_vectors, name), (module.__name__,)) for module, name in names
    )


def _replace(old, new, but=()):
    """In all modules of the kernels that have it, loaded or not yet."""
    for module in pkgutil.iter_modules(cpu.__path__, cpu.__name__ + "."):
        importlib.import_module(module.name)
    number = 0
    for name, module in list(sys.modules.items()):
        if name.startswith(_KERNELS) and name not in but:
            for key in [key for key, value in vars(module).items() if value is old]:
                setattr(module, key, new)
                number += 1
    return number


class Case:
    """An entry, and the operations on it."""

    def __init__(self, name, accuracy):
        files = find_entry(name, download=False)
        entry = load_entry(files.model, files.data)
        self.atoms = sfdiff.Atoms.from_cctbx(entry.model.xray_structure)
        self.indices, self.accuracy = sfdiff.crystal.as_miller_tensor(entry.data.f_obs), accuracy
        generator = torch.Generator().manual_seed(0)
        self.seed = torch.randn(len(self.indices), dtype=torch.complex128, generator=generator)
        self.shifts = 0.1 * torch.randn((4, self.atoms.n_atoms, 3), dtype=torch.float64, generator=generator)

    def run(self, operation, batch):
        """The operation's results, of one model or of a batch."""
        sites = self.atoms.sites_cart.detach()
        sites = (sites + self.shifts if batch else sites.clone()).requires_grad_("gradient" in operation)
        inputs = [sites]
        named = {"sites_cart": sites}
        if operation == "F + gradient":
            named["u_iso"] = self.atoms.u_iso.detach().clone().requires_grad_()
            inputs.append(named["u_iso"])
        atoms = self.atoms.replace(**named)
        if operation.startswith("F"):
            f = sfdiff.structure_factors(atoms, atoms.crystal, self.indices, method="fft", accuracy=self.accuracy)
        else:
            f = sfdiff.solvent_structure_factors(atoms, atoms.crystal, self.indices, method="probe_shrink")
        if "gradient" not in operation:
            return [f]
        return [f.detach(), *torch.autograd.grad(f, inputs, self.seed.to(f.dtype).expand(f.shape))]


def serve(variant: str, n_threads: int, accuracy: float) -> None:
    """Be one variant: answer what comes on standard input."""
    torch.set_num_threads(n_threads)
    if variant != "own" and not replace_vectors():
        raise SystemExit(f"{variant}: nothing was replaced; the kernels' names have changed.")
    case = None
    for line in sys.stdin:
        command, *values = json.loads(line)
        if command == "load":
            case = Case(values[0], accuracy)
            answer = [case.atoms.n_atoms, len(case.indices)]
        elif command == "check":
            operation, batch, path = values
            np.savez(path, *[x.detach().numpy() for x in case.run(operation, batch)])
            answer = None
        else:
            started = time.perf_counter()
            case.run(*values)
            answer = time.perf_counter() - started
        print("answer " + json.dumps(answer), flush=True)


class Variant:
    """One variant in its process."""

    def __init__(self, name: str, n_threads: int, accuracy: float, cache: Path) -> None:
        environment = dict(os.environ)
        if name == "plain loops":
            # numba's cache knows a function by its own file only, not by what it calls.
            environment["NUMBA_CACHE_DIR"] = str(cache / _fingerprint())
        arguments = [sys.executable, "-m", "validation.studies.ablation", "--serve", name]
        arguments += ["--threads", str(n_threads), "--accuracy", str(accuracy)]
        self.name = name
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit(f"{self.name} ended with status {self.process.wait()} at {command}.")


def _fingerprint() -> str:
    """Of what the replaced kernels are made of."""
    here = Path(__file__).parent
    found = hashlib.sha256((here / "plain_vectors.py").read_bytes())
    for path in sorted(Path(cpu.__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _difference(variants, operation, batch, folder):
    """The largest relative difference of any variant's results from the first one's."""
    found = []
    for i, variant in enumerate(variants):
        path = Path(folder) / f"{i}.npz"
        variant.ask("check", operation, batch, str(path))
        with np.load(path) as arrays:
            found.append([arrays[key] for key in arrays.files])
    norm = np.linalg.norm
    return max(float(norm(a - b) / norm(b)) for other in found[1:] for a, b in zip(other, found[0]))


@contextlib.contextmanager
def _busy(number: int):
    """So many processes that never rest."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        time.sleep(0.5 if number else 0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(variants, entry, rounds, n_busy):
    """Rows of the table: of one entry, all operations and conditions."""
    n_atoms, _ = [variant.ask("load", entry) for variant in variants][0]
    with tempfile.TemporaryDirectory() as folder:
        differences = {
            (operation, batch): _difference(variants, operation, batch, folder)
            for operation in OPERATIONS
            for batch in (False, True)
        }
    if max(differences.values()) > ROUNDING:
        raise SystemExit(f"{entry}: results differ by more than rounding: {differences}")
    for condition in CONDITIONS:
        batch = condition.startswith("batch")
        with _busy(n_busy if condition == "busy" else 0):
            for operation in OPERATIONS:
                times = {variant.name: [] for variant in variants}
                for number in range(rounds + 1):
                    order = variants if number % 2 else variants[::-1]
                    for variant in order:
                        seconds = variant.ask("run", operation, batch)
                        if number:
                            times[variant.name].append(1e3 * seconds)
                medians = {name: statistics.median(found) for name, found in times.items()}
                yield entry, n_atoms, operation, condition, medians, differences[operation, batch]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", default=["1dur", "1cbs"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accuracy", type=float, default=1e-3)
    parser.add_argument("--cache", type=Path, help="folder for the replaced kernels; by default a temporary one")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, options.threads, options.accuracy)
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        variants = [
            Variant(name, options.threads, options.accuracy, options.cache or Path(folder)) for name in VARIANTS
        ]
        for entry in options.entries:
            for row in measure(variants, entry, options.rounds, os.cpu_count() or options.threads):
                entry, n_atoms, operation, condition, medians, difference = row
                own = medians["own"]
                ratios = [medians[name] / own for name in VARIANTS[1:]]
                numbers = [*(f"{medians[name]:.2f}" for name in VARIANTS), *(f"{ratio:.2f}" for ratio in ratios)]
                rows.append([entry, n_atoms, operation, condition, *numbers, f"{difference:.0e}"])
                print(f"{entry:5s} {operation:16s} {condition:10s} own {own:8.2f} ms; ", end="")
                print(", ".join(f"{name} {ratio:.2f}" for name, ratio in zip(VARIANTS[1:], ratios)), flush=True)
        for variant in variants:
            variant.process.stdin.close()
            variant.process.wait()
    header = [
        "entry",
        "n_atoms",
        "operation",
        "condition",
        "own_ms",
        "plain_loops_ms",
        "plain_loops_over_own",
        "difference",
    ]
    best = max(rows, key=lambda row: float(row[6]))
    verdict = "keep" if float(best[6]) >= WORTH else "not worth keeping"
    print(f"own against plain loops: at most {best[6]} ({', '.join(map(str, best[:4]))}): {verdict}")
    if options.csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        write_all({options.csv: text.getvalue().encode()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
