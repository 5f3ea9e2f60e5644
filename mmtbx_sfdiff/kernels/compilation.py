"""Compiling the CPU kernels ahead, as a step of its own: side by side in processes, with progress, kept on disk.

numba compiles a function when it is first called with arguments of new types.  Here that is done for the types with which
this package calls its kernels, listed in ``cpu/signatures.json`` (written by ``python -m validation.studies.kernel_signatures``,
checked by a test), so that no calculation, and no timing, begins with a compilation.  A signature that is not listed is
compiled when it is needed, as ever.

numba holds a lock while it compiles: threads would wait for one another, processes do not.  Where a process has no other
thread it can fork, and children take parts of the list; elsewhere this process compiles all of it.

numba keeps what it compiled beside the kernels, or, where the package's folder cannot be written, in the user's cache; the
environment variable ``NUMBA_CACHE_DIR`` names another place.  A note in the user's cache says that all is there.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import hashlib
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

#: What is compiled unless something else is named; "double" is for accuracies that single precision cannot hold.
GROUPS = ("structure_factors", "gradients", "masks", "mask_gradients", "direct")
ALL_GROUPS = (*GROUPS, "double")
#: What programs need whatever their parameters are; the masks first, with which a demonstration's data are made.
USUAL = ("masks", "structure_factors", "gradients")
_HERE = Path(__file__).resolve().parent
#: What takes longest; they share most of what they call.
_LONGEST = ("cpu.splat.splat", "cpu.gather.gather")
#: A process takes half a second to begin: no more of them than this.
_MOST_PROCESSES = 4

Progress = Callable[[int, int], object]


def compile(progress: Progress | None = None, groups: Sequence[str] = GROUPS, n_processes: int | None = None) -> int:
    """Compile the kernels for the CPU now, and keep them on disk, so that no later call has to.

    Takes some ten seconds of one core the first time, and milliseconds when everything is there.

    Parameters
    ----------
    progress : callable, optional
        Called with (functions that are compiled, functions to compile) after each; not at all when everything is there.
    groups : sequence of str
        What for: of "structure_factors" and "gradients" (by FFT), "masks", "mask_gradients", "direct" (summation), and
        "double" (accuracies that single precision cannot hold).
    n_processes : int, optional
        Processes that compile side by side; by default as many as there are cores, at most four.

    Returns
    -------
    int
        How many functions were compiled or loaded; 0 where all of them were there already.

    Raises
    ------
    ValueError
        If there is no such group.

    Examples
    --------
    >>> from mmtbx_sfdiff import kernels
    >>> n = kernels.compile()        # the first time after an installation: some seconds
    >>> kernels.compile()            # everything is there
    0
    """
    return start(groups, n_processes).wait(progress)


def start(groups: Sequence[str] = GROUPS, n_processes: int | None = None) -> Compilation:
    """Begin what :func:`compile` does and come back at once; ``.wait(progress)`` of what is returned ends it.

    One that this process has begun and that has all of these groups is what is returned; of another one the end comes first.

    Raises
    ------
    ValueError
        As :func:`compile`.

    Examples
    --------
    >>> from mmtbx_sfdiff.kernels import compilation
    >>> begun = compilation.start()
    >>> # ... read files, import libraries ...
    >>> n = begun.wait()
    """
    unknown = sorted(set(groups) - set(ALL_GROUPS))
    if unknown:
        raise ValueError(f"There are no kernels for {', '.join(unknown)}: choose from {', '.join(ALL_GROUPS)}.")
    global _begun
    if _begun and _begun.running:
        if set(groups) <= _begun.groups:
            return _begun
        _begun.wait()
    note = _note(groups)
    todo = [] if _all_there(note) else _tasks(groups)
    if n_processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        n_processes = min(cores, _MOST_PROCESSES)
    can_fork = sys.platform.startswith("linux") and threading.active_count() == 1
    _begun = Compilation(groups, todo, note, n_processes if can_fork and n_processes > 1 else 0)
    return _begun


def finish(progress: Progress | None = None, groups: Sequence[str] = ALL_GROUPS) -> None:
    """Until what :func:`start` has begun in other processes is over, or these groups of it; at once where nothing was begun.

    Who goes on without would compile the same functions once more.

    Examples
    --------
    >>> from mmtbx_sfdiff.kernels import compilation
    >>> compilation.finish()
    """
    if _begun and _begun.running:
        _begun.wait(progress, groups)


class Compilation:
    """A compilation that has begun; see :func:`start`."""

    def __init__(self, groups: Sequence[str], todo: list[_Task], note: Path, n_processes: int):
        self.groups = frozenset(groups)
        self._todo, self._note, self._n_all = list(todo), note, len(todo)
        #: Functions of each group that are not compiled yet.
        self._missing = collections.Counter(group for group, _, _ in todo)
        self._places: set[str] = set()
        self._workers: dict[Connection, multiprocessing.process.BaseProcess] = {}
        self._at: dict[Connection, _Task] = {}
        self._done = self._told = 0
        self._changed = threading.Condition()
        self._keeper: threading.Thread | None = None
        if not todo or not n_processes:
            return
        # Loading the compiler takes half a second, and so does its first function: once here instead of once in each child.
        first = min(self._todo, key=lambda task: len(task[2][0]))
        self._todo.remove(first)
        self._count(first, _compile_one(first))
        context = multiprocessing.get_context("fork")
        for _ in range(min(n_processes, len(todo))):
            ours, theirs = context.Pipe()
            # Ends of pipes that a child inherits would keep it from seeing that this process is gone.
            worker = context.Process(target=_serve, args=(theirs, [*self._workers, ours]), daemon=True)
            worker.start()
            theirs.close()
            self._workers[ours] = worker
            self._send(ours)
        self._keeper = threading.Thread(target=self._hand_out, daemon=True)
        self._keeper.start()

    def _send(self, connection: Connection) -> None:
        if self._todo:
            self._at[connection] = self._todo.pop(0)
            connection.send(self._at[connection])
        else:
            connection.send(None)

    def _hand_out(self) -> None:
        """Give the processes what is left of the list until nothing is; a process that ended early took its part with it."""
        busy = list(self._workers)
        while busy:
            for connection in wait(busy):
                assert isinstance(connection, Connection)
                try:
                    place = connection.recv()
                    self._count(self._at.pop(connection), place)
                    self._send(connection)
                except (EOFError, OSError):  # there is no more for it, or it was ended
                    busy.remove(connection)
        self._note_all()

    def _note_all(self) -> None:
        """If all is compiled, note it: whoever finds that nothing is running any more finds the note."""
        if self._done == self._n_all and self._n_all:
            for worker in self._workers.values():
                worker.join()
            _write_note(self._note, self._places)

    def _count(self, task: _Task, place: str) -> None:
        with self._changed:
            self._places.add(place)
            self._done += 1
            self._missing[task[0]] -= 1
            self._changed.notify()

    @property
    def finished(self) -> bool:
        """Whether all is compiled; not when it was interrupted."""
        return not any(self._missing.values())

    @property
    def running(self) -> bool:
        """Whether other processes are at it."""
        return self._keeper is not None and self._keeper.is_alive()

    def wait(self, progress: Progress | None = None, groups: Sequence[str] = ALL_GROUPS) -> int:
        """Until all is compiled, or all of these groups; see :func:`compile` for ``progress`` and what is returned."""

        def finished() -> bool:
            return not any(self._missing[group] for group in groups)

        def tell() -> None:
            self._told = self._done
            if progress:
                progress(self._told, self._n_all)

        while not finished():
            if self._keeper is None:
                task = self._todo.pop(0)
                self._count(task, _compile_one(task))
            else:
                with self._changed:
                    if not finished() and not self._keeper.is_alive():
                        # The processes were ended from outside: what they had is compiled when it is needed.
                        break
                    if not finished():
                        self._changed.wait(0.2)
            tell()
        if self._told < self._done:
            tell()  # the last came between telling and looking
        if self._keeper is None:
            self._note_all()
        elif self._done == self._n_all:
            self._keeper.join()  # until then this one is running, and who asks again is given it
        return self._n_all


_begun: Compilation | None = None

#: Group, name of a function (module below kernels, dot, name) and its signatures.
_Task = tuple[str, str, list[str]]


def _serve(connection: Connection, inherited: Sequence[Connection]) -> None:
    """What a child does: compile what it is sent, until there is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent heeds it, and its children end with it
    for other in inherited:
        other.close()
    # Compiling makes millions of small objects that all go on living: looking for garbage takes a fifth of the time.
    gc.disable()
    gc.freeze()
    try:
        while (task := connection.recv()) is not None:
            connection.send(_compile_one(task))
    except (EOFError, OSError):
        return


