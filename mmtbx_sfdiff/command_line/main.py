"""``mmtbx_sfdiff``: what there is, and each program as a verb: ``mmtbx_sfdiff compare demo``."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff
from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from mmtbx_sfdiff.versions import versions

VERBS = {
    "compare": "one entry, or your model and data, side by side with mmtbx",
    "fmodel": "structure factors, scales and maps of a model",
    "refine": "sites and displacement parameters against the data",
    "latent": "a predicted model refined in the latent space of a generator",
    "run": "any program of cctbx or Phenix on this engine",
    "show_backend": "which of cctbx's entry points compute, and which calls came here",
}


def overview() -> str:
    """The programs, a line each, and where to start."""
    lines = [
        f"mmtbx_sfdiff {versions()['mmtbx_sfdiff']}: differentiable structure factors and bulk solvent, in PyTorch",
        "",
        *(f"  mmtbx_sfdiff.{verb:13s} {purpose}" for verb, purpose in VERBS.items()),
        "",
        "Each says more with --help; `mmtbx_sfdiff VERB ...` is the same program. To begin: mmtbx_sfdiff.compare demo",
        "In Python: import mmtbx_sfdiff as sfdiff; the public names are sfdiff.__all__.",
    ]
    return "\n".join(lines)


def run(args: Sequence[str] | None = None) -> int:
    """Say what there is, or start the program that is named; return the exit code."""
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version", "version"):
        print("\n".join(f"{name} {value or 'not installed'}" for name, value in versions().items()))
        return 0
    if words[0] not in VERBS:
        print(f"Sorry: there is no program {words[0]}: choose from {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    verb = importlib.import_module(f"mmtbx_sfdiff.command_line.{words[0]}")
    sys.argv = [f"mmtbx_sfdiff.{words[0]}", *words[1:]]
    return int(verb.run(words[1:]))


if __name__ == "__main__":
    sys.exit(run())
