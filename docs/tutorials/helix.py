"""A made-up crystal for the tutorials: an alpha helix of 24 residues in P 21 21 21, as a model and simulated data."""

import math
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch

import gemmi
import numpy as np

CELL, GROUP = (25.0, 29.0, 44.0, 90.0, 90.0, 90.0), "P 21 21 21"
N_RESIDUES, D_MIN, NOISE = 24, 2.0, 0.03


def place(a, b, c, length, angle, torsion):
    """The atom that is bonded to c, at an angle with b and a torsion with a (degrees)."""
    angle, torsion = math.radians(angle), math.radians(torsion)
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    aside = np.cross(normal, along)
    return c + length * (
        -math.cos(angle) * along + math.sin(angle) * (math.cos(torsion) * aside + math.sin(torsion) * normal)
    )


def helix() -> gemmi.Structure:
    """Poly-alanine, phi -57, psi -47 degrees, in the middle of the cell along c."""
    n, ca = np.zeros(3), np.array([1.46, 0.0, 0.0])
    c = ca + 1.52 * np.array([-math.cos(math.radians(111)), math.sin(math.radians(111)), 0.0])
    residues = []
    for _ in range(N_RESIDUES):
        following = place(n, ca, c, 1.33, 116.6, -47)
        residues.append(
            {
                "N": n,
                "CA": ca,
                "C": c,
                "O": place(following, ca, c, 1.23, 120.5, 180),
                "CB": place(c, n, ca, 1.53, 110, 122),
            }
        )
        n, ca = following, place(ca, c, following, 1.46, 121.7, 180)
        c = place(residues[-1]["C"], n, ca, 1.52, 111, -57)
    sites = np.array([site for residue in residues for site in residue.values()])
    middle = sites - sites.mean(0)
    _, _, axes = np.linalg.svd(middle, full_matrices=False)
    turned = middle @ axes[[2, 1, 0]].T
    turned[:, 1] *= np.linalg.det(axes[[2, 1, 0]])  # no mirror image
    sites = turned + np.array(CELL[:3]) * [0.5, 0.5, 0.5]
    structure, chain = gemmi.Structure(), gemmi.Chain("A")
    for i in range(N_RESIDUES):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(i + 1))
        for j, name in enumerate(("N", "CA", "C", "O", "CB")):
            atom = gemmi.Atom()
            atom.name, atom.element, atom.occ = name, gemmi.Element(name[0]), 1.0
            atom.pos, atom.b_iso = gemmi.Position(*sites[5 * i + j]), 14.0 + 4.0 * (name in ("O", "CB"))
            residue.add_atom(atom)
        chain.add_residue(residue)
    number = "1" if gemmi.__version__ < "0.7" else 1
    structure.add_model(gemmi.Model(number))
    structure[0].add_chain(chain)
    structure.setup_entities()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*CELL), GROUP
    return structure


def bonds():
    """Pairs of atoms and their distances, (n, 2) and (n,) Å, and the same of 1-3 neighbors."""
    pairs = []
    for i in range(0, 5 * N_RESIDUES, 5):
        n, ca, c, o, cb, following = range(i, i + 6)
        pairs += [(n, ca), (ca, c), (c, o), (ca, cb), (n, c), (n, cb), (cb, c), (ca, o)]
        if following < 5 * N_RESIDUES:
            pairs += [(c, following), (ca, following), (o, following), (c, following + 1)]
    return torch.tensor(pairs)


def write(folder: Path, members) -> tuple[Path, Path]:
    """model.pdb, and data.mtz simulated from the average F of members (m, n, 3) and from their solvent."""
    model, data = Path(folder) / "model.pdb", Path(folder) / "data.mtz"
    structure = helix()
    structure.write_pdb(str(model))
    atoms = sfdiff.Atoms.from_gemmi(structure)
    crystal = atoms.crystal
    indices = crystal.build_miller_indices(D_MIN)
    truth = atoms.replace(sites_cart=members)
    f = sfdiff.structure_factors(truth, crystal, indices, accuracy=1e-6).mean(0)
    f = f + 0.35 * sfdiff.solvent_structure_factors(truth, crystal, indices).mean(0)
    generator = np.random.default_rng(0)
    f_obs = f.abs().numpy() * (1 + NOISE * generator.normal(size=len(indices)))
    free = np.where(generator.random(len(indices)) < 0.08, 0, 1)
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup(GROUP)
    mtz.set_cell_for_all(gemmi.UnitCell(*CELL))
    mtz.add_dataset("simulated")
    for label, kind in (("F", "F"), ("SIGF", "Q"), ("FreeR_flag", "I")):
        mtz.add_column(label, kind)
    sigmas = NOISE * np.abs(f_obs) + 0.5
    mtz.set_data(np.column_stack([indices.numpy(), np.abs(f_obs), sigmas, free]).astype(np.float32))
    mtz.write_to_file(str(data))
    return model, data
