"""A refined model as a file: the model that was read, with its header, sequences and links, and new parameters."""

from __future__ import annotations

import string
from typing import Any

import gemmi
import numpy as np

from .deposition import add_to_cif, remark_3
from .gemmi_model import gemmi_model
from .model import turn


def refined_model(source: Any, atoms: Any, suffix: str, record: dict[str, Any]) -> bytes:
    """The model of an entry with other parameters of its atoms, and what there is to say of their refinement.

    Parameters
    ----------
    source : Entry
        Where the model came from; not changed.
    atoms : Atoms
        In the order of the entry's model.
    suffix : str
        ".cif", or ".pdb".
    record : dict
        See :mod:`mmtbx_sfdiff.files.deposition`.

    Returns
    -------
    bytes

    Notes
    -----
    Written by gemmi. Header, sequence, secondary structure, links and assemblies are those of the model file where its atoms
    are the model's; other remarks are kept.
    """
    manager = source.model.manager.deep_copy()
    manager.set_xray_structure(atoms.to_cctbx())
    hierarchy = manager.get_hierarchy()
    structure, rows, from_file = gemmi_model(source.model.path, hierarchy, manager.crystal_symmetry())
    frame = source.model.frame
    if frame is not None:
        turn(hierarchy.atoms(), frame, back=True)
        record = record | {"tls": [_turned_back(group, frame) for group in record["tls"]]}
    adopt(structure, rows, hierarchy.atoms())
    if not from_file:
        structure.name = str(record["entry"])
    if suffix == ".cif":
        record = record | {"tls": _named(structure, record["tls"])}
    structure.setup_entities()
    if suffix == ".cif":
        structure.assign_label_seq_id()
        # gemmi's _struct_ref_seq lacks values for some DBREF records, and no reader takes the file then; archives find them anew.
        document = structure.make_mmcif_document(gemmi.MmcifOutputGroups(True, struct_ref=False))
        add_to_cif(document[0], record)
        if frame is not None:
            _put_scale(document[0], _scale(structure.cell, frame))
        return str(document.as_string()).encode()
    others = [line for line in structure.raw_remarks if line[7:10].strip() not in ("", "3")]
    before = [line for line in others if int(line[7:10]) < 3] if _numbered(others) else []
    after = [line for line in others if line not in before]
    structure.raw_remarks = [*before, *remark_3(record), *after]
    text = str(structure.make_pdb_string())
    return (text if frame is None else _with_scale(text, _scale(structure.cell, frame))).encode()


def _named(structure: gemmi.Structure, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TLS groups of a structure whose nameless chains, which an mmCIF cannot have, get the first free letter; changes the structure."""
    used = {chain.name for model in structure for chain in model}
    name = next(letter for letter in (*string.ascii_uppercase, *string.ascii_lowercase, "AA") if letter not in used)
    nameless = [chain for model in structure for chain in model if not chain.name.strip()]
    for chain in nameless:
        chain.name = name
    for connection in structure.connections:
        for partner in (connection.partner1, connection.partner2):
            if not partner.chain_name.strip():
                partner.chain_name = name
    return [
        group
        if group["chain"].strip()
        else group | {"chain": name, "selection": group["selection"].replace("chain ' '", f"chain {name}")}
        for group in groups
    ]


def _turned_back(group: dict[str, Any], frame: Any) -> dict[str, Any]:
    """A TLS group in the frame of the file."""
    tensors = frame.turned(np.array([group[name] for name in "TLS"]), back=True)
    origin = frame.to_file(np.array([group["origin"]]))[0]
    return group | {"origin": origin.tolist()} | dict(zip("TLS", tensors.tolist(), strict=True))


def _numbered(lines: list[str]) -> bool:
    return all(line[7:10].strip().isdigit() for line in lines)


def _scale(cell: gemmi.UnitCell, frame: Any) -> list[list[float]]:
    """Rows of SCALEn of the file's own frame: x_fractional = standard (rotation x + shift)."""
    standard = np.array(cell.frac.mat.tolist())
    return np.column_stack([standard @ frame.rotation, standard @ frame.shift]).tolist()  # type: ignore[no-any-return]


def _with_scale(text: str, scale: list[list[float]]) -> str:
    """A PDB file with other SCALEn records."""
    lines = [line for line in text.splitlines() if not line.startswith("SCALE")]
    at = next(i for i, line in enumerate(lines) if line.startswith("CRYST1")) + 1
    while lines[at].startswith("ORIGX"):
        at += 1
    records = [f"SCALE{i}    {a:10.6f}{b:10.6f}{c:10.6f}     {t:10.5f}" for i, (a, b, c, t) in enumerate(scale, 1)]
    return "\n".join([*lines[:at], *(record.ljust(80) for record in records), *lines[at:]]) + "\n"


def _put_scale(block: gemmi.cif.Block, scale: list[list[float]]) -> None:
    for i, row in enumerate(scale, 1):
        for j, value in enumerate(row[:3], 1):
            block.set_pair(f"_atom_sites.fract_transf_matrix[{i}][{j}]", f"{value:.9f}")
        block.set_pair(f"_atom_sites.fract_transf_vector[{i}]", f"{row[3]:.9f}")


def adopt(structure: gemmi.Structure, rows: Any, atoms: Any) -> None:
    """Places, displacements and occupancies of cctbx's atoms."""
    place = iter(rows.tolist())
    for model in structure:
        for chain in model:
            for residue in chain:
                for atom in residue:
                    ours = atoms[next(place)]
                    atom.pos = gemmi.Position(*ours.xyz)
                    atom.b_iso, atom.occ = ours.b, ours.occ
                    tensor = ours.uij if ours.uij_is_defined() else (0, 0, 0, 0, 0, 0)
                    atom.aniso = gemmi.SMat33f(*tensor)
