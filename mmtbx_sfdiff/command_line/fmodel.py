"""``mmtbx_sfdiff.fmodel``: structure factors of a model, with or without data."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.fmodel
import sys

from mmtbx_sfdiff.programs.fmodel import Program
from mmtbx_sfdiff.programs.runner import main


def run(args=None):
    """Run the program; return its exit code."""
    return main(Program, args)


if __name__ == "__main__":
    sys.exit(run())
