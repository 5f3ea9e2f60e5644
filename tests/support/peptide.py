"""A peptide of given sequence and torsions, built atom by atom, without files."""

import math

import gemmi
import numpy as np

CELL = (24.0, 21.0, 27.0, 90.0, 104.0, 90.0)
_SIDE = {"ALA": (), "SER": (("OG", 1.42),), "GLY": None, "CYS": (("SG", 1.81),)}


def _place(a, b, c, length, angle, torsion):
    """The atom at a length from c, an angle at c, a torsion about b-c (degrees)."""
    angle, torsion = math.radians(angle), math.radians(torsion)
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    across = np.cross(normal, axis)
    return c + length * (
        -math.cos(angle) * axis + math.sin(angle) * (math.cos(torsion) * across + math.sin(torsion) * normal)
    )


def peptide(
    sequence=("ALA", "SER", "ALA", "SER", "ALA", "ALA", "SER", "ALA"), phi=-62.0, psi=-42.0, cell=CELL, group="P 1 21 1"
):
    """gemmi.Structure of one chain."""
    n, ca, c = np.array([0.0, 0, 0]), np.array([1.46, 0, 0]), np.array([2.0, 1.42, 0])
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*cell), group
    chain = gemmi.Chain("A")
    for number, name in enumerate(sequence, 1):
        if number > 1:
            n, ca, c = (
                (n2 := _place(n, ca, c, 1.33, 116.6, psi)),
                (ca2 := _place(ca, c, n2, 1.46, 121.7, 180.0)),
                _place(c, n2, ca2, 1.52, 111.0, phi),
            )
        residue = gemmi.Residue()
        residue.name, residue.seqid = name, gemmi.SeqId(str(number))
        atoms = [("N", n), ("CA", ca), ("C", c), ("O", _place(n, ca, c, 1.23, 120.0, psi + 180))]
        if _SIDE[name] is not None:
            beta = _beta(n, ca, c)
            atoms += [
                ("CB", beta),
                *((extra, _place(n, ca, beta, length, 110.0, 60.0)) for extra, length in _SIDE[name]),
            ]
        for atom_name, place in atoms:
            atom = gemmi.Atom()
            atom.name, atom.element = atom_name, gemmi.Element(atom_name[0])
            atom.pos, atom.b_iso, atom.occ = gemmi.Position(*(place + 8.0)), 12.0, 1.0
            residue.add_atom(atom)
        chain.add_residue(residue)
    model = gemmi.Model("1")
    model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    return structure


def _beta(n, ca, c):
    """CB of an L amino acid."""
    b, d = ca - n, c - ca
    return -0.58273431 * np.cross(b, d) + 0.56802827 * b - 0.54067466 * d + ca
