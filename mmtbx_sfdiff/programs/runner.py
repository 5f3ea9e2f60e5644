"""Running a program from a command line, the same way for all of them.

What a user meets beyond cctbx's own behaviour: entry ids and the names of a model and a data file may stand
alone on the command line; an error is one sentence and a non-zero exit code, never a traceback; Ctrl-C leaves
nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import libtbx
from iotbx.cli_parser import CCTBXParser, run_program
from libtbx.utils import Sorry

from ..files import is_entry_id
from ..files.content import read_content

_PHIL_SUFFIXES = (".eff", ".phil", ".param", ".params", ".def")


class Parser(CCTBXParser):
    """cctbx's parser, but files that are not PHIL are kept for the program, which reads them itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.plain_files: list[str] = []
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:
        if args is not None:
            args = [_named_shelx(_outside_of_flags(word, self.master_phil)) for word in args]
        try:
            return super().parse_args(args, *more, **kwargs)
        except Sorry:  # which is a ValueError, too, where it is this package's
            raise
        except RuntimeError as error:
            # PHIL's complaints about values and syntax, which cctbx lets through as a traceback.
            reason = re.sub(r": NameError: .*?(?= \()", "", " ".join(str(error).split()))
            raise Sorry(
                f"{reason}. See {self.prog} --show-defaults --attributes-level=2 for what is possible."
            ) from None
        except (OverflowError, ValueError) as error:
            # Infinities and what is no number, where PHIL wants a whole one.
            raise Sorry(
                f"A parameter that is a whole number was given another value ({error}). See {self.prog} "
                "--show-defaults --attributes-level=2 for what is possible."
            ) from None

    def process_files(self, file_list: Any, message: str = "Processing files:") -> None:
        phil = [name for name in file_list if name.lower().endswith(_PHIL_SUFFIXES)]
        if message == "Processing files:":
            self.plain_files = [name for name in file_list if name not in phil]
        if phil:
            super().process_files(phil, message)
        for name in phil:
            if name not in self.data_manager.get_phil_names():
                raise Sorry(
                    f"{name} is not a file of PHIL parameters that can be read: correct it; "
                    f"{self.prog} --write-defaults shows the form."
                )


def _outside_of_flags(word: str, master_phil: Any) -> str:
    """``name=value`` with its scope where the name also occurs in ``r_free_flags { }``, whose names need theirs."""
    name, equals, value = word.partition("=")
    if name.endswith(("r_free_flags.label", "free_flag_labels")) and value.lower() == "none":
        word = f'{name}="none"'  # a label that asks for no flags; PHIL's own None is the default
    if not equals or not name.isidentifier():
        return word
    paths = [found.path for found in master_phil.all_definitions() if found.object.name == name]
    others = [path for path in paths if ".r_free_flags." not in path]
    return f"{others[0]}={value}" if len(others) == 1 and len(paths) > 1 else word


def _named_shelx(word: str) -> str:
    """``x.hkl=hklf4`` alone is a data file: PHIL would take its name for that of a parameter."""
    name, _, kind = word.rpartition("=")
    alone = kind.lower() in ("hklf3", "hklf4", "amplitudes", "intensities") and "=" not in name and os.path.isfile(name)
    return f"data_file={word}" if alone else word


