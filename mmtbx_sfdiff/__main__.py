"""``python -m mmtbx_sfdiff``: the same as the command ``mmtbx_sfdiff``."""

import sys

from .command_line.main import run

if __name__ == "__main__":
    sys.exit(run())
