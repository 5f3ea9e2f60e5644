"""A model with hydrogens, ready for the force field, and its files."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import numpy as np

from ...files.writing import write_atomically
from .requirements import require

CAPS = ("ACE", "NME")
BACKBONE = ("N", "CA", "C")
_FORMAT = 1


@dataclass(frozen=True)
class PreparedModel:
    """A model with hydrogens, ready for the force field.

    Attributes
    ----------
    topology : openmm.app.Topology
    sites_cart : torch.Tensor
        (n_ff, 3) float64, Å, hydrogens included.
    heavy_index : torch.Tensor
        (n_selected,) long: the force-field atom of each model atom that was kept.
    model_index : torch.Tensor
        (n_selected,) long: that atom's place in the hierarchy (and X-ray structure) given.
    dropped, added : tuple of (str, str)
        Labels and reasons of what was left out and of what the model did not have.
    n_copies : int
        Symmetry copies in the topology, the model itself first.

    Examples
    --------
    >>> model.n_ff, model.names[:3], model.residue_names
    (22, ('C', 'O', 'CH3'), ('ACE', 'ALA', 'NME'))
    >>> moved = model.replace(sites_cart=model.sites_cart + 1.0)
    >>> moved.save("prepared")
    >>> again = PreparedModel.load("prepared")
    >>> bool(torch.equal(again.sites_cart, moved.sites_cart)), again.first_copy() is again
    (True, True)
    """

    topology: Any
    sites_cart: torch.Tensor
    heavy_index: torch.Tensor
    model_index: torch.Tensor
    dropped: tuple[Any, ...] = field(default_factory=tuple)
    added: tuple[Any, ...] = field(default_factory=tuple)
    n_copies: int = 1

    @property
    def n_ff(self) -> int:
        """Number of force-field atoms."""
        return self.sites_cart.shape[0]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Atom names, one for each force-field atom."""
        return tuple(atom.name for atom in self.topology.atoms())

    @cached_property
    def elements(self) -> tuple[str, ...]:
        """Element symbols, one for each force-field atom."""
        return tuple(atom.element.symbol for atom in self.topology.atoms())

    @cached_property
    def residue_names(self) -> tuple[str, ...]:
        """Residue names, one for each residue."""
        return tuple(residue.name for residue in self.topology.residues())

    @cached_property
    def residue_index(self) -> torch.Tensor:
        """(n_ff,) long: residue of each force-field atom."""
        return torch.tensor([atom.residue.index for atom in self.topology.atoms()])

    @cached_property
    def chain_index(self) -> torch.Tensor:
        """(n_ff,) long: chain of each force-field atom; a chain with gaps counts as several."""
        return torch.tensor([atom.residue.chain.index for atom in self.topology.atoms()])

    @cached_property
    def ca_index(self) -> torch.Tensor:
        """(n_residues,) long: the CA atoms."""
        return self._where(("CA",))

    @cached_property
    def backbone_index(self) -> torch.Tensor:
        """N, CA and C atoms of the amino-acid residues, long."""
        return self._where(BACKBONE)

    def _where(self, names: Sequence[str]) -> torch.Tensor:
        found = [atom.index for atom in self.topology.atoms() if atom.name in names and atom.residue.name not in CAPS]
        return torch.tensor(found, dtype=torch.long)

    def replace(self, **changes: Any) -> PreparedModel:
        """A copy with other attributes."""
        return replace(self, **changes)

    def first_copy(self) -> PreparedModel:
        """The model without its symmetry copies; its atoms are the first ones of this topology.

        Returns
        -------
        PreparedModel
        """
        if self.n_copies == 1:
            return self
        n = self.n_ff // self.n_copies
        return self.replace(topology=_first_atoms(self.topology, n), sites_cart=self.sites_cart[:n], n_copies=1)

    def save(self, folder: str | Path) -> None:
        """Write ``prepared.json``, ``prepared.npz`` and, to look at, ``prepared.pdb``.

        Parameters
        ----------
        folder : str or pathlib.Path
            Made if it is not there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = io.BytesIO()
        np.savez(
            arrays,
            sites_cart=self.sites_cart.numpy(),
            heavy_index=self.heavy_index.numpy(),
            model_index=self.model_index.numpy(),
        )
        description = {
            "format": _FORMAT,
            "topology": _topology_to_dict(self.topology),
            "dropped": self.dropped,
            "added": self.added,
            "n_copies": self.n_copies,
        }
        picture = io.StringIO()
        require("openmm.app").PDBFile.writeFile(self.topology, self.sites_cart.numpy(), picture, keepIds=True)
        write_atomically(folder / "prepared.npz", arrays.getvalue())
        write_atomically(folder / "prepared.pdb", picture.getvalue())
        write_atomically(folder / "prepared.json", json.dumps(description))

    @classmethod
    def load(cls, folder: str | Path) -> PreparedModel:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        folder : str or pathlib.Path

        Returns
        -------
        PreparedModel

        Raises
        ------
        ValueError
            When the folder holds no prepared model, or one of another version.
        """
        folder = Path(folder)
        try:
            description = json.loads((folder / "prepared.json").read_text())
            with np.load(folder / "prepared.npz", allow_pickle=False) as arrays:
                tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} holds no prepared model that can be read ({error}): prepare it again."
            ) from error
        if description.get("format") != _FORMAT:
            raise ValueError(f"{folder / 'prepared.json'} was written by another version: prepare the model again.")
        return cls(
            topology=_topology_from_dict(description["topology"]),
            n_copies=description["n_copies"],
            dropped=tuple(map(tuple, description["dropped"])),
            added=tuple(map(tuple, description["added"])),
            **tensors,
        )


def _topology_to_dict(topology: Any) -> Any:
    return {
        "chains": [chain.id for chain in topology.chains()],
        "residues": [[r.name, r.chain.index, r.id, r.insertionCode] for r in topology.residues()],
        "atoms": [[a.name, a.element.symbol, a.residue.index] for a in topology.atoms()],
        "bonds": [[a.index, b.index] for a, b in topology.bonds()],
    }


def _topology_from_dict(description: Any) -> Any:
    app = require("openmm.app")
    topology = app.Topology()
    chains = [topology.addChain(name) for name in description["chains"]]
    residues = [topology.addResidue(name, chains[c], number, code) for name, c, number, code in description["residues"]]
    atoms = [
        topology.addAtom(name, app.Element.getBySymbol(element), residues[r])
        for name, element, r in description["atoms"]
    ]
    for i, j in description["bonds"]:
        topology.addBond(atoms[i], atoms[j])
    return topology


def _first_atoms(topology: Any, n: int) -> Any:
    description = _topology_to_dict(topology)
    n_residues = description["atoms"][n - 1][2] + 1
    n_chains = description["residues"][n_residues - 1][1] + 1
    return _topology_from_dict(
        {
            "chains": description["chains"][:n_chains],
            "residues": description["residues"][:n_residues],
            "atoms": description["atoms"][:n],
            "bonds": [pair for pair in description["bonds"] if max(pair) < n],
        }
    )
