"""Observed data as cctbx's arrays: what :mod:`.observations` read, for programs that work with cctbx."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cctbx import crystal, miller
from cctbx.array_family import flex

from .content import read_content, split_word
from .observations import Observations, read_observations
from .reflection_file import read_reflection_file
from .symmetry import Symmetry


@dataclass(frozen=True)
class Data:
    """Observations of one crystal.

    Attributes
    ----------
    path : pathlib.Path
    f_obs : cctbx.miller.array
        Amplitudes, in the asymmetric unit; with sigmas where the file has them.
    r_free_flags : cctbx.miller.array of bool or None
        True for the test set; same indices as ``f_obs``.
    labels : str
        Columns that were taken.
    r_free_labels : str or None
    test_flag_value : int, str or None
        Value in the file that marks the test set (``f`` of a status column).
    kind : str
        ``amplitudes``, ``intensities (French-Wilson)`` or ``intensities (square root)``.
    entry_id : str or None
        What the file says it belongs to.
    wavelength : float or None
        Å.
    simulated : bool
        Whether the file says that its amplitudes were calculated, not measured.
    reflections : dict
        ``{"read", "used", "free", "left_out": {reason: n}}``; ``read`` is ``used`` and all that were left out.
    messages : tuple of str
        What was taken, and what could not be found.
    stated : Symmetry or None
        What the file itself says.
    setting : str or None
        Operator by which the indices were brought to the model's setting.
    mates : str or None
        Columns of the file that have Bijvoet mates apart, whether taken or not.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import read_data
    >>> from mmtbx_sfdiff.files.demo import demo_entry
    >>> data = read_data(demo_entry(".").data)
    >>> data.kind, data.simulated, data.r_free_flags.size() == data.f_obs.size()
    ('amplitudes', True, True)
    """

    path: Path
    f_obs: Any
    r_free_flags: Any
    labels: str
    r_free_labels: str | None = None
    test_flag_value: int | str | None = None
    kind: str = "amplitudes"
    entry_id: str | None = None
    wavelength: float | None = None
    simulated: bool = False
    reflections: dict[str, Any] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    stated: Symmetry | None = None
    setting: str | None = None
    mates: str | None = None


def read_data(
    path: Any,
    crystal_symmetry: Any = None,
    labels: Any = None,
    free: Any = None,
    test_value: int | str | None = None,
    free_file: Any = None,
    d_min: float | None = None,
    d_max: float | None = None,
    anomalous: bool = False,
    prefer: str = "amplitudes",
    strict: bool = True,
    reindex: str | None = None,
    trust_symmetry: bool = False,
    r_free_labels: Any = None,
    test_flag_value: int | str | None = None,
) -> Data:
    """Read observed data from an MTZ file, a structure-factor CIF, or another format that cctbx knows.

    Parameters
    ----------
    path : path
        Plain or compressed; a SHELX file with ``=hklf3`` or ``=hklf4`` behind its name.
    crystal_symmetry : cctbx.crystal.symmetry, optional
        The model's; it takes priority over the file's, which must be compatible.
    labels, free : str or sequence of str, optional
        Columns to take; ``free="none"`` to read no flags.
    test_value : int or str, optional
        The value that marks the test set.
    free_file : path, optional
        Another file that holds the flags.
    d_min, d_max : float, optional
        Resolution limits, Å.
    anomalous : bool
        Keep Bijvoet mates apart.
    prefer : str
        ``amplitudes`` or ``intensities``, where a file holds both.
    strict : bool
        Whether flags that cannot mark a test set are an error, or only said.
    reindex : str, optional
        Operator on the indices, such as ``k,h,-l``.
    trust_symmetry : bool
        Use the symmetry given, whatever the file states.
    r_free_labels, test_flag_value
        Older names of ``free`` and ``test_value``.

    Returns
    -------
    Data

    Raises
    ------
    libtbx.utils.Sorry
        In one sentence that names the file: unreadable, no observations, another crystal, unusable flags,
        no reflections within the limits.  It is a ValueError, too.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import read_data
    >>> from mmtbx_sfdiff.files.demo import demo_entry
    >>> data = read_data(demo_entry(".").data, d_min=2.5)
    >>> data.labels, data.f_obs.size(), data.f_obs.d_min() >= 2.5
    ('FOBS_SIMULATED,SIGFOBS_SIMULATED', 983, True)
    """
    observations = read_observations(
        path,
        None if crystal_symmetry is None else Symmetry.from_cctbx(crystal_symmetry),
        labels=labels,
        free=free if free is not None else r_free_labels,
        test_value=test_value if test_value is not None else test_flag_value,
        free_file=free_file,
        d_min=d_min,
        d_max=d_max,
        anomalous=anomalous,
        prefer=prefer,
        strict=strict,
        reindex=reindex,
        trust_symmetry=trust_symmetry,
    )
    return as_data(observations, crystal_symmetry)


def as_data(observations: Observations, crystal_symmetry: Any = None) -> Data:
    """Observations as cctbx's arrays.

    Parameters
    ----------
    observations : Observations
    crystal_symmetry : cctbx.crystal.symmetry, optional
        The same symmetry, where it is at hand (a space group of cctbx's may be written in a way of its own).
    """
    o = observations
    known = crystal_symmetry is not None and None not in (crystal_symmetry.unit_cell(), crystal_symmetry.space_group())
    miller_set = miller.set(
        crystal_symmetry=crystal_symmetry if known else o.symmetry.to_cctbx(),
        indices=flex.miller_index([tuple(index) for index in o.indices.tolist()]),
        anomalous_flag=o.anomalous,
    )
    f_obs = miller_set.array(data=_doubles(o.f_obs), sigmas=None if o.sigmas is None else _doubles(o.sigmas))
    f_obs.set_observation_type_xray_amplitude()
    f_obs.set_info(
        miller.array_info(source=str(o.path), labels=o.labels.split(","), wavelength=o.wavelength, merged=True)
    )
    flags = None
    if o.free is not None:
        flags = miller_set.array(data=flex.bool(np.ascontiguousarray(o.free)))
        flags.set_info(miller.array_info(source=str(o.path), labels=(o.free_labels or "").split(",")))
    return Data(
        path=o.path,
        f_obs=f_obs,
        r_free_flags=flags,
        labels=o.labels,
        r_free_labels=o.free_labels,
        test_flag_value=o.test_value,
        kind=o.kind,
        entry_id=o.entry_id,
        wavelength=o.wavelength,
        simulated=o.simulated,
        reflections=o.summary,
        messages=o.messages,
        stated=o.stated,
        setting=o.setting,
        mates=o.mates,
    )


def _doubles(values: Any) -> Any:
    return flex.double(np.ascontiguousarray(values, dtype=np.float64))


def data_symmetry(path: Any) -> Any:
    """The symmetry that a data file states, or None.

    Parameters
    ----------
    path : path

    Returns
    -------
    cctbx.crystal.symmetry or None
        Its cell or space group may be None.

    Raises
    ------
    libtbx.utils.Sorry
        If the file cannot be read.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import data_symmetry
    >>> from mmtbx_sfdiff.files.demo import demo_entry
    >>> str(data_symmetry(demo_entry(".").data).space_group_info())
    'C 1 2 1'
    """
    path, word = split_word(path)
    symmetry = read_reflection_file(read_content(path, "data"), word).symmetry
    known: crystal.symmetry | None = None
    if symmetry.cell is not None or symmetry.ops is not None:
        known = symmetry.to_cctbx()
    return known
