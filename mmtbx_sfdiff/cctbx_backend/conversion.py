"""cctbx's objects as tensors and back, with what does not change from call to call kept.

A refinement calls for structure factors of a few Miller sets and one crystal hundreds of times.  The engines keep
their plans with the index tensor they were made for, so the same tensor has to come back for the same indices:
they are compared by value, which takes well under a millisecond for 10^5.
"""

from __future__ import annotations

import collections
from typing import Any

import torch

import numpy as np
from cctbx import crystal as cctbx_crystal
from cctbx import sgtbx, uctbx
from cctbx.array_family import flex
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..crystal import Crystal, as_miller_tensor
from ..kernels.threads import own_threads

_KEPT_SETS = 8


class _MillerSets:
    """The index tensors of the Miller sets used last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: collections.deque[tuple[Any, dict[str, torch.Tensor]]] = collections.deque()

    def tensor(self, indices: Any, device: torch.device | str) -> torch.Tensor:
        device = str(device)
        for i, (known, tensors) in enumerate(self._known):
            if known.size() == indices.size() and known.all_eq(indices):
                if i:
                    del self._known[i]
                    self._known.appendleft((known, tensors))
                break
        else:
            tensors = {}
            self._known.appendleft((indices.deep_copy(), tensors))
            while len(self._known) > self._size:
                self._known.pop()
        if device not in tensors:
            tensors[device] = as_miller_tensor(indices, device=device)
        return tensors[device]


_miller_sets = _MillerSets(_KEPT_SETS)


def miller_tensor(miller_set: Any, device: torch.device | str = "cpu") -> torch.Tensor:
    """Indices of a ``cctbx.miller.set`` as an (n, 3) int64 tensor; the same object for equal indices."""
    return _miller_sets.tensor(miller_set.indices(), device)


_crystals: collections.deque[Any] = collections.deque(maxlen=8)


def crystal_of(obj: Any, device: torch.device | str = "cpu") -> Crystal:
    """The Crystal of a cctbx object with ``unit_cell()`` and ``space_group()``; the same for equal symmetry."""
    # By the group itself: not every group has a Hall symbol that can be written down.
    key = obj.unit_cell().parameters(), str(device)
    for known, group, crystal in _crystals:
        if known == key and group == obj.space_group():
            return crystal  # type: ignore[no-any-return]
    group = sgtbx.space_group(obj.space_group())
    crystal = Crystal.from_cctbx(
        cctbx_crystal.symmetry(
            unit_cell=uctbx.unit_cell(key[0]),
            space_group=group,
            assert_is_compatible_unit_cell=False,
            force_compatible_unit_cell=False,
        ),
        device=device,
    )
    _crystals.appendleft((key, group, crystal))
    return crystal


def atoms_of(xray_structure: Any, dtype: torch.dtype, device: torch.device | str, lasting: bool = False) -> Atoms:
    """Atoms of a ``cctbx.xray.structure``; see :meth:`Atoms.from_cctbx` for ``lasting``.

    Raises
    ------
    libtbx.utils.Sorry
        When the structure cannot be computed with: a scattering type without a form factor, ...
    """
    try:
        # Not in torch's pool: its threads would go on spinning beside the engine's.
        with own_threads("cpu"):
            return Atoms.from_cctbx(  # type: ignore[no-any-return]
                xray_structure, dtype=dtype, device=device, crystal=crystal_of(xray_structure, device), lasting=lasting
            )
    except ValueError as error:
        raise Sorry(str(error)) from error


def as_flex_complex(values: Any) -> Any:
    """A complex tensor (n,) as ``flex.complex_double``."""
    return flex.complex_double(np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.complex128))


def as_flex_double(values: Any) -> Any:
    """A real tensor, flattened, as ``flex.double``."""
    return flex.double(np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.float64).ravel())


def as_complex_tensor(values: Any, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """``flex.complex_double`` as a complex tensor (n,) of the precision of ``dtype``."""
    kind = torch.complex64 if dtype == torch.float32 else torch.complex128
    return torch.from_numpy(values.as_numpy_array()).to(dtype=kind, device=device)
