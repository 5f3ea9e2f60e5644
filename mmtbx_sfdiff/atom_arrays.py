"""Atoms as arrays: read from a ``gemmi.Structure``, and put into a crystal as ``cctbx.xray.structure`` does it.

Sites of full occupancy closer than 0.5 Å to their images are moved onto the symmetry element, anisotropic displacements are
averaged over it, and their weight is the multiplicity of the site.  An atom of another occupancy stays where it is: files
divide the occupancy by the multiplicity.

Reference: ``iotbx.pdb`` (xray_structure_simple), ``cctbx.xray.structure.add_scatterers``.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import gemmi
import numpy as np

from .crystal import Crystal
from .numerics.symmetric import PAIRS, full
from .rules import b_is_residual
from .symmetry.frame import frame_of
from .symmetry.sites import average_u_star, exact_site
from .tables.gaussians import gaussian, standard_label

EIGHT_PI_SQ = 8 * math.pi**2


@dataclasses.dataclass(frozen=True, eq=False)
class AtomArrays:
    """Atoms of an asymmetric unit; NumPy, float64.

    Attributes
    ----------
    scattering_types, labels : tuple of str
    sites_frac : numpy.ndarray
        (n, 3).
    u_iso : numpy.ndarray
        (n,) Å^2; -1 for anisotropic atoms, as in cctbx.
    u_star : numpy.ndarray
        (n, 6); -1 for isotropic atoms.
    anisotropic : numpy.ndarray
        (n,) bool.
    occupancies, site_weights : numpy.ndarray
        (n,).
    """

    scattering_types: tuple[str, ...]
    labels: tuple[str, ...]
    sites_frac: np.ndarray
    u_iso: np.ndarray
    u_star: np.ndarray
    anisotropic: np.ndarray
    occupancies: np.ndarray
    site_weights: np.ndarray


def placed(
    crystal: Crystal,
    scattering_types: Sequence[str],
    labels: Sequence[str],
    sites_frac: np.ndarray,
    b_iso: np.ndarray | None,
    u_cart: np.ndarray | None,
    occupancies: np.ndarray,
) -> AtomArrays:
    """:class:`AtomArrays` in the symmetry of a crystal; ``u_cart`` (n, 6) has NaN for isotropic atoms."""
    n = len(sites_frac)
    anisotropic = np.zeros(n, bool) if u_cart is None else ~np.isnan(u_cart).any(1)
    u_star = np.full((n, 6), -1.0)
    if u_cart is not None and anisotropic.any():
        u_star[anisotropic] = _as_u_star(crystal, u_cart[anisotropic])
    u_iso = np.full(n, -1.0)
    if b_iso is not None:
        u_iso[~anisotropic] = b_iso[~anisotropic] / EIGHT_PI_SQ
    sites, weights = sites_frac.copy(), np.ones(n)
    for special in crystal.special_sites(sites_frac):
        i = special.index
        if occupancies[i] != 1:
            continue
        sites[i] = exact_site(special, sites_frac[i])
        weights[i] = (crystal.order_z // special.order) / crystal.order_z
        if anisotropic[i]:
            u_star[i] = average_u_star(special, u_star[i])
    return AtomArrays(tuple(scattering_types), tuple(labels), sites, u_iso, u_star, anisotropic, occupancies, weights)


def fractional(crystal: Crystal, sites_cart: np.ndarray) -> np.ndarray:
    """Fractional coordinates, term by term as cctbx multiplies."""
    f = crystal.fractionalization.cpu().numpy()
    x, y, z = sites_cart.T
    return np.stack([f[i, 0] * x + f[i, 1] * y + f[i, 2] * z for i in range(3)], -1)


def _as_u_star(crystal: Crystal, u_cart: np.ndarray) -> np.ndarray:
    """U* = F U F^T in packed order, term by term as ``adptbx.u_cart_as_u_star``."""
    f = crystal.fractionalization.cpu().numpy()
    u = full(u_cart)
    half = [[f[i, 0] * u[:, 0, j] + f[i, 1] * u[:, 1, j] + f[i, 2] * u[:, 2, j] for j in range(3)] for i in range(3)]
    columns = [half[i][0] * f[j, 0] + half[i][1] * f[j, 1] + half[i][2] * f[j, 2] for i, j in PAIRS]
    return np.stack(columns, -1)


def types_of(elements: Sequence[str], charges: Sequence[int] | None, table: str, d_min: float) -> list[str]:
    """Scattering types of elements with charges; neutral, and said, where the table does not have the ion.

    Raises
    ------
    ValueError
        An element without a form factor, named with its atom.
    """
    known: dict[tuple[str, int], str] = {}
    neutral: list[str] = []
    types = []
    for i, element in enumerate(elements):
        if not isinstance(element, str):
            raise TypeError(f"The element of atom {i} must be a symbol or a scattering type, not {element!r}.")
        charge = int(charges[i]) if charges is not None else 0
        key = (element, charge)
        if key not in known:
            base = standard_label(element.strip().capitalize() if len(element.strip()) <= 2 else element)
            ion = standard_label(f"{base}{abs(charge)}{'+' if charge > 0 else '-'}") if base and charge else None
            known[key] = _available(base, ion, table, d_min, i, element)
            if charge and known[key] == base:
                neutral.append(f"{element}{abs(charge)}{'+' if charge > 0 else '-'}")
        types.append(known[key])
    if neutral:
        warnings.warn(
            f"The table {table} has no form factor for {', '.join(sorted(neutral))}: the neutral atom's is taken.",
            stacklevel=4,
        )
    return types


def _available(base: str | None, ion: str | None, table: str, d_min: float, number: int, element: str) -> str:
    for label in (ion, base):
        if label is not None:
            try:
                gaussian(label, table, d_min)
            except ValueError:
                if label == base:
                    raise
            else:
                return label
    raise ValueError(
        f"Atom {number} has the element {element!r}, which has no form factor: give it another element, or leave it out."
    )


def arrays_of_gemmi(structure: gemmi.Structure, crystal: Crystal) -> dict[str, Any]:
    """What a structure says of its atoms, all models, in its order; sites in the crystal's standard frame.

    Raises
    ------
    ValueError
        No atoms; an atom whose coordinates are no numbers, named.
    """
    cell = structure.cell
    frame, said = frame_of(_scale(cell), tuple(cell.parameters))
    for message in said + _unapplied(structure):
        warnings.warn(f"{structure.name}: {message}.", stacklevel=4)
    keys = ("elements", "charges", "labels", "sites", "b_iso", "u_cart", "occupancies")
    found: dict[str, list[Any]] = {key: [] for key in keys}
    for model in structure:
        for chain in model:
            for residue in chain:
                for atom in residue:
                    label = _label(chain.name, residue, atom)
                    u = [atom.aniso.u11, atom.aniso.u22, atom.aniso.u33, atom.aniso.u12, atom.aniso.u13, atom.aniso.u23]
                    values = (
                        "D" if atom.element.name == "D" else atom.element.name,
                        atom.charge,
                        label,
                        (atom.pos.x, atom.pos.y, atom.pos.z),
                        atom.b_iso,
                        u if atom.aniso.nonzero() else [math.nan] * 6,
                        atom.occ,
                    )
                    for key, value in zip(keys, values):
                        found[key].append(value)
    if not found["sites"]:
        raise ValueError(f"The structure {structure.name!r} contains no atoms.")
    arrays: dict[str, Any] = {key: found[key] for key in ("elements", "charges", "labels")}
    arrays["sites"] = np.array(found["sites"], dtype=np.float64)
    for key in ("b_iso", "u_cart", "occupancies"):
        arrays[key] = _as_printed(np.array(found[key], dtype=np.float32))
    sites = arrays.pop("sites")
    if frame is not None:
        sites = frame.to_standard(sites)
        turned = frame.turned(full(arrays["u_cart"]))
        arrays["u_cart"] = np.stack([turned[:, i, j] for i, j in PAIRS], -1)
    arrays["sites_frac"] = fractional(crystal, sites)
    return arrays


def methods_of_gemmi(structure: gemmi.Structure) -> list[str]:
    """Experimental methods that a structure's header names, upper case; where it names none, by what was scattered."""
    words = dict(structure.info).get("_exptl.method", "").upper().split(";")
    found = [word.strip() for word in words if word.strip()]
    if found:
        return found
    kinds = [d.scattering_type for c in structure.meta.crystals for d in c.diffractions if d.scattering_type]
    return [f"{kind.upper()} DIFFRACTION" for kind in kinds]


