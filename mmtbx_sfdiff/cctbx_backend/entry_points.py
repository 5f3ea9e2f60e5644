"""Where cctbx computes structure factors, their gradients and masks in C++, and who computes them now.

:data:`ENTRY_POINTS` lists the C++ classes, whoever uses them; :func:`spy` counts what is really called.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class EntryPoint:
    """One C++ class of cctbx and the method that computes.

    Attributes
    ----------
    name : str
    module, owner, method : str
    kind : {"F_calc", "gradients", "masks"}
    purpose : str
    taken_over : bool
        Whether :func:`~mmtbx_sfdiff.takeover` answers for it.
    remark : str
        Who still calls it under ``takeover()``, or how it is replaced.
    """

    name: str
    module: str
    owner: str
    method: str
    kind: str
    purpose: str
    taken_over: bool
    remark: str


ENTRY_POINTS = (
    EntryPoint(
        "structure_factors_direct",
        "cctbx.xray.ext",
        "structure_factors_direct",
        "__init__",
        "F_calc",
        "F_calc, direct summation",
        True,
        "nobody calls it under takeover()",
    ),
    EntryPoint(
        "sampled_model_density",
        "cctbx.xray.ext",
        "sampled_model_density",
        "__init__",
        "F_calc",
        "F_calc by FFT; density maps in real space",
        True,
        "density maps in real space (mmtbx.real_space) still call it",
    ),
    EntryPoint(
        "structure_factors_gradients_direct",
        "cctbx.xray.ext",
        "structure_factors_gradients_direct",
        "__init__",
        "gradients",
        "gradients, direct summation",
        True,
        "nobody calls it under takeover()",
    ),
    EntryPoint(
        "fast_gradients",
        "cctbx.xray.ext",
        "fast_gradients",
        "__init__",
        "gradients",
        "gradients by FFT",
        True,
        "targets in real space still call it",
    ),
    EntryPoint(
        "atom_mask",
        "mmtbx_masks_ext",
        "atom_mask",
        "compute",
        "masks",
        "solvent mask of the asymmetric unit",
        True,
        "radial shells (n_radial_shells > 1), maps of one asymmetric unit (mask_data_whole_uc) "
        "and mmtbx.bulk_solvent.mosaic still call it",
    ),
    EntryPoint(
        "around_atoms",
        "cctbx_masks_ext",
        "around_atoms",
        "__init__",
        "masks",
        "solvent mask without symmetry",
        True,
        "cctbx.masks and smtbx.masks still call it",
    ),
    EntryPoint(
        "each_hkl_gradients_direct",
        "cctbx.xray.ext",
        "each_hkl_gradients_direct",
        "__init__",
        "gradients",
        "gradients of each structure factor",
        False,
        "no target of mmtbx calls it",
    ),
)


@contextlib.contextmanager
def spy(counts: dict[str, int] | None = None) -> Iterator[dict[str, int]]:
    """Count calls of the C++ entry points while the context lasts.

    Parameters
    ----------
    counts : collections.Counter, optional
        Where to count; a new one by default.

    Yields
    ------
    collections.Counter
        Calls by name of the entry point.
    """
    counts = collections.Counter() if counts is None else counts
    restore = []
    try:
        for point in ENTRY_POINTS:
            owner = getattr(importlib.import_module(point.module), point.owner)
            original = owner.__dict__[point.method]
            setattr(owner, point.method, _counting(original, counts, point.name))
            restore.append((owner, point.method, original))
        yield counts
    finally:
        for owner, method, original in restore:
            setattr(owner, method, original)


def _counting(original: Callable[..., Any], counts: dict[str, int], name: str) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        counts[name] += 1
        return original(*args, **keywords)

    return call
