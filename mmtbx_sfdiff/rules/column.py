"""A column of a reflection file, and the columns that make one set of observations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_PLUS = re.compile(r"\(\+\)|plus|\+(?=_|$)", re.IGNORECASE)
_MINUS = re.compile(r"\(-\)|minus|-(?=_|$)", re.IGNORECASE)
_FLAG_NAME = re.compile(r"free(?!dom)|(^|[^a-z])test([^a-z]|$)|test[-_]?(flag|set)|cross[-_]?val", re.IGNORECASE)
_FEW = 1000  # different values of a column of flags


@dataclass(frozen=True, eq=False)
class Column:
    """One column of a reflection file.

    Attributes
    ----------
    name : str
        As in the file; a CIF's tag with its category (``_refln.F_meas_au``).
    values : numpy.ndarray
        (n,) float64 with NaN where there is no value; (n,) str with ``""`` for a status column.
    type : str
        The MTZ type, one letter; empty where the file types no columns.
    block : str
        The CIF's data block or the MTZ's dataset.

    Examples
    --------
    >>> import numpy as np
    >>> column = Column("_refln.F_meas_au", np.array([10.0, np.nan]), block="r1abcsf")
    >>> column.short, column.is_tag, column.is_text
    ('F_meas_au', True, False)
    >>> plus = Column("F(+)", np.array([10.0, 12.0]), "G")
    >>> plus.mate, plus.other_mate
    ('plus', 'f(-)')
    >>> plus.holds_flags, Column("FreeR_flag", np.array([0.0, 1.0])).holds_flags
    (False, True)
    """

    name: str
    values: npt.NDArray[np.generic]
    type: str = ""
    block: str = ""

    @property
    def short(self) -> str:
        """The name without a CIF's category."""
        return re.sub(r"^_refln[._]", "", self.name, flags=re.IGNORECASE)

    @property
    def is_tag(self) -> bool:
        """Whether the name is a CIF's."""
        return self.name.lower().startswith("_refln")

    @property
    def is_text(self) -> bool:
        """Whether the values are words."""
        return self.values.dtype.kind in "US"

    @property
    def mate(self) -> str:
        """``plus`` or ``minus`` where the name says which Bijvoet mate it is (``F(+)``, ``F+``, ``F_plus``), else nothing."""
        return "plus" if _PLUS.search(self.short) else "minus" if _MINUS.search(self.short) else ""

    @property
    def holds_flags(self) -> bool:
        """Whether the name is that of R-free flags, and the values are words or a few whole numbers."""
        if not _FLAG_NAME.search(self.short):
            return False
        if self.is_text:
            return True
        values = np.asarray(self.values, dtype=np.float64)
        found = np.unique(values[np.isfinite(values)])
        return len(found) <= _FEW and bool(np.all(found == np.round(found)))

    @property
    def other_mate(self) -> str:
        """The name, lower case, that the minus mate of a plus one has."""
        name = self.short.lower()
        return _PLUS.sub(lambda found: {"(+)": "(-)", "+": "-"}.get(found.group(0), "minus"), name)


@dataclass(frozen=True, eq=False)
class Observation:
    """The columns that make one set of observations.

    Attributes
    ----------
    kind : str
        ``amplitudes`` or ``intensities``.
    value, sigma : Column, Column or None
    minus, minus_sigma : Column or None
        Those of the other Bijvoet mate, where the file has both in one row.

    Examples
    --------
    >>> columns = [Column("FP", np.array([1.0, 2.0]), "F"), Column("SIGFP", np.array([0.1, 0.1]), "Q")]
    >>> found = Observation("amplitudes", *columns)
    >>> found.labels, len(found.columns), found.is_anomalous
    ('FP,SIGFP', 2, False)
    """

    kind: str
    value: Column
    sigma: Column | None = None
    minus: Column | None = None
    minus_sigma: Column | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """All that there are, in the order of labels."""
        every = (self.value, self.sigma, self.minus, self.minus_sigma)
        return tuple(column for column in every if column is not None)

    @property
    def labels(self) -> str:
        """The names, joined by commas, after the block of a CIF: what cctbx calls the label string."""
        return label_string(self.columns)

    @property
    def is_anomalous(self) -> bool:
        """Whether Bijvoet mates stand apart."""
        return self.minus is not None or bool(self.value.mate)


def label_string(columns: Sequence[Column]) -> str:
    """Names joined by commas, after the block of a CIF.

    Examples
    --------
    >>> label_string([Column("_refln.F_meas_au", np.zeros(2), block="r1abcsf")])
    'r1abcsf,_refln.F_meas_au'
    """
    block = [columns[0].block] if columns[0].is_tag and columns[0].block else []
    return ",".join(block + [column.name for column in columns])
