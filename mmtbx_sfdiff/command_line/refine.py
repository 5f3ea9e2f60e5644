"""``mmtbx_sfdiff.refine``: sites and displacement parameters, refined against the data."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.refine
import sys

from mmtbx_sfdiff.programs.refine import Program
from mmtbx_sfdiff.programs.runner import main


def run(args=None):
    """Run the program; return its exit code."""
    return main(Program, args)


if __name__ == "__main__":
    sys.exit(run())
