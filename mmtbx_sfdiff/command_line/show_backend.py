"""``mmtbx_sfdiff.show_backend``: which of cctbx's C++ entry points compute, as it is and taken over."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.show_backend
import sys

from mmtbx_sfdiff.programs import show_backend as program


def run(args=None):
    """Run the program; return its exit code."""
    return program.run(args)


if __name__ == "__main__":
    sys.exit(run())
