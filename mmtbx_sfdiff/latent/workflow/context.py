"""What the stages share: the folder, what was asked for, and whom to tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..workdir import WorkDir


@dataclasses.dataclass(frozen=True)
class Context:
    """See the module.

    Attributes
    ----------
    work : WorkDir
    inputs : object
        Attributes as the parameters of ``mmtbx_sfdiff.latent`` (scope ``latent``) are named.
    say : callable
        Takes a line for the user.
    progress : callable
        Takes what is being done and the fraction of it that is.
    verbose : bool
        Whether lines of progress are wanted, too.
    figures : bool
    """

    work: WorkDir
    inputs: Any
    say: Callable[..., None]
    progress: Callable[..., None]
    verbose: bool = True
    figures: bool = True

    def already(self, stage: str) -> dict[str, Any] | None:
        """Say that a stage is finished; its record."""
        self.say(f"The stage {stage} is finished in {self.work.path}; set restart=True to do it again.")
        return self.work.record(stage)
