"""What the checks of numbers cost, of a call of F, of a mask and of their gradients, on real entries.

The functions that look for numbers that are none are timed where they are called, inside whole calls; a line says the median
of a call and the median of the share that they take of it.  The calls of an entry take turns.

    python -m validation.studies.check_cost [--entries 1dur 1cbs 3mpq] [--repeat 30] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.bulk_solvent import mask_atoms
from mmtbx_sfdiff.files import find_entry
from mmtbx_sfdiff.kernels import checks
from mmtbx_sfdiff.structure_factors import direct, fft, operation

ENTRIES = ("1dur", "1cbs", "3mpq")
#: Where the checks are: module and name.
CHECKS = (
    (checks, "check_numbers"),
    (mask_atoms, "_check_radii"),
    (direct, "check_result"),
    (fft, "check_result"),
    (operation, "check_result"),
)


class Clock:
    """Seconds spent in the checks."""

    def __init__(self):
        self.spent = 0.0
        for module, name in CHECKS:
            setattr(module, name, self._timed(getattr(module, name)))

    def _timed(self, function):
        def timed(*args, **keywords):
            start = time.perf_counter()
            try:
                return function(*args, **keywords)
            finally:
                self.spent += time.perf_counter() - start

        return timed


def calls(entry):
    """{name: function} of an entry's atoms, and sites moved by so much."""
    files = find_entry(entry, download=False)
    fmodel = sfdiff.FModel.from_files(files.model, files.data)
    atoms, data = fmodel.atoms, fmodel.reflections
    plan = sfdiff.plan(data.crystal, data.miller_indices)
    noise = 0.02 * torch.randn(atoms.sites_cart.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def f(sites):
        return sfdiff.structure_factors(atoms.replace(sites_cart=sites), plan)

    def mask(sites):
        return sfdiff.solvent_structure_factors(atoms.replace(sites_cart=sites), plan)

    def with_gradient(function):
        def both(sites):
            sites = sites.clone().requires_grad_()
            return torch.autograd.grad(function(sites).abs().square().sum(), sites)

        return both

    functions = {"F": f, "F + gradient": with_gradient(f), "mask": mask, "mask + gradient": with_gradient(mask)}
    return functions, lambda k: atoms.sites_cart + noise * k


def measure(entry, repeat, clock):
    """{name: (median seconds of a call, median share of the checks)}."""
    functions, moved = calls(entry)
    found = {name: [] for name in functions}
    for turn in range(repeat + 2):
        for number, (name, function) in enumerate(functions.items()):
            # Sites that no call has seen: what was made of some a moment ago is used again.
            sites = moved(1 + 0.01 * (len(functions) * turn + number))
            clock.spent, start = 0.0, time.perf_counter()
            function(sites)
            whole = time.perf_counter() - start
            if turn > 1:
                found[name].append((whole, clock.spent / whole))
    return {name: tuple(statistics.median(x) for x in zip(*values)) for name, values in found.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", nargs="+", default=ENTRIES)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clock = Clock()
    for entry in options.entries:
        for name, (seconds, share) in measure(entry, options.repeat, clock).items():
            print(f"{entry} {name:16s} {1e3 * seconds:8.2f} ms, checks {100 * share:5.2f} %", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
