"""What ``mmtbx_sfdiff.refine`` leaves behind: the result as a dictionary, and the contents of all files."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch

from ..files.refined_model import refined_model
from ..real_space.files import map_coefficient_bytes
from ..real_space.mates import mates_in_rows
from ..refinement.groups import AtomLabels
from ..versions import versions
from . import refine_statistics as statistics
from .common import RECORDED
from .refine_anomalous import differences

_SETTINGS = (*RECORDED, "shake", "random_seed")
_TARGETS = {
    "maximum_likelihood": "maximum likelihood",
    "least_squares": "least squares",
    "intensity_least_squares": "least squares of intensities",
}
_MASKS = {
    "probe_shrink": "mask accessible to a probe, differentiable",
    "density_cutoff": "mask by a cutoff of the density, differentiable",
    "binary": "flat mask accessible to a probe",
}
_RESTRAINTS = {
    "library": "geometry restrained by a monomer library in the layout of CCP4's, by gemmi's topology",
    "cctbx": "geometry restrained by cctbx's restraints",
    "force_field": "geometry restrained by a force field, ff14SB with implicit solvent",
    None: "no restraints of the geometry",
}


def header(entry: Any, fmodel: Any) -> dict[str, Any]:
    """What is refined."""
    reflections = fmodel.reflections
    d = reflections.d_spacings
    return {
        "entry": entry.name,
        "simulated": bool(entry.data.simulated),
        "space_group": reflections.crystal.space_group_symbol,
        "unit_cell": list(reflections.crystal.unit_cell),
        "d_max": float(d.max()),
        "d_min": float(d.min()),
        "n_atoms": fmodel.atoms.n_atoms,
        "n_reflections": len(reflections),
        "anomalous": reflections.anomalous,
        "n_free": None if reflections.r_free_flags is None else int(reflections.r_free_flags.sum()),
        "reflections": entry.data.reflections,
    }


def describe(
    params: Any, settings: Any, entry: Any, held: Any, first: Any, refined: Any, history: Any, weight: Any
) -> dict[str, Any]:
    """The result; messages are the caller's.

    Parameters
    ----------
    params : libtbx.phil.scope_extract
        The program's input scope.
    settings : Settings
    entry : Entry
    held : Held
        The restraints.
    first, refined : FModel
        The model that the refinement began with, and the refined one, both with scales.
    history : History
    weight : dict or None
        Of the restraints.
    """
    moved = (refined.atoms.sites_cart - first.atoms.sites_cart).square().sum(-1).sqrt()
    before, after = (_hierarchy(entry, fmodel.atoms) for fmodel in (first, refined))
    return header(entry, first) | {
        "start": r_factors(first),
        "final": r_factors(refined),
        "geometry": {"start": held.rms(first.atoms), "final": held.rms(refined.atoms)},
        "twin": twin(refined),
        "tls": tls(history, entry),
        "ramachandran": {"start": statistics.ramachandran(before), "final": statistics.ramachandran(after)},
        "in_use": statistics.overall(refined),
        "shells": statistics.shells(refined),
        "displacements": statistics.displacements(refined.atoms, after),
        "residues": statistics.residues(refined, after),
        "cycles": history.cycles,
        "steps": history.steps,
        "shift_rms": float(moved.square().mean().sqrt()),
        "shift_max": float(moved.max()),
        "geometry_restraints": weight,
        "restraint_types": statistics.restraint_types(held.geometry, refined.atoms.sites_cart),
        "settings": dataclasses.asdict(settings) | {name: getattr(params, name) for name in _SETTINGS},
        "files": {"model": entry.model.path.name, "data": entry.data.path.name, "labels": entry.data.labels},
        "versions": versions(),
    }


def twin(fmodel: Any) -> dict[str, Any] | None:
    """Law and fraction, or None for a single crystal."""
    if fmodel.twin_law is None:
        return None
    return {"law": fmodel.twin_law, "fraction": fmodel.scales.twin_fraction}


def tls(history: Any, entry: Any) -> list[dict[str, Any]]:
    """The TLS groups as they were refined last: {id, selection, chain, first, last, origin, T, L, S}; [] where none were."""
    found: list[dict[str, Any]] = next((cycle["tls"] for cycle in reversed(history.cycles) if cycle.get("tls")), [])
    if not found:
        return []
    labels = AtomLabels.from_hierarchy(entry.model.manager.get_hierarchy())
    spans = labels.spans(labels.polymer_chains())
    result: list[dict[str, Any]] = []
    for group in found:
        chain, first, last = spans[group["group"]]
        named = f"chain {chain}" if chain.strip() else "chain ' '"
        selection = named if first is None else f"{named} and resseq {first}:{last}"
        place = {"id": str(len(result) + 1), "selection": selection, "chain": chain, "first": first, "last": last}
        result.append(place | {name: group[name] for name in ("origin", "T", "L", "S")})
    return result


def record(result: dict[str, Any], free_selection: str | None) -> dict[str, Any]:
    """The refinement as :mod:`mmtbx_sfdiff.files.deposition` takes it."""
    final, settings = result["final"], result["settings"]
    counts = result["displacements"]
    return result["in_use"] | {  # type: ignore[no-any-return]
        "entry": result["entry"],
        "program": "mmtbx_sfdiff",
        "version": result["versions"]["mmtbx_sfdiff"],
        "target": _TARGETS[settings["target"]],
        "restraints": _RESTRAINTS[(result["geometry_restraints"] or {}).get("restraints")],
        "solvent": _MASKS.get(settings["mask"], settings["mask"]) + ", scale of each resolution bin",
        "n_atoms": result["n_atoms"],
        "n_solvent_atoms": int(sum(counts["counts"].get("water", []))),
        "r_work": final["r_work"],
        "r_free": final["r_free"],
        "b_mean": counts["mean"],
        "free_selection": free_selection,
        "shells": result["shells"],
        "restraint_types": result["restraint_types"],
        "twin": result["twin"],
        "tls": result["tls"],
    }


def contents(
    result: dict[str, Any], refined: Any, suffixes: list[str], labels: str, deposited: dict[str, Any]
) -> dict[str, bytes]:
    """The content of each file, by suffix.

    Parameters
    ----------
    result : dict
    refined : FModel
    suffixes : list of str
        Of .pdb, .cif, .mtz, .json, .html, .png.
    labels : {"ccp4", "phenix"}
        Of the MTZ file's columns.
    deposited : dict
        Of :func:`record`.
    """
    made: dict[str, bytes] = {}
    for suffix in suffixes:
        if suffix in (".pdb", ".cif"):
            made[suffix] = refined_model(refined.source, refined.atoms, suffix, deposited)
        elif suffix == ".mtz":
            made[suffix] = map_file(refined, labels)
        elif suffix == ".json":
            made[suffix] = as_json(result).encode()
        elif suffix == ".html":
            # matplotlib takes half a second to import: not for --help.
            from .refine_page import render
            from .refine_pictures import pictures

            made[suffix] = render(result, pictures(result)).encode()
        elif suffix == ".png":
            from ..refinement import figure

            made[suffix] = figure.png(result)
    return made


def as_json(result: dict[str, Any]) -> str:
    """The text of the JSON file."""
    return json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def map_file(fmodel: Any, labels: str = "ccp4") -> bytes:
    """Data, flags, F_calc, F_model and map coefficients as MTZ, for Coot.

    CCP4's labels: F, SIGF, FREE (0 for the test set, as CCP4's programs take it) of all reflections; FC, PHIC of the atoms
    and FC_ALL, PHIC_ALL with solvent, on the scale of F; FWT, PHWT (2mFo-DFc) and DELFWT, PHDELWT (mFo-DFc) of the
    reflections in use, without number for the others. Where the data have Bijvoet mates FAN, PHAN (PANOM, PHPANOM) is the anomalous
    difference map; those that were refined apart have F(+), SIGF(+), F(-), SIGF(-), and the other columns are of the mean of both.

    Parameters
    ----------
    fmodel : FModel
        With scales.
    labels : {"ccp4", "phenix"}
    """
    crystal, source = fmodel.reflections.crystal, fmodel.source
    indices, columns = (fmodel.map_columns if labels == "phenix" else lambda: _ccp4_columns(fmodel))()
    if labels != "phenix" or not fmodel.reflections.anomalous:
        found = differences(fmodel, source, indices)
        if found is not None:
            columns["PANOM" if labels == "phenix" else "FAN"] = found
    return map_coefficient_bytes(crystal, indices, columns)


def _ccp4_columns(fmodel: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    reflections, scales = fmodel.reflections, fmodel.scales
    used = scales.selection
    columns = {"F": reflections.f_obs}
    if reflections.sigmas is not None:
        columns["SIGF"] = reflections.sigmas
    if reflections.r_free_flags is not None:
        columns["FREE"] = reflections.r_free_flags
    with torch.no_grad():
        k = scales.k_total * scales.f_obs_scale
        columns |= {"FC": k * fmodel.f_calc(), "FC_ALL": scales.f_obs_scale * fmodel.f_model()}
    for label, kind in (("FWT", "2mFo-DFc"), ("DELFWT", "mFo-DFc")):
        values = fmodel.map_coefficients()[kind]
        blank = torch.full((len(reflections),), complex(float("nan"), float("nan")), dtype=values.dtype)
        columns[label] = blank.to(values.device).index_copy(0, used.nonzero()[:, 0], values)
    indices, columns = mates_in_rows(reflections, columns)
    if "FREE" in columns:
        columns["FREE"] = (~columns["FREE"]).to(torch.int32)
    return indices, columns


def r_factors(fmodel: Any) -> dict[str, float | None]:
    """R-work and R-free of a model with scales."""
    r_work, r_free = fmodel.r_factors()
    return {"r_work": r_work, "r_free": r_free}


def _hierarchy(entry: Any, atoms: Any) -> Any:
    """The model's hierarchy with the parameters of some atoms."""
    manager = entry.model.manager.deep_copy()
    manager.set_xray_structure(atoms.to_cctbx())
    return manager.get_hierarchy()
