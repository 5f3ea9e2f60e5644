"""Which atoms repel one another, and at what distance: pairs of the asymmetric unit and with symmetry copies.

Radii and the roles of atoms in hydrogen bonds are those of the monomer library's energy types. Atoms connected by
three bonds or fewer, of one plane, or of different alternative conformations do not repel. A contact with a symmetry
copy is met from both of its ends, each time with a weight of 1/2.

Reference for the radii and their use: CCP4's ``ener_lib.cif``; Vagin et al. (2004), Acta Cryst. D60, 2184.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import gemmi
import numpy as np
import scipy.sparse
from scipy.spatial import cKDTree

from .topology import AtomTable, Rows, Topology

# Å, of atoms whose energy type the library does not have.
_RADII = {"H": 1.2, "D": 1.2, "C": 1.9, "N": 1.6, "O": 1.55, "F": 1.5, "S": 1.85, "P": 1.8}
_OTHER, _METAL = 1.8, 1.0
_HYDROGEN_BOND = 0.3  # Å that a donor and an acceptor come nearer than their radii
_TO_HYDROGEN = 0.1  # Å: the same for a donor's hydrogen, whose radius takes the most of it
_METAL_BOND = 0.3  # Å: a metal and its ligands, likewise
_MARGIN = 1.0  # Å beyond their distance at which pairs are kept in sight
_ON_ITSELF = 0.5  # Å: an atom on a special position meets itself
_DONOR, _ACCEPTOR, _BOTH, _HYDROGEN = "D", "A", "B", "H"


@dataclasses.dataclass(frozen=True)
class Nature:
    """What decides at which distance two atoms begin to repel.

    Attributes
    ----------
    radii : numpy.ndarray
        (n,) Å; those of atoms with their hydrogens where the model has none, of metals the ion's.
    donors, acceptors, hydrogens, metals : numpy.ndarray
        (n,) bool; ``hydrogens``: of a donor.
    """

    radii: np.ndarray
    donors: np.ndarray
    acceptors: np.ndarray
    hydrogens: np.ndarray
    metals: np.ndarray

    def distances(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """(n,) Å at which pairs begin to repel."""
        result: np.ndarray = self.radii[i] + self.radii[j]
        for a, b in ((i, j), (j, i)):
            bond = self.donors[a] & self.acceptors[b]
            to_hydrogen = self.hydrogens[a] & self.acceptors[b]
            metal = self.metals[a] & (self.donors[b] | self.acceptors[b])
            less = np.select([metal, to_hydrogen, bond], [_METAL_BOND, _TO_HYDROGEN, _HYDROGEN_BOND], 0.0)
            result = np.minimum(result, self.radii[i] + self.radii[j] - less)
        return result


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Atoms that may repel: i of the model and j of an image, x_j -> rotation x_j + shift.

    Attributes
    ----------
    i, j : numpy.ndarray
        (n,) int64.
    distances, weights : numpy.ndarray
        (n,) Å at which they begin to repel; 1, or 1/2 for images.
    rotations, shifts : numpy.ndarray
        (n, 3, 3) and (n, 3) Å, Cartesian.
    images : numpy.ndarray
        (n,) bool.
    """

    i: np.ndarray
    j: np.ndarray
    distances: np.ndarray
    weights: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    images: np.ndarray


