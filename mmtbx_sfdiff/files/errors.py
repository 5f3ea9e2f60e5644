"""The exception of this room: one sentence for what is wrong with a file.

It is a ``libtbx.utils.Sorry``, which cctbx's programs print without a traceback, where cctbx is installed; and always a
``ValueError``.
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("libtbx") is not None:
    from libtbx.utils import Sorry as _Base
else:

    class _Base(Exception):  # type: ignore[no-redef]  # not Exception itself: ValueError comes after it in the order of bases
        pass


class Sorry(_Base, ValueError):
    """What is wrong with a file, where, and what to do, in one sentence."""


def needs_cctbx(what: str) -> None:
    """Refuse something that only cctbx reads, where it is not installed.

    Raises
    ------
    Sorry
    """
    if importlib.util.find_spec("cctbx") is None:
        raise Sorry(
            f"{what} needs cctbx, which is not installed here: install cctbx-base, or give PDB, mmCIF, MTZ files."
        )
