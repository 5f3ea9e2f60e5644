"""Reading an entry: a model and its data, checked against each other.

The pieces live in their own modules: :mod:`.model` (coordinates), :mod:`.observations` (data)
and :mod:`.symmetry` (whose cell and space group).  Finding the files is :mod:`.fetch`.
"""

from dataclasses import dataclass, field, replace

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
    """

    model: Model
    data: Data
    entry_id: str = None
    messages: tuple = field(default_factory=tuple)

    @property
    def name(self):
        """The entry, or the name of the model file."""
        return self.entry_id or self.model.path.name.split(".")[0]


def load_entry(
    model_path,
    data_path,
    scattering_table="n_gaussian",
    labels=None,
    free=None,
    test_value=None,
    free_file=None,
    d_min=None,
    d_max=None,
    anomalous=False,
    prefer="amplitudes",
    strict=True,
    crystal_symmetry=None,
    allow_other_entry=False,
    r_free_labels=None,
    test_flag_value=None,
):
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
    r_free_labels, test_flag_value
        Older names of ``free`` and ``test_value``.

    Returns
    -------
    Entry

    Raises
    ------
    libtbx.utils.Sorry
        In one sentence, for the first thing that is wrong with the files or between them.
    """
    model = read_model(model_path, scattering_table=scattering_table, crystal_symmetry=crystal_symmetry)
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
        model=model, data=data, entry_id=model.entry_id or data.entry_id, messages=model.messages + data.messages
    )
