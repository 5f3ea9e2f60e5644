"""Which parameters of a model are refined, and which atoms share them; chosen by the data where nothing is asked for.

``strategy=auto`` counts n_work, the work reflections, and n, the atoms that do not ride:

======================= ===============================================================================================
displacement parameters anisotropic: data to 1.3 Å and n_work >= 1.8 times the 9 variables of each atom; two for each
                        residue: n_work < 3 n, or data to no better than 3.6 Å; else one for each atom
sites                   each atom; one rigid body for each chain where n_work < n
occupancies             alternatives, whose sum is one; ligands, waters and atoms whose occupancy is not 1 at the start
======================= ===============================================================================================

Atoms that come with tensors keep them (:class:`~mmtbx_sfdiff.refinement.Settings`, ``anisotropic``).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import numpy as np

from ..numerics.symmetric import PAIRS
from .groups import AtomLabels

ADP_MODELS = ("auto", "individual", "grouped", "tls", "anisotropic")
OCCUPANCIES = ("auto", "none", "all")
RIGID_BODY = ("auto", "none", "first", "only")
STRATEGIES = ("auto", "as_read")

_ATOMIC_RESOLUTION = 1.3
_PER_VARIABLE = 1.8
_GROUPED_BELOW, _GROUPED_RESOLUTION = 3.0, 3.6
_RIGID_BELOW = 1.0


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What is refined beside, or in the place of, a site and a displacement parameter for each atom.

    Attributes
    ----------
    bodies : numpy.ndarray, optional
        (n_atoms,) rigid body of each atom, -1 for none.
    first_bodies : numpy.ndarray, optional
        The same, of the first macro-cycle alone.
    b_groups : numpy.ndarray, optional
        (n_atoms,) group of atoms with one isotropic displacement parameter.
    tls : numpy.ndarray, optional
        (n_atoms,) TLS group of each atom, -1 for none.
    anisotropic : numpy.ndarray, optional
        (n_atoms,) bool, atoms that get a tensor.
    alternatives : tuple of lists of numpy.ndarray
        Rows of alternatives whose occupancies sum to one.
    alone : tuple of numpy.ndarray
        Rows of groups that have an occupancy of their own.
    words : str
        The choice, in a line.
    """

    bodies: np.ndarray | None = None
    first_bodies: np.ndarray | None = None
    b_groups: np.ndarray | None = None
    tls: np.ndarray | None = None
    anisotropic: np.ndarray | None = None
    alternatives: tuple[list[np.ndarray], ...] = ()
    alone: tuple[np.ndarray, ...] = ()
    words: str = ""

    def of_cycle(self, number: int) -> Parameters:
        """Those of a macro-cycle, numbered from 1."""
        if number == 1 and self.first_bodies is not None:
            return dataclasses.replace(self, bodies=self.first_bodies)
        return self

    def prepared(self, atoms: Any) -> Any:
        """The atoms with tensors where these parameters need them."""
        wanted = np.zeros(atoms.n_atoms, dtype=bool)
        if self.tls is not None:
            wanted |= self.tls >= 0
        if self.anisotropic is not None:
            wanted |= self.anisotropic
        rows = torch.from_numpy(wanted).to(atoms.device) & ~atoms.use_u_aniso
        return with_tensors(atoms, rows) if bool(rows.any()) else atoms


