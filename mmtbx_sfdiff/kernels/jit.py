"""How functions are compiled by numba: the few policies, and what each of them takes for granted.

All release the interpreter's lock, are cached on disk, and divide as NumPy does, without exceptions.  None uses
``fastmath=True``: that includes ``nnan`` and ``ninf``, with which a compiler may leave out every branch that looks for
NaN or infinity, and a number from outside can be either.

* :data:`jit`: numbers may be anything.  Products and sums may be fused and divisions by a constant turned into products;
  sums keep their order, so that a result does not depend on where its numbers lie.
* :data:`jit_in_place`: as well, the function makes no array, and what it calls neither.  Then nothing counts references.
  numba counts them where an array is handed on and where a function can end early: an atomic operation each time, on a
  counter that all threads share.  In the loops over atoms that took a third of the time.
* :data:`jit_sums`: as :data:`jit`, and sums may be made in any order (vectors); for loops whose only result is a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def _policy(fastmath: set[str], **more: Any) -> Callable[[Callable[..., Any]], Any]:
    # No kernel is called from C: the wrapper for that would be compiled with each.
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "no_cfunc_wrapper": True,
        "fastmath": fastmath,
        **more,
    }

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written: for this process only
            return numba.njit(**options)(function)

    return decorate


jit = _policy({"contract", "nsz", "arcp"})
jit_in_place = _policy({"contract", "nsz", "arcp"}, _nrt=False)
jit_sums = _policy({"contract", "nsz", "reassoc"})
