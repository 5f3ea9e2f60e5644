"""What is odd among the atoms of a model, though every number is possible: said by both readers, and nothing is changed.

Occupancies above 1, conformations that add up to more, atoms in the place of others, elements that are not those of the atom's
name, tensors that are not those of the B factor beside them: F follows the file, and is likely not what its author meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
import numpy.typing as npt

from ..atom_arrays import EIGHT_PI_SQ
from .model_cif import element_from_name

_MORE = 1.05  # occupancies that add up to more than this; .33 three times and .51 twice do not
_ABOVE = 1.005
_UNLIKE = 2.0  # ratio of the tensor's B factor and the one beside it
_SAME_PLACE = 1e-3  # Å


@dataclass(frozen=True, eq=False)
class AtomTable:
    """Atoms as both readers have them.

    Attributes
    ----------
    places : list of tuple
        Model, chain, residue number with insertion code.
    residues, conformers, names, elements : list of str
    sites : numpy.ndarray
        (n, 3) Å.
    occupancies, b : numpy.ndarray
        (n,)
    b_of_tensors : numpy.ndarray
        (n,) 8 pi^2 tr U / 3, NaN for atoms without a tensor.
    """

    places: Sequence[tuple[object, ...]]
    residues: Sequence[str]
    conformers: Sequence[str]
    names: Sequence[str]
    elements: Sequence[str]
    sites: npt.NDArray[np.float64]
    occupancies: npt.NDArray[np.float64]
    b: npt.NDArray[np.float64]
    b_of_tensors: npt.NDArray[np.float64]


def table_of_gemmi(structure: gemmi.Structure) -> AtomTable:
    """The atoms of all models."""
    rows = [
        ((number, chain.name, str(residue.seqid)), residue.name, atom)
        for number, model in enumerate(structure)
        for chain in model
        for residue in chain
        for atom in residue
    ]
    atoms = [atom for _, _, atom in rows]
    traces = np.array([atom.aniso.trace() if atom.aniso.nonzero() else np.nan for atom in atoms])
    return AtomTable(
        [place for place, _, _ in rows],
        [residue for _, residue, _ in rows],
        [atom.altloc.strip("\0 ") for atom in atoms],
        [atom.name for atom in atoms],
        [atom.element.name.upper() for atom in atoms],
        np.array([atom.pos.tolist() for atom in atoms]).reshape(-1, 3),
        np.array([atom.occ for atom in atoms], dtype=np.float64),
        np.array([atom.b_iso for atom in atoms], dtype=np.float64),
        EIGHT_PI_SQ / 3 * traces,
    )


def said_of_odd(table: AtomTable) -> list[str]:
    """One message for each kind of oddity."""
    occupancies = table.occupancies
    seen: dict[tuple[object, ...], set[str]] = {}
    groups = [(*place, name) for place, name in zip(table.places, table.names)]
    for group, conformer in zip(groups, table.conformers):
        seen.setdefault(group, set()).add(conformer)
    ratio = table.b_of_tensors / np.where(table.b > 0, table.b, np.nan)
    unlike = int(np.count_nonzero((ratio > _UNLIKE) | (ratio < 1 / _UNLIKE)))  # NaN is neither
    rounded = np.rint(table.sites / _SAME_PLACE).astype(np.int64).tolist()
    models = [place[0] for place in table.places]
    found = [
        ("with an occupancy above 1", int(np.count_nonzero(occupancies > _ABOVE))),
        (
            "whose conformations have occupancies that add up to more than 1",
            sum(len(seen[group]) > 1 for group, _ in _too_much(groups, occupancies)),
        ),
        (
            "that occur twice, in the same place; both scatter",
            sum(n - 1 for _, n in _too_much([(model, *site) for model, site in zip(models, rounded)], occupancies)),
        ),
        ("whose tensor is not that of their B factor, by more than a factor of 2", unlike),
    ]
    return [f"atoms {text}: {n}" for text, n in found if n] + _elements(table)


def _too_much(
    keys: Sequence[tuple[object, ...]], occupancies: npt.NDArray[np.float64]
) -> list[tuple[tuple[object, ...], int]]:
    """Keys of several atoms whose occupancies add up to more than 1, and how many atoms these are."""
    sums: dict[tuple[object, ...], list[float]] = {}
    for key, occupancy in zip(keys, occupancies.tolist()):
        sums.setdefault(key, []).append(occupancy)
    return [(key, len(some)) for key, some in sums.items() if len(some) > 1 and sum(some) > _MORE]


def _elements(table: AtomTable) -> list[str]:
    """Elements of standard amino acids and nucleotides against the names of their atoms."""
    standard = {name: gemmi.find_tabulated_residue(name).is_standard() for name in set(table.residues)}
    wanted: dict[tuple[str, str], str] = {}
    wrong = []
    for number, (residue, name, element) in enumerate(zip(table.residues, table.names, table.elements)):
        if not standard[residue] or not element:
            continue
        key = (name, residue)
        if key not in wanted:
            wanted[key] = element_from_name(name, residue)
        if wanted[key] and wanted[key] != element and {wanted[key], element} != {"H", "D"}:
            wrong.append(number)
    if not wrong:
        return []
    first = wrong[0]
    who = " ".join(str(word) for word in (table.names[first], table.residues[first], *table.places[first][1:]))
    return [
        f"atoms of amino acids or nucleotides whose element is not that of their name: {len(wrong)}, the first is {who} "
        f"({table.elements[first]})"
    ]
