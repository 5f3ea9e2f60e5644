"""The model of ``mmtbx_sfdiff.refine``: which of its parameters are refined, its hydrogens, its waters."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import gemmi
import numpy as np
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..files.gemmi_model import gemmi_model
from ..files.refined_model import adopt
from ..geometry import find_library
from ..geometry.placing import HydrogenPlacer, with_hydrogens
from ..refinement.groups import AtomLabels
from ..refinement.parameters import ADP_MODELS, OCCUPANCIES, RIGID_BODY, STRATEGIES, Parameters, choose
from ..refinement.waters import WaterRules, update_waters
from .common import choices

HYDROGENS = ("keep", "add", "none")
# Parameters that a state of an interrupted refinement has to share.
DECISIVE = (
    "strategy",
    "adp_model",
    "occupancies",
    "rigid_body",
    "hydrogens",
    "waters",
    "scattering_table",
    "labels",
    "free_flag_labels",
    "read_free_flags",
    "test_flag_value",
    "d_min",
    "d_max",
    "method",
    "accuracy",
    "mask",
    "grid_step",
    "dtype",
    "shake",
    "random_seed",
    "force_field_weight",
    "restraints",
    "geometry_weight",
    "bond_rms",
    "adp_weight",
    "wavelength",
)
_RULES = WaterRules()
MODEL_PHIL = f"""
  strategy = {choices(STRATEGIES, "auto")}
    .type = choice
    .short_caption = Strategy
    .help = "What to refine where nothing else is said. auto: by the resolution and the ratio of reflections to atoms. as_read: a site \
            and the displacement parameters of each atom as it has them, no occupancies."
  adp_model = {choices(ADP_MODELS, "auto")}
    .type = choice
    .short_caption = Displacement parameters
    .help = "individual: of each atom. grouped: two for each residue, main and side chain. tls: TLS of each chain and a residual \
            for each atom. anisotropic: a tensor for each atom but waters."
  occupancies = {choices(OCCUPANCIES, "auto")}
    .type = choice
    .short_caption = Occupancies
    .help = "auto: of alternatives, which sum to one, and of ligands, waters and atoms whose occupancy is not 1. all: of every ligand \
            and water, too."
  rigid_body = {choices(RIGID_BODY, "auto")}
    .type = choice
    .short_caption = Rigid bodies
    .help = "Each chain as one body. first: in the first macro-cycle. only: nothing else moves. auto: only, with fewer work \
            reflections than atoms."
  hydrogens = {choices(HYDROGENS, "keep")}
    .type = choice
    .short_caption = Hydrogens
    .help = "add: place all that the monomer library knows, anew in each macro-cycle; they ride, scatter and repel. none: take \
            them off."
  waters = False
    .type = bool
    .short_caption = Add and remove waters
    .help = "After the refinement, twice, each time followed by some macro-cycles: peaks of mFo-DFc of {_RULES.peak:g} standard deviations \
            and more within {_RULES.nearest:g} to {_RULES.farthest:g} Å of N or O are added; waters without density are removed. \
            Data to {_RULES.d_min:g} Å or better."
