"""What holds the model in ``mmtbx_sfdiff.refine``: a monomer library, mmtbx's own restraints, a force field, or nothing."""

from __future__ import annotations

import math
from typing import Any

import torch

import numpy as np
from libtbx import Auto
from libtbx.utils import Sorry

from ..files.gemmi_model import gemmi_model
from ..geometry import DisplacementRestraints, GeometryRestraints, find_library, parents_of_hydrogens
from ..refinement.restraint import LibraryRestraint, adp_weight, bond_target, first_weight
from .common import LIBRARY, choices

RESTRAINTS = ("library", "cctbx", "force_field", "none")
NO_RESTRAINTS = (
    "There are no geometry restraints: bonds, angles and contacts are held by the data alone. At less than "
    "atomic resolution, regularise the model afterwards."
)
PHIL = f"""
  restraints = {choices(RESTRAINTS, "library")}
    .type = choice
    .short_caption = Restraints
    .help = "library: a monomer library, by gemmi's topology. cctbx: mmtbx's own, as in phenix.refine. force_field: ff14SB with implicit \
            solvent, of the protein. none: the data alone."
  {LIBRARY}  ligands = None
    .type = path
    .multiple = True
    .short_caption = Ligand restraints
    .help = "CIF file of a monomer that the library does not know; may be given several times."
  geometry_weight = Auto
    .type = float
    .short_caption = Weight of the geometry
    .help = "Auto: it follows bond_rms."
  bond_rms = Auto
    .type = float
    .short_caption = Deviation of bonds
    .help = "Root mean square deviation of bonds (Å) that the weight is led to; Auto: by the resolution, 0.008 to 0.0045."
  adp_weight = Auto
    .type = float
    .short_caption = Weight of similar displacement parameters
    .help = "Of bonded atoms; 0: none. Auto: by the resolution."
"""


class Held:
    """The restraint of a run, and what there is to say about it.

    Attributes
    ----------
    restraint : LibraryRestraint, ForceFieldRestraint or None
    geometry : GeometryRestraints, CctbxRestraints or None
        What bonds and angles are measured by; also where they are not restrained, as far as a library is found.
    parents : torch.Tensor
        Rows that hydrogens ride on.
    messages : list of str
    """

    def __init__(self) -> None:
        self.restraint: Any = None
        self.geometry: Any = None
        self.parents: torch.Tensor | None = None
        self.messages: list[str] = []

    def rms(self, atoms: Any) -> dict[str, float | None]:
        """Deviations of bonds (Å) and angles (degrees); None where no library says what they should be."""
        if self.geometry is None:
            return {"bond": None, "angle": None}
        found = self.geometry.rms(atoms.sites_cart.detach().to(torch.float64))
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


def hold(params: Any, entry: Any, reflections: Any, device: str) -> Held:
    """The restraints that were asked for; all but a force field's.

    Raises
    ------
    libtbx.utils.Sorry
        In one sentence.
    """
    held = Held()
    hierarchy = entry.model.manager.get_hierarchy()
    try:
        held.geometry = _geometry(params, entry, held, device)
    except ValueError as error:
        if params.restraints in ("library", "cctbx"):
            raise Sorry(f"{error} Or say restraints=none.") from None
    if params.restraints in ("library", "cctbx"):
        held.restraint = _library(params, held, reflections)
    elif params.restraints != "force_field":  # PHIL makes None of the word "none"
        held.messages.append(NO_RESTRAINTS)
    held.parents = _parents(hierarchy, held.geometry).to(device)
    return held


def _geometry(params: Any, entry: Any, held: Held, device: str) -> Any:
    manager = entry.model.manager
    ligands = [path for path in params.ligands or [] if path]
    if params.restraints == "cctbx":
        # Imports most of mmtbx: only where it is asked for.
        from ..cctbx_backend.restraints import interpret

        held.messages.append("restrained by mmtbx's own restraints")
        return interpret(manager, library=params.library, ligands=ligands)
    library = find_library(params.library)
    structure, rows, from_file = gemmi_model(entry.model.path, manager.get_hierarchy(), manager.crystal_symmetry())
    geometry = GeometryRestraints.from_gemmi(structure, library, ligands, rows=rows)
    if params.restraints == "library":
        held.messages += geometry.messages
        held.messages.append(f"restrained by the monomer library {library.path} ({library.source})")
        if not from_file:
            held.messages.append("links of the model file were not read: its atoms are not those of the model")
    return geometry.to(device)


def _library(params: Any, held: Held, reflections: Any) -> LibraryRestraint:
    d_min = reflections.d_min
    geometry = held.geometry
    similar = adp_weight(d_min) if params.adp_weight is Auto else params.adp_weight
    displacements = None
    if similar > 0:
        if hasattr(geometry, "neighbors"):
            displacements = DisplacementRestraints(*geometry.neighbors())
        else:
            displacements = DisplacementRestraints.from_geometry(geometry)
        displacements = displacements.to(reflections.f_obs.device)
    return LibraryRestraint(
        geometry,
        displacements,
        None if params.geometry_weight is Auto else params.geometry_weight,
        similar,
        bond_target(d_min) if params.bond_rms is Auto else params.bond_rms,
        first_weight(d_min),
    )


def _parents(hierarchy: Any, geometry: Any) -> torch.Tensor:
    atoms = hierarchy.atoms()
    labels = [atom.fetch_labels() for atom in atoms]
    bonds = geometry.bond_rows.cpu().numpy() if isinstance(geometry, GeometryRestraints) else None
    parents = parents_of_hydrogens(
        atoms.extract_xyz().as_double().as_numpy_array().reshape(-1, 3),
        np.array([atom.element_is_hydrogen() for atom in atoms]),
        [(x.model_id, x.chain_id, x.segid, x.resid(), x.resname.strip()) for x in labels],
        [x.altloc for x in labels],
        [x.model_id for x in labels],
        bonds,
    )
    return torch.from_numpy(parents)


def biased_flags(r_work: float, r_free: float | None, least_gap: float = 0.015) -> list[str]:
    """What there is to say about flags that the start was probably refined against."""
    if r_free is None or r_free - r_work >= least_gap:
        return []
    return [
        f"R-free - R-work of the start is {r_free - r_work:.3f}: these flags are probably not those of its refinement, and R-free "
        "is biased"
    ]