def _unapplied(structure: gemmi.Structure) -> list[str]:
    """What a structure says of itself that its atoms do not hold."""
    said = []
    copies = sum(not operator.given for operator in structure.ncs)
    if copies:
        said.append(f"{copies} NCS operators make further copies, which are not there: structure.expand_ncs(...) first")
    if b_is_residual("\n".join(line for line in structure.raw_remarks if line.startswith("REMARK   3"))):
        said.append(
            "the B factors are the residual of a TLS refinement, and the TLS part is not in them: read the file with "
            "FModel.from_files, which adds it"
        )
    negative = sum(atom.b_iso < 0 for model in structure for atom in _all_atoms(model))
    if negative:
        said.append(f"atoms with a negative B factor: {negative}")
    return said


def _all_atoms(model: gemmi.Model) -> Iterator[gemmi.Atom]:
    return (atom for chain in model for residue in chain for atom in residue)


def _scale(cell: gemmi.UnitCell) -> tuple[np.ndarray, np.ndarray] | None:
    """The transformation to fractional coordinates that the file gives, where it is not the cell's own."""
    if not cell.explicit_matrices:
        return None
    transform: Any = cell.frac if hasattr(cell, "frac") else getattr(cell, "fractionalization_matrix")  # noqa: B009  (gemmi 0.6)
    if not hasattr(transform, "mat"):
        return np.array(transform.tolist()), np.array(cell.fractionalize(gemmi.Position(0, 0, 0)).tolist())
    return np.array(transform.mat.tolist()), np.array(transform.vec.tolist())


