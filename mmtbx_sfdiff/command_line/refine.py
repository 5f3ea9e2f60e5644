"""``mmtbx_sfdiff.refine``: sites and displacement parameters, refined against the data."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.refine
import sys
from collections.abc import Sequence

from mmtbx_sfdiff.command_line import compile_meanwhile, load


def run(args: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    compile_meanwhile(args)
    program = load("refine").Program
    return int(load("runner").main(program, args))


if __name__ == "__main__":
    sys.exit(run())
