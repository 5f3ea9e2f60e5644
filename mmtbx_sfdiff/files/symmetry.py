"""Deciding in which symmetry a data file is read when a model's symmetry is known too.

mmtbx gives the model's symmetry priority (``crystal.select_crystal_symmetry``) and calls two cells similar
when their lengths agree to 1 % and their angles to 1 degree (``crystal.symmetry.is_similar_symmetry``).  Both
rules are kept; in addition a different setting of the same crystal is recognised and reindexed.
"""

from cctbx import crystal
from libtbx.utils import Sorry


def reconcile(own, model, path):
    """Choose the symmetry in which the data are read.

    Parameters
    ----------
    own : cctbx.crystal.symmetry or None
        From the data file; its cell or its space group may be absent.
    model : cctbx.crystal.symmetry or None
    path : path
        The data file, for messages.

    Returns
    -------
    symmetry : cctbx.crystal.symmetry
        In which to read the file.
    change_of_basis : cctbx.sgtbx.change_of_basis_op or None
        To be applied to the indices after reading.
    messages : list of str

    Raises
    ------
    libtbx.utils.Sorry
        If nothing is known, or the two do not describe the same crystal.
    """
    cell = own.unit_cell() if own is not None else None
    group = own.space_group_info() if own is not None else None
    if model is None:
        if cell is None or group is None:
            raise Sorry(
                f"{path} has no {'unit cell' if cell is None else 'space group'}: give the model "
                "with it, or a crystal symmetry."
            )
        return own, None, []
    messages = []
    if cell is None or group is None:
        parts = (("unit cell", cell), ("space group", group))
        missing = " and ".join(name for name, value in parts if value is None)
        messages.append(f"the data file has no {missing}: the model's is used")
        own = crystal.symmetry(
            unit_cell=cell or model.unit_cell(),
            space_group_info=group or model.space_group_info(),
            assert_is_compatible_unit_cell=False,
        )
    if own.unit_cell().is_similar_to(model.unit_cell(), 0.01, 1.0):
        return _same_cell(own, model, path, messages)
    change = _other_setting(own, model)
    if change is not None:
        messages.append(
            f"the data are in the setting {own.space_group_info()} and were reindexed with "
            f"{change.as_hkl()} to the model's, {model.space_group_info()}"
        )
        return own, change, messages
    raise Sorry(
        f"The cell of the data file {path} ({_cell(own)}, {own.space_group_info()}) differs from the "
        f"model's ({_cell(model)}, {model.space_group_info()}) by more than 1 % or 1 degree: give the "
        "data and the model of one crystal."
    )


def _same_cell(own, model, path, messages):
    if own.space_group() == model.space_group():
        return model, None, messages
    data_laue, model_laue = (s.space_group().build_derived_laue_group() for s in (own, model))
    names = f"{own.space_group_info()} in the data file, {model.space_group_info()} in the model"
    if data_laue == model_laue:
        messages.append(f"space groups differ in centring or screw axes only ({names}): the model's is used")
        return model, None, messages
    if all(data_laue(i) in _operators(model_laue) for i in range(data_laue.order_z())):
        messages.append(f"space groups differ ({names}): the data are merged in the model's")
        return model, None, messages
    raise Sorry(
        f"The space groups do not go together ({names}, {path}): merge the data in the model's "
        "symmetry, or correct the space group of one file."
    )


def _operators(group):
    return {group(i) for i in range(group.order_z())}


def _other_setting(own, model):
    """The operator that takes the data to the model's setting of the same space group, or None."""
    if own.space_group().type().number() != model.space_group().type().number():
        return None
    to_model = model.change_of_basis_op_to_reference_setting().inverse()
    change = to_model * own.change_of_basis_op_to_reference_setting()
    for candidate in (change, _via_minimum(own, model)):
        if candidate is None:
            continue
        try:
            changed = own.change_basis(candidate)
        except (RuntimeError, ValueError):
            continue
        if changed.is_similar_symmetry(model):
            return candidate
    return None


def _via_minimum(own, model):
    """Through the two reduced cells, for settings whose reference axes were chosen differently."""
    try:
        return model.change_of_basis_op_to_niggli_cell().inverse() * own.change_of_basis_op_to_niggli_cell()
    except (RuntimeError, ValueError):
        return None


def _cell(symmetry):
    return " ".join(f"{value:g}" for value in symmetry.unit_cell().parameters())
