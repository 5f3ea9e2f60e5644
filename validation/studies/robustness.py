"""Calls with anything, thousands of them: numbers or one sentence; never a crash, a hang or a silent NaN.

    python -m validation.studies.robustness [--cases 20000] [--seed 20] [--only structure_factors] [--seconds 30]

Run from the checkout: the cases are those of the tests (tests/support/robust_*.py), each a seed, in children that last.
Prints the seed, how many of each kind there were, and every fault with the seed that makes it again.  Ends with 1 if there
was any.
"""

from __future__ import annotations

import argparse
import collections
import math
import sys
import time
from pathlib import Path

#: Parts of the cases, about as many as can be run in the same time: FModel has a tenth of a second, the interpreter ten.
SHARES = {
    "structure_factors": 50,
    "masks": 30,
    "likelihood": 60,
    "nouns": 40,
    "density": 10,
    "fmodel": 6,
    "reference": 3.6,
    "triton": 0.4,
}
#: Modules of cases, each with a function ``call`` of a seed.
FOLDER = Path(__file__).resolve().parents[2] / "tests" / "support"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=20_000, help="of all operations together")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--only", nargs="+", metavar="OPERATION")
    parser.add_argument("--seconds", type=float, default=30, help="of processor time, for one case")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(FOLDER.parents[1]))
    from tests.support.robustness import run

    names = sorted(path.stem[len("robust_") :] for path in FOLDER.glob("robust_*.py"))
    if options.only:
        unknown = sorted(set(options.only) - set(names))
        if unknown:
            parser.error(f"there are no cases of {', '.join(unknown)}: choose from {', '.join(names)}")
        names = options.only
    faults, whole = 0, sum(SHARES.get(name, 1) for name in names)
    for name in names:
        n = math.ceil(options.cases * SHARES.get(name, 1) / whole)
        kinds, start = collections.Counter(), time.perf_counter()

        def count(outcome, kinds=kinds):
            kinds["fault" if outcome.fault else outcome.kind] += 1
            if outcome.fault:
                print(f"  {outcome}", flush=True)

        # Seeds of 32 bits, far apart for different --seed.
        first = options.seed * 1_000_003 % 2**31
        run(f"tests.support.robust_{name}:call", range(first, first + n), options.seconds, count)
        faults += kinds["fault"]
        text = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        print(f"{name}: seed {options.seed}, {n} cases: {text}; {time.perf_counter() - start:.0f} s", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
