"""``PDBParser`` of SFcalculator's interface: a model as NumPy arrays, in the order of its file.

Only what programs written against SFcalculator_torch 0.3.3 read and call is here; the reading and writing is gemmi's.
Unlike there a model keeps its charges, insertion codes, links between chains and names with a hyphen in them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import gemmi
import numpy as np

from ...atom_arrays import methods_of_gemmi
from ...files.model_text import read_structure
from ...numerics.symmetric import PAIRS

_Path = str | os.PathLike[str]


class PDBParser:
    """Atoms of the first model that has any, as arrays.

    Parameters
    ----------
    data : path or gemmi.Structure
        PDB or mmCIF, compressed or not.

    Attributes
    ----------
    atom_pos : numpy.ndarray
        (n, 3) Å.
    atom_b_iso, atom_occ : numpy.ndarray
        (n,) Å^2 and 1.
    atom_b_aniso : numpy.ndarray
        (n, 3, 3) Cartesian U, Å^2; zero for isotropic atoms.
    atom_name, cra_name, atom_altloc : list of str
        Element; ``chain-number of the residue in the model-residue-atom``; conformation.
    res_id : list of int
        Residue numbers of the file.
    spacegroup : gemmi.SpaceGroup
    cell : gemmi.UnitCell
    pdb_header : list of str
        The header in PDB format, without CRYST1.

    Raises
    ------
    TypeError
        Neither a path nor a gemmi.Structure.
    ValueError
        A file that is not a model, or without atoms.

    Examples
    --------
    >>> parser = PDBParser(structure)
    >>> parser.atom_name[:3], parser.atom_pos.shape, parser.cra_name[0], parser.spacegroup.short_name()
    (['N', 'C', 'C'], (10, 3), 'A-0-GLY-N', 'P212121')
    """

    def __init__(self, data: _Path | gemmi.Structure) -> None:
        if isinstance(data, gemmi.Structure):
            structure, name = data, data.name or "the structure"
        elif isinstance(data, (str, os.PathLike)):
            structure, name = _read(os.fspath(data)), os.fspath(data)
        else:
            raise TypeError(f"A model is a path or a gemmi.Structure, not {type(data).__name__}.")
        self._take(structure, name)
        group = structure.find_spacegroup()
        if group is None:
            warnings.warn(
                f"{name} has no valid space group ({structure.spacegroup_hm!r}): P 1 is taken until another is set.",
                stacklevel=2,
            )
            group = gemmi.SpaceGroup("P 1")
        self.spacegroup = group
        self.cell = structure.cell
        self._methods = methods_of_gemmi(structure)
        header = structure.make_pdb_headers().split("\n")
        self.pdb_header = [line for line in header if not line.startswith("CRYST1")]

    def _take(self, structure: gemmi.Structure, name: str) -> None:
        model = next((m for m in structure if m.count_atom_sites() > 0), None)
        if model is None:
            raise ValueError(f"{name} contains no atoms.")
        if len(structure) > 1:
            warnings.warn(
                f"{name} holds {len(structure)} models: the first is taken, as SFcalculator does.", stacklevel=4
            )
        # A residue without its atoms, and one atom, for each atom: enough to write the model again in any order.
        self._records = []
        names, count = [], 0
        for chain in model:
            for residue in chain:
                empty = gemmi.Residue()
                empty.name, empty.seqid, empty.subchain = residue.name, residue.seqid, residue.subchain
                empty.het_flag, empty.entity_type, empty.segment = (
                    residue.het_flag,
                    residue.entity_type,
                    residue.segment,
                )
                for atom in residue:
                    self._records.append((chain.name, count, empty, atom.clone()))
                    names.append(f"{chain.name}-{count}-{residue.name}-{atom.name}")
                count += 1
        atoms = [atom for *_, atom in self._records]
        self.atom_pos = np.array([atom.pos.tolist() for atom in atoms])
        self.atom_b_aniso = np.array([atom.aniso.as_mat33().tolist() for atom in atoms])
        self.atom_b_iso = np.array([atom.b_iso for atom in atoms])
        self.atom_occ = np.array([atom.occ for atom in atoms])
        self.atom_name = [atom.element.name for atom in atoms]
        self.cra_name = names
        self.atom_altloc = [atom.altloc for atom in atoms]
        self.res_id = [residue.seqid.num for _, _, residue, _ in self._records]

    @property
    def atom_charge(self) -> list[int]:
        """Formal charges as the file has them."""
        return [atom.charge for *_, atom in self._records]

    @property
    def sequence(self) -> str:
        """One-letter codes of the residues that have an atom named CA, one an atom site name."""
        seen = dict.fromkeys((number, residue.name) for _, number, residue, atom in self._records if atom.name == "CA")
        return "".join(gemmi.find_tabulated_residue(name).one_letter_code for _, name in seen)

    def to_gemmi(self, include_header: bool = True) -> gemmi.Structure:
        """The model with its present coordinates, B, occupancies, cell and space group."""
        model = _empty_model()
        chain = residue = None
        last: tuple[str | None, int | None] = (None, None)
        for i, (chain_name, number, empty, atom) in enumerate(self._records):
            if chain is None or chain_name != last[0]:
                chain = model.add_chain(gemmi.Chain(chain_name))
                residue = None
            if residue is None or number != last[1]:
                residue = chain.add_residue(empty)
            last = chain_name, number
            atom = atom.clone()
            atom.pos = gemmi.Position(*map(float, self.atom_pos[i]))
            u = self.atom_b_aniso[i]
            atom.aniso = gemmi.SMat33f(*(float(u[j, k]) for j, k in PAIRS))
            atom.b_iso, atom.occ = float(self.atom_b_iso[i]), float(self.atom_occ[i])
            residue.add_atom(atom)
        structure = gemmi.Structure()
        structure.add_model(model)
        structure.setup_entities()
        structure.spacegroup_hm, structure.cell = self.spacegroup.xhm(), self.cell
        if include_header:
            structure.raw_remarks = self.pdb_header
        return structure

    @property
    def atom_pos_frac(self) -> np.ndarray:
        """(n, 3) fractional."""
        return self.orth2frac(self.atom_pos)

    @property
    def operations(self) -> gemmi.GroupOps:
        """Operators of the space group, centring included."""
        return self.spacegroup.operations()

    @property
    def R_G_stack(self) -> np.ndarray:
        """(n_ops, 3, 3) rotations."""
        return np.array([np.array(op.rot) / op.DEN for op in self.operations])

    @property
    def T_G_stack(self) -> np.ndarray:
        """(n_ops, 3) translations."""
        return np.array([np.array(op.tran) / op.DEN for op in self.operations])

    def exp_sym(self, frac_pos: np.ndarray | None = None) -> np.ndarray:
        """(n, n_ops, 3): fractional coordinates under every operator."""
        frac_pos = self.atom_pos_frac if frac_pos is None else frac_pos
        moved: np.ndarray = np.einsum("oxy,ay->aox", self.R_G_stack, frac_pos) + self.T_G_stack
        return moved

    def set_spacegroup(self, spacegroup: str | gemmi.SpaceGroup) -> None:
        """Set the space group by its Hermann-Mauguin symbol or as gemmi's object.

        Raises
        ------
        ValueError
            A symbol that gemmi does not know.
        """
        self.spacegroup = gemmi.SpaceGroup(spacegroup) if isinstance(spacegroup, str) else spacegroup

    def set_unitcell(self, unitcell: gemmi.UnitCell) -> None:
        """Set the unit cell."""
        self.cell = unitcell

    def set_positions(self, positions: Any) -> None:
        """Set the coordinates, (n, 3) Å."""
        self.atom_pos = self._checked("positions", positions, (3,))

    def set_biso(self, biso: Any) -> None:
        """Set the isotropic B factors, (n,) Å^2."""
        self.atom_b_iso = self._checked("biso", biso, ())

    def set_baniso(self, baniso: Any) -> None:
        """Set the anisotropic U, (n, 3, 3) Å^2."""
        self.atom_b_aniso = self._checked("baniso", baniso, (3, 3))

    def set_occ(self, occ: Any) -> None:
        """Set the occupancies, (n,)."""
        self.atom_occ = self._checked("occ", occ, ())

    def _checked(self, name: str, values: Any, tail: tuple[int, ...]) -> np.ndarray:
        array = np.asarray(values)
        if array.shape != (len(self._records), *tail):
            raise ValueError(f"{name} must have the shape {(len(self._records), *tail)}, not {array.shape}.")
        return array

    def selection(self, condition: str, inplace: bool = False) -> PDBParser | None:
        """The atoms that a selection in gemmi's syntax takes, as a new parser or in place."""
        chosen = gemmi.Selection(condition).copy_structure_selection(self.to_gemmi(include_header=False))
        if inplace:
            self._take(chosen, condition)
            return None
        parser = PDBParser(chosen)
        parser.pdb_header = self.pdb_header
        return parser

    def from_atom_slices(self, atom_slices: Sequence[int], inplace: bool = False) -> PDBParser | None:
        """Some of the atoms, in this order, as a new parser or in place."""
        target = self if inplace else object.__new__(PDBParser)
        rows = [int(i) for i in np.arange(len(self._records))[np.asarray(atom_slices)]]
        arrays = {name: getattr(self, name)[rows] for name in ("atom_pos", "atom_b_aniso", "atom_b_iso", "atom_occ")}
        lists = {
            name: [getattr(self, name)[i] for i in rows]
            for name in ("_records", "atom_name", "cra_name", "atom_altloc", "res_id")
        }
        target.__dict__.update(self.__dict__ | arrays | lists)
        return None if inplace else target

    def move2cell(self) -> None:
        """Shift the model by lattice translations so that its mean lies in the cell at the origin."""
        mean = self.orth2frac(self.atom_pos.mean(0, keepdims=True))
        self.set_positions(self.atom_pos + self.frac2orth(mean % 1.0 - mean))

    def orth2frac(self, orth_pos: np.ndarray) -> np.ndarray:
        """Fractional coordinates (n, ..., 3)."""
        return np.asarray(orth_pos @ _matrix(self.cell, "fractionalization_matrix", "frac").T)

    def frac2orth(self, frac_pos: np.ndarray) -> np.ndarray:
        """Cartesian coordinates (n, ..., 3), Å."""
        return np.asarray(frac_pos @ _matrix(self.cell, "orthogonalization_matrix", "orth").T)

    def savePDB(self, savefilename: _Path, include_header: bool = True) -> None:
        """Write the model in PDB format."""
        self.to_gemmi(include_header).write_pdb(os.fspath(savefilename))

    def saveCIF(self, savefilename: _Path, include_header: bool = True) -> None:
        """Write the model as mmCIF."""
        self.to_gemmi(include_header).make_mmcif_document().write_file(os.fspath(savefilename))


def _empty_model() -> gemmi.Model:
    version = getattr(gemmi, "__version__", "")
    number: Any = "1" if version.startswith("0.6") else 1  # a name until 0.6, a number since
    return gemmi.Model(number)


def _matrix(cell: gemmi.UnitCell, name: str, transform: str) -> np.ndarray:
    value = getattr(cell, name, None)
    return np.array((value if value is not None else getattr(cell, transform).mat).tolist())


def _read(path: str) -> gemmi.Structure:
    # Chains that come in parts, waters after other chains, stay where the file has them.
    structure, messages = read_structure(path)
    for message in messages:
        warnings.warn(f"{path}: {message}.", stacklevel=4)
    return structure
