"""The model inside ``SFcalculator``: coordinates, B, occupancies and symmetry, read and assigned under its names."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch

import gemmi
import numpy as np

from ...atom_arrays import EIGHT_PI_SQ
from ...atoms import Atoms
from ...crystal import Crystal
from ...displacements import packed, u_cart_as_u_star
from ...rules import radiation_messages
from .io import PDBParser
from .utils import assert_tensor


class ModelState:
    """What ``SFcalculator`` knows of its atoms; all tensors are float32 on its device."""

    mode: str
    anomalous: bool
    wavelength: float | None
    device: torch.device
    _crystal: Crystal

    def _init_model(self, pdbmodel: Any, device: torch.device) -> None:
        self.device = device
        self._said: set[str] = set()
        self._atoms_known: Atoms | None = None
        self._pdb = pdbmodel if isinstance(pdbmodel, PDBParser) else PDBParser(pdbmodel)
        parser = self._pdb
        if self.mode == "xray":
            for message in radiation_messages(parser._methods, "it1992"):
                warnings.warn(f"{message.split(', but')[0]}, but the form factors are those of X-rays.", stacklevel=4)
        self._atom_pos_orth = assert_tensor(parser.atom_pos, torch.float32, device).to(device)
        self._atom_aniso_uw = assert_tensor(parser.atom_b_aniso, torch.float32, device).to(device)
        self._atom_b_iso = assert_tensor(parser.atom_b_iso, torch.float32, device).to(device)
        self._atom_occ = assert_tensor(parser.atom_occ, torch.float32, device).to(device)

    def _once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=3)

    # Symmetry

    @property
    def space_group(self) -> gemmi.SpaceGroup:
        return self._pdb.spacegroup

    @space_group.setter
    def space_group(self, spacegroup: str | gemmi.SpaceGroup) -> None:
        self._pdb.set_spacegroup(spacegroup)
        self._init_symmetry()

    @property
    def unit_cell(self) -> gemmi.UnitCell:
        return self._pdb.cell

    @unit_cell.setter
    def unit_cell(self, cell: gemmi.UnitCell) -> None:
        self._pdb.set_unitcell(cell)
        self._init_symmetry()

    def _init_symmetry(self) -> None:
        parser, cell = self._pdb, self._pdb.cell
        if not cell.is_crystal():
            raise ValueError("The model has no unit cell, and no data bring one: set it with PDBParser.set_unitcell.")
        self.operations = parser.operations

        def tensor(values: Any) -> torch.Tensor:
            return torch.tensor(np.asarray(values), dtype=torch.float32, device=self.device)

        self.R_G_tensor_stack, self.T_G_tensor_stack = tensor(parser.R_G_stack), tensor(parser.T_G_stack)
        self.orth2frac_tensor = tensor(parser.orth2frac(np.eye(3)).T)
        self.frac2orth_tensor = tensor(parser.frac2orth(np.eye(3)).T)
        self.reciprocal_cell = star = cell.reciprocal()
        cosines = np.cos(np.deg2rad([star.alpha, star.beta, star.gamma]))
        self.reciprocal_cell_paras = tensor([star.a, star.b, star.c, *cosines])
        self._crystal = Crystal(tuple(cell.parameters), parser.spacegroup.xhm())
        if torch.device(self.device).type != "cpu":
            self._crystal = self._crystal.to(self.device)
        self._atoms_known = None

    # Atoms

    @property
    def atom_pos_orth(self) -> torch.Tensor:
        """(n_atoms, 3) Å."""
        return self._atom_pos_orth

    @atom_pos_orth.setter
    def atom_pos_orth(self, value: torch.Tensor) -> None:
        self._atom_pos_orth = self._checked("atom_pos_orth", value, (3,))

    @property
    def atom_b_iso(self) -> torch.Tensor:
        """(n_atoms,) Å^2."""
        return self._atom_b_iso

    @atom_b_iso.setter
    def atom_b_iso(self, value: torch.Tensor) -> None:
        self._atom_b_iso = self._checked("atom_b_iso", value, ())

    @property
    def atom_aniso_uw(self) -> torch.Tensor:
        """(n_atoms, 3, 3) Cartesian U, Å^2; an atom with zeros is isotropic."""
        return self._atom_aniso_uw

    @atom_aniso_uw.setter
    def atom_aniso_uw(self, value: torch.Tensor) -> None:
        self._atom_aniso_uw = self._checked("atom_aniso_uw", value, (3, 3))
        self._atoms_known = None  # which atoms are anisotropic may have changed

    @property
    def atom_occ(self) -> torch.Tensor:
        """(n_atoms,)."""
        return self._atom_occ

    @atom_occ.setter
    def atom_occ(self, value: torch.Tensor) -> None:
        self._atom_occ = self._checked("atom_occ", value, ())

    def _checked(self, name: str, value: torch.Tensor, tail: tuple[int, ...]) -> torch.Tensor:
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(value).__name__}.")
        if tuple(value.shape) != (self.n_atoms, *tail):
            raise ValueError(f"{name} must have the shape {(self.n_atoms, *tail)}, not {tuple(value.shape)}.")
        return value

    @property
    def atom_pos_frac(self) -> torch.Tensor:
        """(n_atoms, 3) fractional."""
        return self.orth2frac(self.atom_pos_orth)

    @property
    def cra_name(self) -> list[str]:
        """Chain-residue-atom names."""
        return self._pdb.cra_name

    @property
    def atom_name(self) -> list[str]:
        """Elements."""
        return self._pdb.atom_name

    @property
    def n_atoms(self) -> int:
        return len(self.atom_name)

    @property
    def unique_atom(self) -> list[str]:
        """The elements there are."""
        return sorted(set(self.atom_name))

    def frac2orth(self, frac_pos: torch.Tensor) -> torch.Tensor:
        """Cartesian coordinates (..., 3), Å."""
        return (frac_pos[..., None, :] * self.frac2orth_tensor).sum(-1)

    def orth2frac(self, orth_pos: torch.Tensor) -> torch.Tensor:
        """Fractional coordinates (..., 3)."""
        return (orth_pos[..., None, :] * self.orth2frac_tensor).sum(-1)

    def exp_sym(self, frac_pos: torch.Tensor | None = None) -> torch.Tensor:
        """(n, n_ops, 3): fractional coordinates under every operator."""
        frac_pos = self.atom_pos_frac if frac_pos is None else frac_pos
        return (self.R_G_tensor_stack * frac_pos[:, None, None, :]).sum(-1) + self.T_G_tensor_stack

    def _atoms(self, sites_cart: torch.Tensor | None = None) -> Atoms:
        """This package's atoms with the present parameters, or with other sites (..., n_atoms, 3)."""
        if self._atoms_known is None:
            self._atoms_known = self._make_atoms()
        placed: Atoms = self._atoms_known.replace(
            sites_cart=(self._atom_pos_orth if sites_cart is None else sites_cart).to(torch.float32),
            u_iso=(self._atom_b_iso / EIGHT_PI_SQ).to(torch.float32),
            u_star=u_cart_as_u_star(packed(self._atom_aniso_uw.to(torch.float32)), self._crystal),
            occupancies=self._atom_occ.to(torch.float32),
        )
        return placed

    def _make_atoms(self) -> Atoms:
        atoms: Atoms = Atoms.from_arrays(
            self._crystal,
            self.atom_name,
            self._atom_pos_orth.detach().to(torch.float64),
            b_iso=self._atom_b_iso.detach().to(torch.float64),
            occupancies=self._atom_occ.detach().to(torch.float64),
            charges=self._pdb.atom_charge,
            table="it1992" if self.mode == "xray" else "electron",
        ).to(dtype=torch.float32, device=self.device)
        anisotropic = (self._atom_aniso_uw.detach() != 0).flatten(1).any(1)
        atoms = dataclasses.replace(atoms, use_u_iso=~anisotropic, use_u_aniso=anisotropic)
        if self.anomalous:
            assert self.wavelength is not None
            energy = gemmi.hc / self.wavelength
            found = {
                e: gemmi.cromer_liberman(z=gemmi.Element(e).atomic_number, energy=energy) for e in self.unique_atom
            }
            values = torch.tensor([found[e] for e in self.atom_name], dtype=torch.float32, device=self.device)
            atoms = atoms.replace(fp=values[:, 0].contiguous(), fdp=values[:, 1].contiguous())
        return atoms
