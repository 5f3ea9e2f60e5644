"""The start-up file: what lets ``MMTBX_SFDIFF`` act on programs that know nothing of this package.

Nothing of this package runs when Python starts unless somebody asks for it with ``mmtbx_sfdiff.run --install-startup``.
That puts a line into the folder where Python looks for such lines (``*.pth``, see the documentation of :mod:`site`);
``--remove-startup`` takes it away.  The line looks at one environment variable and does nothing where it is not set.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from libtbx.utils import Sorry

import mmtbx_sfdiff_startup as startup

from ..files.writing import write_atomically

NAME = "mmtbx_sfdiff_startup.pth"


def folders() -> list[Path]:
    """Where this Python reads ``*.pth`` files, the environment's own ``site-packages`` first."""
    found = [sysconfig.get_path("purelib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    return [Path(folder) for folder in dict.fromkeys(found) if os.path.isdir(folder)]


def installed() -> list[Path]:
    """The start-up files that this Python reads; usually one or none."""
    return [folder / NAME for folder in folders() if (folder / NAME).is_file()]


def install() -> str:
    """Put the file where this Python looks for it, see that it works, and say where; again, it changes nothing.

    Raises
    ------
    libtbx.utils.Sorry
        Where no folder can be written to, or a new Python does not find the package.
    """
    present = installed()
    if present and present[0].read_text() == startup.LINE:
        _check(present[0])
        return f"The start-up file is there already: {present[0]}"
    for folder in [path.parent for path in present] or folders():
        path = folder / NAME
        try:
            write_atomically(path, startup.LINE)
        except Sorry:
            continue
        try:
            _check(path)
        except Sorry:
            path.unlink(missing_ok=True)
            raise
        return (
            f"Wrote {path}\nPrograms that this Python starts with {startup.VARIABLE}=1, scaling or takeover in the "
            "environment now compute with mmtbx_sfdiff; without the variable nothing changes. "
            "mmtbx_sfdiff.run --remove-startup takes it away."
        )
    raise Sorry(
        "The start-up file cannot be written to "
        + " or ".join(map(str, folders()))
        + ": use an environment of your own (python -m venv), or start programs through mmtbx_sfdiff.run."
    )


def remove() -> str:
    """Take the file away, wherever this Python reads one, and say where.

    Raises
    ------
    libtbx.utils.Sorry
        Where it may not be removed.
    """
    paths = installed()
    for path in paths:
        try:
            path.unlink()
        except OSError as error:
            raise Sorry(
                f"{path} cannot be removed ({error.strerror}): remove it as the one who installed it."
            ) from None
    return "\n".join(f"Removed {path}" for path in paths) or "There is no start-up file: nothing to remove."


def state() -> str:
    """One line: whether the variable is set, and whether it can act."""
    value = os.environ.get(startup.VARIABLE, "")
    paths = installed()
    if startup.active():
        return f"Start-up: {startup.VARIABLE}={value} acts on this process, by {paths[0] if paths else 'its own call'}."
    if value in ("", "0"):
        where = f"the file is {paths[0]}" if paths else "no start-up file (mmtbx_sfdiff.run --install-startup)"
        return f"Start-up: {startup.VARIABLE} is not set; {where}."
    if value not in startup.VALUES:
        return f"Start-up: {startup.VARIABLE}={value} is ignored: set it to {', '.join(startup.VALUES)}."
    return (
        f"Start-up: {startup.VARIABLE}={value} is set and does NOTHING, for no start-up file is installed in "
        f"{folders()[0]}: run mmtbx_sfdiff.run --install-startup."
    )


def _check(path: Path) -> None:
    """A new Python, started from another folder, has to find the package by itself."""
    done = subprocess.run(
        [sys.executable, "-c", "import mmtbx_sfdiff_startup; print(mmtbx_sfdiff_startup.active())"],
        cwd=path.parent.anchor,
        env=dict(os.environ, **{startup.VARIABLE: "1"}),
        capture_output=True,
        text=True,
    )
    if done.stdout.strip() != "True":
        said = (done.stderr.strip().splitlines() or ["it did not run"])[-1]
        raise Sorry(
            f"{path} would have no effect: a new {sys.executable} does not start with it ({said}). Install mmtbx_sfdiff "
            "into this environment (pip install), or set PYTHONPATH for every program."
        )
