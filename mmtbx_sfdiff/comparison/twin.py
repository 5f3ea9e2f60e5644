"""R factors of twinned data, by this package's twin model and by mmtbx's."""

from __future__ import annotations

from typing import Any

import mmtbx.utils  # noqa: F401  mmtbx's twin model needs it loaded
from cctbx import sgtbx
from cctbx.array_family import flex
from libtbx.utils import null_out
from mmtbx.twinning.twin_f_model import twin_model_manager

from ..fmodel import FModel
from ..plans.twin import parse_law, twin_laws


def twin_section(fmodel: FModel, xray_structure: Any) -> dict[str, Any] | None:
    """Law, and fraction and R factors of both; None where the data are not twinned.

    Parameters
    ----------
    fmodel : FModel
        Without scales, made with ``twin_law``.
    xray_structure : cctbx.xray.structure
        The same model.

    Returns
    -------
    dict or None
        ``{"law", "sfdiff": {"fraction", "r_work", "r_free"}, "mmtbx": likewise or None}``; mmtbx's is None where it fails.

    Raises
    ------
    ValueError
        What FModel says of the law, or of data that no scales can be determined for.
    """
    if fmodel.twin_law is None and not twin_laws(fmodel.reflections.crystal):
        return None
    scales = fmodel.update_scales()
    if fmodel.twin_law is None:
        return None
    r_work, r_free = fmodel.r_factors()
    ours = {"fraction": scales.twin_fraction, "r_work": r_work, "r_free": r_free}
    try:
        theirs = of_mmtbx(fmodel, xray_structure)
    except (AssertionError, RuntimeError, ValueError, IndexError, AttributeError, ZeroDivisionError):
        theirs = None
    return {"law": fmodel.twin_law, "sfdiff": ours, "mmtbx": theirs}


def of_mmtbx(fmodel: FModel, xray_structure: Any) -> dict[str, float | None]:
    """Fraction and R factors of mmtbx's twin model with the law of an FModel, its own mask and its own exponential scales."""
    assert fmodel.twin_law is not None
    f_obs, flags = fmodel.reflections.to_cctbx()
    given = flags is not None
    if not given:
        flags = f_obs.array(data=flex.bool(f_obs.size(), False))
    rotation = sgtbx.rot_mx([int(x) for x in parse_law(fmodel.twin_law).ravel()])
    manager = twin_model_manager(
        f_obs=f_obs,
        r_free_flags=flags,
        xray_structure=xray_structure,
        twin_law=sgtbx.rt_mx(rotation, sgtbx.tr_vec([0, 0, 0])),
        twin_law_str=fmodel.twin_law,
        out=null_out(),
    )
    manager.update_all_scales(log=null_out())
    return {
        "fraction": float(manager.twin_fraction_object.twin_fraction),
        "r_work": float(manager.r_work()),
        "r_free": float(manager.r_free()) if given else None,
    }
