"""A folder in which a refinement happens stage by stage: what was done, with which inputs, and what may be
skipped.

Each stage has a folder with ``stage.json``: its settings and seed, SHA-256 sums of its inputs, and, once it
is finished, of its outputs. The outputs of one stage are inputs of the next. A stage that is finished is not
repeated; one that was interrupted goes on; one whose settings or inputs have changed is refused until it is
told to start anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files.writing import write_atomically
from ..versions import versions

STAGES = ("prep", "md", "train", "refine", "report")
#: Settings of the stage refine that mean nothing without a generator.
OF_GENERATORS = (
    "objective",
    "starts",
    "steps",
    "rigid_steps",
    "first_d_min",
    "learning_rate",
    "prior_weight",
    "polish_steps",
)
_VERSION = 1


def sha256(path: str | Path) -> str:
    """Of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class WorkDir:
    """See the module.

    Parameters
    ----------
    path : path
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def folder(self, stage: str) -> Path:
        """Of a stage, made if it does not exist."""
        folder = self.path / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def record(self, stage: str) -> dict[str, Any] | None:
        """What ``stage.json`` says, or None."""
        try:
            content = json.loads((self.path / stage / "stage.json").read_text())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) and content.get("version") == _VERSION else None

    def need(self, stage: str) -> dict[str, Any]:
        """The record of a finished stage.

        Raises
        ------
        ValueError
            When it is not finished.
        """
        record = self.record(stage)
        if record is None or not record.get("finished"):
            raise ValueError(
                f"{self.path} has no finished stage {stage}: run mmtbx_sfdiff.latent {stage} {self.path} first."
            )
        return record

    def begin(
        self,
        stage: str,
        settings: dict[str, Any],
        inputs: dict[str, Any] | None = None,
        seed: int | None = None,
        restart: bool = False,
        resumable: Sequence[str] = (),
        after: str | None = None,
    ) -> bool:
        """Begin a stage, or go on with it.

        Parameters
        ----------
        stage : str
        settings : dict
            What decides the result, as JSON.
        inputs : dict of str to path, optional
            Files; outputs of the stage before are added.
        seed : int, optional
        restart : bool
            Remove what another run with other settings left.
        resumable : sequence of str
            Settings with which a stage may go on though they differ (a longer duration).
        after : str, optional
            The stage whose outputs this one takes; by default the one before it.

        Returns
        -------
        bool
            False when there is nothing to do.

        Raises
        ------
        ValueError
            Other settings or inputs than before, and no ``restart``; a stage before is missing.
        """
        if after is None and STAGES.index(stage):
            after = STAGES[STAGES.index(stage) - 1]
        sums = {name: sha256(path) for name, path in (inputs or {}).items()}
        if after is not None:
            sums[after] = self.need(after)["outputs"]
        settings = json.loads(json.dumps(settings))
        record = self.record(stage)
        if record is not None:
            names = sorted(set(settings) | set(record["settings"]))
            changed = [n for n in names if settings.get(n) != record["settings"].get(n)]
            if sums != record["inputs"] or seed != record["seed"]:
                changed.append("inputs" if sums != record["inputs"] else "random_seed")
            if not changed and record.get("finished"):
                return False
            if any(name not in resumable for name in changed):
                if not restart:
                    raise ValueError(
                        f"{self.path / stage} was made with other {', '.join(changed)}: choose another folder, "
                        "or set restart=True, which removes it."
                    )
                shutil.rmtree(self.path / stage)
        self._start = time.perf_counter()
        self._record = {
            "version": _VERSION,
            "stage": stage,
            "settings": settings,
            "inputs": sums,
            "seed": seed,
            "finished": False,
            "versions": versions(),
        }
        self._write(stage)
        return True

    def finish(self, stage: str, outputs: Sequence[Any], **facts: Any) -> dict[str, Any]:
        """Say that the stage is done.

        Parameters
        ----------
        outputs : sequence of path
            Files in the stage's folder.
        **facts
            To be remembered, as JSON.
        """
        folder = self.folder(stage)
        self._record |= {
            "outputs": {str(Path(p).relative_to(folder)): sha256(p) for p in outputs},
            "facts": facts,
            "seconds": time.perf_counter() - self._start,
            "finished": True,
        }
        self._write(stage)
        return self._record

    def _write(self, stage: str) -> None:
        write_atomically(self.folder(stage) / "stage.json", json.dumps(self._record, indent=1))


def prior_of(work: WorkDir, asked: str) -> str:
    """``elastic`` or ``generator``; for ``auto`` the former in a folder in which there have been no dynamics."""
    if asked != "auto":
        return asked
    return "elastic" if work.record("md") is None and work.record("train") is None else "generator"
