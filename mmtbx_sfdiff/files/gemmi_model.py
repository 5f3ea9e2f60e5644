"""The model that cctbx read, as gemmi reads it: with the links of the file, and which atom is which."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import gemmi
import numpy as np


def gemmi_model(path: str | Path, hierarchy: Any, crystal_symmetry: Any) -> tuple[gemmi.Structure, np.ndarray, bool]:
    """gemmi's structure of a model, and the rows of its atoms in cctbx's hierarchy.

    Parameters
    ----------
    path : path
        PDB or mmCIF, plain or compressed.
    hierarchy : iotbx.pdb.hierarchy.root
        Read from that file.
    crystal_symmetry : cctbx.crystal.symmetry

    Returns
    -------
    structure : gemmi.Structure
    rows : numpy.ndarray
        (n,) int64, the hierarchy's row of each atom of the structure.
    from_file : bool
        False where the atoms are not those of the file, such as copies made by MTRIX records: then the structure is made of the
        hierarchy, and has no links.
    """
    ours = [_label(atom) for atom in hierarchy.atoms()]
    structure = _read(path)
    rows = None if structure is None else _match(structure, ours, hierarchy)
    from_file = rows is not None
    if rows is None:
        text = hierarchy.as_mmcif_string(crystal_symmetry=crystal_symmetry)
        structure = gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())
        rows = _match(structure, ours, hierarchy)
        if rows is None:
            raise ValueError(
                f"The atoms of {path} cannot be told apart by their labels: give every atom a name of its own."
            )
    assert structure is not None
    cell = crystal_symmetry.unit_cell().parameters()
    structure.cell = gemmi.UnitCell(*cell)
    structure.spacegroup_hm = _symbol(crystal_symmetry)
    return structure, rows, from_file


def _symbol(crystal_symmetry: Any) -> str:
    """The Hermann-Mauguin symbol that gemmi knows the same operations by."""
    info = crystal_symmetry.space_group_info()
    hall = gemmi.symops_from_hall(info.type().hall_symbol().strip())
    group = gemmi.find_spacegroup_by_ops(hall)
    return group.xhm() if group is not None else str(info)


def _read(path: str | Path) -> gemmi.Structure | None:
    path = Path(path)
    data = path.read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode(errors="replace")
    try:
        if "_atom_site." in text:
            return gemmi.make_structure_from_block(gemmi.cif.read_string(text)[0])
        return gemmi.read_pdb_string(text)
    except (RuntimeError, ValueError, IndexError):
        return None


def _label(atom: Any) -> tuple[str, ...]:
    labels = atom.fetch_labels()
    return (
        labels.model_id.strip() or "1",
        labels.chain_id.strip(),
        labels.resid().strip(),
        labels.resname.strip(),
        labels.altloc.strip(),
        atom.name.strip(),
    )


def _match(structure: gemmi.Structure, ours: list[tuple[str, ...]], hierarchy: Any) -> np.ndarray | None:
    theirs = []
    places = []
    for number, model in enumerate(structure):
        for chain in model:
            for residue in chain:
                resid = str(residue.seqid.num) + (residue.seqid.icode.strip() or "")
                for atom in residue:
                    altloc = atom.altloc.strip("\0 ")
                    theirs.append((str(number + 1), chain.name.strip(), resid, residue.name, altloc, atom.name))
                    places.append(atom.pos.tolist())
    if len(theirs) != len(ours):
        return None
    models = list(dict.fromkeys(label[0] for label in ours))
    # Numbers of models may begin anywhere; their order is what both agree on.
    table: dict[tuple[str, ...], list[int]] = {}
    for row, label in enumerate(ours):
        table.setdefault((str(models.index(label[0]) + 1), *label[1:]), []).append(row)
    rows = []
    sites = hierarchy.atoms().extract_xyz().as_double().as_numpy_array().reshape(-1, 3)
    for label, place in zip(theirs, places, strict=True):
        candidates = table.get(label)
        if not candidates:
            return None
        if len(candidates) > 1:  # a label given twice: the nearest
            candidates.sort(key=lambda row: float(np.abs(sites[row] - place).sum()))
        rows.append(candidates.pop(0))
    return np.array(rows, dtype=np.int64)
