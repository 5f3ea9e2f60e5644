"""A long life in one process: memory over ten thousand steps of a training loop, and over a thousand crystals.

    python -m validation.studies.long_life [--steps 10000] [--crystals 1000] [--every 500]

A step is F, F_mask, the maximum-likelihood target, backward and Adam, of 80 atoms and 378 reflections; every
hundredth determines the scales anew.  Of each crystal, the entries' cells first and random ones after them, F, F_mask, a map
and its transform with gradients, and of every tenth a density.  Prints memory as it goes, and what is in caches at the end.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--crystals", type=int, default=1_000)
    parser.add_argument("--every", type=int, default=500, help="steps between two looks at the memory")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.support.entries import manifest_rows
    from tests.support.long_life import MIB, caches, growth, many_crystals, train

    def show(text):
        print(text, flush=True)

    show(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, n, work in (
        ("steps", options.steps, lambda: train(options.steps, options.every, show)),
        ("crystals", options.crystals, lambda: many_crystals(options.crystals, 100, show, manifest_rows())),
    ):
        if n:
            start = time.perf_counter()
            memory = work()
            memory = memory[0] if isinstance(memory, tuple) else memory
            text = f"{n} {name}: {time.perf_counter() - start:.0f} s"
            if len(memory) > 1:
                text += (
                    f", {memory[0] / MIB:.1f} MiB at first, {memory[-1] / MIB:.1f} MiB at the end, at most "
                    f"{max(memory) / MIB:.1f}; over the second half {growth(memory) / MIB:+.1f} MiB"
                )
            show(text)
    full = {name: size for name, size in caches().items() if size[0]}
    show("in caches: " + "; ".join(f"{name} {n} of {most}" for name, (n, most) in full.items()))


if __name__ == "__main__":
    sys.exit(main())
