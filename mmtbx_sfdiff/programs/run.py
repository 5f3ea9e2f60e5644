"""``mmtbx_sfdiff.run``: an unmodified program of cctbx or Phenix, with this package registered or everywhere.

Also what makes the environment variable ``MMTBX_SFDIFF`` act: ``--install-startup``, see :mod:`.startup_file`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mmtbx_sfdiff

import libtbx.load_env
from iotbx.cli_parser import run_program
from libtbx.utils import Sorry

from ..bulk_solvent import MASKS
from ..structure_factors import METHODS
from . import startup_file
from .runner import guarded

_DISPATCHER = re.compile(r"[A-Za-z]\w*(\.\w+)+")
_NAME_LINE = re.compile(r"^\s*#\s*LIBTBX_SET_DISPATCHER_NAME\s+(\S+)", re.MULTILINE)


def parser() -> argparse.ArgumentParser:
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

Without this command, for every program of this Python:

  mmtbx_sfdiff.run --install-startup
  MMTBX_SFDIFF=takeover mmtbx.model_vs_data model.pdb data.mtz

MMTBX_SFDIFF_REPORT=1 makes a program say at its end which calls went through mmtbx_sfdiff, and which through cctbx.
""",
    )
    result.add_argument(
        "--takeover", action="store_true", help="send every F_calc, gradient and mask through mmtbx_sfdiff"
    )
    result.add_argument(
        "--mask",
        choices=tuple(MASKS),
        help="with --takeover: the solvent mask (default: binary, cctbx's own definition)",
    )
    result.add_argument(
        "--method",
        choices=("auto", *METHODS),
        help="with --takeover: how structure factors are computed (default: auto)",
    )
    result.add_argument(
        "--accuracy", type=float, help="with --takeover: largest relative error of the FFT (default: 1e-4)"
    )
    result.add_argument("--device", help="with --takeover: cpu (the default), cuda, ...")
    result.add_argument(
        "--scaling", action="store_true", help="let mmtbx_sfdiff do update_all_scales, by the same algorithm"
    )
    once = result.add_mutually_exclusive_group()
    once.add_argument(
        "--install-startup",
        action="store_true",
        help="let MMTBX_SFDIFF=1, scaling or takeover act on every program of this Python; says where the file is",
    )
    once.add_argument("--remove-startup", action="store_true", help="take that file away")
    result.add_argument(
        "program", nargs="?", help="name of a dispatcher (mmtbx.model_vs_data, phenix.refine), or a Python script"
    )
    result.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on as they are")
    return result


def run(args: Sequence[str] | None = None) -> int:
    """Run it; return the exit code."""
    return guarded(lambda: _run(parser().parse_args(args)))


def _run(options: Any) -> None:
    if options.install_startup or options.remove_startup:
        if options.program:
            raise Sorry(f"--install-startup and --remove-startup run no program: leave out {options.program}.")
        print(startup_file.install() if options.install_startup else startup_file.remove())
        return
    if not options.program:
        raise Sorry("Say which program: mmtbx_sfdiff.run mmtbx.model_vs_data ..., or see mmtbx_sfdiff.run --help.")
    wishes = {name: getattr(options, name) for name in ("mask", "method", "accuracy", "device")}
    wishes = {name: value for name, value in wishes.items() if value is not None}
    if wishes and not options.takeover:
        words = ", ".join(f"--{name}" for name in wishes)
        raise Sorry(
            f"{words} has no effect without --takeover: add it, or leave {words} out and ask by the program's own "
            "parameters (mask.algorithm=sfdiff mask.sfdiff.method=..., see docs/plugin.rst)."
        )
    start = find_program(options.program)
    if options.takeover:
        try:
            context = mmtbx_sfdiff.takeover(scaling=options.scaling, **wishes)
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


def find_program(name: str) -> Callable[..., Any]:
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
        return _own_script(name)
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


def _script(path: str) -> Callable[..., Any]:
    return lambda arguments: runpy.run_path(path, run_name="__main__")


def _own_script(path: str) -> Callable[..., Any]:
    """As ``python script.py`` does, with the folder of the script first on the path, for what it imports from there."""

    def start(arguments: Sequence[str]) -> None:
        before = list(sys.path)
        sys.path.insert(0, str(Path(path).resolve().parent))
        try:
            runpy.run_path(path, run_name="__main__")
        finally:
            sys.path[:] = before

    return start


def _finds(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _command_folders(first: str) -> Iterator[tuple[str, Path]]:
    """(module, folder) of the command-line programs of the modules that libtbx knows, and of the first."""
    names = [first] + [module.name for module in libtbx.env.module_list] + ["cctbx", "iotbx", "mmtbx", "phenix"]
    for name in dict.fromkeys(names):
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        for location in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(location) / "command_line"
            if folder.is_dir():
                yield name, folder
