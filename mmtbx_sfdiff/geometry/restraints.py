"""GeometryRestraints: a model's restraints as one differentiable energy.

    E(x) = sum over restraints of ((value(x) - ideal) / esd)^2

over bonds, angles, torsions, chiral volumes, planes (each atom's distance from the best plane) and atoms nearer than
they should be. Half of E is -ln of a prior, in nats, up to a constant.

The topology is gemmi's (:mod:`.topology`), the arithmetic torch's (:mod:`.terms`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

import gemmi
import numpy as np

from ..kernels import checks
from ..numerics.precision import widened
from . import terms
from .contacts import ContactFinder
from .library import MonomerLibrary, find_library
from .topology import TORSIONS, Topology, topology

NAMES = ("bond", "angle", "torsion", "chirality", "plane", "repulsion")
REPULSION_ESD = 0.2  # Å
_FAR_OFF = 6.0  # times what nine of ten bonds are within
_CONTACTS = "repulsion"  # these buffers follow the sites, and are no part of the state


class GeometryRestraints(torch.nn.Module):
    """Restraints of a structure; make one with :meth:`from_gemmi`.

    Parameters
    ----------
    topology : Topology
    contacts : ContactFinder
    rows : numpy.ndarray, optional
        (n,) int64, the caller's row of each atom of the structure, where its order is another.
    repulsion : bool
        Whether atoms repel.

    Attributes
    ----------
    n_atoms : int
    unknown : tuple of str
        Residues that the library does not know.
    messages : tuple of str
        What a reader of the results should know, a sentence each.
    topology : Topology
        In the structure's order.

    Notes
    -----
    All numbers are buffers, so that ``.to(device)``, ``.double()`` and ``state_dict()`` mean what they mean in torch. The pairs
    that may repel are those of the structure's sites, and of others after :meth:`update_contacts`; ``state_dict()`` leaves
    them out.

    Examples
    --------
    >>> geometry = sfdiff.GeometryRestraints.from_gemmi(structure)
    >>> sites = torch.tensor([list(a.atom.pos) for a in structure[0].all()], dtype=torch.float64)
    >>> list(geometry.terms(sites))
    ['bond', 'angle', 'torsion', 'chirality', 'plane', 'repulsion']
    >>> bool(torch.isclose(geometry(sites), sum(geometry.terms(sites).values()))), bool(geometry(sites) == geometry.forward(sites))
    (True, True)
    >>> geometry.deviations(sites, "bond").shape, geometry.curvature(sites).shape
    (torch.Size([9]), torch.Size([10, 3]))
    >>> {name: round(value, 2) for name, value in geometry.rms(sites).items()}, geometry.worst(sites, "bond", n=1)[0][1]
    ({'bond': 0.01, 'angle': 2.06}, (0, 1))
    >>> geometry.usual_bond_rms(sites) <= geometry.rms(sites)["bond"]              # no hydrogens, nothing out of line
    True
    >>> geometry.update_contacts(sites + 1.0)
    """

    # Buffers: rows of atoms (n, k), ideal values, esds, and what topology.Rows calls extra.
    order: torch.Tensor
    bond_rows: torch.Tensor
    bond_ideal: torch.Tensor
    bond_esd: torch.Tensor
    bond_extra: torch.Tensor
    symmetry_bond_rows: torch.Tensor
    symmetry_bond_ideal: torch.Tensor
    symmetry_bond_esd: torch.Tensor
    symmetry_bond_extra: torch.Tensor
    angle_rows: torch.Tensor
    angle_ideal: torch.Tensor
    angle_esd: torch.Tensor
    angle_extra: torch.Tensor
    torsion_rows: torch.Tensor
    torsion_ideal: torch.Tensor
    torsion_esd: torch.Tensor
    torsion_extra: torch.Tensor
    chirality_rows: torch.Tensor
    chirality_ideal: torch.Tensor
    chirality_esd: torch.Tensor
    chirality_extra: torch.Tensor
    plane_rows: torch.Tensor
    plane_ideal: torch.Tensor
    plane_esd: torch.Tensor
    plane_extra: torch.Tensor
    plane_present: torch.Tensor
    between_heavy: torch.Tensor
    symmetry_bond_rotation: torch.Tensor
    symmetry_bond_shift: torch.Tensor
    repulsion_rows: torch.Tensor
    repulsion_image: torch.Tensor
    repulsion_d: torch.Tensor
    repulsion_weight: torch.Tensor
    repulsion_rotation: torch.Tensor
    repulsion_shift: torch.Tensor

    def __init__(
        self, topology: Topology, contacts: ContactFinder, rows: np.ndarray | None = None, repulsion: bool = True
    ) -> None:
        super().__init__()
        self.topology, self._finder, self._repels = topology, contacts, repulsion
        self.n_atoms, self.unknown, self.messages = len(topology.atoms), topology.unknown, topology.messages
        order = np.arange(self.n_atoms) if rows is None else np.asarray(rows, dtype=np.int64)
        if sorted(order.tolist()) != list(range(self.n_atoms)):
            raise ValueError(f"rows must number the {self.n_atoms} atoms of the structure, each once.")
        self.register_buffer("order", torch.from_numpy(order))
        crossing = topology.bonds.extra > 0
        for name, kind, chosen in (
            ("bond", topology.bonds, ~crossing),
            ("symmetry_bond", topology.bonds, crossing),
            ("angle", topology.angles, slice(None)),
            ("torsion", topology.torsions, slice(None)),
            ("chirality", topology.chirals, slice(None)),
            ("plane", topology.planes, slice(None)),
        ):
            self.register_buffer(f"{name}_rows", torch.from_numpy(order[kind.rows[chosen]]))
            self._values(f"{name}_ideal", kind.values[chosen])
            self._values(f"{name}_esd", kind.esds[chosen])
            self._values(f"{name}_extra", kind.extra[chosen])
        heavy = ~np.isin(topology.atoms.elements, ("H", "D"))
        ends = np.concatenate([topology.bonds.rows[~crossing], topology.bonds.rows[crossing]])
        self.register_buffer("between_heavy", torch.from_numpy(heavy[ends].all(1)), False)
        width = topology.planes.rows.shape[1]
        self._values("plane_present", np.arange(width) < topology.planes.extra[:, None])
        self._symmetry_bonds(topology.bonds.rows[crossing])
        self._set_pairs(topology.atoms.sites_cart)

    @classmethod
    def from_gemmi(
        cls,
        structure: gemmi.Structure,
        library: str | os.PathLike[str] | MonomerLibrary | None = None,
        ligands: Sequence[str | os.PathLike[str]] = (),
        repulsion: bool = True,
        torsions: Sequence[str] = TORSIONS,
        rows: np.ndarray | None = None,
    ) -> GeometryRestraints:
        """Restraints of all atoms of a structure, in its order.

        Parameters
        ----------
        structure : gemmi.Structure
            It is not changed.
        library : path, optional
            Folder of a monomer library; by default the environment's, then the one of the package coot-headless-api
            (see :func:`find_library`).
        ligands : sequence of path
            CIF files of further monomers, which come first.
        repulsion : bool
            Whether atoms that are too near, symmetry copies included, repel.
        torsions : sequence of str
            What the labels of restrained torsions begin with.
        rows : numpy.ndarray, optional
            (n,) the caller's row of each atom of the structure.

        Raises
        ------
        ValueError
            No library; a file that cannot be read; no atoms.
        """
        found = library if isinstance(library, MonomerLibrary) else find_library(library)
        top = topology(structure, found, ligands, torsions)
        finder = ContactFinder(structure, top, found.path / "ener_lib.cif")
        return cls(top, finder, rows, repulsion)

    # Energies

    def forward(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """Sum of squared deviations in units of esd.

        Parameters
        ----------
        sites_cart : torch.Tensor
            (..., n_atoms, 3) Å.

        Returns
        -------
        torch.Tensor
            (...,), differentiable twice.

        Raises
        ------
        ValueError
            Another number of atoms; a number that is not finite or beyond 1e6 Å, by the atom (compiled, in ``vmap`` and on a
            GPU nobody looks).
        """
        values = list(self.terms(sites_cart).values())
        return torch.stack(values).sum(0)

    def terms(self, sites_cart: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same by name: ``bond``, ``angle``, ``torsion``, ``chirality``, ``plane``, ``repulsion``; (...,) each."""
        checks.check_where_seen("sites_cart", self._checked(sites_cart))
        result = {name: self.deviations(sites_cart, name).square().sum(-1) for name in NAMES if name != "plane"}
        x = self._gather(sites_cart, self.plane_rows)
        result["plane"] = (terms.out_of_plane(x, self.plane_present) / self.plane_esd.square()).sum(-1)
        return {name: result[name] for name in NAMES}

    def deviations(self, sites_cart: torch.Tensor, name: str) -> torch.Tensor:
        """Deviations of one kind in units of esd, (..., n); a contact with a symmetry copy counts 1/sqrt(2).

        Parameters
        ----------
        sites_cart : torch.Tensor
        name : {"bond", "angle", "torsion", "chirality", "repulsion"}
        """
        return torch.cat([function(self._gather(sites_cart, rows)) for rows, function in self._functions(name)], -1)

    def rms(self, sites_cart: torch.Tensor) -> dict[str, float]:
        """Root mean square deviations of one model: ``bond`` in Å and ``angle`` in degrees (nan where there are none)."""
        with torch.no_grad():
            bond = torch.cat([self.bond_esd, self.symmetry_bond_esd]) * self.deviations(sites_cart, "bond")
            angle = self.angle_esd * self.deviations(sites_cart, "angle")
        return {"bond": float(bond.square().mean().sqrt()), "angle": float(angle.square().mean().sqrt())}

    def usual_bond_rms(self, sites_cart: torch.Tensor) -> float:
        """Root mean square deviation, Å, of the bonds that a model can be judged by: without those of hydrogens, which stand where they
        were put, and those more than six times as far off, in esds, as nine of ten are.

        A bond that cannot be as it should, such as one that was derived from a residue in disorder, is worth hundreds of others in :meth:`rms`.
        """
        with torch.no_grad():
            z = self.deviations(sites_cart, "bond")
            chosen = self.between_heavy if bool(self.between_heavy.any()) else torch.ones_like(self.between_heavy)
            if not bool(chosen.any()):
                return float("nan")
            kept = chosen & (z.abs() <= _FAR_OFF * z[chosen].abs().quantile(0.9))
            esd = torch.cat([self.bond_esd, self.symmetry_bond_esd])
            return float((esd * z)[kept].square().mean().sqrt())

    def worst(self, sites_cart: torch.Tensor, name: str = "bond", n: int = 5) -> list[tuple[float, tuple[int, ...]]]:
        """The largest deviations: (in units of esd, the rows of the atoms)."""
        with torch.no_grad():
            z = self.deviations(sites_cart, name)
        rows = torch.cat([r for r, _ in self._functions(name)])
        chosen = z.abs().argsort(descending=True)[:n].tolist()
        return [(float(z[i]), tuple(rows[i].tolist())) for i in chosen]

    def curvature(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """(n_atoms, 3) Å^-2: diagonal of the energy's Gauss-Newton matrix, 2 sum (d z / d x)^2, without a gradient."""
        result = torch.zeros(self.n_atoms, 3, dtype=self.bond_esd.dtype, device=self.bond_esd.device)
        for name in NAMES:
            for rows, function in self._functions(name):
                y = self._gather(sites_cart.detach(), rows).requires_grad_()
                if not len(rows):
                    continue
                # Each deviation depends on its own atoms alone, so that one backward pass gives all derivatives.
                (slope,) = torch.autograd.grad(function(y).sum(), y)
                result.index_add_(0, rows.reshape(-1), 2 * slope.square().reshape(-1, 3).to(result))
        if len(self.plane_rows):
            normal = terms.normals(self._gather(sites_cart, self.plane_rows), self.plane_present)
            slope = (normal / self.plane_esd[:, None])[:, None] * self.plane_present[..., None]
            result.index_add_(0, self.plane_rows.reshape(-1), 2 * slope.square().reshape(-1, 3))
        return result

    # Contacts

    def update_contacts(self, sites_cart: torch.Tensor) -> None:
        """Look anew for the pairs that may repel: those that are, or come within 1 Å of, too near.

        Parameters
        ----------
        sites_cart : torch.Tensor
            (..., n_atoms, 3) Å; of several models the pairs of any of them.
        """
        sites = self._checked(sites_cart).detach().cpu().to(torch.float64)
        checks.check_where_seen("sites_cart", sites)
        self._set_pairs(sites[..., self.order.cpu(), :].numpy())

    def _set_pairs(self, sites: np.ndarray) -> None:
        if not self._repels:
            for name, shape in (("d", (0,)), ("weight", (0,)), ("rotation", (0, 3, 3)), ("shift", (0, 3))):
                self._values(f"repulsion_{name}", np.zeros(shape))
            self.register_buffer(
                "repulsion_rows", torch.zeros(0, 2, dtype=torch.int64, device=self.order.device), False
            )
            self.register_buffer("repulsion_image", torch.zeros(0, dtype=torch.bool, device=self.order.device), False)
            return
        pairs = self._finder.find(sites)
        order = np.argsort(pairs.images, kind="stable")
        image = pairs.images[order]
        rows = np.column_stack([pairs.i, pairs.j])[order]
        device = self.order.device
        self.register_buffer("repulsion_rows", self.order[torch.from_numpy(rows).to(device)], False)
        self.register_buffer("repulsion_image", torch.from_numpy(image).to(device), False)
        self._values("repulsion_d", pairs.distances[order])
        self._values("repulsion_weight", pairs.weights[order])
        self._values("repulsion_rotation", pairs.rotations[order][image])
        self._values("repulsion_shift", pairs.shifts[order][image])

    def _symmetry_bonds(self, rows: np.ndarray) -> None:
        rotations, shifts = np.tile(np.eye(3), (len(rows), 1, 1)), np.zeros((len(rows), 3))
        for k, (i, j) in enumerate(rows.tolist()):
            sites = self.topology.atoms.sites_cart
            image = self._finder.operations.nearest_image(sites[i], sites[j])
            if image is not None:
                rotations[k], shifts[k] = image
        self._values("symmetry_bond_rotation", rotations)
        self._values("symmetry_bond_shift", shifts)

    # Parts

    def _values(self, name: str, values: np.ndarray) -> None:
        """A buffer of numbers, in the module's present dtype and on its device."""
        like = self.bond_ideal if hasattr(self, "bond_ideal") else torch.zeros(0, dtype=torch.float64, device="cpu")
        self.register_buffer(
            name, torch.from_numpy(np.ascontiguousarray(values, dtype=float)).to(like), not name.startswith(_CONTACTS)
        )

    def _functions(self, name: str) -> list[tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]]:
        """[(rows (n, k), gathered sites (..., n, k, 3) -> deviations (..., n))]"""
        if name == "bond":
            return [
                (self.bond_rows, lambda x: (terms.distance(x) - self.bond_ideal) / self.bond_esd),
                (self.symmetry_bond_rows, self._symmetry_bond),
            ]
        if name == "repulsion":
            n = len(self.repulsion_rows) - len(self.repulsion_shift)
            return [
                (self.repulsion_rows[:n], lambda x: self._too_near(terms.distance(x), slice(None, n))),
                (self.repulsion_rows[n:], self._image_too_near),
            ]
        functions = {"angle": self._angle, "torsion": self._torsion, "chirality": self._chirality}
        return [(getattr(self, f"{name}_rows"), functions[name])] if name in functions else []

    def _angle(self, x: torch.Tensor) -> torch.Tensor:
        return (terms.angle(x) - self.angle_ideal) / self.angle_esd

    def _torsion(self, x: torch.Tensor) -> torch.Tensor:
        return terms.wrapped(terms.torsion(x) - self.torsion_ideal, self.torsion_extra) / self.torsion_esd

    def _chirality(self, x: torch.Tensor) -> torch.Tensor:
        value = terms.volume(x)
        # Where both hands will do, the one that is there.
        sign = torch.where(self.chirality_extra == 0, torch.where(value < 0, -1.0, 1.0), self.chirality_extra)
        return (value - sign.to(value) * self.chirality_ideal) / self.chirality_esd

    def _symmetry_bond(self, x: torch.Tensor) -> torch.Tensor:
        there = _moved(x[..., 1, :], self.symmetry_bond_rotation, self.symmetry_bond_shift)
        return (terms.length(there - x[..., 0, :]) - self.symmetry_bond_ideal) / self.symmetry_bond_esd

    def _image_too_near(self, x: torch.Tensor) -> torch.Tensor:
        n = len(self.repulsion_rows) - len(self.repulsion_shift)
        there = _moved(x[..., 1, :], self.repulsion_rotation, self.repulsion_shift)
        return self._too_near(terms.length(there - x[..., 0, :]), slice(n, None))

    def _too_near(self, d: torch.Tensor, chosen: slice) -> torch.Tensor:
        return self.repulsion_weight[chosen].sqrt() / REPULSION_ESD * (self.repulsion_d[chosen] - d).clamp(min=0)

    def _gather(self, sites_cart: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        sites = self._checked(sites_cart)
        gathered: torch.Tensor = sites.index_select(-2, rows.reshape(-1)).unflatten(-2, rows.shape)
        return gathered

    def _checked(self, sites_cart: torch.Tensor) -> torch.Tensor:
        if sites_cart.shape[-2:] != (self.n_atoms, 3):
            raise ValueError(
                f"sites_cart must have the shape (..., {self.n_atoms}, 3) of the restrained structure, "
                f"not {tuple(sites_cart.shape)}."
            )
        return widened(sites_cart, self.bond_esd.dtype)

    def extra_repr(self) -> str:
        counts = {name: len(getattr(self, f"{name}_rows")) for name in NAMES}
        return f"{self.n_atoms} atoms, " + ", ".join(f"{name}: {n}" for name, n in counts.items())


def _moved(x: torch.Tensor, rotation: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    there: torch.Tensor = torch.einsum("nij,...nj->...ni", rotation, x) + shift
    return there
