"""``mmtbx_sfdiff.run``: an unmodified program of cctbx or Phenix, with this package registered or everywhere."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import re
import runpy
import sys
from pathlib import Path

import mmtbx_sfdiff

import libtbx.load_env
from iotbx.cli_parser import run_program
from libtbx.utils import Sorry

from ..bulk_solvent import MASKS
from ..structure_factors import METHODS
from .runner import guarded

_DISPATCHER = re.compile(r"[A-Za-z]\w*(\.\w+)+")
_NAME_LINE = re.compile(r"^\s*#\s*LIBTBX_SET_DISPATCHER_NAME\s+(\S+)", re.MULTILINE)


def parser():
    """The command line of the program."""
    result = argparse.ArgumentParser(
        prog="mmtbx_sfdiff.run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run a program of cctbx or Phenix, unmodified, with mmtbx_sfdiff as its engine.",
        epilog="""\
By default the program knows algorithm=sfdiff and mask.algorithm=sfdiff and computes with them where asked:

  mmtbx_sfdiff.run mmtbx.fmodel model.pdb high_resolution=2 structure_factors_accuracy.algorithm=sfdiff
  mmtbx_sfdiff.run phenix.refine model.pdb data.mtz \\
    refinement.structure_factors_and_gradients_accuracy.algorithm=sfdiff refinement.mask.algorithm=sfdiff

With --takeover everything goes through mmtbx_sfdiff, whatever the program asks for:

  mmtbx_sfdiff.run --takeover mmtbx.model_vs_data model.pdb data.mtz
""",
    )
    result.add_argument(
        "--takeover", action="store_true", help="send every F_calc, gradient and mask through mmtbx_sfdiff"
    )
    result.add_argument(
        "--mask",
        choices=tuple(MASKS),
        default="binary",
        help="with --takeover: the solvent mask (default: cctbx's own definition)",
    )
    result.add_argument(
        "--method",
        choices=("auto", *METHODS),
        default="auto",
        help="with --takeover: how structure factors are computed",
    )
    result.add_argument(
        "--accuracy",
        type=float,
        default=1e-4,
        help="with --takeover: largest relative error of the FFT (default: %(default)g)",
    )
    result.add_argument("--device", default="cpu", help="with --takeover: cpu, cuda, ...")
    result.add_argument(
        "--scaling", action="store_true", help="let mmtbx_sfdiff do update_all_scales, by the same algorithm"
    )
    result.add_argument("program", help="name of a dispatcher (mmtbx.model_vs_data, phenix.refine), or a Python script")
    result.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on as they are")
    return result


def run(args=None):
    """Run it; return the exit code."""
    return guarded(lambda: _run(parser().parse_args(args)))


def _run(options):
    start = find_program(options.program)
    if options.takeover:
        try:
            context = mmtbx_sfdiff.takeover(
                method=options.method,
                accuracy=options.accuracy,
                device=options.device,
                mask=options.mask,
                scaling=options.scaling,
            )
        except ValueError as error:
            raise Sorry(str(error)) from None
    else:
        mmtbx_sfdiff.register(scaling=options.scaling)
        context = contextlib.nullcontext()
    argv = sys.argv
    try:
        with context:
            sys.argv = [options.program, *options.arguments]
            start(options.arguments)
    finally:
        sys.argv = argv


def find_program(name):
    """What starts a program of that name: a function of its arguments.

    Looks, in this order, for a file, for ``<module>/command_line/<command>.py``, for a file there that names itself
    so with ``LIBTBX_SET_DISPATCHER_NAME``, and for ``<module>.programs.<command>``.

    Raises
    ------
    libtbx.utils.Sorry
        When there is none.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise Sorry(f"There is no script {name}: check the path.")
        return _script(name)
    if not _DISPATCHER.fullmatch(name):
        raise Sorry(f"{name} is not the name of a program, such as mmtbx.model_vs_data, nor a Python script.")
    module, command = name.split(".", 1)
    folders = dict(_command_folders(module))
    direct = folders.get(module, Path("/nonexistent")) / f"{command}.py"
    if direct.is_file():
        return _script(str(direct))
    for folder in folders.values():
        for path in sorted(folder.glob("*.py")):
            if name in _NAME_LINE.findall(path.read_text(errors="replace")):
                return _script(str(path))
    if importlib.util.find_spec(module) and _finds(f"{module}.programs.{command}"):
        program = getattr(importlib.import_module(f"{module}.programs.{command}"), "Program", None)
        if program is not None:
            return lambda arguments: run_program(program_class=program, args=list(arguments))
    raise Sorry(
        f"There is no program {name} here: it was looked for in command_line and programs of "
        f"{', '.join(sorted(folders)) or 'no module at all'}."
    )


def _script(path):
    return lambda arguments: runpy.run_path(path, run_name="__main__")


def _finds(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _command_folders(first):
    """(module, folder) of the command-line programs of the modules that libtbx knows, and of the first."""
    names = [first] + [module.name for module in libtbx.env.module_list] + ["cctbx", "iotbx", "mmtbx", "phenix"]
    for name in dict.fromkeys(names):
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        for location in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(location) / "command_line"
            if folder.is_dir():
                yield name, folder
