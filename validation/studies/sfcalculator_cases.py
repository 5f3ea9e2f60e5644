"""Where SFcalculator_torch 0.3.3 and this package's interface of it differ, case by case, and which is right.

    python -m validation.studies.sfcalculator_cases --python E/bin/python [--csv TABLE.csv]

Small models, made here, go through both (:mod:`.sfcalculator_cases_worker`, in environments of their own).  F is judged by
cctbx's direct summation over the same atoms (``xray.structure``: multiplicities by the space group, form factors of the charge);
a batch's masks by those of the same model behind other ones; flags by counting them in the file.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mmtbx_sfdiff.files.writing import write_all

import gemmi
import numpy as np
from cctbx import crystal, miller, xray
from cctbx.array_family import flex

WORKER = Path(__file__).with_name("sfcalculator_cases_worker.py")
CELL, GROUP = (30.0, 34.0, 40.0, 90.0, 90.0, 90.0), "P 21 21 2"


def _chain(seed: int = 0, n: int = 60) -> list[tuple[str, int, tuple[float, float, float], float]]:
    """(element, charge, site in Å, B) of a compact body of atoms."""
    rng = np.random.default_rng(seed)
    lattice = 2.2 * np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    lattice = lattice[np.argsort(np.linalg.norm(lattice, axis=1), kind="stable")[:n]]
    sites = np.round(np.array(CELL[:3]) * 0.25 + lattice + 0.2 * rng.normal(size=(n, 3)), 3)
    return [(e, 0, tuple(x), 20.0) for e, x in zip(rng.choice(["C", "N", "O"], n), sites.tolist())]


def _models() -> dict[str, list]:
    general = _chain()
    axis = [("O", 0, (0.0, 0.0, z), 15.0) for z in (8.0, 23.0)]  # on the twofold axis of P 21 21 2
    ions = [("Zn", 2, (8.0, 3.0, 21.0), 12.0), ("Ca", 2, (21.0, 9.0, 4.0), 15.0), ("Cl", -1, (14.0, 27.0, 33.0), 20.0)]
    return {"general": general, "special": general[:10] + axis, "ions": general[:10] + ions}


def write(folder: Path) -> None:
    for name, atoms in _models().items():
        structure = gemmi.Structure()
        structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*CELL), GROUP
        model = gemmi.Model("1") if gemmi.__version__ < "0.7" else gemmi.Model(1)
        chain = gemmi.Chain("A")
        for number, (element, charge, site, b) in enumerate(atoms, 1):
            residue, atom = gemmi.Residue(), gemmi.Atom()
            ion = element.upper() in ("ZN", "CA", "CL")
            residue.name, residue.seqid = (element.upper() if ion else "HOH"), gemmi.SeqId(str(number))
            residue.het_flag = "H"
            atom.name, atom.element, atom.charge = element.upper(), gemmi.Element(element), charge
            atom.pos, atom.b_iso, atom.occ = gemmi.Position(*site), b, 1.0
            residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)
        structure.add_model(model)
        structure.write_pdb(str(folder / f"{name}.pdb"))
    group = gemmi.SpaceGroup(GROUP)
    indices = np.array(gemmi.make_miller_array(gemmi.UnitCell(*CELL), group, 2.5))
    f = np.abs(exact("general", indices))
    flags = np.minimum(np.random.default_rng(1).integers(0, 20, len(f)), 1)
    for name, columns in (("data", [f, 0.03 * f, flags]), ("noflags", [f, 0.03 * f])):
        mtz = gemmi.Mtz(with_base=True)
        mtz.spacegroup = group
        mtz.set_cell_for_all(gemmi.UnitCell(*CELL))
        mtz.add_dataset("data")
        for label, kind in (("FP", "F"), ("SIGFP", "Q"), ("FreeR_flag", "I"))[: len(columns)]:
            mtz.add_column(label, kind)
        mtz.set_data(np.column_stack([indices, *columns]).astype(np.float32))
        mtz.write_to_file(str(folder / f"{name}.mtz"))


def exact(name: str, indices: np.ndarray) -> np.ndarray:
    """cctbx's direct summation."""
    symmetry = crystal.symmetry(CELL, GROUP)
    structure = xray.structure(crystal_symmetry=symmetry)
    for number, (element, charge, site, b) in enumerate(_models()[name]):
        kind = element + (f"{abs(charge)}{'+' if charge > 0 else '-'}" if charge else "")
        place = symmetry.unit_cell().fractionalize(site)
        structure.add_scatterer(
            xray.scatterer(f"{element}{number}", place, b / (8 * np.pi**2), 1.0, scattering_type=kind)
        )
    structure.scattering_type_registry(table="it1992")
    wanted = miller.set(symmetry, flex.miller_index(list(map(tuple, indices.tolist()))), anomalous_flag=False)
    found = wanted.structure_factors_from_scatterers(structure, algorithm="direct", cos_sin_table=False).f_calc()
    return found.data().as_numpy_array()


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare(python: str) -> list[dict]:
    """Rows: case, quantity, ours, theirs, the oracle."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        found = {}
        for side, interpreter in (("ours", sys.executable), ("published", python)):
            out = folder / f"{side}.npz"
            done = subprocess.run(
                [interpreter, str(WORKER), side, str(folder), str(out)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{side}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
            found[side] = dict(np.load(out)), json.loads(out.with_suffix(".json").read_text())
        rows = []

        def row(case, quantity, values, oracle):
            rows.append({"case": case, "quantity": quantity, **dict(zip(("ours", "theirs"), values)), "oracle": oracle})

        sides = [found["ours"], found["published"]]
        for case in ("general", "special", "ions"):
            errors = [_distance(x[f"{case}_f"], exact(case, x[f"{case}_indices"].astype(int))) for x, _ in sides]
            row(case, "relative error of F", errors, "cctbx direct")
        for case in ("shrunk", "swollen"):
            errors = [_distance(x[f"batch_{case}"], x["batch_same"]) for x, _ in sides]
            row(f"batch, first model {case}", "change of F_mask of the second", errors, "0: the same model")
        flags = np.array(gemmi.read_mtz_file(str(folder / "data.mtz")).column_with_label("FreeR_flag"))
        for case in sides[0][1]:
            count = {"test value 0": (flags == 0).sum(), "test value 1": (flags == 1).sum()}.get(case)
            oracle = f"{count} of {len(flags)} by counting" if count is not None else ""
            answers = []
            for _, words in sides:
                answer = words[case]
                told = answer["error"] or "; ".join(answer["said"]) or "nothing said"
                told = told.replace(f"{folder}/", "").rpartition(" | ")[2]
                answers.append(f"{answer['free']} free; {told}" if answer["error"] is None else told)
            row(case, "what happens", answers, oracle)
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of an environment with SFcalculator-torch 0.3.3")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    rows = compare(options.python)
    for row in rows:
        ours, theirs = (f"{x:.2g}" if isinstance(x, float) else x for x in (row["ours"], row["theirs"]))
        print(f"{row['case']}: {row['quantity']} ({row['oracle']})\n    ours    {ours}\n    theirs  {theirs}")
    if options.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.2g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        write_all({options.csv: text.getvalue().encode()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
