"""Who computed: calls that this package answered, beside calls of cctbx's C++ entry points.

``MMTBX_SFDIFF_REPORT=1`` in the environment makes a program say so when it ends, on stderr, so that one's own script can
be seen to use this package.
"""

from __future__ import annotations

import atexit
import collections
import os
import sys

from .entry_points import ENTRY_POINTS, spy

VARIABLE = "MMTBX_SFDIFF_REPORT"
KINDS = ("F_calc", "gradients", "masks", "scaling")

OURS: collections.Counter[str] = collections.Counter()
_counting: list[object] = []


def count_call(kind: str) -> None:
    """Note a call that this package answers; ``kind`` is one of :data:`KINDS`."""
    OURS[kind] += 1


def by_kind(calls: collections.Counter[str]) -> collections.Counter[str]:
    """Calls of the entry points, added up by kind."""
    result: collections.Counter[str] = collections.Counter()
    for point in ENTRY_POINTS:
        result[point.kind] += calls[point.name]
    return result


def summary(ours: collections.Counter[str], theirs: collections.Counter[str]) -> str:
    """One line.

    Parameters
    ----------
    ours, theirs : collections.Counter
        Calls by kind, answered here and by cctbx.

    Examples
    --------
    >>> from collections import Counter
    >>> summary(Counter(F_calc=3, masks=1), Counter(masks=2))
    'F_calc: 3 by mmtbx_sfdiff, 0 by cctbx; masks: 1 by mmtbx_sfdiff, 2 by cctbx'
    """
    parts = [
        f"{kind}: {ours[kind]} by mmtbx_sfdiff" + (f", {theirs[kind]} by cctbx" if kind != "scaling" else "")
        for kind in KINDS
        if ours[kind] or theirs[kind]
    ]
    return "; ".join(parts) or "no structure factors, gradients or masks were computed"


def report_at_exit_if_asked() -> None:
    """Where the variable asks for it, count from now on and say at the end; once in a process."""
    if _counting or os.environ.get(VARIABLE, "0") in ("", "0"):
        return
    counting = spy()
    theirs = counting.__enter__()
    _counting.append(counting)  # for as long as the process lives
    before = OURS.copy()

    def say() -> None:
        ours = collections.Counter({kind: OURS[kind] - before[kind] for kind in KINDS})
        print(f"mmtbx_sfdiff: {summary(ours, by_kind(collections.Counter(theirs)))}", file=sys.stderr, flush=True)

    atexit.register(say)
