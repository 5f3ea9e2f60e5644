"""The command line of the validation suite: select, run, report, audit."""

from __future__ import annotations

import argparse
import importlib
import sys

from mmtbx_sfdiff.programs.runner import guarded

_COMMANDS = {
    "select": ("selection", "choose entries and write a list of them"),
    "run": ("run", "compare every entry with mmtbx, each in a process of its own"),
    "report": ("report", "figures, tables and pages of a run"),
    "audit": ("audit", "hold a run against the contracts; exit status 0 pass, 1 fail, 2 could not audit"),
}


def parser(commands):
    """The command line, with the options of these commands."""
    result = argparse.ArgumentParser(prog="python -m validation", description=__doc__)
    children = result.add_subparsers(required=True, metavar="{" + ",".join(_COMMANDS) + "}")
    for name, (module, help) in _COMMANDS.items():
        child = children.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        if name in commands:
            importlib.import_module("validation.suite." + module).add_options(child)
    return result


def main(arguments=None):
    """Run a command; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    status = []

    def call():
        # Only the command that is asked for is loaded: drawing is slow to import.
        options = parser(set(arguments[:1])).parse_args(arguments)
        status.append(options.run(options))

    code = guarded(call, interrupted="Interrupted: what was recorded is safe; the same command goes on from there.")
    if code == 1 and arguments[:1] == ["audit"]:
        return 2
    return status[0] if status and code == 0 else code


if __name__ == "__main__":
    sys.exit(main())
