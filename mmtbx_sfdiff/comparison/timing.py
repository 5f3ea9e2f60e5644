"""Times side by side: calls taken in turns in one process, medians, and fewer repeats of what is slow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

# A call that takes longer than this, in seconds, is run once: more would double the wait for no new insight.
SLOW = 5.0


def timed(function: Callable[..., Any]) -> tuple[Any, float]:
    """Call a function; return (its result, seconds of wall time)."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def side_by_side(
    functions: dict[str, Callable[..., Any]],
    first_times: dict[str, float],
    repeats: int,
    prepare: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, float]:
    """Median wall time of each function, called in turns.

    Parameters
    ----------
    functions : dict of str to callable
    first_times : dict of str to float
        How long each took when it was called before.  That call counted as warm-up, unless it took longer
        than :data:`SLOW`: then it is the time.
    repeats : int
        How often each is called.
    prepare : dict of str to callable, optional
        Called before each call of the function of the same name, which gets the result; not timed.

    Returns
    -------
    dict of str to float
        Seconds.
    """
    prepare = prepare or {}
    seconds = {name: [first_times[name]] if first_times[name] > SLOW else [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            if first_times[name] > SLOW:
                continue
            arguments = (prepare[name](),) if name in prepare else ()
            seconds[name].append(timed(lambda: function(*arguments))[1])
    return {name: statistics.median(values) for name, values in seconds.items()}
