"""``mmtbx_sfdiff.latent``: refinement in the latent space of a Boltzmann generator, stage by stage."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.latent
import sys

from mmtbx_sfdiff.programs.latent import Program, stage_arguments
from mmtbx_sfdiff.programs.runner import guarded, main


def run(args=None):
    """Run the program; return its exit code."""
    arguments = []
    code = guarded(lambda: arguments.extend(stage_arguments(sys.argv[1:] if args is None else list(args))))
    return code or main(Program, arguments)


if __name__ == "__main__":
    sys.exit(run())
