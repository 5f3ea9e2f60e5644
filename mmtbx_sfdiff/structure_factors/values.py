"""Whether the values of structure factors are wanted, or only what their gradients need.

The gradient of a target with known dT/dF is the transpose of the calculation and needs no F.  Inside
:func:`without_values` the autograd functions of :mod:`.direct` and :mod:`.fft` give zeros for values and remember what
their backward pass needs.
"""

from __future__ import annotations

import contextlib
import contextvars

_wanted = contextvars.ContextVar("values of structure factors are wanted", default=True)


def values_wanted():
    """False inside :func:`without_values`."""
    return _wanted.get()


@contextlib.contextmanager
def without_values():
    """Structure factors made in this block are zero; their backward pass is that of the real ones."""
    token = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(token)
