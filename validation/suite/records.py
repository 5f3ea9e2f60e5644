"""The folder of a run: what was asked for, and one line of JSON for each entry that has ended.

::

    RUN/run.json         entries, parameters, limits, versions, machine, commit
    RUN/results.jsonl    one record for each entry, in the order in which they ended
    RUN/figures/         <entry>.svg
    RUN/sections/        <entry>.npz

A record is appended by one write and flushed to the disk before the next entry is begun; only the holder of
the folder's lock appends.  If the machine dies in between, the last line may be half there: it is cut off at
the next start, and its entry is computed again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import socket
import subprocess
from pathlib import Path

from mmtbx_sfdiff.files import DISK_FULL, write_all
from mmtbx_sfdiff.files.download import lock
from mmtbx_sfdiff.versions import versions

from libtbx.utils import Sorry

CHECKOUT = Path(__file__).resolve().parents[2]
# Of run.json: a folder holds results of one value of these.
_FIXED = ("parameters", "versions", "commit")


class Run:
    """A run folder.

    Parameters
    ----------
    folder : path
    """

    def __init__(self, folder):
        self.folder = Path(folder).expanduser().absolute()
        self.results = self.folder / "results.jsonl"

    @contextlib.contextmanager
    def locked(self):
        """Hold the folder: nobody else runs in it meanwhile.

        Raises
        ------
        libtbx.utils.Sorry
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Sorry(
                f"Cannot make the folder {self.folder} ({error.strerror}): choose another with --out."
            ) from None
        busy = f"Another run is at work in {self.folder}: wait for it, or choose another folder with --out."
        with lock(self.folder / ".lock", timeout=0.0, busy=busy):
            yield self

    def begin(self, description):
        """Write ``run.json``, or check that it is of the same run.

        Parameters
        ----------
        description : dict
            As :func:`describe` makes it.

        Raises
        ------
        libtbx.utils.Sorry
            When the folder holds results that were computed differently.
        """
        path = self.folder / "run.json"
        if not path.exists():
            if self.results.exists():
                raise Sorry(
                    f"{self.results} has no run.json beside it, so nobody knows how it was computed: choose "
                    "another folder with --out."
                )
            self.write({path: (json.dumps(description, indent=1) + "\n").encode()})
            return
        before = self.description()
        different = [
            difference for name in _FIXED for difference in _differences(name, before.get(name), description[name])
        ]
        if different:
            raise Sorry(
                f"{self.folder} holds a run of other parameters: {'; '.join(different[:5])}. Choose another "
                "folder with --out, or the same parameters."
            )
        description = before | {"entries": list(dict.fromkeys(before["entries"] + description["entries"]))}
        self.write({path: (json.dumps(description, indent=1) + "\n").encode()})

    def description(self):
        """What ``run.json`` says.

        Raises
        ------
        libtbx.utils.Sorry
        """
        try:
            return json.loads((self.folder / "run.json").read_text())
        except FileNotFoundError:
            raise Sorry(
                f"{self.folder} holds no run (it has no run.json): make one with python -m validation run."
            ) from None
        except (OSError, ValueError) as error:
            raise Sorry(f"Cannot read {self.folder / 'run.json'} ({error}): choose another run.") from None

    def repair(self):
        """Cut off a last line that was not written to its end; say what was cut (bytes)."""
        if not self.results.exists():
            return 0
        content = self.results.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        last = whole[:-1].rfind(b"\n") + 1
        if whole and not _is_record(whole[last:]):
            whole = whole[:last]
        cut = len(content) - len(whole)
        if cut:
            os.truncate(self.results, len(whole))
        return cut

    def records(self):
        """{entry: its last record}, in the order in which they were written.

        What stands behind the last whole line is ignored.

        Raises
        ------
        libtbx.utils.Sorry
            When a line cannot be read that is not the last.
        """
        found = {}
        try:
            lines = self.results.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return found
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                found.pop(record["entry"], None)
                found[record["entry"]] = record
            except (ValueError, KeyError, TypeError):
                if number == len(lines):
                    break
                raise Sorry(
                    f"Line {number} of {self.results} is damaged: delete this line, and the run computes its "
                    "entry again."
                ) from None
        return found

    def append(self, record, files):
        """Add a record, its files first.

        Parameters
        ----------
        record : dict
        files : dict
            ``svg`` and ``npz``, each bytes, either may be missing.

        Raises
        ------
        libtbx.utils.Sorry
            When there is no room: nothing of the record is there then.
        """
        places = {"svg": "figures", "npz": "sections"}
        contents = {
            self.folder / places[kind] / f"{record['entry']}.{kind}": content for kind, content in files.items()
        }
        line = json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        try:
            for path in contents:
                path.parent.mkdir(exist_ok=True)
            if contents:
                self.write(contents)
            self._append(line)
        except OSError as error:
            raise self.no_room(error) from None

    def _append(self, line):
        handle = os.open(self.results, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(handle).st_size
            try:
                written = os.write(handle, line)
                while written < len(line):
                    written += os.write(handle, line[written:])
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)

    def write(self, contents):
        """Files, all or none."""
        try:
            write_all(contents)
        except Sorry as error:
            raise Sorry(str(error).replace("output.directory", "--out")) from None

    def no_room(self, error):
        """What to say when nothing more can be written."""
        reason = "there is no space left" if getattr(error, "errno", None) in DISK_FULL else error
        return Sorry(
            f"Cannot write to {self.folder}: {reason}. What was recorded ({len(self.records())} entries) is "
            "safe; make room and give the same command again."
        )


def describe(entries, source, parameters, limits):
    """What ``run.json`` says of a run that begins now."""
    return {
        "entries": list(entries),
        "source": source,
        "parameters": parameters,
        "limits": limits,
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def commit():
    """The commit of this checkout, with ``+`` where files were changed since; None outside git."""

    def git(*words):
        return subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, timeout=60)

    try:
        head = git("rev-parse", "HEAD")
        if head.returncode:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + "+" * bool(changed.stdout.strip())


def machine():
    """The machine that the suite runs on."""
    cpu, memory = platform.processor(), None
    with contextlib.suppress(OSError, StopIteration):
        cpu = next(
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    with contextlib.suppress(OSError, ValueError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": memory,
    }


def _is_record(line):
    try:
        return "entry" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _differences(name, before, now):
    if isinstance(before, dict) and isinstance(now, dict):
        # A newer kernel does not change what is computed.
        for key in dict.fromkeys(key for key in [*before, *now] if key != "platform"):
            if before.get(key) != now.get(key):
                yield f"{key} was {before.get(key)} and is {now.get(key)} now"
    elif before != now:
        yield f"{name} was {before} and is {now} now"