def _compile_one(task: _Task) -> str:
    """Compile a function for its signatures; the folder where it is kept, or "" if nowhere."""
    from numba.core.sigutils import normalize_signature  # half a second, for who compiles

    _, name, signatures = task
    module, _, function = name.rpartition(".")
    dispatcher: Any = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    for signature in signatures:
        # A string would do, but what is kept on disk would be found again by that string only.
        dispatcher.compile(normalize_signature(f"({signature},)")[0])
    return str(dispatcher.stats.cache_path or "")


def read_signatures() -> list[tuple[str, str, str]]:
    """(group, function, its arguments' types in numba's words) of all kernels, called ones before their callers."""
    with open(_HERE / "cpu" / "signatures.json", encoding="utf-8") as file:
        return [(group, name, signature) for group, name, signature in json.load(file)]


def _tasks(groups: Sequence[str]) -> list[_Task]:
    """What the groups need, in their order; a function that two of them need comes with the first."""
    # All of a function in one process: two that add to the same index of a cache would overwrite one another.
    # The longest first, so that no process is left with one when the others have nothing more to do.
    tasks: dict[str, _Task] = {}
    table = sorted(read_signatures(), key=lambda row: row[1] not in _LONGEST)
    for wanted in groups:
        for group, name, signature in table:
            if group == wanted:
                tasks.setdefault(name, (group, name, []))[2].append(signature)
    # The very longest from the beginning: a third of all, and the next longest finds there what they share.
    return sorted(tasks.values(), key=lambda task: task[1] != _LONGEST[0])


