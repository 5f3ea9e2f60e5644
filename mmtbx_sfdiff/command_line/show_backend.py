"""``mmtbx_sfdiff.show_backend``: which of cctbx's C++ entry points compute, as it is and taken over."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.show_backend
import sys
from collections.abc import Sequence

from mmtbx_sfdiff.command_line import load


def run(args: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    return int(load("show_backend").run(args))


if __name__ == "__main__":
    sys.exit(run())
