"""Links of a chain that are stretched: residues that follow one another in the sequence are bonded, also where the model is far off.

gemmi links them where C and N are within 2.01 Å, O3' and P within 2.4 Å, and takes others for ends of a chain. A model that has been shaken, or
was built by hand, has some beyond: nothing would pull them together, and repulsion would keep them apart. For as long as gemmi looks at
the model, the second atom of such a link stands near the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import gemmi
import numpy as np

#: Bonded atoms of neighbors in a chain: names, the bond, gemmi's limit, and up to where a gap is taken for a stretched bond, Å.
_LINKS = (
    (("C",), "N", 1.33, 2.01, 3.5),
    (("O3'", "O3*"), "P", 1.6, 2.4, 4.2),
)
_X_H = 1.3  # Å


@contextlib.contextmanager
def joined(model: gemmi.Model) -> Iterator[list[str]]:
    """Stretched links of a model of bonding length while the context lasts; afterwards the atoms, with their hydrogens, stand where they stood.

    Parameters
    ----------
    model : gemmi.Model
        Of a structure whose entities are set up. It is changed and changed back.

    Yields
    ------
    list of str
        What there is to say of each, such as ``A 29-30 (2.31 Å)``.

    Examples
    --------
    >>> import gemmi
    >>> from mmtbx_sfdiff.geometry.chain_links import joined
    >>> model = gemmi.read_structure("model.pdb")[0]
    >>> with joined(model) as links:
    ...     links
    []
    """
    moved: list[tuple[gemmi.Residue, str, str, np.ndarray, np.ndarray]] = []
    words = []
    for chain in model:
        for before, after in _neighbors(chain):
            for first, second, length, distance in _stretched(before, after):
                a, b = np.array(first.pos.tolist()), np.array(second.pos.tolist())
                shift = (a - b) * (1 - length / distance)
                second.pos = gemmi.Position(*(b + shift))
                moved.append((after, second.name, second.altloc, b, shift))
                words.append(f"{chain.name} {before.seqid}-{after.seqid} ({distance:.2f} Å)")
    try:
        yield words
    finally:
        for entry in moved:
            _put_back(*entry)


def _neighbors(chain: gemmi.Chain) -> Iterator[tuple[gemmi.Residue, gemmi.Residue]]:
    """Residues of a polymer that follow one another in its sequence."""
    earlier: list[gemmi.Residue] = []
    present: list[gemmi.Residue] = []
    for residue in chain.get_polymer():
        if present and residue.seqid != present[0].seqid:
            earlier, present = present, []
        present.append(residue)
        for before in earlier:
            if _follows(before, residue):
                yield before, residue


def _follows(before: gemmi.Residue, after: gemmi.Residue) -> bool:
    if before.label_seq is not None and after.label_seq is not None:
        return bool(after.label_seq == before.label_seq + 1)
    step = (after.seqid.num or 0) - (before.seqid.num or 0)
    return bool(step == 1 or (step == 0 and after.seqid.icode != before.seqid.icode))


def _stretched(before: gemmi.Residue, after: gemmi.Residue) -> Iterator[tuple[gemmi.Atom, gemmi.Atom, float, float]]:
    """(first, second, the bond's length, the distance) of links beyond gemmi's limit."""
    for names, name, length, known, limit in _LINKS:
        first = [atom for atom in before if atom.name in names]
        second = [atom for atom in after if atom.name == name]
        for b in second:
            same = [a for a in first if a.altloc == b.altloc or "\0" in (a.altloc, b.altloc)]
            distances = [a.pos.dist(b.pos) for a in same]
            if distances and known <= min(distances) < limit:
                nearest = int(np.argmin(distances))
                yield same[nearest], b, length, distances[nearest]


def _put_back(residue: gemmi.Residue, name: str, altloc: str, place: np.ndarray, shift: np.ndarray) -> None:
    atom = next(a for a in residue if a.name == name and a.altloc == altloc)
    for hydrogen in [h for h in residue if h.is_hydrogen() and h.pos.dist(atom.pos) < _X_H]:
        hydrogen.pos = gemmi.Position(*(np.array(hydrogen.pos.tolist()) - shift))
    atom.pos = gemmi.Position(*place)