def _note(groups: Sequence[str]) -> Path:
    """Where it is noted that these groups are compiled, by everything that another compilation would depend on."""
    import platformdirs  # not needed by who only imports the kernels

    about = hashlib.sha256()
    for source in sorted(_HERE.rglob("*.py")):
        about.update(source.read_bytes())
    about.update((_HERE / "cpu" / "signatures.json").read_bytes())
    parts = [str(_HERE), sys.version, platform.processor(), platform.node(), *sorted(set(groups))]
    parts += [importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy")]
    parts += [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("NUMBA_")]
    about.update("\0".join(parts).encode())
    return platformdirs.user_cache_path("mmtbx_sfdiff") / "compiled" / f"{about.hexdigest()[:24]}.json"


def _all_there(note: Path) -> bool:
    try:
        with open(note, encoding="utf-8") as file:
            counted = json.load(file)
        return bool(counted) and all(_n_files(folder) >= n for folder, n in counted.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _write_note(note: Path, places: set[str]) -> None:
    if not places or "" in places:
        return  # kept nowhere
    with contextlib.suppress(OSError):  # without the note the list is gone through again, no more
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({folder: _n_files(folder) for folder in sorted(places)}), encoding="utf-8")
        os.replace(part, note)


def _n_files(folder: str) -> int:
    return sum(name.endswith(".nbi") for name in os.listdir(folder))
