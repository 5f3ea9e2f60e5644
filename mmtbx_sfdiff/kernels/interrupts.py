"""Ctrl-C that comes while a compiled function hands over its arguments or its result."""

from __future__ import annotations


def interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt behind a SystemError, or None.

    Numba's dispatcher gives "returned a result with an exception set" when the signal's handler runs within it, and a program
    that waits for KeyboardInterrupt would not know it.
    """
    while isinstance(error, SystemError):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, KeyboardInterrupt) else None
