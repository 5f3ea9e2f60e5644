"""A placed model as the force field sees it (all atoms) and as the data see it (those of the model, without
hydrogens).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ...atom_arrays import EIGHT_PI_SQ
from ...atoms import Atoms
from ...fmodel import FModel
from ...numerics.superposition import superposed
from ...reflections import Reflections
from ..generator.prepared_model import PreparedModel
from .b_factors import ResidueB, b_from_plddt, is_main_chain, wilson_b

B_SOURCES = ("model", "plddt", "wilson")


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What a refinement starts from.

    Attributes
    ----------
    sites_cart : torch.Tensor
        (n_ff, 3) Å, float64, all atoms of the force field, where the model is placed in the crystal.
    rows : torch.Tensor
        (n,) int64, the force field's atom of each atom that the data see.
    chain_index : torch.Tensor
        (n_ff,) int64
    residue_index : torch.Tensor
        (n_ff,) int64
    main_chain : torch.Tensor
        (n,) bool
    b_start : torch.Tensor
        (n,) Å²
    fmodel : FModel
        Of the n atoms, isotropic.
    selection : torch.Tensor
        (n,) int64, the place of each of the n atoms in the model file.
    """

    sites_cart: torch.Tensor
    rows: torch.Tensor
    chain_index: torch.Tensor
    residue_index: torch.Tensor
    main_chain: torch.Tensor
    b_start: torch.Tensor
    fmodel: FModel
    selection: torch.Tensor

    def residue_b(self, b_start: torch.Tensor | None = None) -> ResidueB:
        """B factors of main and side chains."""
        return ResidueB(
            self.b_start if b_start is None else b_start,
            self.residue_index[self.rows],
            self.main_chain,
            self.chain_index[self.rows],
        )

    def rmsd(
        self,
        sites_cart: torch.Tensor,
        reference: torch.Tensor,
        main_chain: bool = True,
        superpose: bool = False,
    ) -> float:
        """Distance (Å, root mean square) of (n, 3) sites to others, of the main chain or of all.

        With ``superpose`` after a superposition of the same atoms: in a polar space group nothing else makes
        sense.
        """
        rows = self.main_chain if main_chain else torch.ones_like(self.main_chain)
        sites, reference = sites_cart.detach().to(torch.float64)[rows], reference.to(torch.float64)[rows]
        shift = (superposed(sites, reference) if superpose else sites) - reference
        return float(shift.square().sum(-1).mean().sqrt())


def stripped(
    xray_structure: Any,
    selection: torch.Tensor,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    isotropic: bool = True,
) -> Atoms:
    """Atoms of a model that are kept, fully occupied, by default isotropic.

    Parameters
    ----------
    xray_structure : cctbx.xray.structure
    selection : torch.Tensor
        (n,) int64
    isotropic : bool
        False keeps displacement parameters and occupancies as they are.
    """
    structure = xray_structure.deep_copy_scatterers()
    if isotropic:
        structure.convert_to_isotropic()
    atoms: Atoms = Atoms.from_cctbx(structure, dtype=dtype, device=device).select(selection)
    if isotropic:
        atoms = atoms.replace(occupancies=torch.ones_like(atoms.occupancies))
    return atoms


def make_problem(
    prepared: PreparedModel,
    entry: Any,
    b_source: str = "model",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    accuracy: float = 1e-3,
    method: str = "auto",
    mask: dict[str, Any] | None = None,
) -> Problem:
    """The problem of a prepared model and the entry (model and data) that it was prepared from.

    Parameters
    ----------
    prepared : PreparedModel
    entry : mmtbx_sfdiff.files.Entry
    b_source : {"model", "plddt", "wilson"}
        Starting B factors: the model's, from the pLDDT that a predicted model has in their place, or one
        overall B.
    dtype, device, accuracy, method, mask
        Of the FModel that computes every step.

    Returns
    -------
    Problem

    Raises
    ------
    ValueError
        An unknown source of B factors; a prepared model of other atoms than the entry's.
    """
    if b_source not in B_SOURCES:
        raise ValueError(f"b_source must be one of {', '.join(B_SOURCES)}, not {b_source!r}.")
    structure = entry.model.xray_structure
    # In the model's order, so that the refined atoms can be written back.
    selection, order = torch.as_tensor(prepared.model_index, dtype=torch.int64).sort()
    if len(selection) and int(selection[-1]) >= structure.scatterers().size():
        raise ValueError(
            f"The prepared model is of {int(selection[-1]) + 1} or more atoms, but {entry.model.path} "
            f"has {structure.scatterers().size()}: prepare this model again."
        )
    names = [atom.name for atom in entry.model.manager.get_hierarchy().atoms()]
    atoms = stripped(structure, selection, dtype, device)
    reflections = Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags, dtype=dtype, device=device)
    b = (atoms.u_iso * EIGHT_PI_SQ).to(torch.float64)
    overall = wilson_b(atoms, reflections)
    if b_source == "plddt":
        b = b_from_plddt(b)
    elif b_source == "wilson":
        b = torch.full_like(b, overall)
    if b_source != "model":
        b = (b * overall / b.mean()).clamp(2.0, 150.0)
    fmodel = FModel(atoms, reflections, method=method, accuracy=accuracy, mask=mask, source=entry)

    def tensor(values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.as_tensor(values, dtype=dtype, device=device)

    return Problem(
        sites_cart=tensor(prepared.sites_cart, torch.float64),
        rows=tensor(prepared.heavy_index)[order.to(device)],
        chain_index=tensor(prepared.chain_index),
        residue_index=tensor(prepared.residue_index),
        main_chain=is_main_chain([names[i] for i in selection.tolist()]).to(device),
        b_start=b,
        fmodel=fmodel,
        selection=selection,
    )


def residue_numbers(atoms: Sequence[Any]) -> list[int]:
    """Number of the residue of each atom of a gemmi.Structure (``all()`` of its model), in their order."""
    of = [(cra.chain.name, str(cra.residue.seqid)) for cra in atoms]
    numbers = {name: k for k, name in enumerate(dict.fromkeys(of))}
    return [numbers[name] for name in of]


def problem_of_structure(structure: Any, fmodel: FModel) -> Problem:
    """The problem of a model without a force field: all atoms are those that the data see.

    Parameters
    ----------
    structure : gemmi.Structure
        Where it is placed in the crystal.
    fmodel : FModel
        Of the same atoms in the same order, isotropic.

    Raises
    ------
    ValueError
        Another number of atoms.
    """
    atoms = list(structure[0].all())
    n = fmodel.atoms.n_atoms
    if len(atoms) != n:
        raise ValueError(f"The structure has {len(atoms)} atoms, the FModel {n}: take both from the same file.")
    chains = {name: k for k, name in enumerate(dict.fromkeys(cra.chain.name for cra in atoms))}
    sites = fmodel.atoms.sites_cart.detach()
    device = sites.device
    return Problem(
        sites_cart=sites.to(torch.float64),
        rows=torch.arange(n, device=device),
        chain_index=torch.tensor([chains[cra.chain.name] for cra in atoms], device=device),
        residue_index=torch.tensor(residue_numbers(atoms), device=device),
        main_chain=is_main_chain([cra.atom.name for cra in atoms]).to(device),
        b_start=fmodel.atoms.u_iso.detach().to(torch.float64) * EIGHT_PI_SQ,
        fmodel=fmodel,
        selection=torch.arange(n, device=device),
    )


def with_reflections(problem: Problem, reflections: Reflections) -> Problem:
    """The problem with other reflections of the same crystal."""
    return dataclasses.replace(problem, fmodel=problem.fmodel.with_(reflections=reflections))
