"""One entry, from its files to its numbers: what a process of the suite does.

    python -m validation.suite.worker EXCHANGE

reads ``job.json`` in the folder EXCHANGE and leaves ``result.json`` there, the figure of the entry
(``figure.svg``) and a section through its masks (``section.npz``).  An entry that cannot be computed for a
reason that can be told is a result too.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from .supervise import DISK_FULL_STATUS


def main(arguments=None):
    """Compute the entry; return the exit status."""
    (exchange,) = map(Path, sys.argv[1:] if arguments is None else arguments)
    job = json.loads((exchange / "job.json").read_text())
    _bind_to_parent(job["parent"])
    from mmtbx_sfdiff.files import DISK_FULL, DiskFull, write_all

    from libtbx.utils import Sorry

    stage, seconds, since = ["starting"], {}, [time.monotonic()]

    def report(step, fraction=None):
        if step != stage[0]:
            now = time.monotonic()
            seconds[stage[0]] = round(seconds.get(stage[0], 0) + now - since[0], 2)
            stage[0], since[0] = step, now
            (exchange / "step.txt").write_text(step)

    try:
        try:
            answer, files = _compute(job, report)
        except DiskFull:
            raise
        except Sorry as error:
            answer, files = {"kind": _kind(error, stage[0]), "reason": " ".join(str(error).split())}, {}
        except MemoryError:
            answer, files = {"kind": "memory", "reason": "it asked for more memory than there is"}, {}
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            answer, files = _fault(error), {}
        except Exception as error:
            answer, files = _fault(error), {}
        report("end")
        answer |= {"peak_bytes": _peak(), "steps_s": seconds}
        contents = {exchange / name: content for name, content in files.items()}
        write_all(contents | {exchange / "result.json": json.dumps(answer, allow_nan=False).encode()})
    except (DiskFull, OSError) as error:
        print(error, file=sys.stderr)
        return DISK_FULL_STATUS
    return 0


def _compute(job, report):
    from mmtbx_sfdiff.files import Timeouts, find_entry, load_entry

    from .parameters import Parameters

    parameters = Parameters(**job["parameters"])
    report("download")
    files = find_entry(job["entry"], progress=False, timeouts=Timeouts(**job.get("timeouts", {})))
    report("reading")
    entry = load_entry(files.model, files.data, scattering_table=parameters.scattering_table, strict=False)
    # Only now, with files that are good, what takes its time to load.
    from mmtbx_sfdiff.comparison import figure, measure
    from mmtbx_sfdiff.comparison.output import json_text

    from .contracts import measure_contracts
    from .sections import as_npz

    comparison = measure(entry, parameters.settings(), report)
    contracts = measure_contracts(entry, parameters, comparison, report)
    report("figure")
    svg = figure.render(comparison, ["svg"])["svg"]
    # By way of the text that compare writes, which has been held against its schema.
    answer = {
        "status": "ok",
        "result": json.loads(json_text(comparison.result)),
        "contracts": contracts,
        "source": files.source,
        "files": [str(Path(name).absolute()) for name in (files.model, files.data)],
    }
    return answer, {"figure.svg": svg, "section.npz": as_npz(comparison.section)}


def _kind(error, step):
    from mmtbx_sfdiff.files import NotDeposited, Unreachable

    if isinstance(error, NotDeposited):
        return "not deposited"
    if isinstance(error, Unreachable):
        return "download"
    return "files" if step in ("download", "reading") else "computing"


def _fault(error):
    """A fault of the programs: its traceback goes to the log."""
    traceback.print_exc()
    return {"kind": "fault", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


def _bind_to_parent(parent):
    """End with whoever watches, even if it is killed; be the first to go when the machine runs out of memory."""
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:
        raise SystemExit("the process that started this worker is gone")


def _peak():
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    sys.exit(main())