"""


def model_with_hydrogens(params: Any, path: str | Path, folder: str | Path) -> tuple[Path, list[str]]:
    """The model file to refine, and what there is to say: a file of its own in a folder where hydrogens are added or taken off.

    Raises
    ------
    libtbx.utils.Sorry
    """
    path = Path(path)
    if params.hydrogens == "keep":
        return path, []
    data = path.read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode(errors="replace")
    is_cif = "_atom_site." in text
    try:
        structure = (
            gemmi.make_structure_from_block(gemmi.cif.read_string(text)[0]) if is_cif else gemmi.read_pdb_string(text)
        )
        if params.hydrogens == "add":
            library = find_library(params.library)
            ligands = [file for file in params.ligands or [] if file]
            structure, unknown = with_hydrogens(structure, library, ligands)
            n = sum(cra.atom.is_hydrogen() for model in structure for cra in model.all())
            words = [f"{n:,} hydrogens placed by the monomer library"]
            if unknown:
                words.append(f"{', '.join(unknown)} got no hydrogens: no monomer library knows them")
        else:
            n = sum(cra.atom.is_hydrogen() for model in structure for cra in model.all())
            structure.remove_hydrogens()
            words = [f"{n:,} hydrogens were taken off"]
    except (RuntimeError, ValueError) as error:
        raise Sorry(f"{path}: hydrogens cannot be placed ({' '.join(str(error).split())}).") from None
    return _write(structure, path, text if is_cif else None, folder), words


def _write(structure: gemmi.Structure, like: Path, cif: str | None, folder: str | Path) -> Path:
    stem = like.name.removesuffix(".gz")
    made = Path(folder) / (stem if stem != like.name or Path(folder) != like.parent else "new_" + stem)
    if cif is None:
        made.write_text(structure.make_pdb_string())
    else:
        document = gemmi.cif.read_string(cif)
        structure.setup_entities()
        structure.update_mmcif_block(document[0])
        made.write_text(document.as_string())
    return made


def placer(params: Any, entry: Any) -> Callable[[np.ndarray], np.ndarray] | None:
    """What puts hydrogens in place as each macro-cycle begins; None where they were not placed."""
    if params.hydrogens != "add":
        return None
    manager = entry.model.manager
    structure, rows, _ = gemmi_model(entry.model.path, manager.get_hierarchy(), manager.crystal_symmetry())
    ligands = [file for file in params.ligands or [] if file]
    return HydrogenPlacer(structure, find_library(params.library), ligands, rows)


def parameters(params: Any, entry: Any, atoms: Any, reflections: Any) -> Parameters:
    """What is refined."""
    labels = AtomLabels.from_hierarchy(entry.model.manager.get_hierarchy())
    riding = atoms.hydrogens.cpu().numpy()
    chosen = {name: getattr(params, name) or "none" for name in ("strategy", "adp_model", "occupancies", "rigid_body")}
    if params.restraints == "force_field":
        chosen["rigid_body"] = "none" if chosen["rigid_body"] == "auto" else chosen["rigid_body"]
    return choose(labels, atoms, int(reflections.work.sum()), reflections.d_min, riding & ~riding.all(), **chosen)


def shaken(atoms: Atoms, rms: float, seed: int | None) -> torch.Tensor:
    """Sites shifted at random: normally distributed, of that root mean square length (Å); same for the same seed."""
    generator = torch.Generator().manual_seed(int(seed or 0))
    shifts = torch.randn(atoms.sites_cart.shape, generator=generator, dtype=torch.float64)
    shifts *= rms / shifts.square().sum(-1).mean().sqrt()
    return atoms.sites_cart + shifts.to(atoms.sites_cart)


@dataclasses.dataclass(frozen=True)
class Watered:
    """A model with other waters.

    Attributes
    ----------
    path : pathlib.Path
        Its file.
    added, removed : int
    """

    path: Path
    added: int
    removed: int


def with_waters(fmodel: Any, folder: str | Path, number: int) -> Watered:
    """Add and remove waters, in a file of a folder.

    Raises
    ------
    ValueError
        See :func:`mmtbx_sfdiff.refinement.waters.update_waters`; coordinates in a frame of their own.
    """
    source = fmodel.source
    if source.model.frame is not None:
        raise ValueError("Waters are not placed in coordinates of a frame of their own (SCALE records): waters=False.")
    manager = source.model.manager.deep_copy()
    manager.set_xray_structure(fmodel.atoms.to_cctbx())
    hierarchy = manager.get_hierarchy()
    structure, rows, _ = gemmi_model(source.model.path, hierarchy, manager.crystal_symmetry())
    adopt(structure, rows, hierarchy.atoms())
    made, added, removed = update_waters(structure, fmodel)
    there = Path(folder) / f"waters_{number}"
    there.mkdir()
    is_cif = source.model.path.name.removesuffix(".gz").endswith(".cif")
    path = there / source.model.path.name.removesuffix(".gz")
    path.write_text(made.make_mmcif_document().as_string() if is_cif else made.make_pdb_string())
    return Watered(path, added, removed)


def same_atoms(before: Any, after: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the atoms that two entries share, by their labels."""

    def labels(entry: Any) -> list[str]:
        return [atom.id_str() for atom in entry.model.manager.get_hierarchy().atoms()]

    there = {label: row for row, label in enumerate(labels(before))}
    pairs = [(there[label], row) for row, label in enumerate(labels(after)) if label in there]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
