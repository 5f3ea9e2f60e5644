"""Bijvoet mates in ``mmtbx_sfdiff.refine``: apart where f'' is known, and a map of their differences either way."""

from __future__ import annotations

from typing import Any

import torch

from libtbx.utils import Sorry

from ..files.data import read_data
from ..real_space.mates import difference_column
from ..reflections import Reflections

_RANGE = (0.2, 5.0)  # Å, of the tables' photons that diffract


def check(params: Any) -> None:
    """
    Raises
    ------
    libtbx.utils.Sorry
    """
    low, high = _RANGE
    if params.wavelength is not None and not low <= params.wavelength <= high:
        raise Sorry(f"wavelength={params.wavelength:g} Å is not possible: give {low:g} to {high:g}.")
    if params.wavelength is not None and params.scattering_table in ("electron", "neutron"):
        raise Sorry(f"f' and f'' are of X-rays: leave wavelength out with scattering_table={params.scattering_table}.")


def give_inelastic(params: Any, structure: Any) -> None:
    """f' and f'' of a wavelength, to all scatterers of a ``cctbx.xray.structure``; it is changed."""
    if params.wavelength is not None:
        structure.set_inelastic_form_factors(photon=params.wavelength, table="sasaki")


def messages(params: Any, data: Any) -> list[str]:
    """What there is to say of the mates of some data."""
    if params.wavelength is not None:
        how = (
            f"Bijvoet mates are apart ({data.labels})"
            if data.f_obs.anomalous_flag()
            else "the data have no Bijvoet pairs"
        )
        return [f"all atoms have f' and f'' of {params.wavelength:g} Å; {how}"]
    if data.mates is None:
        return []
    stated = (
        "the wavelength" if not data.wavelength else f"wavelength={data.wavelength:g}, if the file states it rightly,"
    )
    return [f"Bijvoet mates ({data.mates}) are taken together, as f'' is not known; {stated} refines against both"]


def differences(fmodel: Any, entry: Any, indices: torch.Tensor) -> torch.Tensor | None:
    """Coefficients of the anomalous difference map at the rows (m, 3) of a file; None where no mates were measured.

    Mates that the refinement took together are read again, apart; their phases are the model's all the same.

    Parameters
    ----------
    fmodel : FModel
        With scales.
    entry : Entry
        Where its data came from.
    indices : torch.Tensor
        (m, 3) int64.
    """
    reflections = fmodel.reflections
    with torch.no_grad():
        f_model = fmodel.f_model()
    if reflections.anomalous:
        return difference_column(indices, reflections, f_model)
    if entry.data.mates is None:
        return None
    options = {name: entry.options.get(name) for name in ("d_min", "d_max", "reindex")}
    trust = any(entry.options.get(name) is not None for name in ("space_group", "unit_cell"))
    symmetry = entry.model.crystal_symmetry
    try:
        data = read_data(
            entry.data.path,
            symmetry,
            labels=entry.data.mates,
            free="none",
            anomalous=True,
            trust_symmetry=trust,
            **options,
        )
    except Sorry:  # nothing of the mates is usable
        return None
    if not data.f_obs.anomalous_flag():
        return None
    apart = Reflections.from_cctbx(data.f_obs, None, dtype=reflections.f_obs.dtype, device=reflections.f_obs.device)
    place = {index: row for row, index in enumerate(map(tuple, reflections.miller_indices.tolist()))}
    rows, values = [], []
    for row, index in enumerate(map(tuple, apart.miller_indices.tolist())):
        mate = (-index[0], -index[1], -index[2])
        if index in place or mate in place:
            rows.append(row)
            values.append((place[index], False) if index in place else (place[mate], True))
    if not rows:
        return None
    apart = apart.select(torch.tensor(rows, device=f_model.device))
    at, turned = (torch.tensor(part, device=f_model.device) for part in zip(*values, strict=True))
    phased = torch.where(turned, f_model[at].conj(), f_model[at])
    try:
        return difference_column(indices, apart, phased)
    except ValueError:  # no pair among those that were refined against
        return None
