"""Items of a CIF's ``refln`` category under the names that they have had: what they measure, and of which Bijvoet mate.

Depositions of thirty years use ``F_meas_au``, ``F_obs``, ``pdbx_F_meas``, ``I_meas_sigma_au``, ``ccp4_SAD_F_meas_plus_au``,
``F+_meas_au`` and many more for a few items.  A name is read word by word, and one with a word that is not known here means
nothing.

References: the ``refln`` category of the PDBx/mmCIF and core CIF dictionaries; the names that wwPDB's ``sf-convert`` replaces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PREFIXES = ("pdbx", "ccp4", "sad", "phenix", "ebi")
_BASES = {"f": "F", "i": "I", "intensity": "I"}
_MEASURED = ("meas", "obs", "measured", "observed")
_SIGMA = ("sigma", "sigm", "sig")


@dataclass(frozen=True)
class Item:
    """What a name says.

    Attributes
    ----------
    base : {"F", "I", "F^2"}
    mate : {"", "plus", "minus"}
    is_sigma : bool

    Examples
    --------
    >>> read_tag("ccp4_SAD_F_meas_plus_sigma_au")
    Item(base='F', mate='plus', is_sigma=True)
    """

    base: str
    mate: str
    is_sigma: bool

    @property
    def is_intensity(self) -> bool:
        """Whether it is no amplitude."""
        return self.base != "F"


def read_tag(short: str) -> Item | None:
    """What an item of the ``refln`` category measures by its name; None for anything but measured values and their errors.

    Parameters
    ----------
    short : str
        The name without the category.

    Examples
    --------
    >>> read_tag("F_meas_au"), read_tag("I_obs"), read_tag("F_calc"), read_tag("pdbx_anom_difference")
    (Item(base='F', mate='', is_sigma=False), Item(base='I', mate='', is_sigma=False), None, None)
    """
    words = short.lower().split("_")
    while words and words[0] in _PREFIXES:
        words = words[1:]
    sign = re.fullmatch(r"([a-z]+)([+-])", words[0]) if words else None
    if sign:
        words = [sign.group(1), "plus" if sign.group(2) == "+" else "minus", *words[1:]]
    if not words or words[0] not in _BASES:
        return None
    base, rest = _BASES[words[0]], [word for word in words[1:] if word != "au"]
    if rest[:1] == ["squared"] and base == "F":
        base, rest = "F^2", rest[1:]
    mates = [word for word in rest if word in ("plus", "minus")]
    sigmas = [word for word in rest if word in _SIGMA]
    measured = [word for word in rest if word in _MEASURED]
    if len(mates) + len(sigmas) + len(measured) != len(rest) or max(map(len, (mates, sigmas, measured))) > 1:
        return None
    if not rest and words[0] != "intensity":  # F and I alone may be anything
        return None
    return Item(base, mates[0] if mates else "", bool(sigmas))
