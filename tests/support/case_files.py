"""Small files of kinds that people have: a model, and data summed from it, written in one way or another."""

from mmtbx_sfdiff.files import read_model

import gemmi
import numpy as np
from cctbx import crystal
from cctbx.array_family import flex

CELL = (28.0, 31.0, 36.0, 90.0, 90.0, 90.0)
SYMMETRY = crystal.symmetry(CELL, "P 21 21 21")
GROUP = gemmi.SpaceGroup("P 21 21 21")
CRYST1 = "CRYST1   28.000   31.000   36.000  90.00  90.00  90.00 P 21 21 21    4\n"
NAMES = ("N", "CA", "C", "O", "CB")


def atoms(n_residues=8, seed=0):
    """Rows (name, residue, number, x, y, z, occupancy, B)."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(1, n_residues + 1):
        for i, name in enumerate(NAMES):
            t = 1.75 * number + 0.35 * i
            x, y = 12 + 2.3 * np.cos(t) + 0.5 * i, 14 + 2.3 * np.sin(t) - 0.3 * i
            rows.append((name, "ALA", number, x, y, 3 + 1.5 * number + 0.4 * i, 1.0, 10 + 10 * rng.random()))
    for number in range(3):
        rows.append(("O", "HOH", n_residues + 1 + number, *(5 + 15 * rng.random(3)), 1.0, 30.0))
    return rows


def pdb_text(rows=None, header="", cryst1=CRYST1, scale=""):
    lines = [header, cryst1, scale]
    for i, (name, residue, number, x, y, z, occupancy, b) in enumerate(rows or atoms(), 1):
        lines.append(
            f"ATOM  {i:5d}  {name:<3} {residue} A{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}{b:6.2f}"
            f"          {name[0]:>2}  \n"
        )
    return "".join(lines) + "END\n"


SYMMETRY_ITEMS = "".join(
    f"_cell.{name} {value}\n"
    for name, value in zip(("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), CELL)
)
HM = "_symmetry.space_group_name_H-M 'P 21 21 21'\n"


def cif_columns(rows=None):
    """The atom_site loop as {item: texts}."""
    rows = rows or atoms()
    n = len(rows)
    columns = {
        "group_PDB": ["ATOM"] * n,
        "id": [str(i + 1) for i in range(n)],
        "type_symbol": [row[0][0] for row in rows],
        "label_atom_id": [row[0] for row in rows],
        "label_alt_id": ["."] * n,
        "label_comp_id": [row[1] for row in rows],
        "label_asym_id": ["A"] * n,
        "label_seq_id": [str(row[2]) if row[1] != "HOH" else "." for row in rows],
        "pdbx_PDB_ins_code": ["?"] * n,
        "Cartn_x": [f"{row[3]:.3f}" for row in rows],
        "Cartn_y": [f"{row[4]:.3f}" for row in rows],
        "Cartn_z": [f"{row[5]:.3f}" for row in rows],
        "occupancy": [f"{row[6]:.2f}" for row in rows],
        "B_iso_or_equiv": [f"{row[7]:.2f}" for row in rows],
        "pdbx_formal_charge": ["?"] * n,
        "auth_seq_id": [str(row[2]) for row in rows],
        "auth_comp_id": [row[1] for row in rows],
        "auth_asym_id": ["A"] * n,
        "auth_atom_id": [row[0] for row in rows],
        "pdbx_PDB_model_num": ["1"] * n,
    }
    return columns


def loop(category, columns):
    lines = ["loop_", *(f"{category}.{name}" for name in columns)]
    return "\n".join(lines + [" ".join(row) for row in zip(*columns.values())]) + "\n#\n"


def cif_text(columns=None, symmetry=SYMMETRY_ITEMS + HM, more=""):
    return "data_self\n" + symmetry + loop("_atom_site", columns or cif_columns()) + more


def amplitudes(folder, d_min=2.5, anomalous=False):
    """(n, 3) indices and (n,) exact amplitudes of the model, unmerged mates if anomalous."""
    path = folder / "amplitudes_of.pdb"
    path.write_text(pdb_text())
    structure = read_model(path).xray_structure
    f = abs(structure.structure_factors(d_min=d_min, anomalous_flag=anomalous, algorithm="direct").f_calc())
    return np.array(list(f.indices())), f.data().as_numpy_array()


def write_mtz(path, indices, columns, index_names="HKL", index_types="HHH", index_first=True, cell=CELL):
    """``columns``: {label: (type, values)}."""
    mtz = gemmi.Mtz(with_base=False)
    mtz.spacegroup = GROUP
    mtz.set_cell_for_all(gemmi.UnitCell(*cell))
    mtz.add_dataset("made")
    order = [(name, kind, indices[:, i]) for i, (name, kind) in enumerate(zip(index_names, index_types))]
    others = [(label, kind, values) for label, (kind, values) in columns.items()]
    order = order + others if index_first else others + order
    for label, kind, _ in order:
        mtz.add_column(label, kind)
    mtz.set_data(np.stack([np.asarray(values, dtype=np.float32) for _, _, values in order], axis=1))
    mtz.set_cell_for_all(gemmi.UnitCell(*cell))
    mtz.write_to_file(str(path))
    return path


def sf_block(indices, columns, name="r9xyzsf", cell=CELL, group="P 21 21 21"):
    """A block of a structure-factor CIF; ``columns``: {tag: texts or numbers}."""
    items = "".join(
        f"_cell.{item} {value}\n"
        for item, value in zip(("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), cell)
    )
    texts = {f"index_{axis}": [str(h) for h in indices[:, i]] for i, axis in enumerate("hkl")}
    for tag, values in columns.items():
        texts[tag] = [value if isinstance(value, str) else f"{value:.6g}" for value in values]
    return f"data_{name}\n{items}_symmetry.space_group_name_H-M '{group}'\n" + loop("_refln", texts)


def some_flags(n, every=12):
    """(n,) 1 for every twelfth reflection."""
    return (np.arange(n) % every == 0).astype(int)


def sites(structure):
    return flex.vec3_double(structure.sites_cart()).as_double().as_numpy_array().reshape(-1, 3)
