"""A small made-up crystal as files: a model, and amplitudes summed from it with solvent."""

from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch

import gemmi
import numpy as np

CELL, GROUP = (30.0, 34.0, 40.0, 90.0, 90.0, 90.0), "P 21 21 21"


def structure(n_residues=16, seed=3) -> gemmi.Structure:
    """A chain of alanines with a cysteine, in a random walk; and three waters."""
    rng = np.random.default_rng(seed)
    chain = gemmi.Chain("A")
    ca, direction = np.array([10.0, 12.0, 14.0]), np.array([1.0, 0.0, 0.0])
    for i in range(n_residues):
        residue = gemmi.Residue()
        residue.name, residue.seqid = ("CYS" if i == 4 else "ALA"), gemmi.SeqId(str(i + 1))
        direction = direction + rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        ca = ca + 3.8 * direction
        ca = 4 + np.mod(ca - 4, np.array(CELL[:3]) - 8)
        side = np.cross(direction, rng.normal(size=3))
        side /= np.linalg.norm(side)
        places = {"N": -1.46 * direction, "CA": 0 * ca, "C": 1.52 * direction, "O": 1.52 * direction + 1.23 * side}
        places["CB"] = -1.53 * side
        if i == 4:
            places["SG"] = -1.53 * side - 1.8 * direction
        for name, shift in places.items():
            residue.add_atom(_atom(name, name[0], ca + shift, 15 + 10 * rng.random()))
        chain.add_residue(residue)
    water = gemmi.Chain("W")
    for i in range(3):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "HOH", gemmi.SeqId(str(i + 1))
        residue.add_atom(_atom("O", "O", np.array(CELL[:3]) * rng.random(3), 30.0))
        water.add_residue(residue)
    model = gemmi.Structure()
    model.add_model(gemmi.Model("1") if gemmi.__version__ < "0.7" else gemmi.Model(1))
    model[0].add_chain(chain)
    model[0].add_chain(water)
    model.setup_entities()
    model.cell, model.spacegroup_hm = gemmi.UnitCell(*CELL), GROUP
    return model


def _atom(name, element, position, b) -> gemmi.Atom:
    atom = gemmi.Atom()
    atom.name, atom.element, atom.pos = name, gemmi.Element(element), gemmi.Position(*position)
    atom.b_iso, atom.occ = float(b), 1.0
    return atom


def write_crystal(folder: Path, d_min=2.2, noise=0.02) -> tuple[Path, Path]:
    """model.pdb, and data.mtz with FP, SIGFP and FreeR_flag (0: the test set), the rows in an order of their own."""
    model, data = folder / "model.pdb", folder / "data.mtz"
    structure().write_pdb(str(model))
    atoms = sfdiff.Atoms.from_gemmi(gemmi.read_structure(str(model)))
    rng = np.random.default_rng(0)
    group = gemmi.SpaceGroup(GROUP)
    indices = np.array(gemmi.make_miller_array(gemmi.UnitCell(*CELL), group, d_min))
    indices = indices[rng.permutation(len(indices))]
    where = torch.as_tensor(indices, dtype=torch.int64)
    f = sfdiff.structure_factors(atoms, atoms.crystal, where, method="direct")
    f = f + 0.4 * sfdiff.solvent_structure_factors(atoms, atoms.crystal, where)
    s_sq = atoms.crystal.d_star_sq(where)
    amplitudes = (f.abs() * torch.exp(-5 * s_sq / 4)).numpy() * np.exp(noise * rng.normal(size=len(indices)))
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = group
    mtz.set_cell_for_all(gemmi.UnitCell(*CELL))
    mtz.add_dataset("data")
    for label, kind in (("FP", "F"), ("SIGFP", "Q"), ("FreeR_flag", "I")):
        mtz.add_column(label, kind)
    columns = [indices, amplitudes, noise * amplitudes, np.minimum(rng.integers(0, 20, len(indices)), 1)]
    mtz.set_data(np.column_stack(columns).astype(np.float32))
    mtz.write_to_file(str(data))
    return model, data
