"""Numbers that one thread sets and others wait for, awake.

A flag takes a cache line of its own.  What a thread wrote before it set a flag is there for whoever has seen the flag.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .jit import jit

# Elements of a cache line; how often a flag is looked at before a thread goes to sleep, some tenths of a millisecond.
_LINE, _LOOKS = 16, 100_000


def make_flags(n: int) -> np.ndarray:
    """n flags, all zero."""
    return np.zeros((n, _LINE), np.int64)


def _place(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset], source_etype=ir.IntType(64))


@intrinsic
def _load(typing, flags, offset):
    """An element of an int64 array, read anew every time."""
    signature = types.int64(flags, types.int64)

    def generate(context, builder, signature, args):
        place = _place(context, builder, signature.args[0], *args)
        return builder.load_atomic(place, "acquire", 8, typ=ir.IntType(64))

    return signature, generate


@intrinsic
def _store(typing, flags, offset, value):
    """Set an element of an int64 array when all that came before is done."""
    signature = types.void(flags, types.int64, types.int64)

    def generate(context, builder, signature, args):
        builder.store_atomic(args[2], _place(context, builder, signature.args[0], *args[:2]), "release", 8)
        return context.get_dummy_value()

    return signature, generate


@jit
def set_flag(flags, i, value):
    """Set flag i."""
    _store(flags, i * _LINE, value)


@jit
def reached(flags, first, last, value):
    """Whether flags[first:last] have come to ``value``, after waiting for it for a while."""
    for _ in range(_LOOKS):
        least = value
        for i in range(first, last):
            least = min(least, _load(flags, i * _LINE))
        if least >= value:
            return True
    return False