def _as_printed(values: np.ndarray) -> np.ndarray:
    """float64 of what gemmi keeps in single precision: the shortest decimal number that means it, as the file has it."""
    unique, where = np.unique(values, return_inverse=True)
    six = np.array([float(f"{value:.6g}") for value in unique])
    # What was multiplied in single precision, as tensors of ANISOU records are, may be off by a digit more.
    close = np.abs(six - unique) <= np.spacing(np.abs(unique))
    exact = np.array([float(str(value)) for value in unique])
    return np.where(close, six, exact)[where].reshape(values.shape)


def _label(chain: str, residue: gemmi.Residue, atom: gemmi.Atom) -> str:
    """As iotbx labels scatterers: ``pdb=" CA  ALA A   1 "``."""
    name = atom.name if len(atom.name) > 3 else f"{' ' if len(atom.element.name) < 2 else ''}{atom.name}".ljust(4)
    altloc = atom.altloc if atom.altloc != "\0" else " "
    return f'pdb="{name}{altloc}{residue.name:>3s}{chain:>2s}{residue.seqid.num!s:>4s}{residue.seqid.icode}"'


def check_finite(name: str, values: np.ndarray, labels: Sequence[str] | None) -> None:
    """Refuse numbers that are not finite, naming the first atom."""
    bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        who = f" ({labels[first]})" if labels is not None else ""
        raise ValueError(f"{name} of atom {first}{who} is not a finite number: {values[first].tolist()}.")


def as_array(values: Any) -> np.ndarray:
    """float64 NumPy of a tensor or array-like, detached."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to(dtype=torch.float64, device="cpu").numpy()
    return np.asarray(values, dtype=np.float64)
