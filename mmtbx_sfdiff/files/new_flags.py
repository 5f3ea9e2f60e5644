"""New R-free flags, and a file of them.

Flags are made for every reflection that there could be to the data's limit, so that they also serve data to come, and alike for
reflections that the lattice makes alike (twin mates, pseudo-symmetry), by cctbx.

Reference: ``cctbx.miller.set.generate_r_free_flags``; Phenix's and CCP4's conventions: 1 of 0 and 1, 0 of 0, 1, 2, ...
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from cctbx import miller
from cctbx.array_family import flex

from .errors import Sorry
from .mtz import MTZ

#: At most so many free reflections, as in Phenix.
MOST = 2000
STYLES = {"phenix": ("cns", "R-free-flags", 1), "ccp4": ("ccp4", "FreeR_flag", 0)}


@dataclasses.dataclass(frozen=True)
class NewFlags:
    """Flags of the data, and the content of a file of flags to the data's limit.

    Attributes
    ----------
    flags : cctbx.miller.array of bool
        True for the test set; of the reflections of the data.
    content : bytes
        An MTZ file.
    label : str
    test_value : int
    """

    flags: Any
    content: bytes
    label: str
    test_value: int


def new_flags(f_obs: Any, fraction: float, seed: int = 0, style: str = "phenix") -> NewFlags:
    """Choose a test set at random.

    Parameters
    ----------
    f_obs : cctbx.miller.array
        Merged.
    fraction : float
        Of the reflections, at most :data:`MOST` of them.
    seed : int
    style : {"phenix", "ccp4"}

    Raises
    ------
    libtbx.utils.Sorry
        Where no reflection would be free, or all.
    """
    form, label, test_value = STYLES[style]
    flex.set_random_seed(int(seed or 0))
    merged = f_obs.average_bijvoet_mates() if f_obs.anomalous_flag() else f_obs
    merged = miller.set(merged.crystal_symmetry(), merged.indices(), anomalous_flag=False)
    indices = merged.indices().deep_copy()
    indices.extend(merged.complete_set().lone_set(merged).indices())
    both = merged.customized_copy(indices=indices).sort()
    state = random.getstate()
    random.seed(int(seed or 0))
    try:
        made = both.generate_r_free_flags(fraction=fraction, max_free=MOST, use_lattice_symmetry=True, format=form)
    finally:
        random.setstate(state)
    values = made.data() if form == "ccp4" else made.data().as_int()
    table = made.array(data=values)
    free = made.array(data=values == test_value)
    if f_obs.anomalous_flag():
        free = free.generate_bijvoet_mates()
    flags = free.common_set(f_obs)
    n_free = flags.data().count(True)
    if not 0 < n_free < flags.size():
        raise Sorry(
            f"A test set of {100 * fraction:g} % of {flags.size()} reflections would hold {n_free}: set another "
            "r_free_flags.fraction."
        )
    mtz = MTZ("mmtbx_sfdiff: R-free flags")
    mtz.add(table, label)
    return NewFlags(flags, mtz.as_bytes(), label, test_value)
