"""Reading an entry: a model and its data, checked against each other.

The pieces live in their own modules: :mod:`.model` (coordinates), :mod:`.observations` (data)
and :mod:`.symmetry` (whose cell and space group).  Finding the files is :mod:`.fetch`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .data import Data, read_data
from .errors import Sorry
from .model import Model, read_model, set_scattering


@dataclass(frozen=True)
class Entry:
    """A model and the data of the same crystal, in the same symmetry.

    Attributes
    ----------
    model : Model
        With form factors for the resolution of the data.
    data : Data
    entry_id : str or None
        As stated by the files.
    messages : tuple of str
        Those of the model and of the data.
    options : dict
        Arguments with which the files were read.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import load_entry
    >>> from mmtbx_sfdiff.files.demo import demo_entry
    >>> demo = demo_entry(".")
    >>> entry = load_entry(demo.model, demo.data)
    >>> entry.name, entry.data.f_obs.size(), entry.again(d_min=2.5).data.f_obs.size()
    ('2erl', 3633, 983)
    """

    model: Model
    data: Data
    entry_id: str | None = None
    messages: tuple[str, ...] = field(default_factory=tuple)
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    def again(self, **changes: Any) -> Entry:
        """The same files read with other arguments of :func:`load_entry`."""
        return load_entry(self.model.path, self.data.path, **(self.options | changes))

    @property
    def name(self) -> str:
        """The entry, or the name of the model file."""
        return self.entry_id or self.model.path.name.split(".")[0]


def load_entry(
    model_path: str | Path,
    data_path: str | Path,
    scattering_table: str = "n_gaussian",
    labels: str | None = None,
    free: str | None = None,
    test_value: int | None = None,
    free_file: str | Path | None = None,
    d_min: float | None = None,
    d_max: float | None = None,
    anomalous: bool = False,
    prefer: str = "amplitudes",
    strict: bool = True,
    crystal_symmetry: Any = None,
    allow_other_entry: bool = False,
    reindex: Any = None,
    space_group: Any = None,
    unit_cell: Any = None,
    model_shift: Any = None,
    r_free_labels: str | None = None,
    test_flag_value: int | None = None,
) -> Entry:
    """Read a model and its data and check that they belong together.

    Parameters
    ----------
    model_path, data_path : path
    scattering_table : str
        See :func:`read_model`.
    labels, free, test_value, free_file, d_min, d_max, anomalous, prefer, strict
        See :func:`read_data`.
    crystal_symmetry : cctbx.crystal.symmetry, optional
        For a model without one; by default the data file's.
    allow_other_entry : bool
        Accept data that say they belong to another PDB entry than the model, as when a model is compared with
        the data of an isomorphous crystal.
    reindex : str, optional
        Operator on the indices of the data, such as ``k,h,-l``.
    space_group, unit_cell, model_shift
        Of :func:`read_model`; a symmetry that is given holds for the data, too.
    r_free_labels, test_flag_value
        Older names of ``free`` and ``test_value``.

    Returns
    -------
    Entry

    Raises
    ------
    libtbx.utils.Sorry
        In one sentence, for the first thing that is wrong with the files or between them.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import load_entry
    >>> from mmtbx_sfdiff.files.demo import demo_entry
    >>> demo = demo_entry(".")
    >>> entry = load_entry(demo.model, demo.data, d_min=2.5)
    >>> entry.name, entry.data.f_obs.size()
    ('2erl', 983)
    """
    options = {name: value for name, value in locals().items() if name not in ("model_path", "data_path")}
    model = read_model(
        model_path,
        scattering_table=scattering_table,
        crystal_symmetry=crystal_symmetry,
        space_group=space_group,
        unit_cell=unit_cell,
        shift=model_shift,
    )
    data = read_data(
        data_path,
        model.crystal_symmetry,
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
        trust_symmetry=space_group is not None or unit_cell is not None,
    )
    if model.entry_id and data.entry_id and model.entry_id != data.entry_id and not allow_other_entry:
        raise Sorry(
            f"{model.path} is entry {model.entry_id}, but {data.path} holds data of entry "
            f"{data.entry_id}: give files of one entry, or set allow_other_entry if this is meant."
        )
    # the manager was made a moment ago and nobody else holds it, so it may be changed in place
    set_scattering(model.manager, scattering_table, data.f_obs.d_min(), model.path)
    model = replace(model, xray_structure=model.manager.get_xray_structure())
    return Entry(
        model=model,
        data=data,
        entry_id=model.entry_id or data.entry_id,
        messages=model.messages + data.messages,
        options=options,
    )
