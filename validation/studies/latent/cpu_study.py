"""The whole study on CPUs: starts, dynamics and generators of every entry and seed, then every run, several at a time.

    python -m validation.studies.latent.cpu_study FOLDER --workers 8 [--entries 1aie 1dtx 6jqs] [--seeds 0 1 2] [--minutes 30]

What is finished is kept in FOLDER (priors) and FOLDER/latent.jsonl (runs); give the same command again to go on.
Exit code 3: time was up before everything had begun. With ``--size ci --duration 4`` it is a trial.
"""

import argparse
import concurrent.futures
import multiprocessing
import sys
import time
from pathlib import Path

import torch

from validation.studies.latent.priors import DYNAMICS, dynamics, linear_priors, make_start
from validation.studies.latent.refinement import RESOLUTION, SIZES, Protocol, one
from validation.studies.latent.runs import job, keep, key, read

CONVERGENCE = (2.5, 3.0)  # Å, beside the entry's own limit
CONVERGENCE_ENTRY = "1aie"
COMPARED = ("latent", "sites_ff", "average_ff", "sites")
LIMITS_OF_METHOD = ("deposited_ff", "deposited_b", "latent_side_chains")  # of the first seed


def prior(folder, entry, seed, duration=None):
    """Start, dynamics and generators, as far as they are not there yet."""
    torch.set_num_threads(1)
    place = folder / entry / f"seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    start = make_start(entry, place, seed)
    dynamics(entry, start, place, seed, duration)
    linear_priors(entry, start, place, others=False)
    return entry, seed


def tasks(entry, seed, first_seed):
    """(what is compared, what comes after that): [(kind, d_min)] each."""
    own = RESOLUTION.get(entry, 2.0)
    first = [(kind, own) for kind in ("benchmark", *COMPARED[:3])]
    later = [(COMPARED[3], own)]
    if seed == first_seed:
        later += [(kind, own) for kind in LIMITS_OF_METHOD]
    if entry == CONVERGENCE_ENTRY:
        later += [(kind, d_min) for d_min in CONVERGENCE for kind in ("benchmark", *COMPARED[:3])]
    return first, later


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--entries", nargs="+", default=list(DYNAMICS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size", choices=tuple(SIZES), default="cpu")
    parser.add_argument("--duration", type=float, help="of the dynamics, ps, instead of each entry's own")
    parser.add_argument("--only-made", action="store_true", help="only starts whose dynamics are there")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="stop beginning anything after so long")
    options = parser.parse_args(args)
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    protocol = Protocol(options.folder, size=options.size)
    results = options.folder / "latent.jsonl"
    done = {key(line) for line in read(results)}
    code, later = 0, []
    # Not by fork: a process that has used threads does not survive it.
    with concurrent.futures.ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {
            pool.submit(prior, options.folder, entry, seed, options.duration): None
            for seed in options.seeds
            for entry in options.entries
            if not options.only_made or (options.folder / entry / f"seed{seed}" / "md").exists()
        }

        def submit(entry, seed, found):
            for kind, d_min in found:
                task = entry, seed, kind, d_min, protocol.label
                if task not in done:
                    waiting[pool.submit(job, (one, task, protocol, end))] = task

        while waiting:
            ended, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in ended:
                task = waiting.pop(future)
                if task is not None:
                    code = max(code, keep(task, future.result(), protocol, results))
                    continue
                entry, seed = future.result()
                first, after = tasks(entry, seed, options.seeds[0])
                submit(entry, seed, first)
                later.append((entry, seed, after))
            if later and None not in waiting.values():
                for entry, seed, after in sorted(later, key=lambda item: item[1]):
                    submit(entry, seed, after)
                later = []
    return code


if __name__ == "__main__":
    sys.exit(main())