def choose(
    labels: AtomLabels,
    atoms: Any,
    n_work: int,
    d_min: float,
    riding: np.ndarray,
    strategy: str = "auto",
    adp_model: str = "auto",
    occupancies: str = "auto",
    rigid_body: str = "auto",
) -> Parameters:
    """What to refine.

    Parameters
    ----------
    labels : AtomLabels
    atoms : Atoms
    n_work : int
        Work reflections.
    d_min : float
        Å
    riding : numpy.ndarray
        (n_atoms,) bool, atoms that ride on others.
    strategy : {"auto", "as_read"}
        ``as_read``: what is "auto" in the others is left as each atom has it, and occupancies are not refined.
    adp_model : {"auto", "individual", "grouped", "tls", "anisotropic"}
    occupancies : {"auto", "none", "all"}
        ``all``: of every ligand and water, too.
    rigid_body : {"auto", "none", "first", "only"}
    """
    for value, allowed, name in (
        (strategy, STRATEGIES, "strategy"),
        (adp_model, ADP_MODELS, "adp_model"),
        (occupancies, OCCUPANCIES, "occupancies"),
        (rigid_body, RIGID_BODY, "rigid_body"),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}.")
    n = int((~riding).sum())
    if strategy == "as_read":
        adp_model = "individual" if adp_model == "auto" else adp_model
        occupancies = "none" if occupancies == "auto" else occupancies
        rigid_body = "none" if rigid_body == "auto" else rigid_body
    if adp_model == "auto":
        atomic = d_min <= _ATOMIC_RESOLUTION and n_work >= _PER_VARIABLE * 9 * n
        coarse = n_work < _GROUPED_BELOW * n or d_min >= _GROUPED_RESOLUTION
        adp_model = "anisotropic" if atomic else "grouped" if coarse else "individual"
    if rigid_body == "auto":
        rigid_body = "only" if n_work < _RIGID_BELOW * n else "none"
    chosen: dict[str, Any] = {}
    words = []
    if rigid_body != "none":
        chosen["bodies" if rigid_body == "only" else "first_bodies"] = bodies = labels.bodies()
        count = int(bodies.max()) + 1
        words.append(f"{count} rigid {'body' if count == 1 else 'bodies'}" + " at first" * (rigid_body == "first"))
    if rigid_body != "only":
        words.append("a site for each atom")
    words.append(_displacements(adp_model, labels, riding, chosen))
    if occupancies != "none":
        chosen |= _occupancies(labels, atoms, occupancies == "all")
        sets, alone = len(chosen["alternatives"]), len(chosen["alone"])
        if sets or alone:
            words.append(f"occupancies of {sets} sets of alternatives and {alone} groups")
    text = f"Refined: {', '.join(words)} ({n_work / max(1, n):.1f} work reflections for each atom)"
    return Parameters(**chosen, words=text)


def _displacements(adp_model: str, labels: AtomLabels, riding: np.ndarray, chosen: dict[str, Any]) -> str:
    if adp_model == "grouped":
        groups = labels.main_and_side_chains()
        chosen["b_groups"] = groups
        return f"{len(set(groups[~riding].tolist()))} displacement parameters of residues (main and side chains)"
    if adp_model == "tls":
        groups = np.where(riding, -1, labels.polymer_chains())
        chosen["tls"] = groups if (groups >= 0).any() else None
        return f"TLS of {len(set(groups.tolist()) - {-1})} chains and a residual displacement for each atom"
    if adp_model == "anisotropic":
        chosen["anisotropic"] = ~riding & ~labels.waters
        return "a displacement tensor for each atom but waters"
    return "a displacement parameter for each atom"


def _occupancies(labels: AtomLabels, atoms: Any, all_of_them: bool) -> dict[str, Any]:
    occupancies = atoms.occupancies.detach().cpu().numpy()
    # A shared special position has its multiplicity in its occupancy, and zero means left out.
    among = (occupancies < 0.999) & (occupancies > 0)
    weights = atoms.site_weights.cpu().numpy()
    ordinary = weights >= 1
    if all_of_them:
        among |= ~labels.polymer & (occupancies > 0)
    sets = [parts for parts in labels.alternatives() if all(occupancies[p].max() > 0 for p in parts)]
    return {"alternatives": tuple(sets), "alone": tuple(labels.alone(among & ordinary))}


def with_tensors(atoms: Any, rows: torch.Tensor) -> Any:
    """The atoms with the isotropic displacements of some (n_atoms,) bool as tensors."""
    f = atoms.crystal.fractionalization.to(atoms.device)
    metric = f @ f.T
    unit = torch.stack([metric[i, j] for i, j in PAIRS])
    tensors = (atoms.u_iso.to(torch.float64)[:, None] * unit).to(atoms.dtype)
    structure = atoms._structure
    if structure is not None:
        structure = structure.deep_copy_scatterers()
        scatterers, cell = structure.scatterers(), structure.unit_cell()
        for row in rows.nonzero()[:, 0].tolist():
            scatterers[row].convert_to_anisotropic(cell)
    return dataclasses.replace(
        atoms,
        u_star=torch.where(rows[:, None], tensors, atoms.u_star),
        use_u_iso=atoms.use_u_iso & ~rows,
        use_u_aniso=atoms.use_u_aniso | rows,
        _structure=structure,
    )