class ContactFinder:
    """Pairs of atoms that may repel, for any sites of a structure.

    Parameters
    ----------
    structure : gemmi.Structure
        Its cell and space group.
    topology : Topology
    ener_lib : path
        The library's ``ener_lib.cif``.
    """

    def __init__(self, structure: gemmi.Structure, topology: Topology, ener_lib: Path) -> None:
        self.atoms = topology.atoms
        n = len(self.atoms)
        self.nature = _nature(self.atoms, topology.bonds, ener_lib)
        self.excluded = _excluded(n, topology)
        self.operations = symmetry_operations(structure)
        self._codes = np.unique(self.atoms.altlocs, return_inverse=True)[1]
        self._unnamed = self.atoms.altlocs == ""

    def find(self, sites_cart: np.ndarray) -> Pairs:
        """For sites (..., n, 3) Å; of several models the pairs of any of them."""
        models = np.asarray(sites_cart, dtype=float).reshape(-1, len(self.atoms), 3)
        keys: list[np.ndarray] = []
        for sites in models:
            keys.extend(self._keys(sites))
        # One row a pair: i, j, operation, and the shift in whole cells.
        table = np.concatenate(keys) if keys else np.zeros((0, 6), dtype=np.int64)
        if len(models) > 1:
            table = np.unique(table, axis=0)
        i, j, op = table[:, 0], table[:, 1], table[:, 2]
        images = (op > 0) | (table[:, 3:] != 0).any(1)
        rotations = np.stack([r for r, _ in self.operations.cartesian])[op]
        shifts = np.stack([t for _, t in self.operations.cartesian])[op] + table[:, 3:] @ self.operations.orth.T
        return Pairs(i, j, self.nature.distances(i, j), np.where(images, 0.5, 1.0), rotations, shifts, images)

    def _keys(self, sites: np.ndarray) -> list[np.ndarray]:
        reach = 2 * self.nature.radii.max() + _MARGIN
        tree = cKDTree(sites)
        found = []
        i, j = tree.query_pairs(reach, output_type="ndarray").astype(np.int64).reshape(-1, 2).T
        keep = (self.excluded[i, j].A1 == 0) if len(i) else np.zeros(0, dtype=bool)
        i, j = i[keep], j[keep]
        d = np.linalg.norm(sites[i] - sites[j], axis=1)
        i, j = (x[self._in_sight(i, j, d) & (self.atoms.models[i] == self.atoms.models[j])] for x in (i, j))
        found.append(np.column_stack([i, j, np.zeros((len(i), 4), dtype=np.int64)]))
        special = np.zeros(len(sites), dtype=bool)
        met = []
        for op, shift, rows, image in self.operations.images(sites, reach):
            pairs = tree.sparse_distance_matrix(cKDTree(image), reach, output_type="ndarray")
            if len(pairs):
                a, b = pairs["i"].astype(np.int64), rows[pairs["j"]]
                special[a[(a == b) & (pairs["v"] < _ON_ITSELF)]] = True
                met.append((op, shift, a, b, pairs["v"]))
        for op, shift, a, b, d in met:
            same_place = special[a] | special[b]
            # The copy of an atom on a special position is that atom: such pairs are in the asymmetric unit already.
            if same_place.any():
                there = self._own_images(sites, op, shift)
                drop = same_place & (there[a] | there[b])
            else:
                drop = np.zeros(len(a), dtype=bool)
            half = (self.atoms.occupancies[a] <= 0.5) & (
                self.atoms.occupancies[b] <= 0.5
            )  # alternatives, about an axis
            keep = ~drop & ~half & self._in_sight(a, b, d)
            n = int(keep.sum())
            found.append(np.column_stack([a[keep], b[keep], np.full(n, op), np.tile(shift, (n, 1))]))
        return found

    def _own_images(self, sites: np.ndarray, op: int, shift: np.ndarray) -> np.ndarray:
        r, t = self.operations.cartesian[op]
        image = sites @ r.T + t + self.operations.orth @ shift
        near: np.ndarray = np.linalg.norm(image - sites, axis=1) < _ON_ITSELF
        return near

    def _in_sight(self, i: np.ndarray, j: np.ndarray, d: np.ndarray) -> np.ndarray:
        conformers = (self._codes[i] == self._codes[j]) | self._unnamed[i] | self._unnamed[j]
        seen: np.ndarray = conformers & (d < self.nature.distances(i, j) + _MARGIN)
        return seen


