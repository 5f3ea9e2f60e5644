"""The text of a model as every reader understands it, cctbx's or gemmi's: mended, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gemmi
import numpy as np

from ..rules import which_cell
from .cif_symmetry import symmetry_of_block
from .content import read_content
from .errors import Sorry
from .model_cif import normalized_cif
from .model_header import is_tls_residual, tls_added, tls_missing
from .odd_atoms import said_of_odd, table_of_gemmi
from .pdb_records import mended_records
from .reflection_table import one_line
from .tls import Incomplete, whole_pdb

# X-PLOR and CNS write 9999.000 for an atom whose position is unknown; no unit cell is a micrometre long.
MAX_COORDINATE = 9990.0  # Å
MAX_B = 1.0e4  # Å²; the PDB format itself ends at 999.99
MAX_OCCUPANCY = 1.0e3


def normalized(text: str, kind: str, path: object) -> tuple[str, Any, list[str]]:
    """(text, CIF block or None, messages): what readers would stumble over is mended or refused."""
    if kind == "cif":
        return normalized_cif(text, path)
    text = text.encode("ascii", errors="replace").decode()  # the format's columns are bytes
    text, messages = mended_records(text, path)
    if is_tls_residual(text):
        try:
            text, n = whole_pdb(text)
            messages.append(tls_added(n))
        except Incomplete as error:
            messages.append(tls_missing(error))
    return text, None, messages


def _check(structure: gemmi.Structure, path: object) -> None:
    """Refuse what makes every structure factor meaningless, as the reader with cctbx does."""
    occupied = False
    for model in structure:
        for chain in model:
            for residue in chain:
                for atom in residue:
                    who = f"{path}: atom {atom.name} {residue.name} {chain.name} {residue.seqid}"
                    if not all(abs(x) <= MAX_COORDINATE for x in atom.pos.tolist()):
                        place = ", ".join(f"{x:g}" for x in atom.pos.tolist())
                        raise Sorry(f"{who} has the impossible coordinates ({place}) Å: correct or remove it.")
                    if not 0 <= atom.b_iso <= MAX_B:
                        raise Sorry(
                            f"{who} has the impossible B factor {atom.b_iso:g} Å²: correct or remove it (0 to {MAX_B:g} is "
                            "accepted)."
                        )
                    if atom.element.atomic_number == 0 and atom.element.name != "D":
                        raise Sorry(
                            f"{who} is of an unknown element: correct columns 77-78 (mmCIF: _atom_site.type_symbol) or remove it."
                        )
                    if not abs(atom.occ) <= MAX_OCCUPANCY:
                        raise Sorry(f"{who} has the impossible occupancy {atom.occ:g}: correct or remove it.")
                    occupied |= atom.occ != 0
    if not occupied:
        raise Sorry(f"{path}: all atoms have occupancy 0, so nothing scatters: set the occupancies.")


def _is_possible(cell: gemmi.UnitCell, group: gemmi.SpaceGroup) -> bool:
    """Whether the operations keep lengths to 1 % and angles to 1 degree, cctbx's tolerances."""
    if not cell.volume > 0:
        return True  # no cell at all, which is said elsewhere
    alone = np.array(gemmi.UnitCell(*cell.parameters).orth.mat.tolist())
    for op in group.operations().sym_ops:
        turned = alone @ (np.array(op.rot) / op.DEN)
        lengths = np.linalg.norm(turned, axis=0)
        cosines = (turned / lengths).T @ (turned / lengths)
        angles = np.degrees(np.arccos(np.clip([cosines[1, 2], cosines[0, 2], cosines[0, 1]], -1, 1)))
        if which_cell([(*lengths, *angles)], cell.parameters) is None:
            return False
    return True


def read_structure(path: Any) -> tuple[gemmi.Structure, list[str]]:
    """A model by gemmi, from the text that cctbx would get: NCS copies made, all MODELs kept.

    Parameters
    ----------
    path : path
        PDB or mmCIF, plain or compressed.

    Returns
    -------
    gemmi.Structure
    list of str
        What was mended.

    Raises
    ------
    Sorry
        In one sentence that names the file.
    """
    content = read_content(path, "model")
    if content.kind == "mtz":
        raise Sorry(f"{path} holds reflections, not atoms: give the model file here and this one as data.")
    text, block, messages = normalized(content.text, content.kind, path)
    messages = [*content.end, *messages]
    try:
        if block is not None:
            structure = gemmi.make_structure_from_block(gemmi.cif.read_string(text)[0])
        else:
            structure = gemmi.read_pdb_string(text)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Sorry(f"{path} is not a readable model ({one_line(error)}): correct or replace it.") from None
    if not any(model.count_atom_sites() for model in structure):
        raise Sorry(f"{path} contains no atoms: give a PDB or mmCIF file with coordinates.")
    _check(structure, path)
    structure.name = Path(str(path)).name
    if is_tls_residual(content.text, block):  # has been said, or mended
        structure.raw_remarks = [line for line in structure.raw_remarks if not line.startswith("REMARK   3")]
    if block is not None and structure.find_spacegroup() is None:
        group = symmetry_of_block(block).tabulated
        structure.spacegroup_hm = group.xhm() if group is not None else ""
    group = structure.find_spacegroup()
    if group is not None and not _is_possible(structure.cell, group):
        raise Sorry(
            f"{path} has an impossible unit cell or space group ({group.xhm()} with the cell "
            f"{' '.join(f'{x:g}' for x in structure.cell.parameters)}): correct its CRYST1 record or mmCIF cell."
        )
    if any(not operator.given for operator in structure.ncs):
        structure.expand_ncs(gemmi.HowToNameCopiedChain.Dup)
    return structure, messages


def structure_messages(structure: gemmi.Structure) -> list[str]:
    """What a reader of the results should know of the atoms."""
    atoms = [atom for model in structure for chain in model for residue in chain for atom in residue]
    six = [atom.aniso for atom in atoms if atom.aniso.nonzero()]
    tensors = [[[u.u11, u.u12, u.u13], [u.u12, u.u22, u.u23], [u.u13, u.u23, u.u33]] for u in six]
    isotropic = sum(atom.b_iso <= 0 for atom in atoms if not atom.aniso.nonzero())
    bad = isotropic + sum(np.linalg.eigvalsh(np.array(tensor))[0] <= 0 for tensor in tensors)
    negative, zero = sum(atom.occ < 0 for atom in atoms), sum(atom.occ == 0 for atom in atoms)
    return [
        *said_of_models(len(structure)),
        *said_of_atoms(bad, negative, zero),
        *said_of_odd(table_of_gemmi(structure)),
    ]


def said_of_models(n: int) -> list[str]:
    """What a reader of the results should know where a file holds several models."""
    return [f"the model file holds {n} models; all of them scatter, each with its own occupancies"] if n > 1 else []


def said_of_atoms(bad: int, negative: int, zero: int) -> list[str]:
    """The same of so many atoms with tensors, and with occupancies, that are odd."""
    found = (
        (bad, "whose displacement parameters are not positive definite"),
        (negative, "with a negative occupancy"),
        (zero, "with occupancy 0, which do not scatter"),
    )
    return [f"atoms {text}: {n}" for n, text in found if n]