def inputs_from_arguments(scope_name: str) -> Callable[..., Any]:
    """A ``custom_process_arguments`` that makes parameters of bare entry ids, ``demo`` and files.

    The scope of that name has ``entry_id``, ``model_file``, ``data_file`` and ``demo``.
    """

    def process(parser: Any) -> None:
        _refuse_auto(parser.working_phil)
        params = parser.working_phil.extract()
        scope = getattr(params, scope_name)
        unknown = []
        for word in parser.namespace.unknown:
            if word.lower() == "demo":
                scope.demo = True
            elif is_entry_id(word):
                _set_once(scope, "entry_id", word.strip().lower(), "entry")
            elif word.startswith("-"):
                unknown.append(word)
            else:
                raise Sorry(
                    f"{word} is not a file that exists, a PDB entry or a parameter (name=value): "
                    f"check it, or see {parser.prog} --help."
                )
        for name in parser.plain_files:
            kind, holds = ("data_file", "reflections") if _holds_reflections(name) else ("model_file", "atoms")
            before = getattr(scope, kind)
            if before not in (None, name):
                raise Sorry(
                    f"{before} and {name} both hold {holds}, whatever their names: give one file of atoms and one of reflections."
                )
            _set_once(scope, kind, name, kind.replace("_", " "))
        parser.namespace.unknown = unknown
        parser.working_phil = parser.master_phil.format(python_object=params)

    return process


def _refuse_auto(working_phil: Any) -> None:
    """PHIL lets every parameter be Auto; it means something where the help of the parameter says what."""
    for definition in working_phil.all_definitions():
        if definition.object.extract() is libtbx.Auto and "Auto" not in (definition.object.help or ""):
            raise Sorry(
                f"{definition.path.split('.', 1)[-1]}=Auto is not possible: give a value, or leave the parameter out."
            )


def _set_once(scope: Any, name: str, value: Any, what: str) -> None:
    before = getattr(scope, name)
    if before is not None and before != value:
        raise Sorry(f"Two values for the {what} were given, {before} and {value}: give one.")
    setattr(scope, name, value)


def _holds_reflections(path: str) -> bool:
    content = read_content(path, "model or data")
    if content.kind == "mtz":
        return True
    text = content.text[: 2**20]
    if any(line.startswith(("ATOM  ", "HETATM", "CRYST1")) for line in text.splitlines()) or "\n_atom_site" in text:
        return False
    return "_refln" in text or path.lower().endswith((".hkl", ".sca", ".cv", ".fcf", ".mtz", ".mtz.gz"))


def main(program_class: Any, args: Sequence[str] | None = None) -> int:
    """Run a program.

    Parameters
    ----------
    program_class : type
        A ``ProgramTemplate``; its ``input_scope`` names the scope that takes files and entry ids, and its
        ``interrupted``, if it has one, is what Ctrl-C makes it say.
    args : sequence of str, optional
        By default those of the command line.

    Returns
    -------
    int
        0 when everything was computed and written, 1 after an error that was explained, 2 for wrong options,
        130 after Ctrl-C.
    """
    return guarded(
        lambda: run_program(
            program_class=program_class,
            parser_class=Parser,
            args=None if args is None else list(args),
            custom_process_arguments=inputs_from_arguments(program_class.input_scope),
        ),
        interrupted=getattr(program_class, "interrupted", "Interrupted: nothing was written."),
    )


def guarded(run: Callable[[], object], interrupted: str = "Interrupted.") -> int:
    """Call ``run()``; say what went wrong in one sentence, and return the exit code as :func:`main` does."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set while the libraries were loaded
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _no_interrupt_lost():
            run()
            sys.stdout.flush()
    except Sorry as error:
        _say("Sorry: " + str(error).strip())
        return 1
    except KeyboardInterrupt:
        _say("\n" + interrupted)
        return 130
    except BrokenPipeError:
        # Whoever read the output is gone; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        _say(
            "Sorry: There is too little memory for this entry: use a machine with more, a coarser "
            "grid_step, or a larger d_min."
        )
        return 1
    except SystemExit as end:
        # From --help, --version, --show-defaults (0), wrong options (2), and programs that end themselves.
        if isinstance(end.code, str):
            _say(end.code)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@contextlib.contextmanager
def _no_interrupt_lost() -> Iterator[None]:
    """Ctrl-C that arrives in a finaliser or a weak reference's callback, where Python drops it, comes again."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        # A moment later and from another thread: raised in here it would be dropped as well.
        again = threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _say(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
