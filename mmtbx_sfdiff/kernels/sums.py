"""Sums of squares of numbers somewhere in memory: the quickest way to see that all of them are finite, and of a size."""

from __future__ import annotations

from typing import Any

from numba import carray
from numba.core import types
from numba.extending import intrinsic

from .jit import jit_sums


@intrinsic
def _doubles(typing, address):
    """An address as a pointer."""
    return types.CPointer(types.float64)(address), _pointer


@intrinsic
def _singles(typing, address):
    """An address as a pointer."""
    return types.CPointer(types.float32)(address), _pointer


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.inttoptr(args[0], context.get_value_type(signature.return_type))


@jit_sums
def _squares(address, n, single):
    total = 0.0
    if single:
        x = carray(_singles(address), n)
        for i in range(n):
            total += float(x[i]) * float(x[i])
    else:
        y = carray(_doubles(address), n)
        for i in range(n):
            total += y[i] * y[i]
    return total


@jit_sums
def squares(table, rows):
    """The sum of squares of all numbers at some addresses; NaN where one of them is.

    ``table`` holds three numbers for each of ``rows``: the address, how many numbers, 1 for single and 0 for double precision.
    Addresses, because to make six arrays of six tensors takes longer than to add what is in them.
    """
    total = 0.0
    for row in range(rows):
        total += _squares(table[3 * row], table[3 * row + 1], table[3 * row + 2] != 0)
    return total
