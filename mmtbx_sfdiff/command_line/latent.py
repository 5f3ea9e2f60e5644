"""``mmtbx_sfdiff.latent``: refinement in the latent space of a Boltzmann generator, stage by stage."""

# LIBTBX_SET_DISPATCHER_NAME mmtbx_sfdiff.latent
import sys
from collections.abc import Sequence

from mmtbx_sfdiff.command_line import load


def run(args: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    program, runner = load("latent"), load("runner")
    arguments: list[str] = []
    words = sys.argv[1:] if args is None else list(args)
    code = runner.guarded(lambda: arguments.extend(program.stage_arguments(words)))
    return int(code or runner.main(program.Program, arguments))


if __name__ == "__main__":
    sys.exit(run())
