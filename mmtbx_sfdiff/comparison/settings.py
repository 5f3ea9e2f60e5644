"""What is to be compared, and what a comparison is."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..bulk_solvent import DEFAULT_MASK
from ..structure_factors import DEFAULT_MEMORY


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to compute, and how.

    Attributes
    ----------
    method, accuracy
        Of :func:`mmtbx_sfdiff.structure_factors`.
    mask, grid_step
        Method and grid step (Å) of :func:`mmtbx_sfdiff.solvent_mask`.
    reference_step : float
        Grid step of the mmtbx mask that masks are compared with, Å; coarser where a cell is too large for it.
    device, dtype : str
        Where, and in which precision ("float32", "float64"), this package computes.
    n_timing : int
        Calls of which a time is the median.
    memory : int
        Bound on the working storage of structure factors, bytes.
    twin_law : str or None
        "auto", None for a single crystal, or indices of the mate.
    direct_terms : float or None
        cctbx's direct summation takes 36 ns a term (atom x reflection x operator).  Where the entry has more terms than
        this, the reference is taken on a random part of the reflections.  None: always on all.
    gradient_terms : float or None
        The same for the check of the gradients, which takes twice as long a term and is timed apart.

    Examples
    --------
    >>> from mmtbx_sfdiff.comparison import Settings
    >>> Settings(accuracy=1e-6).accuracy, Settings().mask
    (1e-06, 'probe_shrink')
    """

    method: str = "auto"
    accuracy: float = 1e-4
    mask: str = DEFAULT_MASK
    grid_step: float = 0.6
    reference_step: float = 0.15
    device: str = "cpu"
    dtype: str = "float64"
    n_timing: int = 3
    memory: int = DEFAULT_MEMORY
    twin_law: str | None = "auto"
    direct_terms: float | None = 1e9
    gradient_terms: float | None = 3e8


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes
    ----------
    result : dict
        As :data:`.schema.SCHEMA` says; what is written as JSON.
    section : MaskSection
        A section through both masks, for the figure.
    pairs : dict of str to tuple of numpy.ndarray
        F_protein and F_mask, (n,) complex, that were scaled: of "sfdiff" and of "mmtbx".
    """

    result: dict[str, Any]
    section: Any
    pairs: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)


def kernels_for(settings: Any) -> tuple[str, ...]:
    """The groups of kernels that are going to be timed; the masks first, with which the demonstration begins.

    Examples
    --------
    >>> kernels_for(Settings(method="direct"))
    ('masks', 'direct')
    """
    method = {"direct": ("direct",), "fft": ("structure_factors", "gradients")}
    wanted = ("masks", *method.get(settings.method, method["fft"]))
    return wanted if settings.accuracy >= 1e-6 else (*wanted, "double")
