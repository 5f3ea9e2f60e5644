"""A crystal and its Miller indices as one value: what follows from them is worked out when first asked for, and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from ..crystal import Crystal, as_miller_tensor
from ..kernels.opaque import Held
from ..symmetry.miller_sets import refuse_large
from .cache import Kept, TensorCache
from .miller import MillerPlan, make_miller_plan

T = TypeVar("T")
# Plans of tensors of indices that were given to functions as such.
_PLANS = TensorCache(32)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Plan(Held):
    """A crystal and Miller indices, and what follows from both.  Make one with :func:`plan`.

    It never changes: pass it in place of a crystal and indices wherever these are the same each time.  Workers get it by
    pickle, or by fork.

    Attributes
    ----------
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) int64 on the crystal's device.

    Examples
    --------
    >>> plan = sfdiff.plan(crystal, data.miller_indices)
    >>> plan
    Plan(Crystal('P 21 21 21', cell 20 25 30 90 90 90), 881 reflections)
    >>> plan.to("cpu") is plan, plan.device, plan.miller() is plan.miller()
    (True, device(type='cpu'), True)
    >>> plan.part("largest index", lambda: int(plan.miller_indices.abs().max()))     # worked out once
    13
    """

    crystal: Crystal
    miller_indices: torch.Tensor
    _parts: Kept = dataclasses.field(default_factory=Kept, init=False)

    @property
    def device(self) -> torch.device:
        return self.miller_indices.device

    def __len__(self) -> int:
        return len(self.miller_indices)

    def __repr__(self) -> str:
        return f"Plan({self.crystal!r}, {len(self)} reflections)"

    def __getstate__(self) -> dict[str, Any]:
        return {"crystal": self.crystal, "miller_indices": self.miller_indices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _parts=Kept())

    def to(self, device: torch.device | str) -> Plan:
        """The same on another device."""
        device = torch.device(device)
        if device == self.device:
            return self
        return self.part(("device", str(device)), lambda: Plan(self.crystal.to(device), self.miller_indices.to(device)))

    def miller(self, prefer: str = "separable") -> MillerPlan:
        """The unique indices of direct summation, in columns; see :func:`~.miller.make_miller_plan`."""
        return self.part(("miller", prefer), lambda: make_miller_plan(self.crystal, self.miller_indices, prefer))

    def part(self, key: Hashable, make: Callable[[], T]) -> T:
        """What somebody works out of this plan, made once: ``make()``, or what it gave for this key.

        A few dozen parts are kept.  ``make`` must not keep the plan itself in what it gives.
        """
        return self._parts.get(key, make)


def plan(crystal: Crystal, miller_indices: Any) -> Plan:
    """What follows from a crystal and Miller indices, for any number of calls with any atoms.

    Parameters
    ----------
    crystal : Crystal
    miller_indices : torch.Tensor, array-like, flex.miller_index or miller.set
        (n, 3) integers, in any order, inside the asymmetric unit or not.  They are copied.

    Returns
    -------
    Plan
        The second argument of :func:`~mmtbx_sfdiff.structure_factors`, and of what masks are transformed with.

    Raises
    ------
    ValueError
        A shape other than (n, 3); an index beyond 32767.
    TypeError
        Indices that are not integers.

    Examples
    --------
    >>> import torch
    >>> import mmtbx_sfdiff as sfdiff
    >>> from cctbx import crystal
    >>> symmetry = crystal.symmetry((20, 30, 40, 90, 90, 90), "P 21 21 21")
    >>> sfdiff.plan(sfdiff.Crystal.from_cctbx(symmetry), torch.tensor([[1, 2, 3], [0, 0, 2]]))
    Plan(Crystal('P 21 21 21', cell 20 30 40 90 90 90), 2 reflections)
    """
    with torch.inference_mode(False), torch.no_grad():
        indices = as_miller_tensor(miller_indices, device=crystal.device)
        refuse_large(indices.cpu().numpy())
        # A copy, which nobody changes, and which is no tensor of inference mode.
        return Plan(crystal, torch.empty_like(indices).copy_(indices))


def plan_of(place: Crystal | Plan, miller_indices: Any) -> Plan:
    """The plan that was given, or that of a crystal and indices: the same one as long as their tensor lives unchanged.

    Examples
    --------
    >>> plan_of(crystal, data.miller_indices) is plan_of(crystal, data.miller_indices)
    True
    """
    if isinstance(place, Plan):
        return place
    key = place.hall_symbol, tuple(place.unit_cell), str(place.device)
    if not isinstance(miller_indices, torch.Tensor):
        return plan(place, miller_indices)
    return _PLANS.get(miller_indices, key, lambda: plan(place, miller_indices))
