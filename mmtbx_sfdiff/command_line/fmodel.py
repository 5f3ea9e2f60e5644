"""``mmtbx_sfdiff.fmodel``: structure factors of a model, with or without data."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.fmodel
import sys
from collections.abc import Sequence

from mmtbx_sfdiff.command_line import compile_meanwhile, load


def run(args: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    compile_meanwhile(args)
    program = load("fmodel").Program
    return int(load("runner").main(program, args))


if __name__ == "__main__":
    sys.exit(run())
