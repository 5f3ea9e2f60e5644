"""A batch of models against a loop over them, and what sharing one model among the threads leaves to be gained.

In one process, call by call in turn: the loop over the models with all threads for each, the batch, and the loop with one
thread, all of atoms that have moved since the call before.  A loop on n threads takes

    loop / one thread = 1 / (n e)

with the efficiency e at which one model uses them; a batch, whose models have a thread each, could be 1/e times as fast if
n models side by side took no longer than one alone.  So 1/e is the most that a batch can gain.  That they do take longer,
for what the threads share (cache, memory), is seen by the processor time of the batch over that of the loop on one thread.

    python -m validation.studies.batches [entry ...] [--models 4] [--rounds 9] [--threads 2] [--csv FILE]

Results of batch and loop are compared first.  Prints medians.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import sys
import time
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.files.writing import write_all

ENTRIES = ("1dur", "1cbs", "3mpq")
OPERATIONS = ("F", "F + gradient", "mask", "mask + gradient", "step")
HEADER = [
    "entry",
    "n_atoms",
    "operation",
    "loop_ms",
    "batch_ms",
    "loop_over_batch",
    "most",
    "cpu_batch_over_one",
    "difference",
]


class Models:
    """Models of an entry, and the operations on them."""

    def __init__(self, name: str, n_models: int, accuracy: float) -> None:
        files = find_entry(name, download=False)
        entry = load_entry(files.model, files.data)
        self.atoms, self.accuracy = sfdiff.Atoms.from_cctbx(entry.model.xray_structure), accuracy
        indices = sfdiff.crystal.as_miller_tensor(entry.data.f_obs)
        self.plan = sfdiff.plan(self.atoms.crystal, indices)
        generator = torch.Generator().manual_seed(0)
        self.seed = torch.randn(len(indices), dtype=torch.complex128, generator=generator)
        self.shifts = 0.1 * torch.randn(
            (n_models, *self.atoms.sites_cart.shape), dtype=torch.float64, generator=generator
        )
        self.step = 0

    def sites(self) -> torch.Tensor:
        """Of all models, moved a little."""
        self.step += 1
        return self.atoms.sites_cart.detach() + self.shifts + 1e-5 * self.step

    def run(self, operation: str, sites: torch.Tensor) -> list[torch.Tensor]:
        """The operation's results, of one model or of a batch."""
        wanted = "gradient" in operation or operation == "step"
        sites = sites.clone().requires_grad_(wanted)
        u_iso = self.atoms.u_iso.detach().expand(sites.shape[:-1]).clone().requires_grad_(wanted)
        atoms = self.atoms.replace(sites_cart=sites, u_iso=u_iso)
        # Nothing of torch's own on the results: the threads of its pool would spin for milliseconds after it.
        found, inputs = [], [sites]
        if operation.startswith("F") or operation == "step":
            found.append(sfdiff.structure_factors(atoms, self.plan, method="fft", accuracy=self.accuracy))
            inputs.append(u_iso)
        if operation.startswith("mask") or operation == "step":
            found.append(sfdiff.solvent_structure_factors(atoms, self.plan))
        results = [f.detach() for f in found]
        if wanted:
            results += torch.autograd.grad(found, inputs, [self.seed.expand(f.shape) for f in found])
        return results

    def loop(self, operation: str, sites: torch.Tensor) -> list[torch.Tensor]:
        """The same, model by model."""
        return [torch.stack(x) for x in zip(*(self.run(operation, one) for one in sites))]


def measure(models: Models, operation: str, rounds: int, n_threads: int) -> list[float]:
    """Medians, ms, of loop, batch and loop on one thread; processor times of the last two; how far batch and loop are apart."""
    sites = models.sites()
    pairs = zip(models.run(operation, sites), models.loop(operation, sites))
    difference = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    ways = {"loop": (models.loop, n_threads), "batch": (models.run, n_threads), "one": (models.loop, 1)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in ways if number % 2 else reversed(ways):
            function, threads = ways[name]
            torch.set_num_threads(threads)
            sites = models.sites()
            started, used = time.perf_counter(), time.process_time()
            function(operation, sites)
            if number:
                times[name].append(1e3 * (time.perf_counter() - started))
                processor[name].append(1e3 * (time.process_time() - used))
    torch.set_num_threads(n_threads)
    found = [*(times[name] for name in ways), processor["batch"], processor["one"]]
    return [*(statistics.median(x) for x in found), difference]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", default=list(ENTRIES))
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accuracy", type=float, default=1e-3)
    parser.add_argument("--operations", nargs="+", default=list(OPERATIONS), choices=OPERATIONS)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = []
    for entry in options.entries:
        models = Models(entry, options.models, options.accuracy)
        for operation in options.operations:
            loop, batch, one, cpu_batch, cpu_one, difference = measure(
                models, operation, options.rounds, options.threads
            )
            # 1/e: n_threads models at a time, each as fast as alone.
            most = loop / (one / options.threads)
            rows.append(
                [
                    entry,
                    models.atoms.n_atoms,
                    operation,
                    f"{loop:.2f}",
                    f"{batch:.2f}",
                    f"{loop / batch:.2f}",
                    f"{most:.2f}",
                    f"{cpu_batch / cpu_one:.2f}",
                    f"{difference:.0e}",
                ]
            )
            print(
                f"{entry:5s} {operation:16s} loop {loop:8.2f} ms, batch {batch:8.2f} ms: {loop / batch:.2f} of at most {most:.2f}; processor time {cpu_batch / cpu_one:.2f}; {difference:.0e}",
                flush=True,
            )
    if options.csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
        write_all({options.csv: text.getvalue().encode()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