class Operations:
    """Space-group operations of a structure, Cartesian, and the images that come near a model."""

    def __init__(
        self, orth: np.ndarray, frac: np.ndarray, rotations: list[np.ndarray], shifts: list[np.ndarray]
    ) -> None:
        self.orth, self.frac = orth, frac
        self.fractional = list(zip(rotations, shifts, strict=True))
        self.cartesian = [(orth @ r @ frac, orth @ t) for r, t in self.fractional]

    def images(self, sites: np.ndarray, reach: float):  # type: ignore[no-untyped-def]
        """Yield (operation, whole cells (3,), rows (m,), their images (m, 3) Å) of what may be within ``reach``."""
        if not np.isfinite(self.orth).all() or len(sites) == 0:
            return
        frac = sites @ self.frac.T
        # Half the width of a box in fractional coordinates that holds a sphere of this radius.
        pad = reach * np.linalg.norm(self.frac, axis=1)
        low, high = frac.min(0) - pad, frac.max(0) + pad
        for op, (rotation, shift) in enumerate(self.fractional):
            moved = frac @ rotation.T + shift
            first = np.ceil(low - moved.max(0)).astype(int)
            last = np.floor(high - moved.min(0)).astype(int)
            for cells in itertools.product(*(range(a, b + 1) for a, b in zip(first, last, strict=True))):
                if op == 0 and not any(cells):
                    continue
                image = moved + np.array(cells)
                rows = np.nonzero(((image > low) & (image < high)).all(1))[0]
                if len(rows):
                    yield op, np.array(cells, dtype=np.int64), rows, image[rows] @ self.orth.T

    def nearest_image(self, near: np.ndarray, site: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """(rotation, shift), Cartesian, of the symmetry copy of a site that is nearest to a place; None without symmetry."""
        best = None
        if np.isfinite(self.orth).all():
            place = self.frac @ near
            for op, (rotation, shift) in enumerate(self.fractional):
                there = rotation @ (self.frac @ site) + shift
                for cells in itertools.product(*(range(int(c) - 1, int(c) + 2) for c in np.round(place - there))):
                    if op == 0 and not any(cells):
                        continue
                    d = float(np.linalg.norm(self.orth @ (there + cells - place)))
                    if best is None or d < best[0] - 1e-6:
                        r, t = self.cartesian[op]
                        best = d, r, t + self.orth @ np.array(cells)
        return None if best is None else best[1:]


def symmetry_operations(structure: gemmi.Structure) -> Operations:
    """Those of its space group, the identity first; the identity alone, without images, where it has no crystal."""
    cell = structure.cell
    group = structure.find_spacegroup()
    if group is None or not cell.is_crystal():
        return Operations(np.full((3, 3), np.nan), np.eye(3), [np.eye(3)], [np.zeros(3)])
    orth, frac = (np.array(m.tolist()) for m in (cell.orth.mat, cell.frac.mat))
    ops = list(group.operations())
    identity = [i for i, op in enumerate(ops) if op.triplet() == "x,y,z"]
    ops = [ops[i] for i in identity] + [op for i, op in enumerate(ops) if i not in identity]
    return Operations(orth, frac, [np.array(op.rot) / op.DEN for op in ops], [np.array(op.tran) / op.DEN for op in ops])


def _excluded(n: int, topology: Topology) -> scipy.sparse.csr_matrix:
    """(n, n), not zero for atoms connected by three bonds or fewer, or in one plane."""
    inside = topology.bonds.extra == 0
    i, j = topology.bonds.rows[inside].T
    near = scipy.sparse.csr_matrix((np.ones(2 * len(i)), (np.r_[i, j], np.r_[j, i])), (n, n))
    two = near @ near
    planes = [np.array(list(itertools.product(set(p), repeat=2))) for p in topology.planes.rows.tolist()]
    pi, pj = np.concatenate(planes).T if planes else np.zeros((2, 0), dtype=int)
    of_planes = scipy.sparse.csr_matrix((np.ones(len(pi)), (pi, pj)), (n, n))
    ends = topology.angles.rows[:, [0, 2]]
    of_angles = scipy.sparse.csr_matrix(
        (np.ones(2 * len(ends)), (np.r_[ends[:, 0], ends[:, 1]], np.r_[ends[:, 1], ends[:, 0]])), (n, n)
    )
    return (near + two + two @ near + of_planes + of_angles).tocsr()


def _nature(atoms: AtomTable, bonds: Rows, ener_lib: Path) -> Nature:
    types = _energy_types(ener_lib)
    elements = {name: gemmi.Element(name) for name in set(atoms.elements)}
    is_hydrogen = np.array([elements[e].is_hydrogen for e in atoms.elements], dtype=bool)
    metals = np.array([elements[e].is_metal for e in atoms.elements], dtype=bool)
    with_hydrogens = np.zeros(len(atoms), dtype=bool)
    for i, j in bonds.rows.tolist():
        with_hydrogens[i] |= is_hydrogen[j]
        with_hydrogens[j] |= is_hydrogen[i]
    bare = ~with_hydrogens & ~is_hydrogen
    radii = np.zeros(len(atoms))
    roles = []
    known: dict[tuple[str, str, bool, bool], tuple[float, str]] = {}
    for row, key in enumerate(zip(atoms.energy_types, atoms.elements, bare.tolist(), metals.tolist(), strict=True)):
        if key not in known:
            known[key] = _radius_and_role(*key, types)
        radii[row], role = known[key]
        roles.append(role)
    role_of = np.array(roles)
    return Nature(
        radii=radii,
        donors=np.isin(role_of, (_DONOR, _BOTH)) & ~is_hydrogen,
        acceptors=np.isin(role_of, (_ACCEPTOR, _BOTH)) & ~is_hydrogen,
        hydrogens=is_hydrogen & (role_of == _HYDROGEN),
        metals=metals,
    )


def _radius_and_role(kind: str, element: str, bare: bool, metal: bool, types: dict) -> tuple[float, str]:  # type: ignore[type-arg]
    entry = types.get(kind, {})
    names = ("ion",) if metal else ("vdwh", "vdw") if bare else ("vdw",)
    radius = next((entry[name] for name in names if entry.get(name, 0.0) > 0.3), None)
    if radius is None:  # nan fails too
        radius = _RADII.get(element.upper(), _METAL if metal else _OTHER)
    return radius, entry.get("role") or (_BOTH if element.upper() in ("N", "O", "F") else "N")


def _energy_types(path: Path) -> dict[str, dict]:  # type: ignore[type-arg]
    """{energy type: its radii and its role}, read from the file: gemmi 0.6 has no table of them."""
    result = {}
    for block in gemmi.cif.read(str(path)):
        table = block.find("_lib_atom.", ["type", "hb_type", "vdw_radius", "vdwh_radius", "ion_radius"])
        for row in table:
            kind, role = gemmi.cif.as_string(row[0]), gemmi.cif.as_string(row[1])
            radii = [gemmi.cif.as_number(row[i]) for i in (2, 3, 4)]
            result[kind] = dict(zip(("vdw", "vdwh", "ion"), radii, strict=True)) | {"role": role}
    return result
