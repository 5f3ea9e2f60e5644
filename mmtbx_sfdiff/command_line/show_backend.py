"""``mmtbx_sfdiff.show_backend``: which of cctbx's C++ entry points compute, as it is and taken over."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.show_backend
import sys

import mmtbx_sfdiff  # noqa: F401  (first: it owns the order in which native libraries are loaded)
from mmtbx_sfdiff.programs import show_backend as program


def run(args=None):
    """Run the program; return its exit code."""
    return program.run(args)


if __name__ == "__main__":
    sys.exit(run())
