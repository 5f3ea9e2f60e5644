"""``mmtbx_sfdiff.compare``: structure factors, solvent mask, R factors and times, side by side with mmtbx."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.compare
import sys

from mmtbx_sfdiff.programs.compare import Program
from mmtbx_sfdiff.programs.runner import main


def run(args=None):
    """Run the program; return its exit code."""
    return main(Program, args)


if __name__ == "__main__":
    sys.exit(run())
