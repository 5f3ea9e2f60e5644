"""Rules on what stands in a reflection file: what is an observation, what is a test set, which rows take part.

Every door (cctbx's arrays, gemmi's MTZ and CIF, ``reciprocalspaceship.DataSet``, SFcalculator's interface, rewards)
describes its columns as :class:`Column` and asks here.  Pure functions on names, types and values: nothing reads files
or needs cctbx or gemmi.

:mod:`.column`
    a column, and those that make an observation
:mod:`.columns`
    observations, their sigmas and Bijvoet mates
:mod:`.free_flags`
    R-free flags and the value that marks the test set
:mod:`.tags`
    names of a CIF's items, old ones too
:mod:`.displacements`
    B factors that lack their TLS part
:mod:`.radiation`
    form factors and the radiation of the header
:mod:`.rows`
    rows that are left out, and why; flags of merged reflections; whose cell
"""

from .column import Column, Observation, label_string
from .columns import (
    AMPLITUDES,
    INTENSITIES,
    choose_observation,
    index_places,
    is_calculated,
    is_constant,
    kind_of,
    named,
    observations,
    sigma_of,
)
from .displacements import b_is_residual
from .free_flags import Flags, UnusableFlags, choose_flags, find_test_value, is_flag_column, is_status, read_flags
from .radiation import radiation_messages
from .rows import LeftOut, excluded, free_of_equivalents, usable, which_cell
from .tags import read_tag

__all__ = [
    "AMPLITUDES",
    "INTENSITIES",
    "Column",
    "Flags",
    "LeftOut",
    "Observation",
    "UnusableFlags",
    "b_is_residual",
    "choose_flags",
    "choose_observation",
    "excluded",
    "find_test_value",
    "free_of_equivalents",
    "index_places",
    "is_calculated",
    "is_constant",
    "is_flag_column",
    "is_status",
    "kind_of",
    "label_string",
    "named",
    "observations",
    "radiation_messages",
    "read_flags",
    "read_tag",
    "sigma_of",
    "usable",
    "which_cell",
]
