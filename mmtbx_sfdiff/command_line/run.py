"""``mmtbx_sfdiff.run``: an unmodified program of cctbx or Phenix with this package as its engine."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.run
import sys
from collections.abc import Sequence

from mmtbx_sfdiff.command_line import load


def run(args: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    return int(load("run").run(args))


if __name__ == "__main__":
    sys.exit(run())
